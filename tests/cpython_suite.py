"""CPython's own tests of `concurrent.futures`, for BalsamExecutor: where their source is, and which of them are left out.

The page docs/clients/concurrent_futures.rst prints the two tables; `tests/e2e/test_concurrent_futures.py` runs the rest.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

#: The classes with tests of an executor; FutureTests and the like test the base class, which is Python's.
CLASSES = (
    "ProcessPoolExecutorTest", "WaitTests", "AsCompletedTests", "ProcessPoolShutdownTest", "InitializerMixin",
    "FailingInitializerMixin", "ExecutorDeadlockTest",
)  # fmt: skip

_INTERNALS = "looks at the processes and queues inside of a ProcessPoolExecutor"
_SCRIPT = (
    "runs a script that imports the class from concurrent.futures; our tests run such scripts with BalsamExecutor(launcher=…)"
)
_SHARED = "shares a lock or a manager of multiprocessing with its calls, which no process of another origin can use"

#: Tests that are left out, with the reason.
SKIPPED = {
    "test_interpreter_shutdown": _SCRIPT,
    "test_submit_after_interpreter_shutdown": _SCRIPT,
    "test_hang_gh83386": _SCRIPT,
    "test_python_finalization_error": _SCRIPT,
    "test_hang_gh94440": _INTERNALS,
    "test_processes_terminate": _INTERNALS,
    "test_context_manager_shutdown": _INTERNALS,
    "test_del_shutdown": _INTERNALS,
    "test_shutdown_no_wait": _INTERNALS,
    "test_idle_process_reuse_one": _INTERNALS,
    "test_idle_process_reuse_multiple": _INTERNALS,
    "test_max_tasks_per_child": _INTERNALS,
    "test_max_tasks_per_child_defaults_to_spawn_context": _INTERNALS,
    "test_saturation": _SHARED,
    "test_ressources_gced_in_workers": _SHARED,
    "test_killed_child": "expects that one killed process breaks the pool; here it costs its call only",
    "test_traceback": "expects a private class as the cause of an exception; here it is a RemoteError with the same text",
    "test_cancel_futures": "expects that a call has started at once; here all are cancelled that no launcher has started yet",
    "test_error_at_task_pickle": "expects the error in the future; here submit raises it",
    "test_shutdown_deadlock": _INTERNALS,
    "test_shutdown_deadlock_pickle": _INTERNALS,
    "test_crash_big_data": _INTERNALS,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _INTERNALS,
    "test_max_workers_too_large": "is about Windows",
}

#: What is different in the tests that run.
ADAPTED = {
    "ExecutorDeadlockTest": "a call that crashes, exits or cannot be read fails with TaskFailed or its own exception, not with "
    "BrokenProcessPool, and the executor goes on",
}


def source() -> Path | None:
    """Return the file or directory with the tests for this Python; None if they are not installed."""
    version = sysconfig.get_python_version()
    for library in (sysconfig.get_path("stdlib"), f"/usr/lib/python{version}"):
        for name in ("test_concurrent_futures", "test_concurrent_futures.py"):
            path = os.path.join(library, "test", name)
            if os.path.exists(path):
                return Path(path)
    return None

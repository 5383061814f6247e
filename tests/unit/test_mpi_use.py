"""Messages of srun and Hydra's mpiexec that started nothing, or lost a node; and output of programs."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from balsam_lite.launcher.exec.invocation import BUSY, CONTACT, NODE, REFUSED
from balsam_lite.launcher.mpirun.flavours import HYDRA, SRUN, TRANSIENT, Diagnosis
from balsam_lite.launcher.run_results import ResultReader

#: Printed by Slurm 22.05.8 and MPICH 5.0.2.
NO_BINDING = "srun: cluster configuration lacks support for cpu binding\n"
REFUSED_GPUS = "srun: error: Unable to create step for job 7: Invalid generic resource (gres) specification\n"
NOT_REACHED = (
    "srun: error: Task launch for StepId=1.4 failed on node node2: Communication connection failure\n"
    "srun: error: Application launch failed: Communication connection failure\nsrun: Job step aborted\n"
)
WRITE_ERROR = "[mpiexec@node1] HYDU_sock_write (/mpich/sock.c:250): write error (Bad file descriptor)\n"
NODE_DIED = "srun: error: Node failure on node2\nsrun: error: node1: task 0: Killed\n"
PROXY_GONE = "[mpiexec@node1] control_cb (/mpich-5.0.2/src/pm/hydra/mpiexec/pmiserv_cb.c:280): assert (!closed) failed\n"
TASK_FAILED = "srun: error: node1: task 0: Exited with exit code 1\n"


@pytest.mark.parametrize(
    ("diagnosis", "output", "kind", "hosts"),
    [
        (SRUN, NO_BINDING + REFUSED_GPUS, REFUSED, ()),
        (SRUN, "srun: error: Unable to create step for job 7: Requested nodes are busy\n", BUSY, ()),
        (SRUN, "srun: error: Unable to create step for job 7: Job/step already completing or completed\n", BUSY, ()),
        (SRUN, "srun: error: Unable to create step for job 1: Requested node configuration is not available\n", NODE, ()),
        (SRUN, "srun: error: Unable to confirm allocation for job 7: Invalid job id specified\n", BUSY, ()),
        (SRUN, NO_BINDING + NOT_REACHED, NODE, ("node2",)),
        (SRUN, "step 17 of 20\n" + NODE_DIED, NODE, ("node2",)),
        (HYDRA, REFUSED_GPUS + WRITE_ERROR, REFUSED, ()),
        (HYDRA, NOT_REACHED, NODE, ("node2",)),
        (HYDRA, "step 17 of 20\n" + PROXY_GONE, CONTACT, ()),
    ],
)
def test_the_commands_own_words_tell_what_they_could_not_do(
    diagnosis: Diagnosis, output: str, kind: str, hosts: tuple[str, ...]
) -> None:
    failure = diagnosis.read(output)
    assert failure is not None
    assert (failure.kind, failure.hosts) == (kind, hosts)
    assert failure.words in output.splitlines()
    assert failure.had_started == ("step 17" in output)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "\n\n",
        "Segmentation fault\n",
        NO_BINDING + TASK_FAILED,
        REFUSED_GPUS + TASK_FAILED,  # of an srun inside the program
        "starting\n" + REFUSED_GPUS,  # likewise
        "srun: unrecognized option '--nonsense'\nTry \"srun --help\" for more information\n",  # the job's own flags
    ],
)
@pytest.mark.parametrize("diagnosis", [SRUN, HYDRA])
def test_what_a_program_says_is_not_taken_for_the_commands_words(diagnosis: Diagnosis, output: str) -> None:
    assert diagnosis.read(output) is None


def test_a_part_of_an_output_does_not_tell_that_nothing_was_started() -> None:
    assert SRUN.read(REFUSED_GPUS, is_whole=False) is None
    assert SRUN.read(NODE_DIED, is_whole=False) is not None


def test_the_errors_that_pass_are_texts_of_slurm_and_of_the_system() -> None:
    found = next(iter(Path("/usr").glob("lib*/**/libslurmfull.so")), None)
    if found is None:
        pytest.skip("Slurm is not installed")
    library = ctypes.CDLL(str(found))
    library.slurm_strerror.restype = ctypes.c_char_p
    texts = [library.slurm_strerror(number).decode() for number in range(1000, 10000)]
    texts += [os.strerror(number) for number in errno.errorcode]
    assert [begin for begin in TRANSIENT if not any(text.startswith(begin) for text in texts)] == []


def test_a_call_of_which_no_place_is_known_has_an_end_like_any_other() -> None:
    run: Any = SimpleNamespace(place=None)
    assert ResultReader.start_failure(cast(Any, None), run, 1) is None

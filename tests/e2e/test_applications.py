"""Applications that are Python classes: what is checked, stored and found again; functions, hooks and preambles in jobs."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import wait_until
from launching import PYTHON, Bench
from mpi import CAREFUL, with_mpi
from ranks import Ensemble

from balsam_lite.api import App, ApplicationDefinition, Job
from balsam_lite.core import import_guard, states
from balsam_lite.core.errors import (
    ApplicationLost,
    BalsamError,
    InvalidApplication,
    InvalidRun,
    InvalidSpec,
    NotFound,
    RemoteError,
    TaskFailed,
    TemplateError,
    UnknownApp,
    UnknownSite,
)
from balsam_lite.core.process_table import below, read_proc
from balsam_lite.db.engine import registry
from balsam_lite.db.store import exit_rules, user_actions
from balsam_lite.launcher import dag, resources
from balsam_lite.launcher.exec import invocation
from balsam_lite.launcher.main import run_launcher
from balsam_lite.launcher.multinode.supervisor import run_parts
from balsam_lite.pyapps import class_loader, payload, ranks, result_file, run_class
from balsam_lite.pyapps.payload import ClassRef

HEADER = "from balsam_lite.api import ApplicationDefinition, Job, BatchJob\n"


def written(folder, name, code):
    """A file with applications."""
    path = folder / f"{name}.py"
    path.write_text(HEADER + textwrap.dedent(code))
    return path


def imported(path):
    """The module of a file, as an `import` of its name gives it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site called `here`, whose DB is active."""
    bench = Bench(tmp_path)
    registry.add(bench.directory, "here")
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = set(sys.modules)
    yield bench
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    bench.close()


# --- the class --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"command_template": "p"}, InvalidApplication, "must contain the `site` attribute, set to a site id, name, or Site"),
        ({"site": None, "command_template": "p"}, InvalidApplication, "must contain the `site` attribute"),
        ({"site": "s"}, InvalidApplication, "must define either a `run` function or a `command_template`"),
        ({"site": "s", "command_template": "p", "run": lambda self: 1}, InvalidApplication, "must not define both"),
        ({"site": "s", "command_template": "p {{ a"}, TemplateError, "(line 1)"),
        ({"site": "s", "command_template": "p {{ a | no }}"}, TemplateError, "No filter named 'no'"),
        ({"site": "s", "command_template": 3}, InvalidApplication, "is no text: 3"),
        ({"site": "s", "command_template": "p", "parameters": {"a b": {}}}, InvalidApplication, "valid Python identifiers"),
        (
            {"site": "s", "command_template": "p", "parameters": {"a": {"required": True}}},
            InvalidApplication,
            "extraneous keys",
        ),
        (
            {"site": "s", "command_template": "p {{ a }}", "parameters": {"a": {}}},
            InvalidApplication,
            "must set 'required' key",
        ),
        (
            {"site": "s", "command_template": "p {{ a }}", "parameters": {"a": {"required": False}}},
            InvalidApplication,
            "optional parameter a must set a 'default' value",
        ),
        ({"site": "s", "command_template": "p", "parameters": []}, InvalidApplication, "no dictionary"),
        ({"site": "s", "run": lambda: 1}, InvalidRun, "App.run() is missing the `self` argument"),
        ({"site": "s", "run": lambda x: 1}, InvalidRun, "App.run(x) is missing the `self` argument"),
        ({"site": "s", "run": staticmethod(lambda self: 1)}, InvalidRun, "plain function"),
        ({"site": "s", "run": lambda self, *a: 1}, InvalidRun, "by position"),
        ({"site": "s", "run": lambda self, a: 1, "parameters": {"b": {"required": True}}}, InvalidApplication, "extraneous"),
        ({"site": "s", "command_template": "p", "transfers": {"x": {}}}, InvalidApplication, "has no 'required'"),
    ],
)
def test_a_class_that_cannot_be_an_application_is_refused_where_it_is_defined(body, kind, words):
    with pytest.raises(kind) as caught:
        type("App", (ApplicationDefinition,), body)
    assert words in str(caught.value)
    assert isinstance(caught.value, (AttributeError, TypeError, ValueError))


def test_parameters_come_from_the_class_the_template_and_the_signature():
    given = {"b": {"required": False, "default": "2", "help": "second"}}
    made = type("T", (ApplicationDefinition,), {"site": 1, "command_template": "p {{ a }} {{ b }}", "parameters": given})
    assert made.parameters == {"a": {"required": True}, **given}
    made = type("F", (ApplicationDefinition,), {"site": 1, "run": lambda self, a, b, c=3, **more: 1, "parameters": given})
    assert made.parameters == {"a": {"required": True}, **given, "c": {"required": False}}


# --- what is stored, and found again ----------------------------------------------------------------------------------


def test_sync_stores_where_the_class_is_and_changes_what_was_stored_before(site, tmp_path):
    path = written(
        tmp_path,
        "first",
        '''
        class Hello(ApplicationDefinition):
            """
            Says hello.
            """
            site = "here"
            command_template = "echo {{ name }}"
            environment_variables = {"LANG": "C"}
            exit_0_is_done_after_stop = True
            def postprocess(self): pass
            def handle_timeout(self): pass
        ''',
    )
    made = imported(path).Hello
    made.sync()
    stored = App.objects.get(name="Hello")
    assert (stored.kind, stored.description, stored.command_template) == ("template", "Says hello.", "echo {{ name }}")
    assert stored.exit_0_is_done_after_stop is True
    assert stored.environ_vars == {"LANG": "C"} and stored.parameters == {"name": {"required": True}}
    assert stored.definition["file"] == str(path) and stored.definition["class"] == "Hello"
    assert str(tmp_path) in stored.definition["path"] and not any(sys.prefix in one for one in stored.definition["path"])
    assert shlex.split(stored.postprocess) == payload.program_words(sys.executable, payload.HOOK, "postprocess")
    assert stored.handle_timeout.endswith(" handle_timeout")
    assert (stored.preprocess, stored.handle_error, stored.executable) == ("", "", "")

    job = made.submit("a/b", tags={"k": "v"}, name="it", ranks_per_node=2)
    assert (job.get_parameters(), job.tags, job.ranks_per_node) == ({"name": "it"}, {"k": "v"}, 2)
    assert made.submit("a/c", name=Path("x/y"), save=False).id is None

    path.write_text(HEADER + "class Howdy(ApplicationDefinition):\n    site = 'here'\n    def run(self, n=1): return n\n")
    imported(path).Howdy.sync(rename_from="Hello")
    changed = App.objects.get(name="Howdy")
    assert (changed.id, changed.kind, changed.command_template, changed.postprocess) == (stored.id, "function", "", "")
    assert Job.objects.get(id=job.id).app_id == stored.id
    assert ApplicationDefinition.load_by_id(changed.id).run(None) == 1
    assert list(ApplicationDefinition.load_by_site("here")) == ["Howdy"]


def test_an_application_that_is_overwritten_by_a_command_line_is_no_class_any_more(site, tmp_path):
    imported(
        written(tmp_path, "over", "class Over(ApplicationDefinition):\n    site = 'here'\n    command_template = 'false'\n")
    ).Over.sync()
    dag.add_app("Over", "true")
    stored = App.objects.get(name="Over")
    assert (stored.kind, stored.definition, stored.command_template, stored.executable) == ("command", {}, "", "true")


def test_submit_refuses_wrong_parameters_and_unknown_sites(site, tmp_path):
    made = type("T", (ApplicationDefinition,), {"site": "here", "command_template": "p {{ a }}"})
    with pytest.raises(InvalidSpec, match=r"Missing required parameters: \{'a'\}"):
        made.submit("x")
    with pytest.raises(InvalidSpec, match=r"Extraneous parameters: \{'b'\}"):
        made.submit("x", a=1, b=2)
    with pytest.raises(InvalidSpec, match="text, numbers"):
        made.submit("x", a={1, 2})
    assert Job.objects.count() == 0
    with pytest.raises(UnknownSite):
        type("T", (ApplicationDefinition,), {"site": "nowhere", "command_template": "p"}).sync()


def test_a_class_in_no_file_may_have_a_template_but_no_functions(site, monkeypatch):
    console = type(sys)("console")
    monkeypatch.setitem(sys.modules, "console", console)
    body = {"site": "here", "command_template": "p {{ a }}", "__module__": "console"}
    type("Plain", (ApplicationDefinition,), body).sync()
    again = ApplicationDefinition.load_by_name("Plain", "here")
    assert (again.command_template, again.parameters) == ("p {{ a }}", {"a": {"required": True}})
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # cannot be imported
    for more in ({"postprocess": lambda self: None}, {"shell_preamble": lambda self: []}):
        with pytest.raises(InvalidApplication, match="interactive session"):
            type("Plain", (ApplicationDefinition,), {**body, **more}).sync()
    with pytest.raises(InvalidApplication, match="interactive session"):
        type("F", (ApplicationDefinition,), {"site": "here", "run": lambda self: 1, "__module__": "console"}).sync()
    inner = {**body, "__module__": __name__, "__qualname__": "f.<locals>.Inner", "handle_error": lambda self: None}
    with pytest.raises(InvalidApplication, match="inside of something else"):
        type("Inner", (ApplicationDefinition,), inner).sync()
    with pytest.raises(UnknownApp):
        ApplicationDefinition.load_by_name("Inner")
    site.app("plain-command", "true")
    with pytest.raises(NotFound, match="command line and has no class: true"):
        ApplicationDefinition.load_by_name("plain-command")


SESSION = """
import sys, threading
from balsam_lite.api import ApplicationDefinition
from balsam_lite.core.errors import InvalidApplication

scale = 2

class Result:
    def __init__(self, value): self.value = value

class Scaled(ApplicationDefinition):
    site = "here"
    def run(self, x): return Result(scale * x.value)
    def postprocess(self):
        self.job.data = {"seen": True}
        self.job.state = "POSTPROCESSED"

job = Scaled.submit("scaled", x=Result(21))
found = job.result(timeout=60)
assert type(found) is Result
job.refresh_from_db()
print(found.value, job.data, ApplicationDefinition.load_by_name("Scaled") is Scaled)

lock = threading.Lock()
class Locked(ApplicationDefinition):
    site = "here"
    def run(self): return lock.locked()
try:
    Locked.sync()
except InvalidApplication as exc:
    print("refused:", "lock" in str(exc))
"""


def test_classes_of_an_interactive_session_run_by_value(site, tmp_path):
    pytest.importorskip("cloudpickle")
    launcher = site.launch(BALSAM_IDLE_TTL_S="20")
    done = subprocess.run(
        [PYTHON, "-"], input=SESSION, env=site.environ, cwd=tmp_path, capture_output=True, text=True, timeout=80
    )
    assert (done.stdout, done.returncode) == ("42 {'seen': True} True\nrefused: True\n", 0), done.stderr
    launcher.terminate()
    (app,) = App.objects.filter(name="Scaled")
    assert app.definition["file"] == "" and app.definition["pickled"]
    with site.db.write() as cx:  # as another Python has pickled it
        other = base64.b64encode(base64.b64decode(app.definition["pickled"]).replace(b"3.", b"2.", 1)).decode()
        changed = json.dumps({**app.definition, "pickled": other})
        cx.execute("UPDATE app SET definition = ? WHERE name = 'Scaled'", (changed,))
    with pytest.raises(ApplicationLost, match=r"Scaled cannot be used: .*Python 2\.\d+ and cannot be read by Python 3"):
        ApplicationDefinition.load_by_name("Scaled")


WRITER = """
    import sys
    class Early(ApplicationDefinition):
        site = "here"
        command_template = "p"
    Early.sync(){before}
    {write}
    class Late(ApplicationDefinition):
        site = "here"
        command_template = "p"
"""


@pytest.mark.parametrize(
    "write",
    [
        "Early.submit('x')",
        "Job(app_id='Early', workdir='x').save()",
        "Job.objects.bulk_create([Job(app_id='Early', workdir='x')])",
        "BatchJob.objects.create(num_nodes=1, wall_time_min=1, job_mode='mpi', project='p', queue='q', site_id=1)",
        "from balsam_lite.launcher import dag; dag.add_job('j', application='Early')",
        "import mine; mine.helper()",
    ],
)
def test_a_script_is_read_up_to_where_it_writes_and_writes_nothing(site, tmp_path, write):
    (tmp_path / "mine.py").write_text(f"{HEADER}def helper():\n    Job(app_id='Early', workdir='x').save()\n")
    path = written(tmp_path, "script", WRITER.format(before="", write=write))
    site.app("Early", "true")
    assert class_loader.load(ClassRef(str(path), "Early", "__main__")).command_template == "p"
    with pytest.raises(ApplicationLost) as caught:
        class_loader.load(ClassRef(str(path), "Late", "__main__"))
    assert 'under `if __name__ == "__main__":`' in str(caught.value) and str(path) in str(caught.value)
    assert Job.objects.count() == 0 and App.objects.get(name="Early").kind == "command"
    assert not import_guard.is_importing()


STARTER = """
    import subprocess, sys
    class Early(ApplicationDefinition):
        site = "here"
        command_template = "p"
    words = ["job", "create", "--app", "Early", "--workdir", "x", "--yes"]
    done = subprocess.run([sys.executable, "-m", "balsam_lite.cli", *words], capture_output=True, text=True)
"""


def test_a_command_that_a_file_starts_writes_nothing_while_the_file_is_imported(site, tmp_path, monkeypatch):
    site.app("Early", "true")
    made = class_loader.load(ClassRef(str(written(tmp_path, "starter", STARTER)), "Early"))
    done = sys.modules[made.__module__].done
    assert done.returncode == 1 and "imported only for its class" in done.stderr
    assert Job.objects.count() == 0
    assert not import_guard.is_importing(), "what a hook starts after that may write"
    monkeypatch.setenv(import_guard.IMPORTING_VARIABLE, "1")
    options = resources.LauncherOptions()
    for start in (lambda: run_launcher(site.directory, options), lambda: run_parts(site.directory, options, [])):
        with pytest.raises(BalsamError, match="imported only for its class"):
            start()
    assert b"BALSAM_IMPORTING" not in invocation.make_context(site.directory, b"id:1:", 1, "serial", os.environb).environ


def test_what_is_lost_is_told_with_file_class_and_reason(site, tmp_path):
    path = written(tmp_path, "broken", "class A(ApplicationDefinition):\n    site = 1\n    command_template = 'p'\nB = 3\n")
    assert class_loader.load(ClassRef(str(path), "A")).__name__ == "A"
    for name in ("B", "C"):
        with pytest.raises(
            ApplicationLost, match=f"The class {name} of .*broken.py cannot be used: the file has no application"
        ):
            class_loader.load(ClassRef(str(path), name))
    path = path.rename(tmp_path / "raises.py")
    with pytest.raises(ApplicationLost, match="no such file any more"):
        class_loader.load(ClassRef(str(tmp_path / "broken.py"), "A"))
    path.write_text(f"{path.read_text()}\n1 / 0\n")
    with pytest.raises(ApplicationLost, match=r"raises ZeroDivisionError: division by zero \(line 7\)"):
        class_loader.load(ClassRef(str(path), "A"))
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ApplicationLost, match="raises SystemExit: 3"):
        class_loader.load(ClassRef(str(path), "A"))


def test_a_module_of_a_package_is_imported_by_its_name_and_sees_no_arguments_of_ours(site, tmp_path, monkeypatch):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "other.py").write_text("TEMPLATE = 'p {{ a }}'")
    body = "from .other import TEMPLATE\nimport sys\nWORDS = sys.argv\nclass A(ApplicationDefinition):\n    site = 1\n"
    path = written(folder, "apps", f"{body}    command_template = TEMPLATE\n")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(tmp_path)])
    made = class_loader.load(ClassRef(str(path), "A", "package.apps", (str(tmp_path),)))
    assert made.__module__ == "package.apps" and str(path) in sys.modules["package.apps"].WORDS
    assert class_loader.load(ClassRef(str(path), "A", "package.apps")) is made


# --- what becomes of a job --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "state", "path", "asks"),
    [
        ({}, "RUN_ERROR", ("RUN_ERROR", "FAILED"), False),
        ({"has_handle_error": 1}, "RUN_ERROR", ("RUN_ERROR",), True),
        ({"has_handle_error": 1, "max_retries": 1}, "RUN_ERROR", ("RUN_ERROR", "RESTART_READY"), False),
        ({"has_handle_error": 1, "max_retries": 1, "retries": 1}, "RUN_ERROR", ("RUN_ERROR",), True),
        ({"has_handle_timeout": 1}, "RUN_ERROR", ("RUN_ERROR", "FAILED"), False),
        ({"has_postprocess": 1}, "RUN_ERROR", ("RUN_ERROR", "FAILED"), False),
        ({"has_postprocess": 1, "post_error_handler": 1}, "RUN_ERROR", ("RUN_ERROR",), True),
        ({}, "RUN_TIMEOUT", ("RUN_TIMEOUT", "RESTART_READY"), False),
        ({"auto_timeout_retry": 0}, "RUN_TIMEOUT", ("RUN_TIMEOUT", "FAILED"), False),
        ({"has_handle_timeout": 1}, "RUN_TIMEOUT", ("RUN_TIMEOUT",), True),
        ({"has_handle_timeout": 1, "auto_timeout_retry": 0}, "RUN_TIMEOUT", ("RUN_TIMEOUT",), True),
        ({"has_handle_error": 1}, "RUN_TIMEOUT", ("RUN_TIMEOUT", "RESTART_READY"), False),
        ({"has_handle_error": 1, "has_handle_timeout": 1}, "RUN_DONE", ("RUN_DONE", "JOB_FINISHED"), False),
        ({"has_postprocess": 1}, "RUN_DONE", ("RUN_DONE",), True),
    ],
)
def test_an_applications_own_handlers_are_asked_whatever_the_jobs_flags_say(fields, state, path, asks):
    plain = dict.fromkeys(exit_rules.JobFacts._fields, 0) | {"job": 1, "state": state, "attempt": 1, "restart_limit": 10}
    facts = exit_rules.JobFacts(**{**plain, "retry_codes": "", "auto_timeout_retry": 1, **fields})
    outcome = exit_rules.settle(facts, state)
    assert (outcome.path, outcome.needs_step) == (path, asks)


# --- real jobs --------------------------------------------------------------------------------------------------------

APPS = """
    import os, sys

    class Thing:
        def __init__(self, value): self.value = value

    class Show(ApplicationDefinition):
        site = "here"
        command_template = f"{sys.executable} -c {{{{ code }}}} {{{{ a }}}} '{{{{ a }}}}'"
        code = "import sys, os; print(sys.argv[1:], os.environ['V'], os.environ['W'])"
        parameters = {"code": {"required": False, "default": code}}
        environment_variables = {"V": "app", "W": "app"}
        def preprocess(self):
            assert self.job.state == "CREATED" and os.getcwd().endswith(str(self.job.workdir))
            print("prepared", self.job.get_parameters()["a"])
            self.job.data = {"seen": True}
        def postprocess(self):
            self.job.state, self.job.state_data = "POSTPROCESSED", {"lines": 1}

    class Shell(ApplicationDefinition):
        site = "here"
        command_template = "show {{ a }} $LIST; echo $TEXT > file"
        def shell_preamble(self):
            return ["show() { printf '<%s>' \\"$@\\"; }", f"LIST={self.job.parameters['a']!r}", "TEXT=2"]

    class Sourced(ApplicationDefinition):
        site = "here"
        command_template = "show TEXT"
        def shell_preamble(self):
            return "# it's a text\\nshow() { printenv $1; }\\nexport TEXT=" + str(self.job.id)

    class NoPreamble(ApplicationDefinition):
        site = "here"
        command_template = "touch started"
        def shell_preamble(self):
            return ["false", "true"]

    class Add(ApplicationDefinition):
        site = "here"
        def run(self, a, b=2, **more):
            if a == "raise":
                raise KeyError("no such key")
            if a == "lock":
                return __import__("threading").Lock()
            if a == "large":
                return b"x" * (17 << 20)
            return a.value, b, more, self.job.id, self.job.workdir.name

    class Handled(ApplicationDefinition):
        site = "here"
        command_template = "test -e repaired -o {{ works }} = yes"
        def preprocess(self):
            self.job.state = "PREPROCESSED"
        def handle_error(self):
            open("repaired", "w").close()
            self.job.state = "RESTART_READY"
        def handle_timeout(self):
            print("out of time")

    class Unhandled(ApplicationDefinition):
        site = "here"
        command_template = "false"
        def handle_error(self):
            print("nothing to be done")

    class Wrong(ApplicationDefinition):
        site = "here"
        command_template = "true"
        def postprocess(self):
            self.job.state = "RUNNING"

    class Says(ApplicationDefinition):
        site = "here"
        command_template = "{{ program }}"
        def preprocess(self):
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            self.job.state_data = {"said": "before" if pid else "by a child, which moves nothing"}
        def postprocess(self): self.job.state_data = {"said": "after"}
        def handle_error(self): self.job.state_data = {"said": "error"}
        def handle_timeout(self): self.job.state_data = {"said": "timeout"}

    class Given(ApplicationDefinition):
        site = "here"
        def shell_preamble(self):
            return ["export VALUE=" + str(self.job.parameters["thing"].value)]
        def run(self, thing):
            return os.environ["VALUE"]

    class Raises(ApplicationDefinition):
        site = "here"
        command_template = "true"
        def preprocess(self):
            raise ValueError("cannot be prepared")

    for one in (Show, Shell, Sourced, NoPreamble, Add, Handled, Unhandled, Wrong, Says, Given, Raises):
        one.sync()

    def submit(app, *place, **fields):
        return app.submit(f"{app.__name__}/{place[0]}", **fields)

    V = "a 'b' \\"c\\"\\n;$(id) \\\\"
    submit(Show, "it", a=V)
    submit(Shell, "it", a="x y")
    submit(Sourced, "it")
    submit(NoPreamble, "it")
    submit(Add, "it", a=Thing(1), c=[1])
    for word in ("raise", "lock", "large"):
        submit(Add, word, a=word)
    submit(Handled, "error", works="no")
    submit(Handled, "timeout", works="yes")
    submit(Unhandled, "it")
    submit(Wrong, "it")
    submit(Raises, "it")
    for word in ("true", "false", "timeout"):
        submit(Says, word, program=word.replace("timeout", "true"))
    submit(Given, "it", thing=Thing(7))
"""

MOVED = """
    class Moved(ApplicationDefinition):
        site = "here"
        def run(self): pass
        def handle_error(self): pass
    Moved.submit("Moved/it")
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A site where jobs of all these applications have run, in one launcher; defined and submitted by scripts."""
    folder = tmp_path_factory.mktemp("applications")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAM_HOME", str(folder / "home"))
        bench = Bench(folder)
        patch.setenv("BALSAM_DB_PATH", bench.directory)
        registry.add(bench.directory, "here")
        bench.environ.update(os.environ)
        for script in (written(folder, "apps", APPS), written(folder, "moved", MOVED)):
            subprocess.run([PYTHON, str(script)], env=bench.environ, check=True, cwd=folder)
        (folder / "moved.py").rename(folder / "elsewhere.py")
        user_actions.set_state(bench.db, [number(bench, f"{app}/timeout") for app in ("Handled", "Says")], "RUN_TIMEOUT")
        for place in ("Says/true", "Given/it"):  # data that is called as a module of Python is
            bench.path(number(bench, place)).mkdir(parents=True)
            bench.path(number(bench, place), "json.py").write_text("1 / 0")
        assert bench.run("--nodes", "3") == 0
        yield bench
        bench.close()


def number(bench, workdir):
    with bench.db.read() as cx:
        return cx.execute("SELECT id FROM job WHERE workdir = ?", (workdir,)).fetchone()[0]


@pytest.fixture
def job(ran, monkeypatch):
    monkeypatch.setenv("BALSAM_HOME", str(Path(ran.directory).parent / "home"))
    monkeypatch.setenv("BALSAM_DB_PATH", ran.directory)
    monkeypatch.setattr(sys, "path", [str(Path(ran.directory).parent), *sys.path])
    return lambda workdir: Job.objects.get(id=number(ran, workdir))


def output(ran, workdir, name="job.out"):
    return ran.path(number(ran, workdir), name).read_text()


def passed(ran, workdir):
    return [state for state, _ in ran.history(number(ran, workdir))]


def last_message(ran, workdir):
    return ran.history(number(ran, workdir))[-1][1]


def test_a_template_runs_with_the_applications_environment_between_its_hooks(ran, job):
    value = "a 'b' \"c\"\n;$(id) \\"
    assert output(ran, "Show/it") == f"{[value, value]} app app\n"
    assert output(ran, "Show/it", "preprocess.log").splitlines()[1:] == ["prepared a 'b' \"c\"", ";$(id) \\"]
    assert passed(ran, "Show/it") == ["CREATED", "PREPROCESSED", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]
    assert job("Show/it").data == {"seen": True}
    with ran.db.read() as cx:
        (data,) = cx.execute(
            "SELECT data FROM event WHERE job = ? AND to_state = 'POSTPROCESSED'", (number(ran, "Show/it"),)
        ).fetchone()
    assert '"lines": 1' in data or '"lines":1' in data


def test_a_preamble_is_made_for_each_job_and_seen_by_its_line(ran):
    assert output(ran, "Shell/it") == "<x y><x><y>"
    assert output(ran, "Shell/it", "file") == "2\n"
    assert output(ran, "Sourced/it") == f"{number(ran, 'Sourced/it')}\n"


def test_a_preamble_that_fails_keeps_the_program_from_starting(ran):
    assert passed(ran, "NoPreamble/it")[-2:] == ["RUN_ERROR", "FAILED"]
    assert not ran.path(number(ran, "NoPreamble/it"), "started").exists()


def test_a_preamble_is_given_parameters_of_the_scripts_own_classes(ran, job):
    assert job("Given/it").result() == "7"


@pytest.mark.parametrize(
    ("place", "ends", "said"),
    [
        (
            "true",
            ["RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"],
            {"PREPROCESSED": "before", "POSTPROCESSED": "after"},
        ),
        ("false", ["RUNNING", "RUN_ERROR", "FAILED"], {"PREPROCESSED": "before", "FAILED": "error"}),
        (
            "timeout",
            ["RUN_TIMEOUT", "RESTART_READY", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"],
            {"RESTART_READY": "timeout", "POSTPROCESSED": "after"},
        ),
    ],
)
def test_a_hook_which_only_says_something_lets_its_job_go_where_it_would_go(ran, place, ends, said):
    assert passed(ran, f"Says/{place}")[-len(ends) :] == ends
    with ran.db.read() as cx:
        query = "SELECT to_state, json_extract(data, '$.payload.said') FROM event WHERE job = ?"
        rows = cx.execute(query, (number(ran, f"Says/{place}"),)).fetchall()
    assert {state: text for state, text in rows if text} == said
    assert run_class._default("postprocess", "RUN_ERROR") == run_class._default("handle_error", "RUN_ERROR") == "FAILED"


def test_a_function_gets_its_arguments_by_value_and_returns_its_result(ran, job):
    done = job("Add/it")
    value, b, more, own_id, name = done.result()
    assert (value, b, more, own_id, name) == (1, 2, {"c": [1]}, done.id, "it")
    assert done.done() and done.return_code == 0


def test_exceptions_and_results_that_cannot_come_back_are_told(ran, job):
    with pytest.raises(KeyError, match="no such key"):
        job("Add/raise").result()
    assert "KeyError: 'no such key'" in ran.history(number(ran, "Add/raise"))[-2][1]
    assert passed(ran, "Add/raise")[-2:] == ["RUN_ERROR", "FAILED"]
    with pytest.raises(RemoteError, match="of type lock and cannot be serialised"):
        job("Add/lock").result()
    with pytest.raises(RemoteError, match=r"of type bytes and takes 178.* bytes; .* is the most"):
        job("Add/large").result()


def test_handlers_decide_and_have_defaults(ran):
    assert passed(ran, "Handled/error")[1:4] == ["PREPROCESSED", "RUNNING", "RUN_ERROR"]
    assert passed(ran, "Handled/error")[3:] == ["RUN_ERROR", "RESTART_READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    assert passed(ran, "Handled/timeout") == ["CREATED", "RUN_TIMEOUT", "RESTART_READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    log = output(ran, "Handled/timeout", "handle_timeout.log").splitlines()
    assert log[0].startswith("# Balsam Timeout handler: ") and log[1:] == ["# Invoked to handle RUN_TIMEOUT", "out of time"]
    assert passed(ran, "Unhandled/it")[-2:] == ["RUN_ERROR", "FAILED"]


def test_a_hook_that_raises_or_sets_what_it_may_not_fails_its_job_with_the_reason(ran):
    assert passed(ran, "Wrong/it")[-2:] == ["RUN_DONE", "FAILED"] and "RUNNING" in last_message(ran, "Wrong/it")
    assert passed(ran, "Raises/it") == ["CREATED", "FAILED"]
    said = last_message(ran, "Raises/it")
    assert said.startswith("The preprocess script Raises.preprocess: nonzero return 1: # Balsam Prep")
    assert "ValueError: cannot be prepared" in said


def test_jobs_of_a_file_that_moved_fail_with_that_sentence(ran, job):
    sentence = f"The class Moved of {Path(ran.directory).parent / 'moved.py'} cannot be used: there is no such file any more."
    assert passed(ran, "Moved/it")[-2:] == ["RUN_ERROR", "FAILED"]
    messages = [message for _, message in ran.history(number(ran, "Moved/it"))]
    assert sentence in messages[-2] and sentence in messages[-1]
    assert output(ran, "Moved/it").splitlines()[0] == sentence
    with pytest.raises(ApplicationLost, match="no such file"):
        job("Moved/it").result()


def test_a_script_that_submits_is_not_run_again_by_its_jobs(ran):
    assert sum(ran.states().values()) == 18


# --- trouble at the start ---------------------------------------------------------------------------------------------


def test_a_line_that_cannot_be_made_fails_its_job_alone(site):
    site.app("T", "", command_template="p {{ a }} {{ b }}")
    site.app("Q", "", command_template="p $(( {{ a }} ))")
    site.app("good", "", command_template="test {{ a }} = 1")
    jobs = site.add(
        [
            {"application": "T", "parameters": {"b": "x"}},
            {"application": "Q", "parameters": {"a": "1"}},
            {"application": "T", "parameters": {"a": 1, "b": 2}, "args": "more"},
            {"application": "good", "parameters": {"a": 1}},
        ]
    )
    assert site.run() == 0
    messages = [site.history(job)[-2][1] for job in jobs]
    assert messages[0] == "The job could not be started: Missing required args: {'a'} (only got: {'b'})"
    assert "A value cannot be used in, after or next to arithmetic" in messages[1] and "Compute in jinja" in messages[1]
    assert "takes no args: more" in messages[2]
    assert [site.job(job)["state"] for job in jobs] == ["FAILED"] * 3 + ["JOB_FINISHED"]


@pytest.mark.parametrize(
    ("preamble", "said"),
    [
        (["A=1", "", "B=2 # two", "  # done\n\n"], "1,2\n"),
        (["# nothing"], ",\n"),
        (["A=1", "false # no", "B=2"], ""),
        ("A='1\n2'  # it's\nreturn; B=3", "1 2,\n"),
        ("A=$(cat)", "in,\n"),
        ("A=1\nfalse\n", ""),
        ("A=1\nif", ""),
    ],
)
def test_a_preamble_goes_to_its_shell_without_a_file(tmp_path, preamble, said):
    line = f"{run_class._script(preamble)}echo $A,$B"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, input="in", capture_output=True, text=True)
    assert (done.stdout, done.returncode == 0) == (said, bool(said))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("variable", ["PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PALS_RANKID"])
def test_a_rank_is_known_by_variables_and_only_where_there_are_several(variable):
    assert ranks.rank_of(4, {variable: "3"}) == 3
    assert ranks.rank_of(1, {variable: "3"}) == 0
    with pytest.raises(SystemExit, match="one of 4 ranks, and no variable"):
        ranks.rank_of(4, {})


def test_functions_and_preambles_need_no_db_and_import_no_data(tmp_path):
    code = """
        class F(ApplicationDefinition):
            site = "nowhere"
            def run(self, a): return self.job.attempt, a
            def shell_preamble(self): return f"echo before {self.job.attempt}"
    """
    definition = payload.definition_of(ClassRef(str(written(tmp_path, "f", code)), "F", "__main__", python=PYTHON))
    path = str(tmp_path / "order.json")
    job = {"job_id": "12345678-9", "workdir": str(tmp_path), "attempt": 2}
    payload.write(path, payload.TaskPayload(json.dumps(definition), '{"a": 5}', 1, job))
    environ = {**os.environ, "BALSAM_DB_PATH": "/nowhere/at/all"}
    program = payload.program_words(PYTHON, payload.FUNCTION, path)
    words = payload.program_words(PYTHON, payload.HOOK, "launch", path, *program)
    (tmp_path / "json.py").write_text("1 / 0")
    done = subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "before 2\n", "")
    left = result_file.read(str(tmp_path / ".balsam-12345678.pkl"), "12345678-9", 2)
    outcome = result_file.unpickled(left)
    assert outcome.good and outcome.value is not None and pickle.loads(outcome.value) == (2, 5)


SPAWNING = """
    import multiprocessing, os

    if os.environ.get("SPOILT"):
        raise ValueError("not here")

    def double(x): return 2 * x

    class F(ApplicationDefinition):
        site = "nowhere"
        def run(self, spoilt):
            os.environ["SPOILT"] = spoilt
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.map_async(double, [4]).get(9)

    Job(workdir="again", app_id="F").save()
    open("went on", "x")
"""


@pytest.mark.parametrize("module", ["__main__", "spawning"])
def test_processes_that_a_function_spawns_find_the_functions_of_its_file_and_submit_nothing(tmp_path, module):
    source = ClassRef(str(written(tmp_path, "spawning", SPAWNING)), "F", module, (str(tmp_path),), python=PYTHON)
    outcome = result_of(tmp_path, source, spoilt="")
    assert (outcome.trace, outcome.value) == ("", pickle.dumps([8], protocol=4))
    assert not (tmp_path / "went on").exists()


def test_a_file_that_cannot_be_imported_in_a_spawned_process_fails_the_call(tmp_path):
    outcome = result_of(tmp_path, ClassRef(str(written(tmp_path, "f", SPAWNING)), "F", "__main__", python=PYTHON), spoilt="1")
    assert not outcome.good
    assert "importing the file raises ValueError: not here (line 6)" in outcome.trace


@pytest.mark.parametrize("lines", ["import os; os._exit(0)", "from os import _exit as end, fork; fork() or end(0); end(0)"])
def test_a_file_that_ends_the_process_where_it_is_imported_is_no_success(tmp_path, lines):
    outcome = result_of(tmp_path, ClassRef(str(written(tmp_path, "f", lines)), "F", "__main__", python=PYTHON))
    assert not outcome.good and "importing the file raises SystemExit: os._exit(0) (line 2)" in outcome.trace


FORKING = """
    import os

    class F(ApplicationDefinition):
        site = "nowhere"
        def run(self, fails):
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
            elif fails:
                raise ValueError("child")
            return "parent" if pid else "child"
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_a_function_forks_leaves_no_result(tmp_path, fails):
    source = ClassRef(str(written(tmp_path, "f", FORKING)), "F", "__main__", python=PYTHON)
    assert result_of(tmp_path, source, fails=fails).value == pickle.dumps("parent", protocol=4)


def result_of(tmp_path, source, **parameters):
    """What becomes of a function, in a process of its own."""
    job = {"job_id": "12345678-9", "workdir": str(tmp_path), "attempt": 1}
    payload.write(
        str(tmp_path / "o.json"), payload.TaskPayload(json.dumps(payload.definition_of(source)), json.dumps(parameters), 1, job)
    )
    environ = {**os.environ, "BALSAM_DB_PATH": "/nowhere/at/all"}
    words = payload.program_words(PYTHON, payload.FUNCTION, str(tmp_path / "o.json"))
    subprocess.run(words, env=environ, cwd=tmp_path, capture_output=True, timeout=30)
    left = result_file.read(str(tmp_path / result_file.file_name("12345678-9")), "12345678-9", 1)
    assert left is not None
    return result_file.unpickled(left)


def test_the_first_failure_of_an_attempt_is_its_report(tmp_path):
    path = str(tmp_path / result_file.file_name("j"))

    def write(attempt, good, content):
        result_file.write(path, result_file.ResultHeader("j", attempt, good), result_file.Outcome(good, content))
        return result_file.unpickled(result_file.read(path, "j", attempt)).value

    assert write(1, True, b"returned") == b"returned"
    assert write(1, False, b"rank 1 raised") == b"rank 1 raised"
    assert write(1, False, b"rank 0 raised, as rank 1 is gone") == b"rank 1 raised"
    assert write(1, True, b"returned") == b"rank 1 raised"
    assert write(2, True, b"again") == b"again"
    assert result_file.read(path, "j", 1) is None and result_file.read(path, "k", 2) is None
    assert os.listdir(tmp_path) == [result_file.file_name("j")]


SHOWING = """
    class Shown(ApplicationDefinition):
        site = "here"
        def run(self, names):
            shown, refused = {}, {}
            for name in names:
                try:
                    shown[name] = getattr(self.job, name)
                except AttributeError as exc:
                    refused[name] = str(exc)
            return shown, refused, self.job.get_parameters(), os.environ["STEP"], self.job.resolve_workdir("/data")
        def shell_preamble(self):
            return f"export STEP={self.job.data['step']}-{self.job.tags['colour']}-{len(self.job.parent_ids)}"

    class Template(ApplicationDefinition):
        site = "here"
        command_template = "echo $VALUE {{ word }}"
        def shell_preamble(self):
            return [f"export VALUE={self.job.data['value']}"]
"""


def test_the_job_of_a_function_has_all_fields_that_the_interface_shows(site, tmp_path):
    module = imported(written(tmp_path, "showing", f"import os\n{textwrap.dedent(SHOWING)}"))
    parents = [module.Template.submit(f"p{value}", word="x", data={"value": value}) for value in ("one", "2 # two")]
    names = [*parents[0].display_dict()]
    names += ["save", "refresh_from_db", "delete", "done", "result", "parent_query", "wokdir"]
    data = {"step": 3, "nested": {"list": [1, None, True]}, "x": float("inf")}
    job = module.Shown.submit(
        "w/shown", names=names, data=data, tags={"colour": "red"}, launch_params={"depth": "2"},
        parent_ids=[one.id for one in parents], wall_time_min=7,
    )  # fmt: skip
    job.environ_vars, job.priority, job.description, job.max_retries = {"A": "1"}, 5, "what", 2
    job.save()
    assert site.run() == 0
    shown, refused, parameters, preamble, resolved = job.result()
    job.refresh_from_db()
    needs_db = {"site_id", "site_name", "last_update", "batch_job_id", *names[-7:-1]}
    assert set(refused) == {*needs_db, "wokdir"} and set(shown) == set(names) - set(refused)
    assert all("needs the DB" in refused[name] for name in needs_db) and "'workdir'" in refused["wokdir"]
    differing = {name for name, value in shown.items() if value != getattr(job, name)}
    assert differing == {"state", "workdir", "return_code"}
    assert (shown["state"], shown["workdir"]) == ("RUNNING", site.path(job.id)) and resolved == shown["workdir"]
    assert {type(shown[name]) for name in ("data", "tags", "launch_params", "environ_vars")} == {dict}
    assert (parameters, preamble) == ({"names": names}, "3-red-2")
    assert site.path(parents[0].id, "job.out").read_text() == "one x\n"


SHARING = """
    import os

    class Square(ApplicationDefinition):
        site = "here"
        def run(self, x):
            if x == 0:
                raise ValueError(f"attempt {self.job.attempt}")
            if x < 0:
                os._exit(0)
            return x * x
"""


def test_functions_that_share_a_directory_keep_their_results_apart(site, tmp_path):
    made = imported(written(tmp_path, "sharing", SHARING)).Square
    jobs = [made.submit("same", x=x, allow_shared_workdir=True) for x in (2, 3, 4)]
    bad, silent = (made.submit("same", x=x, allow_shared_workdir=True) for x in (0, -1))
    assert site.run() == 0
    assert [job.result() for job in jobs] == [4, 9, 16]
    with pytest.raises(ValueError, match="attempt 1"):
        bad.result()
    with pytest.raises(TaskFailed, match=r"ended with exit code 0 before its function returned"):
        silent.result()
    assert not list(site.path(silent.id).glob("*.json")), "what the programs had to know is of no use any more"
    with site.db.write() as cx:
        cx.execute("UPDATE job SET attempt = 2")  # as if they had been started again, and that had failed
    with pytest.raises(TaskFailed, match="FAILED"):
        bad.result()


def test_a_launcher_without_templates_does_not_import_jinja2():
    code = "import sys, balsam_lite.launcher.main; print('jinja2' in sys.modules)"
    assert subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- MPI --------------------------------------------------------------------------------------------------------------

PARALLEL = """
    class Sum(ApplicationDefinition):
        site = "here"
        def run(self, bad=None):
            from mpi4py import MPI
            world = MPI.COMM_WORLD
            if world.rank == bad:
                raise ValueError(f"rank {world.rank} gives up")
            return world.allreduce(world.rank + 1), world.rank

    class Line(ApplicationDefinition):
        site = "here"
        command_template = "printenv PMI_RANK > {{ name }}; echo done $PMI_RANK"

    if __name__ == "__main__":
        Sum.submit("good", ranks_per_node=2, num_nodes=2)
        Sum.submit("bad", ranks_per_node=2, bad=1)
        Line.submit("line", ranks_per_node=2, name="my file")
"""


def test_functions_and_lines_run_under_mpi_and_any_rank_may_raise(site, tmp_path):
    site.environ = {**with_mpi(site.environ), "BALSAM_DB_PATH": site.directory, "BALSAM_HOME": os.environ["BALSAM_HOME"]}
    script = written(tmp_path, "parallel", PARALLEL)
    subprocess.run([PYTHON, str(script)], env=site.environ, check=True)
    assert site.run("--job-mode", "mpi", "--nodes", "4") == 0
    good, bad, line = Job.objects.all().order_by("id")
    assert good.result() == (10, 0)
    with pytest.raises(ValueError, match="rank 1 gives up"):
        bad.result()
    assert bad.state == states.FAILED
    assert sorted(site.path(line.id, "my file").read_text().split()) == ["0", "1"]
    assert site.path(line.id, "job.out").read_text() == "done\n"  # as in Balsam 0.7: the first command alone is MPI's
    assert shutil.which("mpiexec", path=site.environ["PATH"])


def test_functions_run_on_the_other_nodes_of_an_ensemble_as_well(tmp_path, monkeypatch):
    bench = Ensemble(tmp_path, 2)
    registry.add(bench.directory, "here")
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    code = """
        import os, time
        class Where(ApplicationDefinition):
            site = "here"
            def run(self, other):
                mine = f"../{self.job.id}"
                open(mine, "w").close()
                while not os.path.exists(f"../{other}"):
                    time.sleep(0.02)
                return os.environ["BALSAM_RUN"].partition("@")[2]
            def shell_preamble(self):
                return ["echo here"]
    """
    try:
        made = imported(written(tmp_path, "where", code)).Where
        jobs = [made.submit(f"w/j{number}", other=3 - number) for number in (1, 2)]
        assert bench.run() == 0
        assert sorted(job.result() for job in jobs) == ["", "1"]  # one of them at rank 1
        assert bench.path(1, "job.out").read_text() == "here\n"
    finally:
        sys.modules.pop("where", None)
        bench.close()


def test_ranks_below_a_shell_are_asked_to_end_and_save_their_work(site, tmp_path):
    site.environ = with_mpi(site.environ)
    (tmp_path / "careful.py").write_text(CAREFUL)
    site.app("careful", "", command_template=f"{PYTHON} {{{{ script }}}} > log; echo over")
    (job,) = site.add([{"application": "careful", "ranks_per_node": 2, "parameters": {"script": str(tmp_path / "careful.py")}}])
    site.launch("--job-mode", "mpi", BALSAM_USER_KILL_GRACE_S="10")
    wait_until(lambda: site.path(job, "pid0").exists() and site.path(job, "pid1").exists())
    user_actions.kill(site.db, [job])
    wait_until(lambda: site.path(job, "saved0").exists() and site.path(job, "saved1").exists(), timeout=9)
    wait_until(lambda: site.job(job)["lease"] is None)
    assert site.path(job, "job.out").read_text() == ""


@pytest.mark.parametrize(
    "how",
    [
        {"BALSAM_MPI_FLAVOUR": "openmpi"},  # kills its ranks when it is told to end, so that only they are told
        {"BALSAM_MPI_FLAVOUR": "mpich"},  # passes the signal on
        {"BALSAM_MPI_RUN_TEMPLATE": "{exe} -n 2"},  # unknown
    ],
    ids=["kills", "passes on", "unknown"],
)
def test_a_shell_does_not_go_on_when_the_ranks_below_it_were_asked_to_end(site, tmp_path, how):
    mpirun = tmp_path / "mpirun"  # its ranks are groups of their own, as those of Open MPI; it is not told of the end itself
    mpirun.write_text('#!/bin/bash\nset -m\nwhile [ "$1" != sleep ]; do shift; done\n"$@" &\ntouch began\nwait %1\n')
    mpirun.chmod(0o755)
    site.app("line", "", command_template="sleep 60; echo over")
    (job,) = site.add([{"application": "line", "ranks_per_node": 2}])
    how = {name: words.format(exe=mpirun) for name, words in how.items()}
    launcher = site.launch("--job-mode", "mpi", **{"BALSAM_MPI_RUN_EXE": str(mpirun), "BALSAM_KILL_GRACE_S": "30", **how})
    wait_until(lambda: site.path(job, "began").exists())
    for helper in [one for one in below(launcher.pid) if b"spawn_helper" in read_proc(f"/proc/{one.pid}/cmdline")]:
        helper.signal(signal.SIGSTOP)  # it is slow to hear what the launcher wants
    launcher.terminate()
    assert launcher.wait(25) == 0
    assert site.job(job)["state"] == states.RESTART_READY
    assert "over" not in site.path(job, "job.out").read_text()

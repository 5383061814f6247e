"""MPI start commands: their exact words, which of them a machine has, and real MPICH and Open MPI told by them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import slurm_cluster
from helpers import TESTS, wait_until
from hypothesis import given
from hypothesis import strategies as st
from launching import PYTHON, Bench, alive
from mpi import mpiexec, openmpi

from balsam_lite.core.errors import SettingsError, SpawnFailed
from balsam_lite.core.settings import Settings
from balsam_lite.db.store import user_actions
from balsam_lite.db.store.claims import Claim, Shape
from balsam_lite.launcher.mpirun import find, one_rank_per_node, scrubbed, starter, use
from balsam_lite.launcher.mpirun.flavours import FLAVOURS, RankLayout, make_render
from balsam_lite.launcher.mpirun.starter import Starter
from balsam_lite.launcher.placement import MpiRules, Node, NodePool

PROGRAMS = TESTS / "mpi_programs"
WHO = str(PROGRAMS / "who.py")

# --- the words of each command ----------------------------------------------------------------------------------------

ONE = RankLayout(("h1",), cpus_per_node=16)
TWO = RankLayout(("h1", "h2"), 2, 4, threads_per_rank=2, cpus_per_node=16)
BOUND = TWO._replace(cpu_affinity="depth", threads_per_core=2)
#: One of several programs on its node, which ask to be bound.
PACKED = RankLayout(("h1",), 1, 2, cpu_affinity="depth", cpus_per_node=4, shares_nodes=True)
#: Shares of this host.
VIRTUAL = RankLayout((), 2, 4, cpus_per_node=1)
CROWDED = ONE._replace(ranks_per_node=32)

PINNED = "env I_MPI_JOB_RESPECT_PROCESS_PLACEMENT=disable I_MPI_PIN="
LINES = [
    ("aprun", ONE, "aprun -n 1 -N 1 -L h1 -cc none -d 1 -j 1"),
    ("aprun", TWO, "aprun -n 8 -N 4 -L h1,h2 -cc none -d 2 -j 1"),
    ("aprun", BOUND, "aprun -n 8 -N 4 -L h1,h2 -cc depth -d 2 -j 2"),
    ("mpich", ONE, "mpich -n 1 -ppn 1 -hosts h1 -bind-to none"),
    ("mpich", TWO, "mpich -n 8 -ppn 4 -hosts h1,h2 -bind-to none"),
    ("mpich", BOUND, "mpich -n 8 -ppn 4 -hosts h1,h2 -bind-to core:1"),
    ("mpich", BOUND._replace(threads_per_core=1), "mpich -n 8 -ppn 4 -hosts h1,h2 -bind-to core:2"),
    ("mpich", PACKED, "mpich -n 2 -ppn 2 -hosts h1 -bind-to none"),
    ("mpich", VIRTUAL, "mpich -n 8 -ppn 8 -hosts localhost -bootstrap fork -bind-to none"),
    ("intel", ONE, PINNED + "disable intel -n 1 -ppn 1 -hosts h1"),
    ("intel", TWO, PINNED + "disable intel -n 8 -ppn 4 -hosts h1,h2"),
    ("intel", BOUND, PINNED + "enable I_MPI_PIN_DOMAIN=2:compact intel -n 8 -ppn 4 -hosts h1,h2"),
    ("intel", PACKED, PINNED + "disable intel -n 2 -ppn 2 -hosts h1"),
    ("openmpi", ONE, "openmpi -n 1 --host h1:1 --map-by ppr:1:node:OVERSUBSCRIBE --bind-to none"),
    ("openmpi", TWO, "openmpi -n 8 --host h1:4,h2:4 --map-by ppr:4:node:OVERSUBSCRIBE --bind-to none"),
    ("openmpi", BOUND, "openmpi -n 8 --host h1:4,h2:4 --map-by ppr:4:node:PE=1:OVERSUBSCRIBE --bind-to core"),
    ("openmpi", PACKED, "openmpi -n 2 --host h1:2 --map-by ppr:2:node:OVERSUBSCRIBE --bind-to none"),
    ("openmpi", VIRTUAL, "openmpi -n 8 --host localhost:8 --map-by ppr:8:node:OVERSUBSCRIBE --bind-to none"),
    (
        "srun", ONE,
        "srun --nodes=1 --nodelist=h1 --ntasks=1 --ntasks-per-node=1 --distribution=block --overlap --export=ALL"
        " --kill-on-bad-exit=1 --cpu-bind=none",
    ),
    (
        "srun", TWO,
        "srun --nodes=2 --nodelist=h1,h2 --ntasks=8 --ntasks-per-node=4 --distribution=block --overlap --export=ALL"
        " --kill-on-bad-exit=1 --cpu-bind=none",
    ),
    (
        "srun", BOUND,
        "srun --nodes=2 --nodelist=h1,h2 --ntasks=8 --ntasks-per-node=4 --distribution=block --overlap --export=ALL"
        " --kill-on-bad-exit=1 --cpus-per-task=2 --cpu-bind=cores",
    ),
    (
        "srun", CROWDED,
        "srun --nodes=1 --nodelist=h1 --ntasks=32 --ntasks-per-node=32 --distribution=block --overlap --export=ALL"
        " --kill-on-bad-exit=1 --overcommit --cpu-bind=none",
    ),
    (
        "srun", VIRTUAL,
        "srun --nodes=1 --nodelist=me --ntasks=8 --ntasks-per-node=8 --distribution=block --overlap --export=ALL"
        " --kill-on-bad-exit=1 --overcommit --cpu-bind=none",
    ),
    ("pals", ONE, "pals -np 1 -ppn 1 --hosts h1 --envall --cpu-bind none -d 1"),
    ("pals", TWO, "pals -np 8 -ppn 4 --hosts h1,h2 --envall --cpu-bind none -d 2"),
    ("pals", BOUND, "pals -np 8 -ppn 4 --hosts h1,h2 --envall --cpu-bind depth -d 2"),
    ("pals", VIRTUAL, "pals -np 8 -ppn 8 --envall --cpu-bind none -d 1"),
    ("jsrun", ONE, "jsrun --nrs 1 --tasks_per_rs 1 --rs_per_host 1 --cpu_per_rs 1 --gpu_per_rs 0 --bind rs"),
    ("jsrun", TWO, "jsrun --nrs 8 --tasks_per_rs 1 --rs_per_host 4 --cpu_per_rs 2 --gpu_per_rs 0 --bind rs"),
    (
        "jsrun", BOUND._replace(gpus_per_rank=0.5, threads_per_core=1),
        "jsrun --nrs 8 --tasks_per_rs 1 --rs_per_host 4 --cpu_per_rs 2 --gpu_per_rs 1 --bind packed:2",
    ),
]  # fmt: skip

ALONE = {
    "aprun": "aprun -n 2 -N 1 -L h1,h2 -cc none",
    "mpich": "mpich -n 2 -ppn 1 -hosts h1,h2 -bind-to none -disable-auto-cleanup",
    "intel": PINNED + "disable intel -n 2 -ppn 1 -hosts h1,h2",
    "openmpi": "openmpi -n 2 --host h1:1,h2:1 --map-by ppr:1:node:OVERSUBSCRIBE --bind-to none --enable-recovery",
    "srun": "srun --nodes=2 --nodelist=h1,h2 --ntasks=2 --ntasks-per-node=1 --distribution=block --overlap --export=ALL"
    " --cpu-bind=none --input=0 --kill-on-bad-exit=0 --wait=0 --no-kill",
    "pals": "pals -np 2 -ppn 1 --hosts h1,h2 --envall --cpu-bind none",
    "jsrun": "jsrun --nrs 2 --tasks_per_rs 1 --rs_per_host 1 --cpu_per_rs ALL_CPUS --gpu_per_rs ALL_GPUS --bind none",
}


def starter_of(name: str) -> Starter:
    return Starter((name,), FLAVOURS[name], "me" if name == "srun" else "")


@pytest.mark.parametrize(("name", "layout", "line"), LINES)
def test_each_command_is_told_the_layout_in_its_own_words(name: str, layout: RankLayout, line: str) -> None:
    assert shlex.join(starter_of(name).prefix(layout)) == line


@pytest.mark.parametrize("name", FLAVOURS)
def test_our_own_ranks_are_one_per_host_and_unbound(name: str) -> None:
    assert shlex.join(starter_of(name).one_per_host(["h1", "h2"])) == ALONE[name]


@pytest.mark.parametrize("name", FLAVOURS)
def test_the_users_flags_come_last(name: str) -> None:
    flags = ["--env", "A=two words", ""]
    assert starter_of(name).prefix(TWO, flags) == [*starter_of(name).prefix(TWO), *flags]


def test_only_aprun_wants_nodes_of_its_own() -> None:
    assert {name for name in FLAVOURS if not starter_of(name).shares_nodes} == {"aprun"}


def test_ranks_are_not_bound_where_there_are_too_few_cpus() -> None:
    assert BOUND.is_bound
    assert not BOUND._replace(threads_per_rank=5).is_bound
    assert BOUND._replace(threads_per_rank=5, cpus_per_node=0).is_bound, "their number is unknown"


# --- the words for a job ----------------------------------------------------------------------------------------------


def claim(shape: Shape, **fields: Any) -> Claim:
    known = {"job": 1, "state": "PREPROCESSED", "job_id": "x", "attempt": 1, "name": "j", "environ_vars": "{}", "shape": shape}
    known |= {"threads_per_rank": 1, "threads_per_core": 1, "cpu_affinity": "none", "parents": "[]"}
    values = {**dict.fromkeys(Claim._fields, ""), **known, **fields}
    return Claim(**values)


def job_words(nodes: list[Node], shape: Shape, *, name: str = "mpich", starts_all: bool = True, **fields: Any) -> str:
    starter = starter_of(name)
    rules = MpiRules(starts_all, starter.shares_nodes)
    place = NodePool(nodes, rules).reserve(shape)
    assert place is not None
    return shlex.join(use(starter, nodes, rules).words(claim(shape, **fields), place))


def test_a_job_goes_to_the_hosts_of_its_place() -> None:
    nodes = [Node(8, name=f"h{number}") for number in range(3)]
    nodes[0].is_closed = True
    assert job_words(nodes, Shape(2, 4, 1, 0)) == "mpich -n 8 -ppn 4 -hosts h1,h2 -bind-to none"


def test_a_job_on_shares_of_this_host_stays_here() -> None:
    words = job_words([Node(1), Node(1)], Shape(2, 4, 1, 0))
    assert words == "mpich -n 8 -ppn 8 -hosts localhost -bootstrap fork -bind-to none"


def test_jobs_of_one_rank_are_started_by_mpi_only_in_mpi_mode() -> None:
    assert job_words([Node(1)], Shape(1, 1, 1, 0), starts_all=False) == ""
    assert job_words([Node(1)], Shape(1, 1, 1, 0), starts_all=True).startswith("mpich -n 1 ")


@pytest.mark.parametrize(
    ("nodes", "shape", "bound"),
    [
        ([Node(8, name="h1")], Shape(1, 4, 1, 0), True),
        ([Node(8, name="h1")], Shape(1, 4, 2, 0), False),  # another one may come
        ([Node(8, name="h1"), Node(8, name="h2")], Shape(1, 4, 1, 0), True),
        ([Node(8)], Shape(1, 4, 1, 0), True),
        ([Node(4), Node(4)], Shape(1, 4, 1, 0), False),  # the other share is of the same host
        ([Node(4), Node(4)], Shape(2, 4, 1, 0), True),
    ],
)
def test_depth_binds_only_where_the_host_is_the_jobs_alone(nodes: list[Node], shape: Shape, bound: bool) -> None:
    words = job_words(nodes, shape, cpu_affinity="depth")
    assert words.endswith("-bind-to core:1" if bound else "-bind-to none")


def test_flags_are_words_and_broken_ones_fail_the_job_alone() -> None:
    words = job_words([Node(1)], Shape(1, 1, 1, 0), mpi_flags="-env A 'two  words' -x ''")
    assert words.endswith("-env A 'two  words' -x ''")
    with pytest.raises(SpawnFailed, match=r"No closing quotation.*'oops"):
        job_words([Node(1)], Shape(1, 1, 1, 0), mpi_flags="-env 'oops")


def test_srun_gives_the_ranks_the_gpus_of_the_place_and_not_all_of_the_batch_job() -> None:
    nodes = [Node(8, ["0", "1", "2", "3"], "h1")]
    nodes[0].gpu_load["0"] = 1.0
    shape = Shape(1, 2, 1, 1.0)
    assert job_words(nodes, shape, name="srun").endswith(" env CUDA_VISIBLE_DEVICES=1,2")
    nodes[0].gpu_load.update({"1": 0.0, "2": 0.0})
    nodes[0].used = nodes[0].cpus_used = 0
    words = job_words(nodes, shape, name="srun", environ_vars='{"CUDA_VISIBLE_DEVICES": "7"}')
    assert words.endswith(" env CUDA_VISIBLE_DEVICES=7")
    assert "CUDA" not in job_words([Node(8, ["0"], "h1")], Shape(1, 1, 1, 1.0), name="mpich")


# --- the user's template ----------------------------------------------------------------------------------------------


def rendered(text: str, layout: RankLayout = TWO, flags: tuple[str, ...] = ()) -> list[str]:
    return make_render(text)(layout, flags)


def test_a_template_knows_the_whole_layout() -> None:
    text = (
        "run {{ ranks }} {{ ranks_per_node }} {{ nodes }} {{ hosts|join(',') }} {{ threads_per_rank }} {{ threads_per_core }}"
        " {{ cpu_affinity }} {{ gpus_per_rank }}"
    )
    assert rendered(text) == ["run", "8", "4", "2", "h1,h2", "2", "1", "none", "0.0"]
    assert rendered("run {{ hosts|join(',') }}", VIRTUAL) == ["run", "localhost"]
    assert rendered("run {% if nodes > 1 %}-H {{ hosts[1] }}{% endif %}") == ["run", "-H", "h2"]


def test_flags_stand_last_unless_the_template_places_them() -> None:
    flags = ("-x", "two words", "$HOME", "it's")
    assert rendered("run -n {{ ranks }}", flags=flags) == ["run", "-n", "8", *flags]
    assert rendered("run {{ flags|join(' ') }} -n {{ ranks }}", flags=flags) == ["run", *flags, "-n", "8"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("run {{ rank", "unexpected end of template"),
        ("run {{ rank }}", "'rank' is undefined"),
        ("run {{ ranks.foo.bar }}", "has no attribute 'foo'"),
        ("run {{ hosts[7] }}", "no element 7"),
        ("run {{ 1 // (nodes - 1) }}", "by zero"),
        ("run '{{ ranks }}", "No closing quotation"),
        ("{% include 'x' %}", "loader"),
        ("  \n ", "no words"),
        ("{# nothing #}", "no words"),
        ("run {{ " + "(" * 5000, "."),
    ],
)
def test_a_broken_template_is_an_error_that_shows_it(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"MPI_RUN_TEMPLATE: .*{reason}") as caught:
        make_render(text)
    assert "ranks_per_node" in caught.value.hint


def test_a_template_that_fails_for_one_job_fails_that_job_alone() -> None:
    starter = find(Settings(MPI_RUN_TEMPLATE="run {{ 8 // (ranks - 3) }}"), {})
    assert isinstance(starter, Starter)
    nodes, rules = [Node(4)], MpiRules(True)
    place = NodePool(nodes, rules).reserve(Shape(1, 3, 1, 0))
    assert place is not None
    with pytest.raises(SpawnFailed, match=r"MPI_RUN_TEMPLATE: .*by zero"):
        use(starter, nodes, rules).words(claim(place.shape), place)


def test_a_template_takes_what_else_is_known_from_the_flavour() -> None:
    template = Settings(MPI_RUN_TEMPLATE="run -n {{ ranks }}")
    unnamed, cray = find(template, {}), find(template._replace(MPI_FLAVOUR="aprun"), {})
    assert isinstance(unnamed, Starter) and unnamed.shares_nodes
    assert isinstance(cray, Starter) and not cray.shares_nodes
    assert one_rank_per_node(["h1", "h2"], template, {}) == ["run", "-n", "2"]


@given(st.lists(st.text(st.characters(blacklist_characters="\0~", blacklist_categories=["Cs"]), max_size=20), max_size=5))
def test_any_flag_arrives_as_it_is(flags: list[str]) -> None:
    assert rendered("run {{ flags|join(' ') }} end", flags=tuple(flags)) == ["run", *flags, "end"]


# --- which command is here --------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """A PATH of its own."""

    folder: Path

    def has(self, name: str, script: str = "exit 1", folder: str = "") -> Path:
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def says(self, name: str, text: str) -> Path:
        return self.has(name, f"/bin/cat <<'END'\n{text}\nEND")

    def find(self, settings: Settings | None = None, **environ: str) -> Starter | str:
        return find(settings or Settings(), {"PATH": str(self.folder), **environ})

    def flavour(self, settings: Settings | None = None, **environ: str) -> str:
        found = self.find(settings, **environ)
        return found if isinstance(found, str) else found.flavour.name


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "path").mkdir()
    return Machine(tmp_path / "path")


VERSIONS = {
    "HYDRA build details:\n    Version:                                 5.0.2\n    Release Date:": "mpich",
    "HYDRA build details:\n    Version:    3.3a2\n    Process Manager: pmi": "mpich",
    "mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/": "openmpi",
    "mpiexec (OpenRTE) 4.1.8\n\nReport bugs to http://www.open-mpi.org/community/help/": "openmpi",
    "mpirun (Open MPI) 1.10.7": "openmpi",
    "prterun (PRRTE) 3.0.3": "openmpi",
    "mpirun (IBM Spectrum MPI) 10.4.0.03rtm4": "openmpi",
    "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307 (id: d82b3071db)": "intel",
    "Intel(R) MPI Library for Linux* OS, Version 2019\nHYDRA build details:": "intel",
    "mpiexec (PALS) 1.2.12": "pals",
}
ODD_VERSIONS = [
    "", "\n\n", "version 7", "Open MPI", "PALSY", "\x1b[31mhydra\x1b[0m", "rm: cannot remove", "x" * 100_000, "\ufffd\u2028ü",
    "mpiexec: unrecognized option '--version'", "hydra",
]  # fmt: skip


@pytest.mark.parametrize("text", VERSIONS)
def test_a_command_is_known_by_its_version(machine: Machine, text: str) -> None:
    machine.says("mpiexec", text)
    found = machine.find()
    assert isinstance(found, Starter)
    assert (found.flavour.name, found.argv) == (VERSIONS[text], (str(machine.folder / "mpiexec"),))


@pytest.mark.parametrize("text", ODD_VERSIONS)
def test_an_unknown_command_is_passed_over_and_told_of(machine: Machine, text: str) -> None:
    machine.says("mpiexec", text)
    reason = machine.flavour()
    assert reason.startswith("looked for aprun, jsrun, mpiexec, mpirun and mpiexec.hydra")
    assert f"{machine.folder}/mpiexec reports as its version: " in reason
    assert reason.isascii() and len(reason) < 2000 + len(str(machine.folder))
    machine.says("mpirun", "HYDRA build details:")
    assert machine.flavour() == "mpich"


@pytest.mark.parametrize(
    "script", ["exit 1", "echo HYDRA build details; exit 3", "kill -9 $$", "/bin/cat /dev/zero | /usr/bin/head -c 9999999"]
)
def test_a_command_that_fails_is_passed_over(machine: Machine, script: str) -> None:
    machine.has("mpiexec", script)
    machine.says("mpirun", "mpirun (Open MPI) 5.0.11")
    assert machine.flavour() == "openmpi"


def test_a_command_that_hangs_is_given_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "VERSION_TIMEOUT_S", 0.5)
    machine.has("mpiexec", "/bin/sleep 600")
    begun = time.monotonic()
    assert "no answer within 0.5 s" in machine.flavour()
    assert time.monotonic() - begun < 10


def test_a_machine_without_any_says_what_was_looked_for(machine: Machine) -> None:
    reason = machine.flavour()
    assert reason.startswith("looked for aprun, jsrun, mpiexec, mpirun and mpiexec.hydra (and for srun in a Slurm job only)")
    assert str(machine.folder) in reason and "MPI_RUN_TEMPLATE" in reason
    assert isinstance(one_rank_per_node(["a"], Settings(), {"PATH": str(machine.folder)}), str)
    assert isinstance(find(Settings(), {"PATH": ""}), str)


def test_vendors_commands_come_first(machine: Machine) -> None:
    machine.says("mpiexec", "HYDRA build details:")
    machine.has("jsrun")
    assert machine.flavour() == "jsrun"
    machine.has("aprun")
    assert machine.flavour() == "aprun"


def test_pals_is_known_by_where_it_lies(machine: Machine) -> None:
    real = machine.has("mpiexec", "echo mpiexec version 1.2.4", "opt/cray/pe/pals/1.2.4/bin")
    (machine.folder / "mpiexec").symlink_to(real)
    assert machine.flavour() == "pals"


def test_srun_is_taken_inside_slurm_where_there_is_no_mpiexec(machine: Machine) -> None:
    machine.has("srun")
    assert machine.flavour().startswith("looked for")
    found = machine.find(SLURM_JOB_ID="7", SLURMD_NODENAME="node3")
    assert isinstance(found, Starter)
    assert (found.flavour.name, found.prefix(VIRTUAL)[2]) == ("srun", "--nodelist=node3")
    machine.says("mpiexec", "HYDRA build details:")
    assert machine.flavour(SLURM_JOB_ID="7") == "mpich"


def test_one_file_of_several_names_is_asked_once(machine: Machine) -> None:
    real = machine.has("mpiexec", f"echo asked >> {machine.folder}/log; exit 1")
    (machine.folder / "mpirun").symlink_to(real)
    assert machine.flavour().count("reports as its version") == 1
    assert (machine.folder / "log").read_text() == "asked\n"


def test_settings_decide_without_asking(machine: Machine) -> None:
    machine.has("mpiexec", f"echo asked >> {machine.folder}/log")
    assert machine.flavour(Settings(MPI_FLAVOUR="openmpi")) == "openmpi"
    assert machine.flavour(Settings(MPI_FLAVOUR="PALS")) == "pals"
    assert "looked for aprun on PATH, because MPI_FLAVOUR is aprun" in machine.flavour(Settings(MPI_FLAVOUR="aprun"))
    own = machine.has("my mpi", folder="a b")
    found = machine.find(Settings(MPI_FLAVOUR="srun", MPI_RUN_EXE=f"'{own}' --mpi=pmi2"))
    assert isinstance(found, Starter)
    assert found.prefix(ONE)[:3] == [str(own), "--mpi=pmi2", "--nodes=1"]
    assert not (machine.folder / "log").exists()


def test_a_command_of_the_settings_is_asked_what_it_is(machine: Machine) -> None:
    own = machine.says("strange", "mpirun (Open MPI) 4.1.1")
    assert machine.flavour(Settings(MPI_RUN_EXE=str(own))) == "openmpi"
    assert machine.flavour(Settings(MPI_RUN_EXE="strange")) == "openmpi"
    machine.says("strange", "?")
    assert "set MPI_FLAVOUR" in machine.flavour(Settings(MPI_RUN_EXE="strange"))
    assert "looked for /no/where" in machine.flavour(Settings(MPI_RUN_EXE="/no/where"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(MPI_FLAVOUR="openmp"), "MPI_FLAVOUR: there is no 'openmp'"),
        (Settings(MPI_RUN_EXE="'oops"), "MPI_RUN_EXE cannot be split"),
        (Settings(MPI_RUN_EXE="  "), "nothing but blanks"),
        (Settings(MPI_FLAVOUR="openmp", MPI_RUN_TEMPLATE="run"), "MPI_FLAVOUR"),
        (Settings(MPI_RUN_TEMPLATE="{{"), "MPI_RUN_TEMPLATE"),
    ],
)
def test_settings_without_sense_are_errors(machine: Machine, settings: Settings, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        machine.find(settings)


# --- what is inherited ------------------------------------------------------------------------------------------------

OF_RANKS = [
    "GFORTRAN_UNBUFFERED_PRECONNECTED",
    "HYDI_CONTROL_FD", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "PMI_FD", "PMI_HOSTNAME", "PMI_RANK", "PMI_SIZE", "PMI2_X",
    "PMIX_NAMESPACE", "PMIX_RANK", "PMIX_SERVER_URI41", "OMPI_COMM_WORLD_RANK", "OMPI_UNIVERSE_SIZE", "OMPI_COMMAND",
    "OMPI_MCA_initial_wdir", "OMPI_MCA_ess", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri", "OMPI_MCA_pmix",
    "OMPI_MCA_num_procs", "PRTE_LAUNCHED", "OPAL_USER_PARAMS_GIVEN", "PALS_RANKID", "ALPS_APP_PE", "JSM_NAMESPACE_RANK",
    "MV2_COMM_WORLD_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS", "SLURM_TASK_PID",
    "SLURM_NPROCS", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE", "SLURM_SRUN_COMM_PORT", "SLURM_LAUNCH_NODE_IPADDR", "SLURM_DISTRIBUTION",
    "SLURM_CPU_BIND", "SLURM_CPU_BIND_LIST", "SLURM_CPUS_PER_TASK", "SLURM_PMIX_MAPPING_SERV",
]  # fmt: skip
#: What sbatch says to srun through the environment, or a user's profile does.
OF_STEPS = [
    "SLURM_EXPORT_ENV", "SRUN_EXPORT_ENV", "SLURM_GET_USER_ENV", "SRUN_CPUS_PER_TASK", "SLURM_GPUS", "SLURM_GPUS_PER_NODE",
    "SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_SOCKET", "SLURM_CPUS_PER_GPU", "SLURM_GPU_BIND", "SLURM_GPU_FREQ", "SLURM_GRES",
    "SLURM_STEP_GRES", "SLURM_GRES_FLAGS", "SLURM_NTASKS_PER_GPU", "SLURM_NTASKS_PER_CORE", "SLURM_TRES_PER_TASK",
    "SLURM_TRES_BIND", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_NODE", "SLURM_HINT", "SLURM_THREADS_PER_CORE",
    "SLURM_EXACT", "SLURM_EXCLUSIVE", "SLURM_DIST_PLANESIZE", "SLURM_NO_KILL", "SLURM_KILL_BAD_EXIT", "SLURM_WAIT",
    "SLURM_OVERCOMMIT", "SLURM_REMOTE_CWD", "SLURM_WORKING_DIR", "SLURM_STDOUTMODE", "SLURM_TIMELIMIT", "SLURM_IMMEDIATE",
]  # fmt: skip
OF_USERS = [
    "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_btl", "OMPI_MCA_pml", "OMPI_MCA_essential",
    "OMPI_MCA_orte_keep_fqdn_hostnames", "PRTE_MCA_rmaps_default_mapping_policy", "PMIX_MCA_gds",
    "PMI_NO_PREINITIALIZE", "OMPI_CC", "HYDRA_BOOTSTRAP", "I_MPI_FABRICS", "MPICH_GPU_SUPPORT_ENABLED", "FI_PROVIDER",
    "UCX_TLS", "SLURM_CONF", "SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_TASKS_PER_NODE", "SLURM_JOB_ACCOUNT",
    "SLURM_MPI_TYPE", "SLURM_CLUSTERS", "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_LABELIO", "SLURM_WORKING_CLUSTER",
    "MPI_HOME", "OPAL_PREFIX", "PATH", "LD_LIBRARY_PATH", "XPMI_RANK",
]  # fmt: skip


def test_what_makes_a_rank_is_left_out_and_what_users_set_is_kept() -> None:
    environ = {name.encode(): b"\xff" for name in (*OF_RANKS, *OF_STEPS, *OF_USERS)}
    assert sorted(scrubbed(environ)) == sorted(name.encode() for name in OF_USERS)
    assert len(environ) == len(OF_RANKS) + len(OF_STEPS) + len(OF_USERS), "what was given is not touched"


def test_steps_inside_a_slurm_job_do_not_wait_for_one_another() -> None:
    assert scrubbed({b"SLURM_JOB_ID": b"7"})[b"SLURM_OVERLAP"] == b"1"
    assert scrubbed({b"SLURM_JOB_ID": b"7", b"SLURM_OVERLAP": b"0"})[b"SLURM_OVERLAP"] == b"0"
    assert scrubbed({}) == {}


@given(st.dictionaries(st.binary(max_size=30), st.binary(max_size=10)))
def test_scrubbing_twice_is_scrubbing_once(environ: dict[bytes, bytes]) -> None:
    once = scrubbed(environ)
    assert scrubbed(once) == once
    assert once.keys() <= environ.keys() | {b"SLURM_OVERLAP"}


# --- real MPI on this host --------------------------------------------------------------------------------------------


class Mpi(NamedTuple):
    """A real one."""

    starter: Starter
    python: str  # with an mpi4py that works with it
    environ: dict[str, str]

    def run(self, words: list[str], timeout_s: float = 60, stdin: str = "") -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                words, env=self.environ, input=stdin, capture_output=True, text=True, timeout=timeout_s, start_new_session=True
            )
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"{shlex.join(words)} hangs: {exc.stdout!r} {exc.stderr!r}") from None

    def who(self, layout: RankLayout) -> list[dict[str, Any]]:
        done = self.run([*self.starter.prefix(layout), self.python, WHO])
        assert done.returncode == 0, done.stderr
        return facts(done.stdout)


def facts(output: str) -> list[dict[str, Any]]:
    """What who.py said, by rank."""
    return sorted((json.loads(line) for line in output.splitlines() if line.startswith("{")), key=lambda who: who["rank"])


def real_mpi(name: str) -> Mpi:
    """Found as a launcher finds it, with its command in front of PATH."""
    folder, python = (Path(mpiexec()).parent, PYTHON) if name == "mpich" else (openmpi(), str(openmpi() / "python"))
    environ = {**os.environ, "PATH": f"{folder}:{os.environ.get('PATH', '')}", "PYTHONPATH": str(PROGRAMS.parent.parent)}
    if os.geteuid() == 0:  # Open MPI wants to be asked twice
        environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if name == "openmpi":
        environ["OMPI_MCA_btl"] = "^tcp"  # looking for networks takes it a second
    starter = find(Settings(), environ)
    assert isinstance(starter, Starter), starter
    assert starter.flavour.name == name
    return Mpi(starter, python, environ)


@pytest.fixture(params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest) -> Mpi:
    return real_mpi(request.param)


def test_a_real_mpi_starts_more_ranks_than_cpus_on_shares_of_this_host(mpi: Mpi) -> None:
    ranks = (os.cpu_count() or 1) + 2
    found = mpi.who(RankLayout(num_nodes=1, ranks_per_node=ranks))
    assert [(who["rank"], who["size"]) for who in found] == [(rank, ranks) for rank in range(ranks)]


def test_a_real_mpi_makes_one_program_of_two_shares(mpi: Mpi) -> None:
    found = mpi.who(RankLayout(num_nodes=2, ranks_per_node=2))
    assert [(who["rank"], who["size"]) for who in found] == [(rank, 4) for rank in range(4)]


def test_ranks_are_bound_only_on_request(mpi: Mpi) -> None:
    here = sorted(os.sched_getaffinity(0))
    if len(here) < 2:
        pytest.skip("this machine has one CPU only")
    free = mpi.who(RankLayout(ranks_per_node=2, cpus_per_node=len(here)))
    assert [who["cpus"] for who in free] == [here, here]
    bound = mpi.who(RankLayout(ranks_per_node=2, cpu_affinity="depth", cpus_per_node=len(here)))
    assert not set(bound[0]["cpus"]) & set(bound[1]["cpus"])


def test_a_programs_end_is_told(mpi: Mpi) -> None:
    prefix = mpi.starter.prefix(RankLayout(ranks_per_node=2))
    assert mpi.run([*prefix, "true"]).returncode == 0
    assert mpi.run([*prefix, "false"]).returncode != 0
    assert mpi.run([*prefix, mpi.python, "-c", "from mpi4py import MPI; MPI.COMM_WORLD.Abort(9)"]).returncode != 0
    assert mpi.run([*prefix, "/no/such/program"]).returncode != 0


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_our_own_ranks_survive_one_that_ends_where_the_mpi_allows_it(mpi: Mpi, end: str) -> None:
    words = [*mpi.starter._environment(ONE), *mpi.starter.argv]
    words += mpi.starter.flavour.one_per_host(RankLayout(num_nodes=3))
    done = mpi.run([*words, mpi.python, str(PROGRAMS / "survive.py"), end], stdin="an order\n")
    if (mpi.starter.flavour.name, end) == ("mpich", "kill"):
        assert done.returncode != 0, "MPICH 5 ends all, sooner or later"
    else:
        assert "heard pong and read an order" in done.stdout, done.stderr


#: (outer, inner).
NESTED = [("mpich", "mpich"), ("openmpi", "openmpi"), ("mpich", "openmpi"), ("openmpi", "mpich")]


@pytest.mark.parametrize(("outer", "inner"), NESTED)
@pytest.mark.parametrize("way", ["mpiexec", "alone"])
def test_a_rank_can_start_mpi_programs(outer: str, inner: str, way: str) -> None:
    """As in a launcher that is rank 0 of an MPI program: jobs with an mpiexec of their own, and jobs without."""
    over, under = real_mpi(outer), real_mpi(inner)
    within = [*(under.starter.prefix(RankLayout(ranks_per_node=3)) if way == "mpiexec" else []), under.python, WHO]
    prefix = over.starter.prefix(RankLayout(ranks_per_node=2))
    # In one word: Open MPI 5 also reads the options that stand behind the program's name.
    done = over.run([*prefix, over.python, str(PROGRAMS / "nest.py"), "scrubbed", shlex.join(within)])
    assert done.returncode == 0, done.stderr
    size = 3 if way == "mpiexec" else 1
    assert [(who["rank"], who["size"]) for who in facts(done.stdout)] == [(rank, size) for rank in range(size)]


def test_without_scrubbing_a_rank_cannot_start_a_program_that_is_mpis_own() -> None:
    mpich = real_mpi("mpich")
    prefix = mpich.starter.prefix(RankLayout(ranks_per_node=2))
    done = mpich.run([*prefix, mpich.python, str(PROGRAMS / "nest.py"), "untouched", shlex.join([mpich.python, WHO])])
    assert done.returncode != 0


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from mpi4py import MPI
with open(os.path.join(sys.argv[1], f".{MPI.COMM_WORLD.rank}"), "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, os.path.join(sys.argv[1], f"pid{MPI.COMM_WORLD.rank}"))
time.sleep(300)
"""


class Stubborn(NamedTuple):
    """An mpiexec whose two ranks ignore SIGTERM."""

    mpiexec: subprocess.Popen[bytes]
    ranks: list[int]  # their pids

    @property
    def living(self) -> list[int]:
        return [pid for pid in self.ranks if alive(pid)]


@contextmanager
def stubborn(mpi: Mpi, folder: Path) -> Iterator[Stubborn]:
    """Gone at the end, ranks included."""
    words = [*mpi.starter.prefix(RankLayout(ranks_per_node=2)), mpi.python, "-c", STUBBORN, str(folder)]
    process = subprocess.Popen(words, env={**mpi.environ, "MARK": "x"}, start_new_session=True, stderr=subprocess.DEVNULL)
    files = [folder / "pid0", folder / "pid1"]
    try:
        wait_until(lambda: all(file.exists() for file in files))
        yield Stubborn(process, [int(file.read_text()) for file in files])
    finally:
        process.kill()
        process.wait()
        for pid in [int(file.read_text()) for file in files if file.exists()]:
            if alive(pid):
                os.kill(pid, 9)


def test_mpiexec_takes_a_sigterm_as_the_runner_expects(mpi: Mpi, tmp_path: Path) -> None:
    """Open MPI kills the ranks, MPICH leaves it to them for ever; its ranks end with it."""
    with stubborn(mpi, tmp_path) as program:
        program.mpiexec.terminate()
        if mpi.starter.flavour.name == "openmpi":
            assert program.mpiexec.wait(20) != 0
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                program.mpiexec.wait(2)
            assert program.living == program.ranks
            program.mpiexec.kill()
        wait_until(lambda: not program.living, 10)


def test_ranks_of_open_mpi_outlive_a_killed_mpiexec_and_can_be_found_by_their_environment(tmp_path: Path) -> None:
    with stubborn(real_mpi("openmpi"), tmp_path) as program:
        program.mpiexec.kill()
        program.mpiexec.wait(10)
        time.sleep(1)
        assert program.living
        environs = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in program.living]
        assert all(b"MARK=x" in environ for environ in environs)


# --- in a real Slurm --------------------------------------------------------------------------------------------------

HERE, THERE = "node1", "node2"
WHERE = {
    (HERE, THERE): [(0, 4, HERE), (1, 4, HERE), (2, 4, THERE), (3, 4, THERE)],
    (THERE,): [(0, 2, THERE), (1, 2, THERE)],
    (): [(rank, 6, HERE) for rank in range(6)],
}


class Batch:
    """Batch jobs on two nodes, with both MPIs."""

    def __init__(self, cluster: slurm_cluster.Cluster, folder: Path) -> None:
        mpich, open_mpi = real_mpi("mpich"), real_mpi("openmpi")
        self._cluster, self._folder = cluster, folder
        self._environ = {**open_mpi.environ, "PATH": mpich.environ["PATH"]}
        del self._environ["OMPI_MCA_btl"]  # between nodes it needs TCP
        self.ways = [
            f"srun=srun+pmi2={mpich.python}",
            f"mpich={mpich.starter.argv[0]}={mpich.python}",
            f"openmpi={open_mpi.starter.argv[0]}={open_mpi.python}",
        ]

    def run(self, script: str, timeout_s: float = 120, **environ: str) -> str:
        """A script to its end; what it printed."""
        output = self._folder / "output"
        path = self._folder / "script.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        options = ["--nodes=2", f"--nodelist={HERE},{THERE}", "--gres=gpu:4", f"--output={output}", str(path)]
        submitted = self._cluster.run(["sbatch", "--parsable", *options], **{**self._environ, **environ})
        job = submitted.stdout.strip()
        assert job, submitted.stderr
        wait_until(lambda: self._cluster.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), timeout_s, 0.2)
        return output.read_text()


@pytest.fixture
def batch(slurm: slurm_cluster.Cluster, tmp_path: Path) -> Iterator[Batch]:
    yield Batch(slurm, tmp_path)
    slurm.cancel_all()


@pytest.mark.parametrize("outer", ["batch", "srun", "mpich", "openmpi"])
def test_programs_start_on_the_nodes_of_a_slurm_job_wherever_the_launcher_is(batch: Batch, outer: str) -> None:
    """In the batch script, or in the first rank of a program that runs over all nodes."""
    name_of = {way.split("=")[0]: way for way in batch.ways}
    ways, programs = shlex.join(batch.ways), PROGRAMS / "ways.py"
    if outer == "batch":
        line = f"{PYTHON} {programs} batch {ways}"
    else:
        name, command, python = name_of[outer].split("=")
        starter = Starter(tuple(command.replace("+", " --mpi=").split()), FLAVOURS[name])
        line = shlex.join([*starter.one_per_host([HERE, THERE]), python, str(programs), "step", *batch.ways])
    output = batch.run(line)
    found = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    assert len(found) == len(batch.ways) * (3 if outer == "batch" else 2), output
    for _, hosts, who, trouble in found:
        assert [tuple(one) for one in who] == WHERE[tuple(hosts)], (hosts, trouble)


def test_steps_run_side_by_side_on_one_node(batch: Batch) -> None:
    """Six programs of two ranks on four CPUs, each as long as it takes, by srun and by an mpiexec that uses srun itself."""
    layout = RankLayout((THERE,), 1, 2, shares_nodes=True)
    lines = []
    for way in batch.ways[:2]:
        name, command, _ = way.split("=")
        starter = Starter(tuple(command.replace("+", " --mpi=").split()), FLAVOURS[name])
        lines += [
            "begun=$(date +%s%N)",
            f"for n in 1 2 3 4 5 6; do {shlex.join(starter.prefix(layout))} sleep 8 & done; wait",
            f"echo took {name} $(( ($(date +%s%N) - begun) / 1000000 ))",
        ]
    output = batch.run("\n".join(["export SLURM_OVERLAP=1", *lines]))
    took = {line.split()[1]: int(line.split()[2]) for line in output.splitlines() if line.startswith("took ")}
    assert took.keys() == {"srun", "mpich"}, output
    assert all(8000 <= milliseconds < 16000 for milliseconds in took.values()), took


def test_srun_leaves_the_ranks_their_own_gpus(batch: Batch) -> None:
    nodes, shape = [Node(4, ["0", "1", "2", "3"], HERE)], Shape(1, 2, 1, 1.0)
    nodes[0].gpu_load["0"] = 1.0
    command = job_words(nodes, shape, name="srun")
    output = batch.run(f"export CUDA_VISIBLE_DEVICES=1,2\n{command} sh -c 'echo gpus $CUDA_VISIBLE_DEVICES'")
    assert output.splitlines().count("gpus 1,2") == 2, output


@pytest.mark.parametrize("way", ["srun", "mpich"])
def test_a_launcher_in_a_slurm_job_runs_a_job_of_two_nodes_with_four_ranks_each(batch: Batch, tmp_path: Path, way: str) -> None:
    bench = Bench(tmp_path)
    try:
        bench.app("who", f"{PYTHON} {WHO}")
        wide, *narrow = bench.add(
            [
                {"name": "wide", "application": "who", "num_nodes": 2, "ranks_per_node": 4},
                *({"name": f"n{n}", "application": "who", "ranks_per_node": 2, "node_packing_count": 2} for n in range(4)),
            ]
        )
        settings = {"BALSAM_IDLE_TTL_S": "0.5"}
        if way == "srun":
            settings |= {"BALSAM_MPI_FLAVOUR": "srun", "BALSAM_MPI_RUN_EXE": "srun --mpi=pmi2"}
        words = [PYTHON, "-m", "balsam_lite.cli", "--db", bench.directory, "launcher", "--consume-all", "--job-mode", "mpi"]
        output = batch.run(shlex.join(words), **settings)
        assert bench.states().get("JOB_FINISHED") == 5, output
        who = facts(bench.path(wide, "wide.out").read_text())
        assert [(one["rank"], one["size"], one["host"]) for one in who] == [
            (rank, 8, HERE if rank < 4 else THERE) for rank in range(8)
        ]
        for number, job in enumerate(narrow):
            who = facts(bench.path(job, f"n{number}.out").read_text())
            assert [(one["rank"], one["size"]) for one in who] == [(0, 2), (1, 2)]
            assert len({one["host"] for one in who}) == 1
    finally:
        bench.close()


# --- killed under a launcher ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["the job", "mpiexec"])
def test_nothing_of_an_mpi_job_is_left_when_it_is_killed(mpi: Mpi, tmp_path: Path, what: str) -> None:
    """By the user, or when its MPI command dies of SIGKILL, whatever that leaves behind."""
    bench = Bench(tmp_path, BALSAM_USER_KILL_GRACE_S="0.5")
    bench.environ = {**bench.environ, **{name: mpi.environ[name] for name in mpi.environ.keys() - {"PYTHONPATH"}}}
    program = tmp_path / "stubborn.py"
    program.write_text(STUBBORN)
    pids: list[int] = []
    try:
        bench.app("stubborn", f"{mpi.python} {program} .")
        (job,) = bench.add([{"name": "j", "application": "stubborn", "ranks_per_node": 2}])
        launcher = bench.launch("--job-mode", "mpi", "--nodes", "1")
        files = [bench.path(job, f"pid{rank}") for rank in (0, 1)]
        wait_until(lambda: all(file.exists() for file in files), 40)
        pids = [int(file.read_text()) for file in files]
        if what == "the job":
            user_actions.kill(bench.db, [job])
        else:
            (helper,) = psutil.Process(launcher.pid).children()
            (command,) = helper.children()
            command.kill()
        wait_until(lambda: not any(map(alive, pids)), 10)
        assert launcher.wait(30) == 0
        assert bench.job(job)["state"] == ("USER_KILLED" if what == "the job" else "FAILED")
    finally:
        bench.close()
        for pid in filter(alive, pids):
            os.kill(pid, 9)

"""In which batch job is this, on which nodes, until when: from recorded environments, broken ones, and a real Slurm."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time

import pytest
from helpers import ROOT, wait_until
from hypothesis import given
from hypothesis import strategies as st

from balsam_lite.core.errors import BalsamError, LaunchError, NoNodes
from balsam_lite.core.settings import Settings
from balsam_lite.launcher.exec import hardware
from balsam_lite.schedulers.environ import Allocation, allocation, ask_end_us, rank, time_left_pbs, time_left_slurm
from balsam_lite.schedulers.slurm import SlurmScheduler

NOW_US = 1_795_000_000_000_000

#: What a batch script of two whole nodes with four GPUs each found, Slurm 22.05.8.
SLURM = {
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    "SLURMD_NODENAME": "node1",
    "SLURM_CPUS_ON_NODE": "4",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
    "SLURM_JOB_GPUS": "0,1,2,3",
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
#: A step on the second of three nodes, and the shell of salloc, which runs where it was called. No GPUs.
STEP = {
    "SLURMD_NODENAME": "node2",
    "SLURM_CPUS_ON_NODE": "4",
    "SLURM_JOB_CPUS_PER_NODE": "4(x3)",
    "SLURM_JOB_ID": "4",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_NODELIST": "node[1-3]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node2",
}
SALLOC = {
    "SLURM_JOB_CPUS_PER_NODE": "2,1",
    "SLURM_JOB_ID": "3",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NODELIST": "node[1-2]",
}
CRAY = {
    "COBALT_ENDTIME": "1795321296",
    "COBALT_JOBID": "104321",
    "COBALT_JOBSIZE": "6",
    "COBALT_PARTCORES": "64",
    "COBALT_PARTNAME": "1001-1005,1030",
    "COBALT_PARTSIZE": "6",
    "COBALT_STARTTIME": "1795317696",
}


def without(environ, *variables):
    return {name: value for name, value in environ.items() if name not in variables}


@pytest.fixture
def node_file(tmp_path):
    def write(content, name="nodes"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


# --- environments as they are -----------------------------------------------------------------------------------------


def test_outside_of_a_batch_job_there_is_no_allocation():
    assert allocation({}) is None
    assert allocation({"SLURM_CONF": "/etc/slurm.conf", "PBS_DEFAULT": "server", "CUDA_VISIBLE_DEVICES": "0"}) is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (SLURM, Allocation("SlurmScheduler", "17", 2, ("node1", "node2"), None, 4, 4, this_node="node1")),
        (STEP, Allocation("SlurmScheduler", "4", 3, ("node1", "node2", "node3"), None, 4, this_node="node2")),
        (SALLOC, Allocation("SlurmScheduler", "3", 2, ("node1", "node2"), None, 1, runs_on_node=False, node_cpus=(2, 1))),
        (CRAY, Allocation("CobaltScheduler", "104321", 6, ("1001", "1002", "1003", "1004", "1005", "1030"),
                          1795321296_000000, runs_on_node=False)),
    ],
    ids=["slurm", "slurm step", "salloc", "cobalt on a cray"],
)  # fmt: skip
def test_an_environment_tells_the_batch_job_and_its_nodes(environ, expected):
    assert allocation(environ) == expected


def test_a_cobalt_cluster_has_a_file_of_hosts_between_blanks_or_commas(node_file):
    environ = {"COBALT_JOBID": "7", "COBALT_NODEFILE": node_file("cc001, cc002\tcc003\n\ncc001\n"), "COBALT_PARTNAME": "x"}
    assert allocation(environ) == Allocation("CobaltScheduler", "7", 3, ("cc001", "cc002", "cc003"))


def test_pbs_has_a_line_for_each_slot_and_a_node_counts_once(node_file):
    lines = "x3006c0s13b1n0.hsn\nx3006c0s13b1n0.hsn\nx3006c0s19b0n0.hsn\nx3006c0s13b1n0.hsn\n"
    environ = {"PBS_JOBID": "2054.polaris-pbs-01.hsn.example", "PBS_NODEFILE": node_file(lines), "NCPUS": "64"}
    names = ("x3006c0s13b1n0.hsn", "x3006c0s19b0n0.hsn")
    assert allocation(environ) == Allocation("PBSScheduler", "2054.polaris-pbs-01.hsn.example", 2, names, None, 64)


def test_a_node_file_may_have_dos_line_ends_and_no_last_one(node_file):
    environ = {"PBS_JOBID": "1", "PBS_NODEFILE": node_file("a\r\nb\r\na")}
    assert allocation(environ).node_names == ("a", "b")


def test_slots_of_ten_thousand_nodes_are_folded_within_seconds(node_file):
    lines = "".join(f"nid{number:05}.cluster.example\n" * 64 for number in range(10_000))
    begun = time.process_time()
    found = allocation({"PBS_JOBID": "1", "PBS_NODEFILE": node_file(lines)})
    assert found.num_nodes == len(found.node_names) == 10_000
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("variables", "cpus"),
    [
        ({"PBS_NUM_PPN": "16"}, 16),  # Torque
        ({"NCPUS": "64"}, 64),  # OpenPBS
        ({"PBS_NUM_PPN": "1", "NCPUS": "1"}, 0),  # none of them was asked for
        ({"NCPUS": "many"}, 0),
        ({}, 0),
    ],
)
def test_pbs_tells_the_cpus_that_were_asked_for(node_file, variables, cpus):
    environ = {"PBS_JOBID": "1.s", "PBS_NODEFILE": node_file("a\n"), **variables}
    assert allocation(environ).cpus_per_node == cpus


@pytest.mark.parametrize("batch_id", ["1", "123.server", "123[].server.example", "123[45].server", "123[4]"])
def test_ids_of_pbs_stay_as_they_are(node_file, batch_id):
    assert allocation({"PBS_JOBID": batch_id, "PBS_NODEFILE": node_file("a\n")}).batch_id == batch_id


@pytest.mark.parametrize(
    ("variables", "cpus"),
    [
        ({"SLURM_JOB_CPUS_PER_NODE": "72(x2),36"}, 36),
        ({"SLURM_JOB_CPUS_PER_NODE": "128"}, 128),
        ({"SLURM_JOB_CPUS_PER_NODE": "4(x2"}, 8),
        ({"SLURM_JOB_CPUS_PER_NODE": "²"}, 8),
        ({"SLURM_JOB_CPUS_PER_NODE": "0"}, 8),
        ({}, 8),
        ({"SLURM_CPUS_ON_NODE": "-1"}, 0),
    ],
)
def test_slurm_tells_the_cpus_of_the_smallest_node(variables, cpus):
    environ = {"SLURM_JOB_ID": "1", "SLURM_NODELIST": "a", "SLURM_CPUS_ON_NODE": "8", **variables}
    assert allocation(environ).cpus_per_node == cpus


@pytest.mark.parametrize(
    ("variables", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_NODE": "4"}, 2),
        ({"SLURM_GPUS_PER_NODE": "a100:4"}, 4),
        ({"SLURM_GPUS_PER_NODE": "volta:3,kepler:1"}, 4),
        ({"SLURM_JOB_GPUS": "0,2-3"}, 3),
        ({"SLURM_JOB_GPUS": "all"}, None),
        ({"SLURM_GPUS_ON_NODE": "0"}, 0),
        ({"SLURM_GPUS_ON_NODE": "some", "SLURM_GPUS_PER_NODE": ""}, None),
        ({}, None),
    ],
)
def test_slurm_tells_the_gpus_of_a_node(variables, gpus):
    assert allocation({"SLURM_JOB_ID": "1", "SLURM_NODELIST": "a", **variables}).gpus_per_node == gpus


def test_a_node_that_is_named_twice_counts_once():
    found = allocation({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "b,a[1-2],b,a1"})
    assert (found.num_nodes, found.node_names) == (3, ("b", "a1", "a2"))


@pytest.mark.parametrize(("ends", "ends_us"), [("1795321296", 1795321296_000000), ("0", None)])
def test_newer_slurms_tell_the_end(ends, ends_us):
    assert allocation({**SLURM, "SLURM_JOB_END_TIME": ends}).ends_us == ends_us


def test_the_inner_batch_job_wins_and_slurm_before_its_own_imitation_of_pbs(node_file):
    pbs = {"PBS_JOBID": "17", "PBS_NODEFILE": node_file("a\n")}
    assert allocation({**CRAY, **pbs, **SLURM, "BALSAM_LOCAL_JOBID": "1"}).scheduler == "LocalScheduler"
    assert allocation({**CRAY, **pbs, **SLURM}).scheduler == "SlurmScheduler"
    assert allocation({**CRAY, **pbs}).scheduler == "CobaltScheduler"
    assert allocation(pbs).scheduler == "PBSScheduler"


# --- broken ones ------------------------------------------------------------------------------------------------------


def refusal(environ):
    with pytest.raises(NoNodes) as caught:
        allocation(environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        (without(SLURM, "SLURM_JOB_NODELIST", "SLURM_NODELIST"), ["SLURM_JOB_ID='17'", "no SLURM_JOB_NODELIST"]),
        ({"SLURM_JOB_ID": "1", "SLURM_NODELIST": ""}, ["SLURM_NODELIST=''", "empty"]),
        ({**SLURM, "SLURM_JOB_NODELIST": "node[1-"}, ["SLURM_JOB_NODELIST='node[1-'", "at character 5", "no partner"]),
        ({**SLURM, "SLURM_JOB_NODELIST": "node[2-1]"}, ["reversed"]),
        ({**SLURM, "SLURM_JOB_NODELIST": "node[1-1000000000]"}, ["more than 1000000 names"]),
        ({**SLURM, "SLURM_JOB_NODELIST": "node1;rm"}, ["'node1;rm' is no name"]),
        ({**SLURM, "SLURM_JOB_NODELIST": "-x,node1"}, ["'-x' is no name"]),
        ({**SLURM, "SLURM_JOB_NODELIST": "nöde1"}, ["'nöde1' is no name"]),
        ({**SLURM, "SLURM_JOB_NODELIST": "(null)"}, ["'(null)' is no name"]),
        (without(CRAY, "COBALT_PARTNAME"), ["no COBALT_NODEFILE", "no COBALT_PARTNAME", "COBALT_PARTSIZE='6'"]),
        ({**CRAY, "COBALT_PARTNAME": ""}, ["COBALT_PARTNAME=''", "missing or empty"]),
        ({**CRAY, "COBALT_PARTNAME": "MIR-00000-33331-512"}, ["COBALT_PARTNAME='MIR-", "at character 1"]),
        ({**CRAY, "COBALT_PARTNAME": "1005-1001"}, ["reversed"]),
        ({**CRAY, "COBALT_NODEFILE": ""}, ["COBALT_NODEFILE=''", "No such file"]),
        ({**CRAY, "COBALT_NODEFILE": "/nowhere/nodes"}, ["COBALT_NODEFILE='/nowhere/nodes'", "No such file"]),
        ({"PBS_JOBID": "1.s"}, ["PBS_JOBID='1.s'", "no PBS_NODEFILE"]),
        ({"PBS_JOBID": "1.s", "PBS_NODEFILE": "/"}, ["PBS_NODEFILE='/'", "directory"]),
        ({"PBS_JOBID": "1.s", "PBS_NODEFILE": "/dev/zero"}, ["'/dev/zero' is no plain file"]),
        ({"PBS_JOBID": "1.s", "PBS_NODEFILE": "a\0b"}, ["null byte"]),
    ],
)
def test_nodes_that_are_not_to_be_found_out_are_an_error_with_what_was_seen_and_the_way_out(environ, seen):
    text = refusal(environ)
    assert [word for word in seen if word not in text] == []
    first, _, hint = text.rpartition("\n")
    assert "Seen: " in first
    assert hint.startswith("Set ")
    assert "`unset " in hint


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is empty"),
        (" \n,\n", "is empty"),
        (b"\xff\xfe\x00node", "can't decode"),
        (b"node1\nno\x00de2\n", "is no name of a node"),
        ("node1\n<html>\n", "'<html>' is no name"),
        ("x" * 256, "is no name"),
    ],
)
def test_garbage_in_a_node_file_is_an_error_that_names_it(node_file, content, why):
    path = node_file(content)
    text = refusal({"PBS_JOBID": "1.s", "PBS_NODEFILE": path})
    assert path in text
    assert why in text
    assert len(text) < 1000


def test_a_huge_node_file_is_refused_without_reading_all_of_it(tmp_path):
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.truncate(10**12)  # takes no room on the disk
    begun = time.process_time()
    assert "larger than" in refusal({"COBALT_JOBID": "1", "COBALT_NODEFILE": str(path)})
    assert time.process_time() - begun < 5


def test_more_names_than_any_machine_has_nodes_are_refused(node_file):
    path = node_file("".join(f"{number}\n" for number in range(1_000_001)))
    assert "more than 1000000 names" in refusal({"PBS_JOBID": "1", "PBS_NODEFILE": path})


def test_a_pipe_for_a_node_file_hangs_nobody(tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    assert "no plain file" in refusal({"PBS_JOBID": "1", "PBS_NODEFILE": path})


def test_a_node_file_that_may_not_be_read_is_an_error(node_file):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path = node_file("a\n")
    os.chmod(path, 0)
    assert "denied" in refusal({"PBS_JOBID": "1", "PBS_NODEFILE": path})


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "COBALT_JOBID", "PBS_JOBID", "BALSAM_LOCAL_JOBID"])
@pytest.mark.parametrize("value", ["", "x", "-1", "--help", "1 2", "1;2", "²", "9" * 5000, "1.s\n", "../1"])
def test_an_id_that_is_none_is_an_error_before_anything_else_is_read(variable, value):
    with pytest.raises(LaunchError) as caught:
        allocation({variable: value})
    assert not isinstance(caught.value, NoNodes)
    assert f"{variable} should hold the id of a batch job" in str(caught.value)
    assert f"`unset {variable}`" in str(caught.value)


@pytest.mark.parametrize("value", ["", "soon", "-5", "nan", "inf", "1e9", "1" * 13, "100000000001", "１", "1_0"])
def test_an_end_that_is_no_time_is_an_error(value):
    with pytest.raises(LaunchError, match="COBALT_ENDTIME should hold a time in seconds") as caught:
        allocation({**CRAY, "COBALT_ENDTIME": value})
    assert repr(value) in str(caught.value)


def test_a_value_of_any_length_gives_a_short_message():
    assert len(refusal({"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[" * 20_000})) < 1000


@pytest.mark.parametrize(
    "environ",
    [
        {**SLURM, "SLURM_JOB_NODELIST": "node[1-"},
        {"COBALT_JOBID": "1"},
        {"PBS_JOBID": "1", "PBS_NODEFILE": "/nowhere"},
        {"BALSAM_LOCAL_JOBID": "1", "BALSAM_LOCAL_NODES": "x"},
    ],
)
def test_given_nodes_stand_for_those_of_the_environment_which_is_not_looked_at(environ):
    found = allocation(environ, node_names=["b", "a", "b"])
    assert (found.num_nodes, found.node_names) == (2, ("b", "a"))
    here = allocation(environ, node_names=())
    assert (here.num_nodes, here.node_names) == (1, ())
    with pytest.raises(BalsamError):
        allocation(environ)


WHATEVER = st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=30)


@given(
    st.sampled_from([SLURM, STEP, CRAY, {"PBS_JOBID": "1.s", "NCPUS": "2"}]),
    st.dictionaries(st.sampled_from(sorted({*SLURM, *CRAY, "PBS_NODEFILE", "PBS_NUM_PPN", "SLURM_JOB_END_TIME"})), WHATEVER),
)
def test_any_text_in_the_variables_gives_an_allocation_or_a_launch_error(environ, garbage):
    try:
        found = allocation({**environ, **garbage})
    except LaunchError as exc:
        assert exc.hint
    else:
        assert found.num_nodes == len(found.node_names) == len(set(found.node_names)) >= 1


# --- how long it may still take ---------------------------------------------------------------------------------------


class StillClock:
    """A clock that advances only by sleeps, and counts them."""

    def __init__(self):
        self.slept_s = 0.0

    def now_us(self):
        return NOW_US

    def monotonic(self):
        return time.monotonic()

    def sleep(self, seconds):
        self.slept_s += seconds


@pytest.fixture
def status_command(tmp_path):
    def write(code):
        path = tmp_path / "status"
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        return str(path)

    return write


SLURM_JOB, PBS_JOB = Allocation("SlurmScheduler", "17", 1), Allocation("PBSScheduler", "7.s", 1)


def left_s(batch, command, timeout_s=20.0, **environ):
    ends_us = ask_end_us(
        batch, command=command, timeout_s=timeout_s, environ={"PATH": os.environ["PATH"], **environ}, clock=StillClock()
    )
    return None if ends_us is None else (ends_us - NOW_US) / 1e6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5:00\n", 300),
        ("0:00", 0),
        ("1:02:03", 3723),
        ("1-02:03:04", 93784),
        ("365-00:00:00", 31_536_000),
        *[(text, None) for text in ("", "UNLIMITED", "NOT_SET", "INVALID", "-1:00", "1:-2", "1::2", ":1", "1:2:3:4:5", "²",
                                    "9" * 5000, "nan", "5:00\n5:00")],
    ],
)  # fmt: skip
def test_the_time_left_is_read_from_squeue(text, seconds):
    assert time_left_slurm(text) == seconds


def test_squeue_is_asked_once_by_the_id_with_nothing_hidden_from_it(status_command, tmp_path):
    command = status_command(f'echo "$@" $SQUEUE_STATES $SLURM_CONF >> {tmp_path}/calls; echo 1-00:00:10')
    assert left_s(SLURM_JOB, command, SQUEUE_STATES="PD", SLURM_CONF="here") == 86410
    assert (tmp_path / "calls").read_text() == "-h -j 17 -o %L here\n"


@pytest.mark.parametrize(
    ("batch", "nothing", "answer"),
    [
        (SLURM_JOB, "true", "echo 5:00"),
        (SLURM_JOB, "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1", "echo 'CLUSTER: red'; echo 5:00"),
        (PBS_JOB, "echo 'qstat: Unknown Job Id 7.s' >&2; exit 153", "echo 'Job Id: 7.s'; echo '    Walltime.Remaining = 300'"),
    ],
)  # fmt: skip
def test_an_answer_without_the_batch_job_is_no_end_without_limit(status_command, tmp_path, batch, nothing, answer):
    command = status_command(
        f'echo x >> {tmp_path}/calls; if [ "$(wc -l < {tmp_path}/calls)" -lt 3 ]; then {nothing}; exit; fi\n{answer}'
    )
    assert left_s(batch, command) == 300


def test_squeue_is_asked_for_the_cluster_on_which_the_batch_job_runs(status_command):
    command = status_command('test "$SLURM_CLUSTERS" = red && echo 5:00')
    assert left_s(SLURM_JOB, command, SLURM_CLUSTERS="blue,green", SLURM_CLUSTER_NAME="red") == 300


def test_what_the_environment_said_is_not_asked_again(tmp_path, status_command):
    command = status_command(f"touch {tmp_path}/called")
    assert ask_end_us(SLURM_JOB._replace(ends_us=5), command=command) == 5
    assert ask_end_us(Allocation("CobaltScheduler", "1", 1), command=command) is None
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("batch", [SLURM_JOB, PBS_JOB], ids=["slurm", "pbs"])
@pytest.mark.parametrize(
    "code",
    ["exit 1", "echo 5:00; exit 1", "true", "echo garbage", "printf '\\377\\0'", "kill -9 $$", "echo UNLIMITED",
     "echo 5:00; echo 5:00", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
     "echo 'Job Id: 7.s'; echo '    Resource_List.walltime = '; echo '    stime = never'", "echo 999999999:00:00",
     "echo 'Job Id: 7.s'; echo '    Walltime.Remaining = 999999999:00:00'"],
)  # fmt: skip
def test_a_command_that_does_not_say_leaves_the_end_unknown(status_command, batch, code):
    assert left_s(batch, status_command(code)) is None


@pytest.mark.parametrize("batch", [SLURM_JOB, PBS_JOB], ids=["slurm", "pbs"])
def test_a_command_that_hangs_or_is_missing_leaves_the_end_unknown(status_command, batch):
    begun = time.monotonic()
    assert left_s(batch, status_command("echo 5:00; exec sleep 60"), timeout_s=0.3) is None
    assert left_s(batch, "/nowhere/status") is None
    assert time.monotonic() - begun < 30


#: `qstat -f` of OpenPBS, shortened.
QSTAT = """\
Job Id: 7.s
    Job_Name = qlaunch1
    Job_Owner = user@login
    resources_used.cput = 00:01:20
    resources_used.walltime = 00:02:00
    job_state = R
    exec_host = x1/0*64+x2/0*64
    Resource_List.nodect = 2
    Resource_List.walltime = 01:00:00
    stime = {stime}
    Variable_List = PBS_O_HOME=/home/user,PBS_O_PATH=/usr/bin,
\tstime = Thu Jan 01 00:00:00 1970,BALSAM=1

"""


def test_qstat_tells_the_end_by_start_and_limit(status_command):
    stime = time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(NOW_US // 10**6 - 600))
    command = status_command(f'test "$*" = "-f 7.s" && cat <<E\n{QSTAT.format(stime=stime)}\nE')
    assert left_s(PBS_JOB, command) == 3000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (QSTAT.format(stime="never"), 3480),  # by what was used
        (QSTAT.format(stime="Thu Jan 01 00:00:00 1970"), 0),  # long over
        (QSTAT.replace("walltime = 01:00:00", "ncpus = 1"), None),
        ("Job Id: 7\n    Walltime.Remaining = 8598\n    Resource_List.walltime = 4:00:00\n", 8598),  # Torque
        ("Job Id: 7\n    Resource_List.walltime = 4:00:00\n    job_state = R\n", None),
        ("Job Id: 7\n    Walltime.Remaining = -3\n", None),
        ("{}", None),
        ("", None),
        ("Job Id: 7\n    = 5\n\0 = \n" + "x = " * 100_000 + " " * 100_000, None),
    ],
    ids=["used", "over", "no limit", "torque", "no start", "negative", "json", "nothing", "garbage"],
)
def test_the_time_left_is_read_from_qstat(text, seconds):
    begun = time.process_time()
    assert time_left_pbs(text, NOW_US / 1e6) == seconds
    assert time.process_time() - begun < 5


def test_torques_limit_stands_where_qstat_does_not_answer(status_command):
    assert left_s(PBS_JOB, status_command("exit 1"), PBS_WALLTIME="3600") == 3600
    assert left_s(PBS_JOB, status_command("exit 1"), PBS_WALLTIME="soon") is None


@given(st.text())
def test_no_answer_of_qstat_raises(text):
    for answer in (text, f"Job Id: 7.s\n    Resource_List.walltime = 1:00\n    stime = {text}\n"):
        found = time_left_pbs(answer, 0.0)
        assert found is None or found >= 0


# --- GPUs of this host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,3", "ROCR_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4"}, ("2", "3")),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "4"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": " 1 , 1,0,"}, ("1", "0")),
        ({"CUDA_VISIBLE_DEVICES": "MIG-aaaa,GPU-bbbb"}, ("MIG-aaaa", "GPU-bbbb")),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, ("0", "1")),
        ({"HIP_VISIBLE_DEVICES": "1"}, ("1",)),
        ({"ZE_AFFINITY_MASK": "0.0,0.1"}, ("0.0", "0.1")),
        ({"SLURM_GPUS_ON_NODE": "3"}, ("0", "1", "2")),
    ],
)
def test_variables_tell_the_gpus_of_this_host(environ, gpus):
    assert hardware.gpus(environ) == gpus


@pytest.mark.parametrize("text", ["", "x", "-1", "²", "9" * 30])
def test_a_number_of_gpus_that_is_none_leaves_the_answer_to_the_machine(tmp_path, monkeypatch, text):
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "GPU 0: NVIDIA A100 (UUID: GPU-1)"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert hardware.gpus({"SLURM_GPUS_ON_NODE": text}) == ("0",)


# --- a real Slurm -----------------------------------------------------------------------------------------------------

#: Prints what a process in the batch job sees.
LOOK = """\
import json
from balsam_lite.launcher.exec import hardware
from balsam_lite.schedulers.environ import allocation
from balsam_lite.schedulers.environ import ask_end_us
found = allocation()
print(json.dumps([*found, ask_end_us(found), hardware.gpus()]))
"""


@pytest.fixture
def look(tmp_path):
    """A command line that looks, and the reading of its output."""
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    return f"PYTHONPATH={shlex.quote(str(ROOT))} {sys.executable} {script}"


def seen(text):
    *fields, ends_us, gpus = json.loads(text)
    found = Allocation(*fields)
    lists = {"node_names": tuple(found.node_names), "node_cpus": tuple(found.node_cpus)}
    return found._replace(**lists), ends_us, tuple(gpus)


def run_job(slurm, tmp_path, *words):
    """Submit, wait for the end, and return the id and the lines of the output."""
    output = tmp_path / "output"
    job_id = slurm.sbatch("-o", str(output), *words)
    wait_until(lambda: slurm.job(job_id).get("JobState", "PENDING") not in ("PENDING", "RUNNING", "COMPLETING"), timeout=60)
    return job_id, output.read_text().splitlines()


def test_a_batch_script_under_slurm_knows_its_nodes_end_cpus_and_gpus(slurm, tmp_path, look):
    words = ["-N", "3", "-t", "5", "--gres=gpu:4", "--wrap", f"scontrol show hostnames | xargs; {look}"]
    job_id, (names, line) = run_job(slurm, tmp_path, *words)
    found, ends_us, gpus = seen(line)
    assert found.cluster == SlurmScheduler(Settings(), slurm.environ).domain.partition("@")[2]
    assert found._replace(ends_us=None, cluster="") == Allocation(
        "SlurmScheduler", job_id, 3, tuple(names.split()), None, 4, 4, this_node=names.split()[0]
    )  # fmt: skip
    assert gpus == ("0", "1", "2", "3")
    started = time.mktime(time.strptime(slurm.job(job_id)["StartTime"], "%Y-%m-%dT%H:%M:%S"))
    assert abs(ends_us / 1e6 - (started + 300)) < 3


def test_a_part_of_a_node_under_slurm_is_known_as_such_and_no_limit_as_none(slurm, tmp_path, look):
    words = ["-p", "shared", "-N", "2", "-n", "3", "--gpus-per-node=2", "-t", "0", "--wrap", look]
    _, (line,) = run_job(slurm, tmp_path, *words)
    found, ends_us, gpus = seen(line)
    assert (found.num_nodes, found.cpus_per_node, found.gpus_per_node, ends_us) == (2, 1, 2, None)
    assert len(gpus) == 2


def test_a_step_knows_the_nodes_of_its_job_and_the_shell_of_salloc_that_it_is_on_none(slurm, look):
    command = f"{look}; srun -N1 -n1 -w node2 sh -c {shlex.quote(look)}"
    done = slurm.run(["salloc", "-w", "node[2-3]", "-t", "2", "sh", "-c", command])
    (shell, shell_ends_us, _), (step, step_ends_us, _) = map(seen, done.stdout.splitlines())
    assert shell.node_names == step.node_names == ("node2", "node3")
    assert (shell.runs_on_node, step.runs_on_node) == (False, True)
    assert abs(shell_ends_us - step_ends_us) < 5e6


# --- ranks ------------------------------------------------------------------------------------------------------------

#: Variables that srun, mpiexec and the like set, and what they say.
RANKS = {
    "SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2": (1, 2),
    "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2": (0, 2),
    "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1": None,
    "SLURM_PROCID=0 SLURM_NTASKS=4": None,  # a batch script
    "PMI_RANK=3 PMI_SIZE=4": (3, 4),
    "PMIX_RANK=1": (1, 0),
    "PMIX_RANK=0": None,
    "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 PMIX_RANK=0": (0, 2),
    "PALS_RANKID=2": (2, 0),
    "ALPS_APP_PE=1": (1, 0),
    "JSM_NAMESPACE_RANK=1 JSM_NAMESPACE_SIZE=6": (1, 6),
    "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 PMI_RANK=3 PMI_SIZE=4": (3, 4),
    "PMI_RANK= PMI_SIZE=x": None,
    "PMI_RANK=-1 PMIX_RANK=\u00b2": None,
    "": None,
}


@pytest.mark.parametrize("variables", RANKS)
def test_the_rank_of_a_process_is_what_its_starter_says(variables):
    found = rank(dict(pair.split("=") for pair in variables.split()))
    assert (None if found is None else (found.number, found.size)) == RANKS[variables]


def test_a_local_launch_from_inside_a_rank_is_none(monkeypatch):
    from balsam_lite.schedulers import local

    assert {"PMI_RANK", "PMI_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"} <= local._NOT_INHERITED

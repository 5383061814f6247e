"""What a program must not inherit from a launcher that MPI or Slurm has started itself. Pure.

A rank's variables tell it that it is rank 3 of 8, and its peers. A program that inherits them from a launcher which is
such a rank, takes itself for that rank: a nested `mpiexec` refuses to start, one without it crashes (tried: MPICH 5.0.2 in
MPICH and in Open MPI 5.0.11, Open MPI in Open MPI). What users set themselves under the same prefixes stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Source: the environment of a rank, compared with that of its mpiexec, of MPICH 5.0.2, Open MPI 4.1.8 and 5.0.11, and of a
#: task of Slurm 22.05.8 (tried; gfortran's variable is set by Hydra); intro_pmi(3) of Cray MPI and aprun(1); jsrun(1);
#: Slurm's "OUTPUT ENVIRONMENT VARIABLES".
_OF_RANKS = re.compile(
    rb"""
    PMI_ | PMI2_ | PMIX_ | HYDI_ | MPI_LOCAL | PALS_ | ALPS_APP_ | JSM_
    | OMPI_ | OPAL_USER_PARAMS_GIVEN$ | PRTE_
    | GFORTRAN_UNBUFFERED_PRECONNECTED$
    | MPIRUN_(RANK|NPROCS|ID)$ | MV2_COMM_WORLD_ | I_MPI_INFO_
    | SLURM_( PROCID$ | LOCALID$ | NODEID$ | GTIDS$ | TASK_PID$ | NPROCS$ | NTASKS | STEP | SRUN_COMM | LAUNCH_NODE_IPADDR$
            | TOPOLOGY_ADDR | DISTRIBUTION$ | UMASK$ | CPU_BIND | MEM_BIND | CPUS_PER_TASK$ | PMI | OVERCOMMIT$ )
    """,
    re.VERBOSE,
)
#: Of these what a user sets. Of OMPI_MCA_ and the like, parameters of Open MPI, a rank has a few itself.
_OF_USERS = re.compile(
    rb"""
    OMPI_ALLOW_RUN_AS_ROOT | OMPI_(CC|CXX|FC|CFLAGS|CXXFLAGS|FCFLAGS|LDFLAGS|LIBS)$ | PRTE_ALLOW_RUN_AS_ROOT
    | PMIX_MCA_ | PRTE_MCA_
    | OMPI_MCA_(?! ess($|_) | pmix$ | initial_wdir$ | num_procs$ | cpu_type$ | PREFIXES$ | mpi_oversubscribe$
                   | shmem_RUNTIME_QUERY_hint$
                   | orte_( app_num | bound_at_launch | ess_node_rank | ess_num_procs | hnp_uri | jobfam_session_dir | launch
                          | local_daemon_uri | num_nodes | precondition_transports | tmpdir_base | top_session_dir )$ )
    | PMI_( NO_FORK | NO_PREINITIALIZE | MMAP_SYNC_WAIT_TIME | MAX_KVS_ENTRIES | DEBUG | CRAY_NO_SMP_ORDER )$
    """,
    re.VERBOSE,
)
#: Options of the batch job or of its submitter that every `srun` would take as its own: the launcher's, and the one by which
#: an mpiexec reaches other nodes. --export=NONE of the batch job would drop a program's whole environment, --gpus=4 is refused
#: on a node that has two GPUs. sbatch sets them from its options. Which MPI and network a site uses, and how output is written
#: into the job's file, stays the user's choice.
#: Source: srun(1), "INPUT ENVIRONMENT VARIABLES", and sbatch(1), "OUTPUT ENVIRONMENT VARIABLES", Slurm 22.05; tried.
_OF_STEPS = re.compile(
    rb"""
    S(LURM|RUN)_EXPORT_ENV$ | SLURM_GET_USER_ENV$ | SRUN_CPUS_PER_TASK$
    | SLURM_( GPUS$ | GPUS_PER_(NODE|SOCKET|TASK)$ | CPUS_PER_GPU$ | GPU_(BIND|FREQ)$ | GRES$ | GRES_FLAGS$
            | TRES_(BIND|PER_TASK)$
            | MEM_PER_(CPU|GPU|NODE)$ | HINT$ | THREADS_PER_CORE$ | CORE_SPEC$ | THREAD_SPEC$ | EXACT$ | EXCLUSIVE$ | IMMEDIATE$
            | DIST_PLANESIZE$ | USE_MIN_NODES$ | NO_KILL$ | KILL_BAD_EXIT$ | WAIT$ | TIMELIMIT$ | REMOTE_CWD$ | WORKING_DIR$
            | STD(IN|OUT|ERR)MODE$ )
    """,
    re.VERBOSE,
)
_SLURM_JOB, _OVERLAP = b"SLURM_JOB_ID", b"SLURM_OVERLAP"


def scrubbed(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the environment without what makes this process a rank of an MPI program or a task of a Slurm step, and
    without the batch job's options for steps.

    Inside a Slurm job it also means that `srun` need not wait for other steps. Otherwise an mpiexec, which starts its ranks
    through srun, and a job's own srun would wait for the end of all steps that run (tried), the launcher's own included.
    """
    found = {name: value for name, value in environ.items() if _OF_USERS.match(name) or not _is_dropped(name)}
    if _SLURM_JOB in found:
        found.setdefault(_OVERLAP, b"1")
    return found


def _is_dropped(name: bytes) -> bool:
    return bool(_OF_RANKS.match(name) or _OF_STEPS.match(name))

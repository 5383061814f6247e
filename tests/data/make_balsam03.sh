#!/bin/bash
# Make balsam03.json, balsam03_postgresql.sql and balsam03_sqlite.sql: a DB that Balsam 0.3.8 has filled and run on PostgreSQL 15.
# Needs Python 3.7 as python3.7, and PostgreSQL's programs on PATH; not as root, as PostgreSQL refuses that. It writes below
# /tmp/balsam03; paths below it are then those of a project.
set -e
here=$(cd "$(dirname "$0")" && pwd)
place=/tmp/balsam03
mkdir -p $place/bin $place/home $place/work
python3.7 -m venv $place/venv
$place/venv/bin/pip install "setuptools<60" "django<2.3" jinja2 "psycopg2-binary<2.9" numpy    # numpy 1.21, psycopg2 2.8
$place/venv/bin/pip install --no-deps balsam-flow==0.3.8

# Balsam 0.3.8 cannot read a version such as "15.18 (Debian 15.18-0+deb12u1)", and Debian's directory for sockets is not writable.
cat > $place/bin/pg_ctl <<EOS
#!/bin/bash
[ "\$1" = --version ] && echo "pg_ctl (PostgreSQL) 15.18" && exit
case " \$* " in *" start "*) set -- -o "-k $place/work -c shared_buffers=32MB" "\$@";; esac
exec $(command -v pg_ctl) "\$@"
EOS
# An MPI starter of one process, called as that of MPICH.
cat > $place/bin/mpirun <<'EOS'
#!/bin/bash
[ "$1" = -npernode ] && echo "unrecognized argument npernode" && exit 1
while :; do case "$1" in -n|--ppn) shift 2;; *) break;; esac; done
exec "$@"
EOS
chmod +x $place/bin/*
export PATH=$place/bin:$place/venv/bin:$PATH HOME=$place/home PGHOST=$place/work USER=${USER:-$(id -un)} PYTHONWARNINGS=ignore
cd $place/work
balsam init $place/work/db
export BALSAM_DB_PATH=$place/work/db
balsam server --connect

printf '#!/bin/sh\necho checked > checked.txt\n' > check.sh
chmod +x check.sh
id() { balsam ls --name "$1" | tail -1 | cut -c1-8; }
job() { balsam job --name "$1" --workflow "$2" --application "$3" --args "$4" "${@:5}" --yes > /dev/null; }
balsam app --name say-hello --executable "echo Hello,"
balsam app --name fit --executable "bash -c" --postprocess $PWD/check.sh --description fits a curve
balsam app --name fail --executable "ls /nowhere"
job test1 test say-hello "world!"
job test2 test say-hello again --env OMP_NUM_THREADS=4 --env TOKEN=abc
job "my fit" fits fit exit --num-nodes 1 --wall-time-minutes 5
job child fits say-hello child
job broken fits fail x
job orphan fits say-hello o
balsam dep "$(id "my fit")" "$(id child)"
balsam dep "$(id broken)" "$(id orphan)"
balsam launcher --consume-all --job-mode mpi

python - <<'EOS'
import os
from balsam.launcher import dag
from balsam.core.models import BalsamJob, QueuedLaunch

os.makedirs("elsewhere", exist_ok=True)
launch = QueuedLaunch(scheduler_id=4711, project="materials", queue="debug", nodes=2, wall_minutes=30, job_mode="mpi",
                      state="queued", command="/db/qsubmit/qlaunch1.sh")
launch.save()
mpi = dag.add_job(name="mpi", workflow="later", application="say-hello", args="'a  b' \"c\"", num_nodes=2, ranks_per_node=4,
                  threads_per_rank=2, wall_time_minutes=20, environ_vars="PATH=/a:/b:API_KEY=secret:EMPTY=")
mpi.data = {"x": [1, 2.5, None], "text": "Zürich\nβ"}
mpi.queued_launch = launch
mpi.save()
own = dag.add_job(name="own", workflow="later", application="say-hello", args="own", user_workdir=os.path.abspath("elsewhere"),
                  wait_for_parents=False)
dag.add_dependency(mpi, own)
killed = dag.add_job(name="killed", workflow="later", application="say-hello", args="k")
dag.kill(killed, recursive=False)
running = dag.add_job(name="running", workflow="later", application="say-hello", args="r")
running.application = "gone"
running.update_state("RUNNING", "Not scheduled by service")
running.lock = "thetamom1:1234"
running.save()
again = BalsamJob.objects.get(name="broken")
again.update_state("RESTART_READY", "User mutated state from command line")
again.update_state("RUNNING", "Batch Scheduler ID: 4711")
again.update_state("RUN_TIMEOUT", "timed out in MPI Ensemble")
again.update_state("FAILED", "")
dangling = dag.add_job(name="dangling", workflow="later", application="say-hello", args="d")
dangling.parents = '["00000000-0000-4000-8000-000000000000"]'
dangling.save()
EOS

python -c "from balsam import setup; setup(); from django.core.management import call_command as call; \
call('dumpdata', 'core', indent=1, output='dump.json')"
port=$(python -c "import json; print(json.load(open('db/server-info'))['port'])")
pg_dump -p "$port" --no-owner --no-privileges --inserts -t 'core_*' balsam > dump.sql

# The same rows in an SQLite file that Django makes for Balsam's models.
cat > to_sqlite.py <<'EOS'
import json, sqlite3
from balsam.django_config import serverinfo
engine = {"ENGINE": "django.db.backends.sqlite3", "NAME": "old.sqlite3"}
serverinfo.ServerInfo.django_db_config = lambda self: {"default": engine}
from balsam import setup
setup()
from django.contrib.postgres.fields.jsonb import JsonAdapter
sqlite3.register_adapter(JsonAdapter, lambda one: json.dumps(one.adapted))
from django.core.management import call_command
call_command("migrate", verbosity=0)
call_command("loaddata", "dump.json")
with open("dump_sqlite.sql", "w") as file:
    file.writelines(line + "\n" for line in sqlite3.connect("old.sqlite3").iterdump() if "core_" in line)
EOS
python to_sqlite.py
pg_ctl -D $place/work/db/balsamdb stop

sed "s#$place/work#/projects/alloy#g" dump.json > "$here/balsam03.json"
sed "s#$place/work#/projects/alloy#g" dump.sql > "$here/balsam03_postgresql.sql"
sed "s#$place/work#/projects/alloy#g" dump_sqlite.sql > "$here/balsam03_sqlite.sql"

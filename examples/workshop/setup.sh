#!/usr/bin/env bash
# Make a site with eight GPUs, start its service, and register the application:  setup.sh NAME
set -eu

balsam login
balsam site init -n "$1" "$1"
echo '{"GPUS_PER_NODE": 8, "IDLE_TTL_S": 1}' > "$1/settings.json"
cd "$1"
balsam site start
cd ..

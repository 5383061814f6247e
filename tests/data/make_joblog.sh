#!/bin/sh
# Make parallel.joblog: what GNU parallel 20221122 writes of commands that end well, fail, are killed, exceed --timeout, have tabs
# and line breaks, and are run again by --resume-failed.
cd "$(mktemp -d)" || exit
log=$OLDPWD/$(dirname "$0")/parallel.joblog
rm -f "$log"
run='sleep 0.0{1}; test {1} -ne 2 || test -e again || exit 7; test {1} -ne 3 || kill -9 $$; echo "a  {1}"'
parallel --joblog "$log" "$run" ::: 1 2 3 4
touch again
parallel --resume-failed --joblog "$log" "$run" ::: 1 2 3 4
parallel --timeout 1 --joblog "+$log" 'sleep {1}; echo "x	y {1}"' ::: 0.1 3
printf 'a\nb\0c' | parallel -0 --joblog "+$log" 'echo {}'

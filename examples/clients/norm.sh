#!/bin/sh
# The simulation of the libEnsemble examples: print x² + y². A third argument makes it sleep first.
sleep "${3:-0}"
echo "$1 $2" | awk '{ print $1 * $1 + $2 * $2 }'

#!/usr/bin/env bash
# Ends what slurm_up.sh started: its jobs first, so that no step outlives its slurmd, then the daemons, by their pid files.
#
#   scripts/testbed/slurm_down.sh FOLDER
folder=$1
[ -d "$folder/run" ] || exit 0
export SLURM_CONF=$folder/slurm.conf

alive() { # alive PID_FILE: its process runs, and is no zombie
    [ -s "$1" ] && [ -d "/proc/$(cat "$1")" ] && ! grep -qsE "^State:.Z" "/proc/$(cat "$1")/status"
}

jobs() { timeout 5 squeue -h -o %A 2>/dev/null | sort -u; }

steps() { # the stepd of each node that still has one: found by the folder that it works in
    local status
    for status in /proc/[0-9]*/comm; do
        [ "$(cat "$status" 2>/dev/null)" = slurmstepd ] || continue
        grep -qzsF "SLURM_CONF=$SLURM_CONF" "${status%comm}environ" && echo "$status" | cut -d/ -f3
    done
}

if alive "$folder/run/slurmctld.pid"; then
    for job in $(jobs); do timeout 5 scancel "$job" 2>/dev/null; done
    for job in $(jobs); do timeout 5 scancel -s KILL "$job" 2>/dev/null; done
    for _ in $(seq 50); do
        [ -z "$(jobs)" ] && break
        sleep 0.2
    done
fi
for signal in TERM KILL; do
    for file in "$folder"/run/slurmctld.pid "$folder"/run/slurmd.*.pid "$folder"/run/munged.pid; do
        alive "$file" && kill -$signal "$(cat "$file")" 2>/dev/null
    done
    for _ in $(seq 30); do
        left=0
        for file in "$folder"/run/*.pid; do alive "$file" && left=1; done
        [ $left = 0 ] && break 2
        sleep 0.1
    done
done
for pid in $(steps); do kill -KILL "$pid" 2>/dev/null; done
rm -rf "$folder/run"
exit 0

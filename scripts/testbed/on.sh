#!/usr/bin/env bash
# Run a command on a host of hosts_up.sh: in its network, under its name, and with all hosts in /etc/hosts.
#
#   scripts/testbed/on.sh FOLDER HOST COMMAND...
#
# Not `ip netns exec`: that mounts /sys anew, without /sys/fs/cgroup.
set -eu
folder=$1 host=$2
shift 2
exec nsenter --net="/run/netns/$host" -- unshare --mount --uts --propagation private -- \
    sh -c 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"' sh "$folder/hosts" "$host" "$@"

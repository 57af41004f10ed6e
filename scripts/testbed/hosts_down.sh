#!/usr/bin/env bash
# Ends what still runs on the hosts of hosts_up.sh (found by namespace, not by name), then removes them.
#
#   scripts/testbed/hosts_down.sh FOLDER
folder=$1
[ -s "$folder/prefix" ] || exit 0
prefix=$(cat "$folder/prefix")

hosts() { ip netns list | awk '{print $1}' | grep -E "^$prefix(-hub|[0-9]+)$"; }

end() { # end SIGNAL: sent to everything on the hosts
    local host pids
    for host in $(hosts); do
        pids=$(ip netns pids "$host")
        # shellcheck disable=SC2086
        [ -n "$pids" ] && kill -"$1" $pids 2>/dev/null
    done
}

end TERM
sleep 0.2
end KILL
for host in $(hosts); do ip netns del "$host"; done
rm -rf "$folder"
exit 0

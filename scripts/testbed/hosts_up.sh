#!/usr/bin/env bash
# N hosts on this one machine: network namespaces, each with an address and a name of its own, on one switch.
#
#   scripts/testbed/hosts_up.sh FOLDER [N]                    # host1 (10.77.0.1) and host2 (10.77.0.2)
#   scripts/testbed/on.sh FOLDER host1 COMMAND...             # run something there
#   ip -n host-hub link set port2 down                        # cut host2 off; `up` joins it again
#   scripts/testbed/hosts_down.sh FOLDER
#
# The switch is a bridge in a namespace of its own: nothing is added to the machine's network. Needs root and iproute2.
# HOSTS (default "host") is the beginning of the namespaces' names, so that two testbeds do not meet.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1 count=${2:-2} prefix=${HOSTS:-host} net=10.77.0

"$here/hosts_down.sh" "$folder"
mkdir -p "$folder"
echo "$prefix" >"$folder/prefix"
{
    echo "127.0.0.1 localhost"
    for i in $(seq "$count"); do echo "$net.$i $prefix$i"; done
} >"$folder/hosts"

ip netns add "$prefix-hub"
ip -n "$prefix-hub" link set lo up
ip -n "$prefix-hub" link add switch type bridge
ip -n "$prefix-hub" link set switch up
for i in $(seq "$count"); do
    ip netns add "$prefix$i"
    ip -n "$prefix$i" link set lo up
    ip -n "$prefix-hub" link add "port$i" type veth peer name eth0 netns "$prefix$i"
    ip -n "$prefix-hub" link set "port$i" master switch up
    ip -n "$prefix$i" address add "$net.$i/24" dev eth0
    ip -n "$prefix$i" link set eth0 up
done
echo "hosts: $(seq -f "$prefix%g" -s ' ' "$count")"

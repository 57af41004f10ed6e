#!/usr/bin/env bash
# A real S3 store on this one machine: a Ceph of one monitor, one disk and one gateway, all of it in one folder.
#
#   scripts/testbed/ceph_rgw.sh start FOLDER [PORT]         # 27800; made the first time, its data kept from then on
#   . FOLDER/env                                            # AWS_ENDPOINT_URL and credentials
#   scripts/testbed/ceph_rgw.sh user FOLDER NAME            # one more account: its name is its access key
#   scripts/testbed/ceph_rgw.sh kill-gateway FOLDER         # SIGKILL; the data stay
#   scripts/testbed/ceph_rgw.sh start-gateway FOLDER
#   scripts/testbed/ceph_rgw.sh stop FOLDER
#
# On the loopback, ports PORT and PORT+1000 to PORT+1090; no system service, and no file outside FOLDER is touched.
# Needs root and: apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd
# Release 16 (Debian 12) ignores x-amz-checksum headers and SSE AES256, and wants an If-Match without quotes.
set -euo pipefail
command=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd) run=$folder/run log=$folder/log
port=$(cat "$folder/port" 2>/dev/null || echo "${3:-27800}")
monitor=$((port + 1000)) conf=$folder/ceph.conf
admin=(timeout 90 radosgw-admin -c "$conf" -n client.rgw.a)

alive() { [ -s "$run/$1.pid" ] && kill -0 "$(cat "$run/$1.pid")" 2>/dev/null; }

daemon() { # daemon NAME COMMAND...: in the background, if it does not run
    local name=$1
    shift
    alive "$name" && return
    setsid "$@" -c "$conf" -f >"$log/$name.out" 2>&1 </dev/null &
    echo $! >"$run/$name.pid"
}

listening() { # listening NAME PORT: wait until the daemon listens
    for _ in $(seq 600); do
        (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null && return
        alive "$1" || break
        sleep 0.1
    done
    echo "Ceph's $1 did not come up:" >&2
    tail -n 5 "$log/$1.out" >&2
    return 1
}

end() { # end NAME: TERM, and KILL after 10 s
    alive "$1" || return 0
    kill -TERM "$(cat "$run/$1.pid")"
    for _ in $(seq 100); do
        alive "$1" || break
        sleep 0.1
    done
    ! alive "$1" || kill -KILL "$(cat "$run/$1.pid")"
    rm -f "$run/$1.pid"
}

configure() {
    mkdir -p "$folder"/{mon,osd}
    local id addresses="[v2:127.0.0.1:$monitor,v1:127.0.0.1:$((monitor + 1))]"
    id=$(cat /proc/sys/kernel/random/uuid)
    cat >"$conf" <<END
[global]
fsid = $id
mon host = $addresses
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind port min = $((monitor + 10))
ms bind port max = $((monitor + 90))
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = $folder/keyring
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 2000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
run dir = $run
admin socket = $run/\$name.asok
log file = $log/\$name.log
pid file =
[mon.a]
mon data = $folder/mon
keyring = $folder/mon/keyring
[osd]
osd data = $folder/osd
osd objectstore = bluestore
bluestore block size = 8589934592
bluestore block create = true
osd memory target = 1073741824
osd class update on start = false
# A gateway that was killed is forgotten after this, in seconds; until then others wait for it where they make buckets.
osd client watch timeout = 3
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $run
rgw thread pool size = 64
END
    monmaptool --create --fsid "$id" --addv a "$addresses" "$folder/monmap" >/dev/null
    key() { ceph-authtool "$folder/keyring" --gen-key -n "$@" >/dev/null; }
    ceph-authtool -C "$folder/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
    key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    key osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
    key client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
    ceph-mon -c "$conf" --mkfs -i a --monmap "$folder/monmap" --keyring "$folder/keyring" >/dev/null
}

user() { # user NAME: its access key is its name
    "${admin[@]}" user create --uid="$1" --display-name="$1" --access-key="$1" --secret-key="$1-secret" \
        >"$folder/$1.json" 2>"$log/user.err" || { tail -n 3 "$log/user.err" >&2 && return 1; }
}

make_disk() {
    local id
    id=$(cat /proc/sys/kernel/random/uuid)
    ceph -c "$conf" osd new "$id" 0 >/dev/null 2>&1
    ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$id" >"$log/mkfs.out" 2>&1
}

gateway() {
    daemon gateway radosgw -n client.rgw.a
    listening gateway "$port"
}

start() {
    local new=
    mkdir -p "$run" "$log"
    [ -f "$conf" ] || { new=yes && echo "$port" >"$folder/port" && configure; }
    daemon mon ceph-mon -i a
    listening mon "$monitor"
    [ -z "$new" ] || make_disk
    daemon osd ceph-osd -i 0
    [ -z "$new" ] || user tester # waits for the disk and makes the pools
    gateway
    cat >"$folder/env" <<END
export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=tester AWS_SECRET_ACCESS_KEY=tester-secret
END
    echo "Ceph: . $folder/env"
}

stop() { for name in gateway osd mon; do end $name; done; }

case $command in
start)
    trap stop EXIT # whatever goes wrong
    start
    trap - EXIT
    ;;
user) user "$3" ;;
kill-gateway) kill -KILL "$(cat "$run/gateway.pid")" && rm -f "$run/gateway.pid" ;;
start-gateway) gateway ;;
stop) stop ;;
*) echo "ceph_rgw.sh: start, user, kill-gateway, start-gateway or stop, not $command" >&2 && exit 2 ;;
esac

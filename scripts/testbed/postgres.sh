#!/bin/bash
# A PostgreSQL for tests, on loopback:
#   postgres.sh start DIR [PORT]   makes DIR if need be; prints its URI
#   postgres.sh kill DIR           ends it at once, as a crash does; start brings it back
#   postgres.sh stop DIR
# Needs Debian's postgresql; no service is touched. A root runs it as nobody, for PostgreSQL refuses root.
set -eu
verb=${1:?start, kill or stop}
dir=$(realpath -m "${2:?a folder}")
port=${3:-5433}

binaries=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
[ -n "$binaries" ] || { command -v initdb >/dev/null && binaries=$(dirname "$(command -v initdb)"); }
[ -n "$binaries" ] || { echo "no PostgreSQL: apt-get install postgresql" >&2; exit 1; }

as() { # as its own user
    if [ "$(id -u)" = 0 ]; then
        (cd / && setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME=/ "$@")
    else
        "$@"
    fi
}

case $verb in
start)
    if [ ! -e "$dir/data/PG_VERSION" ]; then
        mkdir -p "$dir"
        [ "$(id -u)" != 0 ] || chown nobody:nogroup "$dir"
        as "$binaries/initdb" --pgdata="$dir/data" --username=study --auth=trust --encoding=UTF8 --no-sync >"$dir/initdb.log"
        # Small, loopback only, and as durable as a real one: a test kills it.
        as tee -a "$dir/data/postgresql.conf" >/dev/null <<EOF
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = $port
shared_buffers = 32MB
max_connections = 40
EOF
    fi
    as "$binaries/pg_ctl" --pgdata="$dir/data" --log="$dir/log" --wait --timeout=60 start >/dev/null
    port=$(sed -n 's/^port = //p' "$dir/data/postgresql.conf" | tail -1)
    as "$binaries/psql" -h 127.0.0.1 -p "$port" -U study -d postgres -tAc "select 1 from pg_database where datname='study'" |
        grep -q 1 || as "$binaries/createdb" -h 127.0.0.1 -p "$port" -U study study
    echo "postgresql://study@127.0.0.1:$port/study"
    ;;
kill)
    kill -KILL "$(head -1 "$dir/data/postmaster.pid")"
    # Its children end by themselves once they notice.
    for _ in $(seq 100); do
        pgrep -f "$dir/data" >/dev/null || break
        sleep 0.1
    done
    ;;
stop)
    as "$binaries/pg_ctl" --pgdata="$dir/data" --mode=immediate --wait --timeout=60 stop >/dev/null
    ;;
*)
    echo "start, kill or stop; not $verb" >&2
    exit 1
    ;;
esac

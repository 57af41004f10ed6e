#!/usr/bin/env bash
# moto's S3 and KMS over HTTP: for their fields, not for authentication or integrity, which it does not check.
#
#   scripts/testbed/moto.sh start FOLDER [PORT]     # 27900
#   . FOLDER/env                                    # AWS_ENDPOINT_URL and credentials
#   scripts/testbed/moto.sh stop FOLDER
#
# Needs: pip install "moto[server,s3]". What it holds is in memory: gone when it ends.
set -euo pipefail
command=$1 folder=$2 port=${3:-27900}

stop() {
    [ -s "$folder/pid" ] || return 0
    kill -TERM "$(cat "$folder/pid")" 2>/dev/null || true
    rm -f "$folder/pid"
}

start() {
    mkdir -p "$folder"
    setsid "${PYTHON:-python3}" -m moto.server -H 127.0.0.1 -p "$port" >"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    for _ in $(seq 300); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            cat >"$folder/env" <<END
export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
END
            echo "moto: . $folder/env"
            return
        fi
        kill -0 "$(cat "$folder/pid")" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$folder/log" >&2
    stop
    return 1
}

case $command in
start) stop && start ;;
stop) stop ;;
*) echo "moto.sh: start or stop, not $command" >&2 && exit 2 ;;
esac

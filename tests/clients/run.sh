#!/usr/bin/env bash
# Client programs from their registries, unchanged, against a server of their own: does Millrace work with what
# people have?
#
#   run.sh [--server PROGRAM] [--io DRIVER[:SHARDS]]... [PROGRAM...]
#
# --server   the millrace binary (target/ci/millrace), or `redis-server`, against which these programs were proven
# --io       how the server runs, and with how many shards (1); io_uring:1, epoll:1 and io_uring:4 if not given
# PROGRAM    some of the programs below; all of them if not given
#
# Every program prints a line per check and closes with their number; this script adds up and closes with
# `N passed, N failed`. A program that is not installed is never counted as passed.
#
# Programs with a cache of their own run once more where no invalidation can reach them (deaf.py), and must fail there:
# a test of a cache that passes without the server's help shows nothing.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/clients

server=$target/ci/millrace
drivers=()
programs=()
while (($#)); do
    case $1 in
    --server) server=$2 && shift 2 ;;
    --io) drivers+=("$2") && shift 2 ;;
    -*) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) programs+=("$1") && shift ;;
    esac
done
((${#drivers[@]})) || drivers=(io_uring:1 epoll:1 io_uring:4)
((${#programs[@]})) || programs=(redis_cli redis_py node_redis ioredis phpredis redis_rs valkey_glide coredis caching cluster redis_benchmark memtier_benchmark)
caching=(redis_py node_redis redis_rs valkey_glide coredis)
[[ $(basename "$server") == redis-server ]] && drivers=(redis)

run_redis_cli() { bash "$here/redis_cli.sh"; }
run_redis_py() { "$work/python/bin/python" "$here/redis_py.py" "$@"; }
run_node_redis() { "$node" "$here/node_redis.mjs" "$@"; }
run_ioredis() { "$node" "$here/ioredis.mjs"; }
run_phpredis() { php "$here/phpredis.php"; }
run_redis_rs() { RUST_BACKTRACE=0 "$work/redis-rs/debug/redis-rs-client" "$@"; }
run_valkey_glide() { "$work/python/bin/python" "$here/valkey_glide.py" "$@"; }
run_coredis() { "$work/python/bin/python" "$here/coredis_py.py" "$@"; }
run_caching() { bash "$here/caching.sh"; }
run_cluster() { MILLRACE=$server bash "$here/cluster.sh"; }
run_redis_benchmark() { bash "$here/redis_benchmark.sh"; }
run_memtier_benchmark() { bash "$here/memtier_benchmark.sh"; }

# Where the machine's Node.js is too old for the libraries, setup.sh has installed one beside them.
node=$work/node/node_modules/node/bin/node
[[ -x $node ]] || node=node

scratch=$(mktemp -d)
servers=()
stop_servers() {
    local pid
    for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${servers[@]}"; do wait "$pid" 2>/dev/null || true; done
    servers=()
}
trap 'stop_servers; rm -rf "$scratch"' EXIT

# start NAME DRIVER[:SHARDS] ARGUMENTS...: starts a server, waits until it says that it is ready, and sets `started_port`
# and, where it speaks HTTP, `started_http_port`.
start() {
    local name=$1 driver=${2%%:*} shards=1 log=$scratch/$1.log line
    [[ $2 != *:* ]] || shards=${2#*:}
    shift 2
    # The one before it said `ready` here, and must not be taken for this one, which may begin late.
    : >"$log"
    if [[ $driver == redis ]]; then
        # redis-server takes no port 0, so it gets one that was free a moment ago.
        started_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        "$server" --port "$started_port" --unixsocket "$scratch/$name.sock" --save '' --dir "$scratch" "$@" >"$log" 2>&1 &
        servers+=($!)
        await "$name" "$log" $! 'Ready to accept connections'
    else
        # As a visitor starts it: with its log. A directory belongs to one server, and holds nothing yet.
        rm -rf "$scratch/$name.data" && mkdir "$scratch/$name.data"
        "$server" --port 0 --http-port 0 --unixsocket "$scratch/$name.sock" --dir "$scratch/$name.data" --io "$driver" --shards "$shards" "$@" >"$log" 2>&1 &
        servers+=($!)
        await "$name" "$log" $! '^ready '
        line=$(grep -m1 '^ready ' "$log")
        [[ $line =~ resp=[^\ ]*:([0-9]+) ]] || { echo "no RESP address in: $line"; exit 1; }
        started_port=${BASH_REMATCH[1]}
        [[ $line =~ http=[^\ ]*:([0-9]+) ]] || { echo "no HTTP address in: $line"; exit 1; }
        started_http_port=${BASH_REMATCH[1]}
    fi
}

await() {
    local name=$1 log=$2 pid=$3 words=$4 attempt
    for attempt in $(seq 300); do
        grep -q "$words" "$log" && return
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    echo "the server '$name' did not become ready:"
    cat "$log"
    exit 1
}

# must_go_stale PROGRAM LABEL: with invalidations kept from it, its cache must be found out by its own test.
must_go_stale() {
    coproc deaf { exec python3 "$here/deaf.py" "$MILLRACE_PORT"; }
    local proxy=$deaf_PID port
    servers+=("$proxy")
    read -r port <&"${deaf[0]}"
    if MILLRACE_PORT=$port MILLRACE_PATIENCE_S=1 timeout 60 bash -c "set -euo pipefail; run_$1 cache" >"$scratch/output" 2>&1; then
        echo "FAILED   $2, deaf: its cache passed though no invalidation could reach it"
    elif grep -q 'ok cache: none of them asked the server' "$scratch/output" \
        && grep -v 'ok cache' "$scratch/output" | grep 'cache: what was written' >/dev/null; then
        echo "         $2, deaf: fails, as it must"
        return
    else
        echo "FAILED   $2, deaf: it failed, but not because of an old value:"
        tail -25 "$scratch/output" | cut -c1-2000 | sed 's/^/    /'
    fi
    failed=$((failed + 1))
    failures+=("$2, deaf")
}

passed=0 failed=0 missing=0 failures=()
for driver in "${drivers[@]}"; do
    for program in "${programs[@]}"; do
        label="$program, $driver"
        # It starts servers of its own, and shares only the binary.
        [[ $program != cluster || $driver == "${drivers[0]}" ]] || continue
        if [[ $program == memtier_benchmark ]] && ! command -v memtier_benchmark >/dev/null; then
            echo "NOT RUN  $label: memtier_benchmark is not on the PATH, and no registry has it for Debian 12"
            missing=$((missing + 1))
            continue
        fi
        # Fresh servers for each program: none can pass because of what another one left behind.
        export MILLRACE_PASSWORD='correct horse battery staple'
        start secure "$driver" --requirepass "$MILLRACE_PASSWORD"
        export MILLRACE_SECURE_PORT=$started_port
        start open "$driver"
        export MILLRACE_PORT=$started_port MILLRACE_HTTP_PORT=${started_http_port:-none} MILLRACE_SOCKET=$scratch/open.sock
        export MILLRACE_NODE_MODULES=$work/node/node_modules
        export -f "run_$program" && export here work node server
        begun=$SECONDS
        if timeout 240 bash -c "set -euo pipefail; run_$program" >"$scratch/output" 2>&1 \
            && [[ $(tail -1 "$scratch/output") =~ ^([1-9][0-9]*)\ checks\ passed$ ]]; then
            echo "passed   $label: ${BASH_REMATCH[1]} checks in $((SECONDS - begun)) s"
            passed=$((passed + 1))
        else
            echo "FAILED   $label:"
            tail -25 "$scratch/output" | cut -c1-2000 | sed 's/^/    /'
            failed=$((failed + 1))
            failures+=("$label")
        fi
        [[ $driver != "${drivers[0]}" || " ${caching[*]} " != *" $program "* ]] || must_go_stale "$program" "$label"
        # The servers must have survived it, and must end when asked to.
        for pid in "${servers[@]}"; do
            kill -0 "$pid" 2>/dev/null && continue
            echo "FAILED   $label: a server died; its last words:"
            tail -20 "$scratch/secure.log" "$scratch/open.log"
            failed=$((failed + 1))
            failures+=("$label: server died")
        done
        stop_servers
    done
done

((missing == 0)) || echo "client programs NOT RUN, and not counted as passed: $missing"
for label in "${failures[@]}"; do echo "failed: $label"; done
echo "client programs: $passed passed, $failed failed"
((failed == 0 && passed > 0))

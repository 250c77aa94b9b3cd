#!/usr/bin/env bash
# memtier_benchmark. Neither Debian 12 nor a language's registry has it, so it runs where someone has installed it;
# run.sh says loudly where it is missing.

set -euo pipefail
cd "$(dirname "$0")"
. ./common.sh

# run NAME ARGUMENTS...: it must end by itself, count requests and report no error.
run() {
    local name=$1 output
    shift
    output=$(timeout 120 memtier_benchmark --hide-histogram "$@" 2>&1 | tr '\r' '\n') || { echo "$output" | tail -5; return 1; }
    check "$name" matches "$output" 'Totals +[1-9][0-9.]* '
    check "$name: no error" not_matching "$output" '[Ee]rror|refused|ERR|dropped'
}
not_matching() { ! matches "$1" "$2"; }

port=(-s 127.0.0.1 -p "$MILLRACE_PORT" -t 1 -c 20 -n 500)
run "defaults" "${port[@]}"
run "--pipeline 16" "${port[@]}" --pipeline 16
run "RESP3" "${port[@]}" --protocol resp3 --pipeline 4
run "random binary data and expiry" "${port[@]}" -R -d 200 --expiry-range 10-100 --key-pattern R:R
run "two threads, Gaussian keys" "${port[@]}" -t 2 --key-pattern G:G --ratio 1:3
run "an arbitrary command" "${port[@]}" --command "INCRBY __key__ 3" --command-key-pattern R --key-prefix counter-
run "reconnecting" "${port[@]}" --reconnect-interval 50
run "Unix socket" -S "$MILLRACE_SOCKET" -t 1 -c 20 -n 500 --pipeline 8
run "password" -s 127.0.0.1 -p "$MILLRACE_SECURE_PORT" -a "$MILLRACE_PASSWORD" -t 1 -c 10 -n 500
finish

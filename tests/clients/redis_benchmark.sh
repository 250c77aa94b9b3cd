#!/usr/bin/env bash
# redis-benchmark, unchanged from Debian's package redis-tools: that it runs to its end and gets no error. Its
# figures are not looked at; this machine is busy with other tests.

set -euo pipefail
cd "$(dirname "$0")"
. ./common.sh

# run NAME TESTS ARGUMENTS...: every test must print its figure, and nothing may be an error or a warning.
run() {
    local name=$1 tests=$2 output test
    shift 2
    output=$(timeout 120 redis-benchmark --csv -t "$tests" "$@" 2>&1 | tr '\r' '\n') || { echo "$output" | tail -5; return 1; }
    output=${output/WARNING: Keepalive disabled*clients\/requests/} # -k 0 always says this
    check "$name: no error, no warning" not_matching "$output" 'rror|ERR|WARN|warn|Could not'
    for test in ${tests//,/ }; do
        check "$name: $test" matches "${output^^}" "\"${test^^}[^\"]*\",\"[0-9.]+\""
    done
}
not_matching() { ! matches "$1" "$2"; }

port=(-p "$MILLRACE_PORT")
run "defaults" ping,set,get,incr,mset "${port[@]}" -n 20000
run "-P 16" set,get,incr,mset "${port[@]}" -n 200000 -P 16 -c 50
run "-P 64 -d 1000, random keys" set,get "${port[@]}" -n 100000 -P 64 -d 1000 -r 100000
run "-3" set,get,incr,mset "${port[@]}" -n 100000 -P 16 -3
run "two threads" set,get "${port[@]}" -n 50000 -P 4 --threads 2
run "a connection per request" get "${port[@]}" -n 5000 -k 0
run "500 connections" set,get "${port[@]}" -n 50000 -c 500
run "values of 1 MB" set,get "${port[@]}" -n 200 -d 1000000 -c 10
run "Unix socket" set,get -s "$MILLRACE_SOCKET" -n 50000 -P 16
run "password" set,get -p "$MILLRACE_SECURE_PORT" -a "$MILLRACE_PASSWORD" -n 20000 -P 16
output=$(timeout 60 redis-benchmark "${port[@]}" -n 20000 -q -r 1000 -P 8 SET key:__rand_int__ value EX 100 2>&1 | tr '\r' '\n')
check "an arbitrary command" matches "$output" 'requests per second'
finish

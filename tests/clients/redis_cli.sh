#!/usr/bin/env bash
# redis-cli, unchanged from Debian's package redis-tools, in the ways people use it by hand and in scripts.

set -euo pipefail
cd "$(dirname "$0")"
. ./common.sh

cli() { timeout 60 redis-cli -p "$MILLRACE_PORT" "$@" 2>&1; }

commands() {
    check "PING" equal "$(cli "$@" PING)" PONG
    check "SET, GET" equal "$(cli "$@" SET cli:a 'two words')/$(cli "$@" GET cli:a)" 'OK/two words'
    check "an error is shown" matches "$(cli "$@" INCR cli:a)" 'ERR value is not an integer'
    check "commands from stdin" equal "$(printf 'SET cli:n 1\nINCR cli:n\nGET cli:n\n' | cli "$@")" $'OK\n2\n2'
    check "-x takes the value from stdin" equal "$(head -c 100000 /dev/zero | cli "$@" -x SET cli:zero)/$(cli "$@" STRLEN cli:zero)" OK/100000
    check "-r repeats" equal "$(cli "$@" -r 5 INCR cli:n | tail -1)" 7
    check "MULTI/EXEC on one connection" equal "$(printf 'MULTI\nSET cli:t 1\nINCR cli:t\nEXEC\n' | cli "$@")" $'OK\nQUEUED\nQUEUED\nOK\n2'
    check "--raw is raw" equal "$(cli "$@" SET cli:b $'\x01\xff' >/dev/null; cli "$@" --raw GET cli:b)" $'\x01\xff'
    check "--json" equal "$(cli "$@" -3 --json MGET cli:t none)" '["2",null]'
    check "--csv" equal "$(cli "$@" --csv MGET cli:t none)" '"2",NULL'
    check "INFO" contains "$(cli "$@" INFO server)" redis_mode:standalone
    check "COMMAND DOCS" contains "$(cli "$@" COMMAND DOCS get)" summary
}

echo "defaults"
cli FLUSHALL >/dev/null
commands
echo "RESP3"
commands -3
check "HELLO speaks RESP3" contains "$(cli -3 HELLO)" 'proto'
check "CONFIG GET is a map" contains "$(cli -3 CONFIG GET maxclients)" 'maxclients'
echo "Unix socket"
check "PING" equal "$(timeout 10 redis-cli -s "$MILLRACE_SOCKET" PING)" PONG
check "SET, GET" equal "$(timeout 10 redis-cli -s "$MILLRACE_SOCKET" GET cli:a)" 'two words'

echo "interactive"
# Only on a terminal does redis-cli fetch COMMAND DOCS and offer hints from it; Python lends it one.
seen=$(timeout 30 python3 - "$MILLRACE_PORT" <<'END'
import os, pty, sys

child, terminal = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execvp("sh", ["sh", "-c", f"stty cols 100; exec redis-cli -p {sys.argv[1]}"])
fresh = b""
for wanted, line in ((b"", b"SET cli:i interactive"), (b"OK", b"GET cli:i"), (b'"interactive"', b"QUIT")):
    # What is typed before the prompt is there is thrown away, so wait for the answer and then the prompt.
    while wanted not in fresh or b"> " not in fresh[fresh.index(wanted):]:
        fresh += os.read(terminal, 4096)
    print(fresh.decode())
    fresh = b""
    os.write(terminal, line + b"\r")
try:
    while os.read(terminal, 4096):
        pass
except OSError:  # the terminal's end when its program has ended
    print('ended')
END
)
check "a terminal session" matches "$seen" '"interactive".*ended'

echo "modes"
# --stat and --latency run until they are told to stop, so timeout's 124 is what success looks like.
seen=$(timeout 2 stdbuf -oL redis-cli -p "$MILLRACE_PORT" -i 0.2 --stat || equal $? 124)
check "--stat" matches "$seen" 'keys.*mem.*clients.*requests.*connections'
check "--stat counts requests" matches "$(tail -1 <<<"$seen")" '[0-9]+ +[0-9.]+[KMG] +[0-9]+ +[0-9]+ +[0-9]+ \(\+[0-9]+\) +[0-9]+'
check "--latency" matches "$(timeout 5 redis-cli -p "$MILLRACE_PORT" -i 1 --latency --raw || equal $? 124)" '^[0-9]+ [0-9]+ [0-9.]+ [1-9][0-9]+'
check "--latency-history" contains "$(timeout 2 stdbuf -oL redis-cli -p "$MILLRACE_PORT" -i 0.5 --latency-history --csv || equal $? 124)" ','
check "--latency-dist is drawn" equal "$(timeout 2 redis-cli -p "$MILLRACE_PORT" -i 0.5 --latency-dist >/dev/null; echo $?)" 124

head -c 5000000 /dev/zero | tr '\0' x | cli -x SET cli:biggest >/dev/null
seen=$(cli --bigkeys)
check "--bigkeys finds the biggest" contains "$seen" "Biggest string found '\"cli:biggest\"' has 5000000 bytes"
seen=$(cli --memkeys)
check "--memkeys finds it too" contains "$seen" "Biggest string found '\"cli:biggest\"'"
cli CONFIG SET maxmemory-policy allkeys-lfu >/dev/null
cli SET cli:hot 1 >/dev/null
cli -r 300 GET cli:hot >/dev/null
check "--hotkeys" matches "$(cli --hotkeys)" "hot key found with counter: .*cli:hot"
cli CONFIG SET maxmemory-policy noeviction >/dev/null
cli DEL cli:biggest >/dev/null

echo "mass insertion"
cli FLUSHALL >/dev/null
seen=$(python3 -c '
import sys
for i in range(100_000):
    args = (b"SET", b"cli:mass:%d" % i, b"value %d" % i)
    sys.stdout.buffer.write(b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in args))
' | cli --pipe)
check "--pipe" contains "$seen" 'errors: 0, replies: 100000'
check "all of it arrived" equal "$(cli DBSIZE)/$(cli GET cli:mass:99999)" '100000/value 99999'
seen=$(for i in $(seq 1000); do printf 'SET cli:inline:%d "a b"\r\n' "$i"; done | cli --pipe)
check "--pipe with inline commands" contains "$seen" 'errors: 0, replies: 1000'
check "--scan --pattern" equal "$(cli --scan --pattern 'cli:mass:*' | sort -u | wc -l)" 100000
check "--scan" equal "$(cli --scan | sort -u | wc -l)" 101000

echo "pub/sub"
# The subscriber says that it is subscribed before anything is published: no sleeping and hoping.
coproc subscriber { timeout 20 redis-cli --csv -p "$MILLRACE_PORT" SUBSCRIBE cli:news 2>&1; }
subscriber_pid=$subscriber_PID
while read -r -t 10 -u "${subscriber[0]}" line && [[ $line != *subscribe* ]]; do :; done
check "SUBSCRIBE" equal "$line" '"subscribe","cli:news",1'
check "PUBLISH" equal "$(cli PUBLISH cli:news hello)" 1
read -r -t 10 -u "${subscriber[0]}" line
check "the message arrives" equal "$line" '"message","cli:news","hello"'
kill "$subscriber_pid"

echo "passwords"
secure() { timeout 10 redis-cli -p "$MILLRACE_SECURE_PORT" "$@" 2>&1; }
check "no password is refused" contains "$(secure GET x)" NOAUTH
check "a wrong password is refused" contains "$(secure -a wrong GET x)" WRONGPASS
check "-a" equal "$(secure --no-auth-warning -a "$MILLRACE_PASSWORD" SET cli:x 1)" OK
check "REDISCLI_AUTH" equal "$(REDISCLI_AUTH=$MILLRACE_PASSWORD secure GET cli:x)" 1
check "--user" equal "$(secure --no-auth-warning --user default --pass "$MILLRACE_PASSWORD" GET cli:x)" 1
check "AUTH by hand" equal "$(printf 'AUTH "%s"\nGET cli:x\n' "$MILLRACE_PASSWORD" | secure)" $'OK\n1'
finish

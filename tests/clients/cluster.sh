#!/usr/bin/env bash
# scripts/cluster_demo.sh does what it says, and the PHP page in docs/php reads what was written: over HTTP through NGINX and
# with phpredis, while replicas are read, behind, and dead.
#
# It starts servers of its own: MILLRACE names the program.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"
root=$(cd "$here/../.." && pwd)

if [[ ${1:-} != inside ]]; then
    check "what the demonstration prints works" "$root/scripts/cluster_demo.sh" --check
    "$root/scripts/cluster_demo.sh" -- bash "$0" inside
    exit
fi
checks=1
scratch=$(mktemp -d)
page_pid= stream_pid=
trap '[[ -z $stream_pid ]] || kill "$stream_pid" 2>/dev/null || true; [[ -z $page_pid ]] || kill -- "-$page_pid" 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# A group of its own: its workers outlive it otherwise.
PHP_CLI_SERVER_WORKERS=2 setsid php -S "127.0.0.1:$port" -t "$root/docs/php" >"$scratch/php.log" 2>&1 &
page_pid=$!
page=http://127.0.0.1:$port/page.php
# await COMMAND...: until it holds, a minute at most.
await() {
    local end=$((SECONDS + 60))
    until "$@"; do ((SECONDS < end)) || return 1; sleep 0.02; done
}
fails() { ! "$@" >/dev/null 2>&1; }
# equal_size HOST:PORT: it has as many keys as the primary.
equal_size() { [[ $(redis-cli -p "${1#*:}" DBSIZE) == "$(redis-cli -p "${PRIMARY#*:}" DBSIZE)" ]]; }
answers() { curl -sf -o /dev/null "$page"; }
check "the page is there" await answers
note() { curl -sS -b "$scratch/$1.cookies" -c "$scratch/$1.cookies" "$page?way=$1" | sed -n "s/.*<p id=\"$2\">\(.*\)<\/p>.*/\1/p"; }
# change WAY TEXT: as a browser does, which follows the 303 with its cookies; prints the note that it is shown.
change() {
    curl -sS -L -b "$scratch/$1.cookies" -c "$scratch/$1.cookies" -d "note=$2" "$page?way=$1" \
        | sed -n 's/.*<p id="note">\(.*\)<\/p>.*/\1/p'
}
for way in http redis; do
    for number in {1..30}; do
        shown=$(change $way "$way $number")
        [[ $shown == "$way $number" ]] || break
    done
    check "$way: whoever writes sees it at once" equal "$shown" "$way 30"
    check "$way: and later" equal "$(note $way note)" "$way 30"
    check "$way: the cookie is a token" grep -qE $'last_write\t[0-9a-f]{16}%3A[0-9]+$' "$scratch/$way.cookies"
done
# A visitor sends what he likes as his cookie. Found in review: a line break in it made a field, or a request, of its own, and
# what was no token was a page with 500 as long as the cookie lived.
# shown WAY COOKIE: the note, behind the page's status.
shown() { curl -sS -w '%{http_code}' -H "Cookie: $2" "$page?way=$1" | sed -n 's/.*<p id="note">\(.*\)<\/p>.*/\1/p; $p'; }
smuggled='last_write=1%0D%0A%0D%0ADELETE%20/v1/keys/page%3Anote%20HTTP/1.1%0D%0AHost:%20localhost%0D%0A'
for way in http redis; do
    for cookie in last_write=junk last_write= last_write=0 'last_write[]=1' last_write=1%0A last_write=1%0D%0AX-Field:%20value "$smuggled" \
        last_write=99999999999999999999 last_write=999999999999 last_write=0123456789abcdef%3A; do
        check "$way: the page with the cookie $cookie" equal "$(shown $way "$cookie")" $'redis 30\n200'
    done
done
# A listing goes on where its cursor says, and a cursor belongs to the node that gave it: all pages come from one.
seq -f 'SET listed:%g 1' 2000 | redis-cli -p "${PRIMARY#*:}" >/dev/null
for replica in "$REPLICA1" "$REPLICA2"; do
    check "a replica has what is listed" await equal_size "$replica"
done
# list CURSOR: the next cursor, and behind it the keys.
list() { curl -sSf "$MILLRACE_URL/v1/keys?cursor=$1&count=100&match=listed:*" | python3 -c \
    'import json, sys; page = json.load(sys.stdin); print(page["cursor"], *page["keys"], sep="\n")'; }
cursor=0 pages=0
while
    list "$cursor" >"$scratch/page"
    tail -n +2 "$scratch/page" >>"$scratch/listed"
    cursor=$(head -1 "$scratch/page")
    ((++pages < 1000)) && [[ $cursor != 0 ]]
do :; done
check "a listing ends" equal "$cursor" 0
check "it took several pages" test "$pages" -gt 5
check "a listing through NGINX has every key" equal "$(sort -u "$scratch/listed" | wc -l)" 2000
# A token of a stream is known where the stream is open: both go to one node, whatever others are asked in between.
curl -sSN "$MILLRACE_URL/v1/invalidations?token=mine" >"$scratch/stream" & stream_pid=$!
check "a stream begins through NGINX" await grep -q '^event: ready' "$scratch/stream"
for number in {1..10}; do
    status=$(curl -sS -o /dev/null -w '%{http_code}' -H 'X-Millrace-Token: mine' "$MILLRACE_URL/v1/keys/page:note")
    [[ $status == 200 ]] || break
    curl -sS -o /dev/null "$MILLRACE_URL/v1/keys/page:note"
done
check "reads find the stream of their token" equal "$status" 200
curl -sS -X PUT --data-binary 'redis 30' "$MILLRACE_URL/v1/keys/page:note"
check "and it says what has changed" await grep -q '^data: page%3Anote' "$scratch/stream"
kill "$stream_pid" && stream_pid=
for query in '' '?prefix=page%3A'; do
    # What the one before was told is no answer to this one: it would be killed before it is a curl, and runs the trap then.
    rm "$scratch/stream"
    curl -sSN "$MILLRACE_URL/v1/invalidations$query" >"$scratch/stream" & stream_pid=$!
    check "a stream without a token: $query" await grep -q '^event: ready' "$scratch/stream"
    kill "$stream_pid" && stream_pid=
done
# NGINX is told until it has heard, and a file that it does not accept does not stay, whether there was one before or not.
# follow CHECK: one look by a script of its own; prints what it says. Its RELOAD fails while there is a file `refuse`.
follow() { ONCE=1 UPSTREAMS=$scratch/upstreams CHECK=$1 RELOAD=$scratch/reload "$root/docs/nginx/follow-primary.sh" "$PRIMARY_HTTP" 2>&1; }
reloads() { wc -l <"$scratch/reloads"; }
printf '#!/bin/sh\necho >>"%s"\n[ ! -e "%s" ]\n' "$scratch/reloads" "$scratch/refuse" >"$scratch/reload"
chmod +x "$scratch/reload"
touch "$scratch/refuse" "$scratch/reloads" "$scratch/upstreams.old"
check "follow: a first file that is not accepted fails" fails follow false
check "follow: and does not stay" fails test -e "$scratch/upstreams"
said=$(follow true || true)
check "follow: a reload that fails is said" contains "$said" 'failed'
check "follow: and nothing else" fails contains "$said" "primary $PRIMARY_HTTP"
check "follow: it was called" equal "$(reloads)" 1
check "follow: it is called again" fails follow true
check "follow: with the file in place" equal "$(reloads)" 2
rm "$scratch/refuse"
check "follow: until it works" contains "$(follow true)" "primary $PRIMARY_HTTP"
check "follow: then all is said" equal "$(follow true)" ''
check "follow: and done" equal "$(reloads)" 3
sed -i '1s/.*/# primary 127.0.0.1:1/' "$scratch/upstreams"
cp "$scratch/upstreams" "$scratch/before"
check "follow: a new file that is not accepted" fails follow false
check "follow: leaves the one from before" cmp "$scratch/upstreams" "$scratch/before"
check "follow: which NGINX has" equal "$(reloads)" 3
# A replica that stands still is behind: NGINX asks the primary, and so does the page.
kill -STOP "$REPLICA2_PID"
for way in http redis; do check "$way: one replica stands still" equal "$(change $way "$way stands")" "$way stands"; done
kill -CONT "$REPLICA2_PID"
kill -9 "$REPLICA2_PID"
for way in http redis; do check "$way: one replica is dead" equal "$(change $way "$way dead")" "$way dead"; done
# A replica that is told to follow nobody stays behind, and says so. (phpredis throws that, and returns other errors.)
redis-cli -p "${REPLICA1#*:}" REPLICAOF 127.0.0.1 1 >/dev/null
for way in http redis; do check "$way: one replica is behind" equal "$(change $way "$way behind")" "$way behind"; done
# A token that is in no history: the page says so once.
for way in http redis; do
    sed -i -E 's/last_write\t[0-9a-f]{16}%3A/last_write\t00000000000000ff%3A/' "$scratch/$way.cookies"
    check "$way: a lost write is told" equal "$(note $way warning)" 'What you wrote was lost with a server.'
    check "$way: once" equal "$(note $way warning)" ''
done
finish

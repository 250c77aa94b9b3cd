#!/usr/bin/env bash
# The example in docs/caching: a PHP page with a cache in files and NGINX before it, kept true by GET /v1/invalidations.
# The files are used as they are, but for their ports.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"
example=$here/../../docs/caching

scratch=$(mktemp -d)
pids=()
trap 'for pid in "${pids[@]}"; do kill -- "$pid" 2>/dev/null || true; done; wait; rm -rf "$scratch"' EXIT
cli() { redis-cli -p "$MILLRACE_PORT" "$@"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# await COMMAND...: until it holds, 10 s at most.
await() {
    local end=$((SECONDS + 10))
    until "$@"; do ((SECONDS < end)) || return 1; sleep 0.01; done
}
gets() { cli INFO commandstats | sed -n 's/^cmdstat_get:calls=\([0-9]*\),.*/\1/p' | grep . || echo 0; }

page_port=$(free_port) front_port=$(free_port)
sed -e "s/127\.0\.0\.1:8080/127.0.0.1:$MILLRACE_HTTP_PORT/; s/127\.0\.0\.1:8000/127.0.0.1:$page_port/; s/127\.0\.0\.1:8088/127.0.0.1:$front_port/" \
    "$example/nginx-site.conf" >"$scratch/site.conf"
cat >"$scratch/nginx.conf" <<END
daemon off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    include site.conf;
}
END
export MILLRACE_URL=http://127.0.0.1:$MILLRACE_HTTP_PORT CACHE_FOLDER=$scratch/cache
mkdir "$CACHE_FOLDER"
nginx=$(command -v nginx || echo /usr/sbin/nginx)
"$nginx" -p "$scratch" -c nginx.conf 2>"$scratch/nginx.log" &
pids+=($!)
# Several, or a page that waits for Millrace would make the others wait; a group of its own, or they would outlive it.
PHP_CLI_SERVER_WORKERS=4 setsid php -S "127.0.0.1:$page_port" -t "$example" >"$scratch/php.log" 2>&1 &
pids+=("-$!")
start_follower() {
    php "$example/follower.php" "$@" >"$scratch/follower.log" 2>&1 &
    follower=$!
    pids+=("$follower")
    await grep -q following "$scratch/follower.log"
}

front=http://127.0.0.1:$front_port
page() { curl -sS "$front/page.php?key=${1:-greeting}" | sed -n 's/.*<p id="value">\(.*\)<\/p>.*/\1/p'; }
shows() { equal "$(page "${2:-greeting}")" "$1"; }
try_page() { [[ $(page 2>/dev/null) == "$1" ]]; }

cli FLUSHALL >/dev/null
cli SET greeting hello >/dev/null
check "the page, through NGINX" await try_page hello
before=$(gets)
for _ in {1..5}; do page >/dev/null; done
check "nobody follows: every page asks Millrace" equal "$(gets)" $((before + 5))

check "the follower has its stream" start_follower
before=$(gets)
for _ in {1..20}; do page >/dev/null; done
check "twenty pages, one read" equal "$(gets)" $((before + 1))
for number in {1..5}; do
    cli SET greeting "hello $number" >/dev/null
    check "a written value shows" await shows "hello $number"
done
cli DEL greeting >/dev/null
check "a removed one does not" await shows 'There is no such key.'
cli SET 'a/b <&> ü' '<&>' >/dev/null
check "any key, any value" shows '&lt;&amp;&gt;' 'a%2Fb%20%3C%26%3E%20%C3%BC'
cli SET 'a/b <&> ü' new >/dev/null
check "until it changes" await shows new 'a%2Fb%20%3C%26%3E%20%C3%BC'
cli PEXPIRE 'a/b <&> ü' 50 >/dev/null
check "or expires" await shows 'There is no such key.' 'a%2Fb%20%3C%26%3E%20%C3%BC'
cli MSET greeting 1 other 2 >/dev/null
check "before FLUSHALL" shows 1
cli FLUSHALL >/dev/null
check "after FLUSHALL" await shows 'There is no such key.'

# A page that is made while the value changes does not keep the one that it read before: this one's answer is held up
# between Millrace and it, until the change has been told and shown.
cat >"$scratch/slow.py" <<'END'
import os, socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
page, _ = listener.accept()
millrace = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
millrace.sendall(page.recv(65536))
answer = millrace.recv(65536)
print("held", flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
page.sendall(answer)
END
cli SET greeting old >/dev/null
python3 "$scratch/slow.py" "$MILLRACE_HTTP_PORT" "$scratch/released" >"$scratch/slow.log" &
pids+=($!)
await test -s "$scratch/slow.log"
MILLRACE_URL=http://127.0.0.1:$(head -1 "$scratch/slow.log") \
    php -r 'require $argv[1]; echo cached_value_of("greeting");' "$example/cache.php" >"$scratch/slow.page" &
slow_page=$!
check "a slow page has its answer on its way" await grep -q held "$scratch/slow.log"
cli SET greeting new >/dev/null
check "the value changes meanwhile" await shows new
touch "$scratch/released"
wait "$slow_page"
check "the slow page has the old one" equal "$(cat "$scratch/slow.page")" old
check "and did not keep it" shows new

# The same as it comes.
for worker in {1..3}; do
    (for _ in {1..8}; do page >/dev/null; done) &
    readers[worker]=$!
done
for number in {1..300}; do echo "SET greeting $number"; done | cli >/dev/null
wait "${readers[@]}"
check "written while it was read" await shows 300
check "no reader left its file" equal "$(find "$CACHE_FOLDER" -name '*.reading.*' | wc -l)" 0

# A browser's way: events as they come, values by their tag. NGINX would hold up even the first one, if Millrace did not ask it
# to buffer nothing: with `proxy_ignore_headers X-Accel-Buffering` in the site this fails.
# It ends with NGINX, and complains behind the last line of this program.
curl -sSN "$front/invalidations?prefix=greet" >"$scratch/events" 2>"$scratch/events.log" &
pids+=($!)
check "a stream through NGINX begins" await grep -q '^event: ready' "$scratch/events"
cli SET greeting streamed >/dev/null
check "and is not held up there" await grep -q '^data: greeting' "$scratch/events"
id=$(sed -n 's/^id: //p' "$scratch/events" | tail -1)
cli SET greeting missed >/dev/null
events=$(curl -sSN --max-time 0.5 -H "Last-Event-ID: $id" "$front/invalidations?prefix=greet" || true)
check "it can be resumed" contains "$events" 'event: resumed'
check "and says what was missed" contains "$events" 'data: greeting'
tag=$(curl -sSI -X GET "$front/values/greeting" | tr -d '\r' | sed -n 's/^ETag: //p')
check "a value" equal "$(curl -sS "$front/values/greeting")" missed
check "and its tag" matches "$tag" '^"[0-9a-f]{16}"$'
status() { curl -sS -o /dev/null -w '%{http_code}' "$@"; }
check "not modified" equal "$(status -H "If-None-Match: $tag" "$front/values/greeting")" 304
check "nobody writes through NGINX" equal "$(status -X PUT --data-binary x "$front/values/greeting")" 403

# Without the follower nothing old is shown, not for a moment.
check "before its end" shows missed
kill -9 "$follower"
wait "$follower" 2>/dev/null || true
cli SET greeting 'while it was gone' >/dev/null
check "nobody follows: the page is true" shows 'while it was gone'
cli SET greeting 'and back' >/dev/null
check "another follower" start_follower
check "begins with nothing kept" shows 'and back'
# What was read while the follower began is not kept, so the first page may ask once more.
is_kept() {
    local before
    before=$(gets)
    page >/dev/null
    equal "$(gets)" "$before"
}
check "and keeps what is read then" await is_kept
finish

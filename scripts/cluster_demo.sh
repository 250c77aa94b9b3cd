#!/usr/bin/env bash
# One primary, two replicas and NGINX before them, on this machine, to be tried out: free ports of 127.0.0.1, data in a
# temporary directory. Says how to try it, and stops everything at Ctrl-C. NGINX runs with the files of docs/nginx.
#
#     scripts/cluster_demo.sh            until Ctrl-C
#     scripts/cluster_demo.sh --check    tries what it would tell you to, and ends: 0 if all of it worked
#     scripts/cluster_demo.sh -- COMMAND...   runs a command that finds all of it in its environment, and ends with its status:
#         MILLRACE_URL (NGINX), PRIMARY and REPLICA1, REPLICA2 (RESP, as HOST:PORT), PRIMARY_PID, and so on
#
# MILLRACE=/path/to/millrace is the server; else the newest of target/{release,ci,debug}/millrace.

set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
check= command=()
case ${1:-} in
'') ;;
--check) check=yes ;;
--) command=("${@:2}") ;;
*) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

fail() { printf 'cluster_demo: %s\n' "$1" >&2; exit 1; }
target=${CARGO_TARGET_DIR:-$root/target}
millrace=${MILLRACE:-$(ls -t "$target"/{release,ci,debug}/millrace 2>/dev/null | head -1 || true)}
[[ -x $millrace ]] || fail "no server. Build one: cargo build --release -p reactor --bin millrace"
nginx=$(command -v nginx || echo /usr/sbin/nginx)
[[ -x $nginx ]] || fail "NGINX is not installed. On Debian: apt-get install nginx-light"
command -v curl >/dev/null || fail "curl is not installed"

home=$(mktemp -d)
pids=()
finish() {
    trap - EXIT INT TERM
    ((!${#pids[@]})) || kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$home"
}
trap finish EXIT
trap 'echo; echo "stopping"; exit 0' INT TERM

# await WHAT COMMAND...: until it succeeds, a minute at most.
await() {
    local what=$1 end=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { cat "$home"/*.log >&2; fail "$what: not after a minute"; }
        sleep 0.05
    done
}

# start NAME OPTION...: a server; leaves its ports in resp[NAME] and http[NAME], its process in pid[NAME].
declare -A resp http pid
start() {
    local name=$1 ready
    shift
    mkdir -p "$home/$name"
    "$millrace" --port 0 --http-port 0 --replica-listen 0 --shards 1 --dir "$home/$name" "$@" \
        >"$home/$name.ready" 2>"$home/$name.log" &
    pid[$name]=$!
    pids+=($!)
    await "the $name" grep -q '^ready' "$home/$name.ready"
    ready=$(cat "$home/$name.ready")
    resp[$name]=$(sed 's/.* resp=[^ ]*:\([0-9]*\) .*/\1/' <<<"$ready")
    http[$name]=$(sed 's/.* http=[^ ]*:\([0-9]*\) .*/\1/' <<<"$ready")
}
start primary
start replica1 --replicaof "127.0.0.1:${resp[primary]}"
start replica2 --replicaof "127.0.0.1:${resp[primary]}"
is() { curl -sf "http://127.0.0.1:${http[$1]}/role/$2"; }
await "replica 1 has its data" is replica1 replica
await "replica 2 has its data" is replica2 replica

# NGINX cannot be asked for a free port: one that nobody listens on.
front=8088
while (exec 3<>"/dev/tcp/127.0.0.1/$front") 2>/dev/null; do front=$((20000 + RANDOM % 10000)); done
sed "s/127\.0\.0\.1:8088/127.0.0.1:$front/" "$root/docs/nginx/millrace.conf" >"$home/site.conf"
# Started by root, workers are somebody else, who may not enter this directory: long values, which go through files, would
# be answered 500. (NGINX warns of `user` where it is not root's to choose.)
user=
((EUID)) || user='user root;'
cat >"$home/nginx.conf" <<END
daemon off;
$user
pid nginx.pid;
error_log nginx.log;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    # To see who answered.
    add_header X-Node \$upstream_addr always;
    include site.conf;
}
END
export UPSTREAMS=$home/millrace-upstreams.conf INTERVAL=0.2
export CHECK="$nginx -p $home -c nginx.conf -e nginx.log -q -t" RELOAD="$nginx -p $home -c nginx.conf -e nginx.log -s reload"
nodes=("127.0.0.1:${http[primary]}" "127.0.0.1:${http[replica1]}" "127.0.0.1:${http[replica2]}")
ONCE=1 RELOAD=true "$root/docs/nginx/follow-primary.sh" "${nodes[@]}" 2>>"$home/follow.log" \
    || fail "$(cat "$home/follow.log")"
"$nginx" -p "$home" -c nginx.conf -e nginx.log &
pids+=($!)
"$root/docs/nginx/follow-primary.sh" "${nodes[@]}" >/dev/null 2>>"$home/follow.log" &
pids+=($!)
url=http://127.0.0.1:$front/v1/keys/greeting
answers() { [[ $(curl -s -o /dev/null -w '%{http_code}' "$url") == 404 ]]; }
await "NGINX answers" answers

if ((${#command[@]})); then
    # Bash itself would tell of every server that the command kills, behind the command's last word.
    exec 3>&2 2>/dev/null
    MILLRACE_URL=http://127.0.0.1:$front PRIMARY=127.0.0.1:${resp[primary]} PRIMARY_PID=${pid[primary]} \
        REPLICA1=127.0.0.1:${resp[replica1]} REPLICA1_PID=${pid[replica1]} \
        REPLICA2=127.0.0.1:${resp[replica2]} REPLICA2_PID=${pid[replica2]} \
        PRIMARY_HTTP=127.0.0.1:${http[primary]} \
        "${command[@]}" 2>&3 3>&-
    exit
fi

# What is printed is what is tried.
write="curl -si -X PUT --data-binary hello $url"
read_back="curl -si -H \"X-Millrace-LSN: \$token\" $url"
keep="token=\$(curl -si -X PUT --data-binary 'hello again' $url | tr -d '\\r' | sed -n 's/^X-Millrace-LSN: //p')"
kill_primary="kill -9 ${pid[primary]}"
promote="redis-cli -p ${resp[replica1]} REPLICAOF NO ONE"
follow="redis-cli -p ${resp[replica2]} REPLICAOF 127.0.0.1 ${resp[replica1]}"
cat <<END
One primary, two replicas and NGINX are running; their files are in $home

    NGINX       http://127.0.0.1:$front     writes to the primary, reads from the replicas
    primary     http://127.0.0.1:${http[primary]}     redis-cli -p ${resp[primary]}     process ${pid[primary]}
    replica 1   http://127.0.0.1:${http[replica1]}     redis-cli -p ${resp[replica1]}     process ${pid[replica1]}
    replica 2   http://127.0.0.1:${http[replica2]}     redis-cli -p ${resp[replica2]}     process ${pid[replica2]}

Write, and read it from a replica (X-Node says who answered):

    $write
    curl -si $url

Read what you wrote, whoever answers: the write names its record, and the read asks for at least that one:

    $keep
    $read_back

Lose the primary, promote a replica, and write on (NGINX follows within a second):

    $kill_primary
    $promote
    $follow
    $write

Ctrl-C stops all of it.
END
if [[ -z $check ]]; then
    # A primary that was killed on request ends nothing else.
    while true; do sleep 3600 & pids+=($!); wait $! || true; done
fi

# says WORDS COMMAND: the command's answer has the words.
says() {
    local answer
    answer=$(eval "$2" 2>&1) || fail "failed: $2: $answer"
    [[ $answer == *"$1"* ]] || fail "expected \"$1\" from: $2: found: $answer"
}
says '201 Created' "$write"
says "X-Node: 127.0.0.1:${http[primary]}" "$write"
eval "$keep"
[[ $token =~ ^[0-9a-f]{16}:[0-9]+$ ]] || fail "expected a token, found \"$token\""
says 'hello again' "$read_back"
# Longer than NGINX keeps in memory: it goes through a file, which the worker must be able to make.
long=$(printf '%0100000d' 42)
status=$(curl -s -o /dev/null -w '%{http_code}' -X PUT --data-binary @- "$url-long" <<<"$long")
[[ $status == 201 ]] || fail "expected 201 for a value of 100 KB, found $status: $(tail -3 "$home/nginx.log")"
[[ $(curl -s "http://127.0.0.1:${http[primary]}/v1/keys/greeting-long") == "$long" ]] || fail "100 KB came as something else"
answer=$(eval "$read_back")
[[ $answer == *"X-Node: 127.0.0.1:${http[replica1]}"* || $answer == *"X-Node: 127.0.0.1:${http[replica2]}"* ]] \
    || fail "expected a replica to answer, found: $answer"
{ eval "$kill_primary"; wait "${pid[primary]}"; } 2>/dev/null || true
says OK "$promote"
says OK "$follow"
# While NGINX reloads, a request may still come to a worker that knows the old primary.
writes_again() { eval "$write" | tr '\r\n' '  ' | grep -q "^HTTP/1.1 20[14] .*X-Node: 127.0.0.1:${http[replica1]} "; }
await "writes through NGINX after the promotion" writes_again
reads_again() { eval "$keep" && [[ $token ]] && eval "$read_back" | grep -q 'hello again'; }
await "reads of what was written then" reads_again
echo "cluster_demo: all of it works"

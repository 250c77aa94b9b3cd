#!/usr/bin/env bash
# The README's two commands, as a visitor would type them, only shorter and on free ports.

set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT

begun=$SECONDS
# One after the other, as they are typed: alone, a package is built with other features than beside its neighbour.
cargo build --release --locked -p loadgen
cargo build --release --locked -p reactor
echo "release build: $((SECONDS - begun)) s"

# They need no encrypted journal, and say where there is one.
status=0
refusal=$(cargo run --quiet --release -p reactor -- --journal sqlcipher --port 0 2>&1) || status=$?
[[ $status == 2 && $refusal == *"--features sqlcipher"* ]] || { echo "unexpected ($status): $refusal"; exit 1; }

# As typed, only elsewhere: a table on stdout, JSON and a page on disk.
cargo run --release -p loadgen -- --results "$scratch/results" >"$scratch/table"
cat "$scratch/table"
grep -q 'CPU/request' "$scratch/table"
ls "$scratch"/results/*-demo/report.json "$scratch"/results/*-demo/report.html
python3 -c 'import json, sys; assert len(json.load(open(sys.argv[1]))["runs"]) == 2' "$scratch"/results/*-demo/report.json
echo "cargo run --release -p loadgen: drives the embedded server and writes its report"

cargo run --release -p reactor -- --port 0 --http-port 0 --dir "$scratch" >"$scratch/ready" &
server=$!
for _ in $(seq 1200); do
    grep -q '^ready ' "$scratch/ready" && break
    kill -0 "$server"
    sleep 0.05
done
[[ $(cat "$scratch/ready") =~ resp=[^\ ]*:([0-9]+)\ http=([^\ ]+) ]]
resp=${BASH_REMATCH[1]} http=${BASH_REMATCH[2]}
[[ $(redis-cli -p "$resp" SET greeting hello EX 60) == OK ]]
[[ $(curl -fsS "http://$http/v1/keys/greeting") == hello ]]
kill "$server"
wait "$server"
server=
echo "cargo run --release -p reactor: serves, and stops with success"

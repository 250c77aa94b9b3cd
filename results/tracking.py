#!/usr/bin/env python3
"""Figures of client tracking: what it costs, what it costs others, how soon it tells, what a cache is worth.

    results/tracking.py [--rounds N] [--seconds S] [--only NAME] OUT.json

Takes millrace and loadgen from target/release, the helper `trackers` from target/ci/examples (cargo build --profile ci -p tests
--example trackers), redis-server and redis-benchmark from PATH, the client libraries from where scripts/setup.sh puts
them; what is missing is said, and left out. Servers run on the first core, everything else on the second; targets alternate.
Prints a Markdown report and writes every sample to OUT.json.
"""

import argparse, json, os, shutil, socket, subprocess, sys, tempfile, time

from shared import GENERATOR_CORE, MILLRACE, NAMES, ROOT, SERVER_CORE, Load, cpu_s, on_generator_core, text

TRACKERS = os.path.join(ROOT, "target/ci/examples/trackers")
PYTHON = os.path.join(ROOT, "target/clients/python/bin/python")
NODE_MODULES = os.path.join(ROOT, "target/clients/node/node_modules")
NODE = os.path.join(NODE_MODULES, "node/bin/node")


class Server:
    """`durability`: off, or always."""

    def __init__(self, kind, folder, durability="off"):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.folder = tempfile.mkdtemp(prefix=kind + "-", dir=folder)
        if kind == "millrace":
            words = [MILLRACE, "--port", str(self.port), "--http", "no", "--shards", "1", "--durability", durability]
        else:
            log = ["--appendonly", "yes", "--appendfsync", "always"] if durability == "always" else []
            words = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", *log]
        self.said = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(["taskset", "-c", SERVER_CORE, *words, "--dir", self.folder], stdout=self.said, stderr=self.said)
        self.address = f"127.0.0.1:{self.port}"
        while True:
            try:
                if self.ask("PING") == b"+PONG\r\n":
                    break
            except OSError:
                pass
            if self.process.poll() is not None:
                self.said.seek(0)
                sys.exit(f"{kind} did not start: {self.said.read()}")
            time.sleep(0.01)

    def ask(self, command):
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as one:
            one.sendall(command.encode() + b"\r\n")
            reply = one.recv(1 << 16)
            while reply.startswith(b"$") and len(reply) < int(reply[1:reply.index(b"\r\n")]) + reply.index(b"\r\n") + 4:
                reply += one.recv(1 << 16)
            return reply

    def info(self, section):
        lines = self.ask(f"INFO {section}").decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self, command):
        return int(self.info("commandstats").get(f"cmdstat_{command}", "calls=0,").split("=")[1].split(",")[0])

    def cpu_s(self):
        return cpu_s(self.process)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)


def ratios(name, ours, theirs, samples):
    pairs = [a / b for a, b in zip(ours, theirs)]
    samples.setdefault("ratios", {})[name] = pairs
    print(f"- {name}: {text(pairs, 3)}")


def cpu(rounds, seconds, folder, samples):
    """CPU of a GET while nobody writes."""
    print("\n## CPU of a GET while nobody writes\n\nredis-benchmark -3, 50 connections, 64-byte values, `--enable-tracking` or not; µs of the server's "
          "CPU per GET, by the scheduler's account.\nKept: 1,000 keys, which every client has read before the measurement. First: 10,000 keys, most "
          "of them read for the first time by a client.\n\n| keys, pipeline | server | off | on | on over off |\n|---|---|---:|---:|---:|")
    kinds = present("redis-benchmark", "millrace", "redis")
    for name, keys, pipeline, warm_s in (("kept", 1000, 1, 4.0), ("kept", 1000, 16, 1.0), ("first", 10_000, 1, 0.2), ("first", 10_000, 16, 0.02)):
        rows = {(kind, way): [] for kind in kinds for way in ("off", "on")}
        for _ in range(rounds):
            for kind, way in rows:
                server = Server(kind, folder)
                words = ["redis-benchmark", "-h", "127.0.0.1", "-p", str(server.port), "-3", "-d", "64", "-r", str(keys), "-q"]
                on_generator_core(*words, "-t", "set", "-n", str(20 * keys), "-P", "16", stdout=subprocess.DEVNULL).wait()
                tracking = ["--enable-tracking"] if way == "on" else []
                load = on_generator_core(*words, "-t", "get", "-n", "1000000000", "-P", str(pipeline), *tracking, stdout=subprocess.DEVNULL)
                while server.calls("get") == 0:
                    time.sleep(0.001)
                time.sleep(warm_s if seconds >= 1 else 0)
                # A busy machine takes longer: what is called kept must be.
                end = time.monotonic() + 60
                while name == "kept" and way == "on" and seconds >= 1 and time.monotonic() < end:
                    if int(server.info("stats")["tracking_total_items"]) >= 0.999 * 50 * keys:
                        break
                    time.sleep(0.2)
                # The first reads of all are soon over.
                span = seconds if name == "kept" else min(seconds, 2.0 if pipeline == 1 else 0.25)
                (calls, spent), pairs = (server.calls("get"), server.cpu_s()), int(server.info("stats")["tracking_total_items"])
                time.sleep(span)
                calls, spent = server.calls("get") - calls, server.cpu_s() - spent
                pairs = (pairs, int(server.info("stats")["tracking_total_items"]))
                load.kill()
                load.wait()
                server.stop()
                rows[kind, way].append({"us": 1e6 * spent / calls, "gets": calls, "pairs": pairs})
        samples["cpu"][f"{name} {pipeline}"] = {f"{kind} {way}": row for (kind, way), row in rows.items()}
        us = lambda kind, way: [one["us"] for one in rows[kind, way]]
        for kind in kinds:
            ratio = [on / off for on, off in zip(us(kind, "on"), us(kind, "off"))]
            print(f"| {name}, {pipeline} | {NAMES[kind]} | {text(us(kind, 'off'), 2)} | {text(us(kind, 'on'), 2)} | {text(ratio, 3)} |")
            sys.stdout.flush()


def crowd(rounds, seconds, folder, samples):
    """redis issue 14287: many who follow every key."""
    trackers, writes, gets = 1000, 1000, 2000
    print(f"\n## Beside {trackers:,} clients that follow every key\n\nThe case of redis issue 14287: `CLIENT TRACKING ON BCAST`, {writes:,} SETs a second; GETs of "
          f"other keys at {gets:,} a second, open loop, in µs from when they were due; their generator has its core before trackers and writers "
          f"(SCHED_FIFO).\nTold: keys that the {trackers:,} were told of, of those they had to be.\n\n"
          "| server | trackers | GET p50 | GET p99 | server's CPU | trackers' CPU | told |\n|---|---:|---:|---:|---:|---:|---:|")
    kinds = present(TRACKERS, "millrace", "redis")
    rows = {(kind, count): [] for kind in kinds for count in (0, trackers)}
    common = ["--loop", "open", "--connections", "10", "--keys", "10000", "--duration", f"{int(seconds * 1000)}ms", "--warmup", "500ms"]
    for _ in range(rounds):
        for kind, count in rows:
            server = Server(kind, folder)
            Load(server, "--prefill", "--key-prefix", "read:", "--ratio", "0:1", "--keys", "10000", "--duration", "100ms", "--warmup", "0").result()
            # The least of all that runs on that core: it must not be what is measured.
            held = on_generator_core("nice", "-n", "19", TRACKERS, "hold", server.address, str(count), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if held.stdout.readline() != "ready\n":
                sys.exit(f"trackers did not connect to {kind}")
            written, begun, spent, held_spent = server.calls("set"), time.monotonic(), server.cpu_s(), cpu_s(held)
            sets = Load(server, "--ratio", "1:0", "--key-prefix", "write:", "--rate", str(writes), *common, nice=10)
            reads = Load(server, "--ratio", "0:1", "--key-prefix", "read:", "--rate", str(gets), *common, first=True)
            row = {"get": reads.result(), "set": sets.result()}
            span = time.monotonic() - begun
            row |= {"cpu_share": (server.cpu_s() - spent) / span, "trackers_cpu_share": (cpu_s(held) - held_spent) / span}
            written = server.calls("set") - written
            # What is on its way still must arrive: a tracker looks ten times a second.
            time.sleep(1)
            said, _ = held.communicate()
            told = json.loads(said)
            row |= {"told": told, "written": written, "told_share": told["keys"] / (written * count) if count else None}
            rows[kind, count].append(row)
            server.stop()
    samples["crowd"] |= {f"{kind} {count}": row for (kind, count), row in rows.items()}
    for (kind, count), row in rows.items():
        share = text([100 * one["told_share"] for one in row], 1) + " %" if count else "–"
        print(f"| {NAMES[kind]} | {count:,} | {text([one['get']['p50_us'] for one in row])} | {text([one['get']['p99_us'] for one in row])} | "
              f"{text([100 * one['cpu_share'] for one in row])} % | {text([100 * one['trackers_cpu_share'] for one in row])} % | {share} |")
    print()
    for kind in kinds:
        for field in ("p50_us", "p99_us"):
            column = lambda count: [one["get"][field] for one in rows[kind, count]]
            ratios(f"{NAMES[kind]}, GET {field[:3]} with over without", column(trackers), column(0), samples["crowd"])


def delay(rounds, seconds, folder, samples):
    """From the writer's acknowledgement to the invalidation."""
    writes = max(20, int(seconds * 500))
    print(f"\n## From acknowledged write to invalidation\n\n{writes:,} SETs of one key, one after the other; µs from the moment the writer has its reply until a client "
          "that tracks the key has its invalidation (smaller than 0: it had it before).\nAll clients are one thread, which only notes when the kernel has something for "
          "whom; last: the last of them. Durable: `--durability always`, `appendfsync always`.\n\n| trackers | mode | durable | server | p50 | p99 | last, p50 | since "
          "sent, p50 | since sent, p99 |\n|---:|---|---|---|---:|---:|---:|---:|---:|")
    kinds = present(TRACKERS, "millrace", "redis")
    for count, mode, durability in ((1, "reads", "off"), (1, "bcast", "off"), (100, "reads", "off"), (100, "bcast", "off"), (1, "reads", "always"), (100, "reads", "always")):
        rows = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                server = Server(kind, folder, durability)
                words = [TRACKERS, "delay", server.address, str(count), mode, str(writes)]
                rows[kind].append(json.loads(on_generator_core(*words, stdout=subprocess.PIPE, text=True).communicate()[0]))
                server.stop()
        samples["delay"][f"{count} {mode} {durability}"] = rows
        for kind, row in rows.items():
            column = lambda what, at: text([one[what][at] for one in row], 1)
            print(f"| {count} | {mode} | {'yes' if durability == 'always' else 'no'} | {NAMES[kind]} | {column('since_acknowledged', 'p50')} | "
                  f"{column('since_acknowledged', 'p99')} | {column('last_told', 'p50')} | {column('since_sent', 'p50')} | {column('since_sent', 'p99')} |")
            sys.stdout.flush()


REDIS_PY = """
import sys, time, redis
from redis.cache import CacheConfig
port, seconds, cached = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "on"
r = redis.Redis(port=port, protocol=3, cache_config=CacheConfig() if cached else None)
keys = [f"key:{number}" for number in range(100)]
for key in keys:
    r.set(key, "v" * 64)
for key in keys:
    r.get(key)
count, begun = 0, time.monotonic()
while time.monotonic() - begun < seconds:
    for key in keys:
        r.get(key)
    count += len(keys)
print(count / (time.monotonic() - begun))
"""

NODE_REDIS = """
const [port, seconds, cached] = [Number(process.argv[2]), Number(process.argv[3]), process.argv[4] === "on"];
const { createClient } = require("redis");
(async () => {
  const clientSideCache = cached ? { ttl: 0, maxEntries: 0, evictPolicy: "LRU" } : undefined;
  const client = await createClient({ url: `redis://127.0.0.1:${port}`, RESP: 3, clientSideCache }).connect();
  const keys = Array.from({ length: 100 }, (_, number) => `key:${number}`);
  for (const key of keys) await client.set(key, "v".repeat(64));
  for (const key of keys) await client.get(key);
  const begun = performance.now();
  let count = 0;
  while (performance.now() - begun < seconds * 1000) {
    for (const key of keys) await client.get(key);
    count += keys.length;
  }
  console.log(count / (performance.now() - begun) * 1000);
  await client.close();
})();
"""


def caches(rounds, seconds, folder, samples):
    """Client libraries with their caches on."""
    version = redis_version()
    print(f"\n## Client libraries with a cache\n\nReads of 100 keys one after the other, nobody writes; reads a second. redis-server is "
          f"{'.'.join(map(str, version)) if version else 'not there'}; redis-py's cache wants 7.4 or later.\n\n| library | server | without | with | with over without |\n|---|---|---:|---:|---:|")
    scripts = {"redis-py": ("py", REDIS_PY), "node-redis": ("cjs", NODE_REDIS)}
    node = NODE if os.path.exists(NODE) else "node"
    for library, (ending, script) in scripts.items():
        program = os.path.join(folder, f"reads.{ending}")
        with open(program, "w") as file:
            file.write(script)
        words = [PYTHON, program] if library == "redis-py" else ["env", f"NODE_PATH={NODE_MODULES}", node, program]
        kinds = present(PYTHON if library == "redis-py" else NODE_MODULES, "millrace", "redis")
        rows = {(kind, way): [] for kind in kinds for way in ("off", "on") if library != "redis-py" or way == "off" or kind != "redis" or version >= (7, 4)}
        for _ in range(rounds):
            for kind, way in rows:
                server = Server(kind, folder)
                before = server.calls("get")
                process = on_generator_core(*words, str(server.port), str(seconds), way, stdout=subprocess.PIPE, text=True)
                per_s = float(process.communicate()[0])
                rows[kind, way].append({"per_s": per_s, "gets": server.calls("get") - before})
                server.stop()
        samples["caches"][library] = {f"{kind} {way}": row for (kind, way), row in rows.items()}
        for kind in kinds:
            column = lambda way: [one["per_s"] for one in rows[kind, way]]
            on = text(column("on")) if (kind, "on") in rows else "refused"
            ratio = text([a / b for a, b in zip(column("on"), column("off"))], 1) if (kind, "on") in rows else "–"
            print(f"| {library} | {NAMES[kind]} | {text(column('off'))} | {on} | {ratio} |")
            sys.stdout.flush()


def redis_version():
    if not shutil.which("redis-server"):
        return ()
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
    return tuple(int(part) for part in said.split("v=")[1].split(" ")[0].split(".")[:3])


def present(needed, *kinds):
    """The servers that are there, if what is needed is."""
    if not shutil.which(needed) and not os.path.exists(needed):
        print(f"\nNot measured: {os.path.relpath(needed, ROOT) if os.sep in needed else needed} is missing.\n")
        return []
    programs = {"millrace": MILLRACE, "redis": "redis-server"}
    missing = [kind for kind in kinds if not shutil.which(programs[kind])]
    for kind in missing:
        print(f"\nLeft out: {NAMES[kind]} is missing.\n")
    return [kind for kind in kinds if kind not in missing]


PARTS = {"cpu": cpu, "crowd": crowd, "delay": delay, "caches": caches}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("out")
    arguments = parser.parse_args()
    samples = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    print(f"# Client tracking\n\nMedians of {arguments.rounds} alternating rounds of {arguments.seconds:g} s (smallest–largest).")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            if arguments.only in (None, name):
                samples[name] = {}
                part(arguments.rounds, arguments.seconds, folder, samples)
                sys.stdout.flush()
    with open(arguments.out, "w") as file:
        json.dump(samples, file, indent=1)


main()

#!/usr/bin/env python3
"""Figures of the durable log that one generator alone cannot give: two loads at once, a slow disk, counts, recovery.

    results/durable.py [--rounds N] [--only NAME] OUT.json

Takes millrace and loadgen from target/release, slow_disk from target/ci/examples, redis-server from PATH. Servers run on
the first core, generators on the second; targets alternate. Prints a Markdown report and writes every sample to OUT.json.
"""

import argparse, json, os, shutil, socket, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MILLRACE, LOADGEN = (os.path.join(ROOT, "target/release", name) for name in ("millrace", "loadgen"))
SLOW_DISK = os.path.join(ROOT, "target/ci/examples/slow_disk")
SERVER_CORE, GENERATOR_CORE = "0", "1"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    def __init__(self, kind, folder, durability="always"):
        self.port, self.kind = free_port(), kind
        self.folder = tempfile.mkdtemp(prefix=kind + "-", dir=folder)
        if kind == "millrace":
            words = [MILLRACE, "--port", str(self.port), "--http", "no", "--shards", "1", "--durability", durability]
        else:
            words = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "",
                     "--auto-aof-rewrite-percentage", "0", "--appendonly", "yes", "--appendfsync", durability]
        self.words = words + ["--dir", self.folder]
        self.output = ""
        self.start()

    def start(self):
        self.said = tempfile.TemporaryFile(mode="w+")
        begun = time.monotonic()
        self.process = subprocess.Popen(["taskset", "-c", SERVER_CORE] + self.words, stdout=self.said, stderr=self.said)
        while True:
            try:
                if self.ask("PING") == b"+PONG\r\n":
                    break
            except OSError:
                pass
            if self.process.poll() is not None:
                self.said.seek(0)
                sys.exit(f"{self.kind} did not start: {self.said.read()}")
            time.sleep(0.01)
        self.ready_s = time.monotonic() - begun

    def ask(self, command):
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as one:
            one.sendall(command.encode() + b"\r\n")
            reply = one.recv(1 << 16)
            if reply.startswith(b"$"):
                length = int(reply[1:reply.index(b"\r\n")]) + reply.index(b"\r\n") + 4
                while len(reply) < length:
                    reply += one.recv(1 << 16)
            return reply

    def info(self):
        lines = self.ask("INFO persistence").decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def stop(self, keep=False):
        self.process.terminate()
        self.process.wait()
        self.said.seek(0)
        self.output = self.said.read()
        if not keep:
            shutil.rmtree(self.folder)


class Load:
    """loadgen in the background."""

    def __init__(self, server, *words, first=False):
        """`first`: of two that share a core this one is never made to wait by the other (SCHED_FIFO)."""
        self.json = tempfile.mktemp(suffix=".json")
        before = ["chrt", "-f", "1"] if first else []
        command = ["taskset", "-c", GENERATOR_CORE, *before, LOADGEN, "run", "--target", f"resp://127.0.0.1:{server.port}", "--json",
                   self.json, *words]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def result(self):
        _, said = self.process.communicate()
        if not os.path.exists(self.json):
            sys.exit(f"loadgen: {said.decode()}")
        with open(self.json) as file:
            report = json.load(file)
        os.unlink(self.json)
        run = report["runs"][0]
        latency = run["response_time"] or run["service_time"]
        return {"per_s": run["throughput_per_s"], "p50_us": at(latency, 50) / 1e3, "p99_us": at(latency, 99) / 1e3}


def at(latency, percentile):
    found = next(one["ns"] for one in latency["percentiles"] if one["quantile"] == percentile / 100)
    # loadgen prints no percentile of too few samples.
    return float("nan") if found is None else found


def quiet_load(server, *words, first=False):
    return Load(server, *words, first=first).result()


def fill(server):
    quiet_load(server, "--prefill", "--key-prefix", "read:", "--ratio", "0:1", "--duration", "100ms", "--warmup", "0")


def mixed(server, get_words, set_words, seconds="3s", first=False):
    """GETs and SETs at once; `first`: it is about the GETs."""
    common = ["--duration", seconds, "--warmup", "500ms"]
    sets = Load(server, "--ratio", "1:0", "--key-prefix", "write:", *set_words, *common)
    gets = Load(server, "--ratio", "0:1", "--key-prefix", "read:", *get_words, *common, first=first)
    return {"get": gets.result(), "set": sets.result()}


def text(values, digits=0):
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def ratios(name, ours, theirs, samples):
    pairs = [a / b for a, b in zip(ours, theirs)]
    samples[name] = pairs
    print(f"- {name}: {text(pairs, 2)}")


def beside(rounds, folder, samples):
    """GETs of keys that nobody writes, with and without durable SETs beside them."""
    print("\n## GETs beside durable SETs\n\nOpen loop, 20,000 GETs a second; beside them 4,000 SETs a second; p99 in µs. The generator of the GETs "
          "has its core before that of the SETs (SCHED_FIFO): else it waits for that one, and not for the server.\n")
    get, put = ["--loop", "open", "--rate", "20000"], ["--loop", "open", "--rate", "4000", "--connections", "20"]
    rows = {"alone": [], "beside": []}
    for _ in range(rounds):
        server = Server("millrace", folder)
        fill(server)
        rows["alone"].append(quiet_load(server, "--ratio", "0:1", "--key-prefix", "read:", *get, "--duration", "3s", first=True))
        rows["beside"].append(mixed(server, get, put, first=True)["get"])
        server.stop()
    samples["beside"] = rows
    for name, row in rows.items():
        print(f"- {name}: p50 {text([one['p50_us'] for one in row])}, p99 {text([one['p99_us'] for one in row])}")
    ratios("p99 beside over alone", *([one["p99_us"] for one in rows[name]] for name in ("beside", "alone")), samples)


def slow(rounds, folder, samples):
    """The same mix on a disk whose flush takes 2 ms."""
    milliseconds = 2
    disk = subprocess.Popen([SLOW_DISK, str(milliseconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    place = disk.stdout.readline().removeprefix("ready ").strip()
    if not place:
        sys.exit("there is no slow disk on this machine")
    bound = 50 / (milliseconds / 1000)
    print(f"\n## A disk whose flush takes {milliseconds} ms\n\nClosed loops, 50 connections GET, 50 connections SET. SETs are bounded by "
          f"connections over flush time: {bound:,.0f}/s.\n\n| server | GET/s | GET p99 µs | SET/s | SET p99 µs |\n|---|---:|---:|---:|---:|")
    rows = {"millrace": [], "redis": []}
    for _ in range(rounds):
        for kind in rows:
            server = Server(kind, place)
            fill(server)
            rows[kind].append(mixed(server, ["--connections", "50"], ["--connections", "50"], "2s"))
            server.stop()
    disk.stdin.close()
    disk.wait()
    samples["slow"] = rows
    column = lambda kind, what, field: [one[what][field] for one in rows[kind]]
    for kind in rows:
        print(f"| {kind} | {text(column(kind, 'get', 'per_s'))} | {text(column(kind, 'get', 'p99_us'))} | "
              f"{text(column(kind, 'set', 'per_s'))} | {text(column(kind, 'set', 'p99_us'))} |")
    print()
    for what, field in (("get", "per_s"), ("get", "p99_us"), ("set", "per_s")):
        ratios(f"{what} {field}, millrace over redis", column("millrace", what, field), column("redis", what, field), samples)


def counts(rounds, folder, samples):
    """Writes and flushes for a thousand SETs."""
    print("\n## Writes and flushes of the log for a thousand SETs\n\n| connections × pipeline | SET/s | writes | flushes | records a block |\n"
          "|---|---:|---:|---:|---:|")
    samples["counts"] = {}
    for connections, pipeline in ((1, 1), (50, 1), (200, 1), (50, 16)):
        row = []
        for _ in range(rounds):
            server = Server("millrace", folder)
            words = ["--ratio", "1:0", "--connections", str(connections), "--pipeline", str(pipeline)]
            quiet_load(server, *words, "--duration", "500ms")
            before = server.info()
            load = quiet_load(server, *words, "--duration", "2s", "--warmup", "0")
            after = server.info()
            server.stop()
            records, writes, flushes = (int(after[f"log_{name}"]) - int(before[f"log_{name}"]) for name in ("records", "writes", "flushes"))
            row.append((load["per_s"], 1000 * writes / records, 1000 * flushes / records, records / writes))
        samples["counts"][f"{connections}x{pipeline}"] = row
        columns = list(zip(*row))
        print(f"| {connections} × {pipeline} | {text(columns[0])} | {text(columns[1], 1)} | {text(columns[2], 1)} | {text(columns[3], 1)} |")


def recovery(rounds, folder, samples):
    """A start with a gigabyte of log."""
    print("\n## Recovery\n\nOne shard, the process may use both cores; ready counts from exec to the first PONG.\n")
    global SERVER_CORE
    samples["recovery"] = {}
    for value, count in ((64, 8_000_000), (1024, 1_000_000)):
        server = Server("millrace", folder, "everysec")
        quiet_load(server, "--ratio", "1:0", "--pipeline", "64", "--keys", "5000000", "--value-size", str(value), "-n", str(count), "--warmup", "0")
        server.stop(keep=True)
        size = sum(entry.stat().st_size for entry in os.scandir(server.folder))
        rows, both = [], SERVER_CORE
        for _ in range(rounds):
            SERVER_CORE = f"{both},{GENERATOR_CORE}"
            server.start()
            rows.append(server.ready_s)
            server.stop(keep=True)
            SERVER_CORE = both
        said = [line for line in server.output.splitlines() if "record" in line]
        shutil.rmtree(server.folder)
        samples["recovery"][value] = {"bytes": size, "records": count, "ready_s": rows, "said": said}
        per = [count / one / 1e6 for one in rows]
        print(f"- {count:,} SETs of {value} B, {size / 1e9:.2f} GB of files: ready in {text(rows, 2)} s, {text(per, 2)} million records/s, "
              f"{text([size / one / 1e9 for one in rows], 2)} GB/s; it said: {said[-1] if said else '–'}")


PARTS = {"counts": counts, "beside": beside, "slow": slow, "recovery": recovery}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("out")
    arguments = parser.parse_args()
    samples = {"rounds": arguments.rounds}
    print(f"# The durable log, figures of several loads\n\nMedians of {arguments.rounds} alternating rounds (smallest–largest).")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            if arguments.only in (None, name):
                part(arguments.rounds, folder, samples)
                sys.stdout.flush()
    with open(arguments.out, "w") as file:
        json.dump(samples, file, indent=1)


main()

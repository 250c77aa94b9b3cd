#!/usr/bin/env python3
"""Figures of replication: how far behind a replica is, what replicas cost the writer, how fast a full sync is.

    results/replication.py [--rounds N] [--seconds S] [--keys N] [--only NAME] OUT.json

Takes millrace and loadgen from target/release and redis-server from PATH, which is left out, and said, where it is missing. The
primary runs on the first core, replicas and everything else on the second; what is compared alternates. Prints a
Markdown report, writes every sample to OUT.json and the plot of `cost` to OUT.svg. All on loopback: the network of a real one is
not in these figures.
"""

import argparse, json, os, select, shutil, socket, statistics, subprocess, sys, tempfile, time

from shared import GENERATOR_CORE, MILLRACE, NAMES, SERVER_CORE, Load, cpu_s, text

GROUP = "239.77.77.1"


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(type=kind) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A primary, or with `of` a replica of that one. `gives_way`: to the generator on the same core, at once."""

    def __init__(self, kind, folder, of=None, durability="always", extra=(), folder_of=None, gives_way=False):
        self.kind, self.port = kind, free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.folder = folder_of or tempfile.mkdtemp(prefix=kind + "-", dir=folder)
        if kind == "millrace":
            words = [MILLRACE, "--port", str(self.port), "--http", "no", "--shards", "1", "--durability", durability]
            words += ["--replicaof", f"127.0.0.1:{of.port}"] if of else ["--replica-listen", f"127.0.0.1:{free_port()}"]
        else:
            log = ["--appendonly", "yes", "--appendfsync", "always"] if durability == "always" else []
            words = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--repl-diskless-sync-delay", "0", *log]
            words += ["--replicaof", "127.0.0.1", str(of.port)] if of else []
        self.words = [*words, *extra]
        self.said = tempfile.TemporaryFile(mode="w+")
        core = GENERATOR_CORE if of else SERVER_CORE
        idle = ["chrt", "--idle", "0"] if gives_way else []
        self.process = subprocess.Popen(["taskset", "-c", core, *idle, *self.words, "--dir", self.folder], stdout=self.said, stderr=self.said)
        self.wait(lambda: self.ask("PING") is not None, "answer")

    def wait(self, done, what, seconds=120):
        end = time.monotonic() + seconds
        while True:
            try:
                if done():
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                self.said.seek(0)
                sys.exit(f"{self.kind} did not {what} in {seconds} s: {' '.join(self.words)}\n{self.said.read()[-3000:]}")
            time.sleep(0.005)

    def ask(self, *words):
        with socket.create_connection(("127.0.0.1", self.port), timeout=600) as one:
            one.sendall(encoded(*words))
            reply = one.recv(1 << 16)
            while reply.startswith(b"$") and len(reply) < int(reply[1:reply.index(b"\r\n")]) + reply.index(b"\r\n") + 4:
                reply += one.recv(1 << 16)
            return reply

    def info(self, section):
        return dict(line.split(":", 1) for line in self.ask("INFO", section).decode().split("\r\n") if ":" in line)

    def calls(self, command):
        return int(self.info("commandstats").get(f"cmdstat_{command}", "calls=0,").split("=")[1].split(",")[0])

    def cpu_s(self):
        return cpu_s(self.process)

    def wait_for_link(self):
        self.wait(lambda: self.info("replication").get("master_link_status") == "up", "follow")

    def has_all_of(self, primary):
        ours, theirs = (int(one.info("replication")["master_repl_offset"]) for one in (self, primary))
        return ours >= theirs

    def stop(self, keep=False):
        self.process.terminate()
        self.process.wait()
        if not keep:
            shutil.rmtree(self.folder)


def encoded(*words):
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def kinds():
    if shutil.which("redis-server"):
        return ["millrace", "redis"]
    print("\nLeft out: redis-server is missing.\n")
    return ["millrace"]


def delays_us(primary, replica, seconds):
    """µs from the reply to a write until a client of the replica is told of it. The probe notes both by one clock: what the kernel
    has for it first it sees first."""
    writer, told = (socket.create_connection(("127.0.0.1", one.port)) for one in (primary, replica))
    for one in (writer, told):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    told.sendall(encoded("HELLO", "3") + encoded("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "probe:"))
    seen = b""
    while not seen.endswith(b"+OK\r\n"):
        seen += told.recv(1 << 16)
    poll = select.epoll()
    for one in (writer, told):
        poll.register(one.fileno(), select.EPOLLIN)
    found, begun, number = [], time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        number += 1
        key = f"probe:{number}"
        at = {}
        writer.sendall(encoded("SET", key, "x"))
        while len(at) < 2:
            ready = [descriptor for descriptor, _ in poll.poll(10)]
            now = time.perf_counter_ns()
            if not ready:
                sys.exit(f"{replica.kind}: no invalidation of {key} in 10 s")
            if writer.fileno() in ready:
                assert writer.recv(1 << 16) == b"+OK\r\n"
                at["acknowledged"] = now
            if told.fileno() in ready and key.encode() in told.recv(1 << 16):
                at["told"] = now
        found.append((at["told"] - at["acknowledged"]) / 1e3)
        time.sleep(0.0005)
    return found


def lag(rounds, seconds, keys, folder, samples):
    """How far behind a replica is at half of what the primary can write."""
    print("\n## How far behind a replica is\n\nSETs of 64 bytes at half of the primary's highest rate with the replica attached (closed loop, 50 connections; found anew each "
          "round). µs from a durable write's reply to the moment\nat which a client of the replica, which tracks the key, is told (smaller than 0: before). Durable: "
          "`--durability always`, `appendfsync always` on the primary; the replica holds all in memory.\n\n| server | durable | most SET/s | offered SET/s | p50 | p99 |\n|---|---|---:|---:|---:|---:|")
    for durability in ("always", "off"):
        rows = {kind: [] for kind in kinds() if (kind, durability) != ("millrace", "off")}
        for _ in range(rounds):
            for kind in rows:
                primary = Server(kind, folder, durability=durability)
                replica = Server(kind, folder, of=primary, durability="off")
                replica.wait_for_link()
                sets = ["--ratio", "1:0", "--keys", "100000", "--value-size", "64", "--connections", "50", "--warmup", "300ms"]
                most = Load(primary, *sets, "--duration", f"{seconds / 2:g}s").result()["per_s"]
                load = Load(primary, *sets, "--loop", "open", "--rate", int(most / 2), "--duration", f"{seconds + 1:g}s")
                time.sleep(0.8)
                found = delays_us(primary, replica, seconds - 0.5)
                offered = load.result()
                rows[kind].append({"most_per_s": most, "offered": offered, "p50": quantile(found, 0.5), "p99": quantile(found, 0.99), "probes": len(found)})
                replica.stop()
                primary.stop()
        samples["lag"][durability] = rows
        for kind, row in rows.items():
            print(f"| {NAMES[kind]} | {'yes' if durability == 'always' else 'no'} | {text([one['most_per_s'] for one in row])} | {text([one['offered']['per_s'] for one in row])} | "
                  f"{text([one['p50'] for one in row])} | {text([one['p99'] for one in row])} |")
            sys.stdout.flush()


def cost(rounds, seconds, keys, folder, samples):
    """CPU of the primary for each write, by the number of replicas."""
    rate = 10_000
    there = kinds()
    ways = {"TCP": ("millrace", False), "multicast": ("millrace", True), "Redis, TCP": ("redis", False)}
    ways = {way: value for way, value in ways.items() if value[0] in there}
    counts = (0, 1, 2, 4, 8)
    print(f"\n## What replicas cost the writer\n\n{rate:,} SETs of 64 bytes a second, open loop, 10 connections, durable; µs of the primary's CPU for each write, by the scheduler's account. "
          f"Replicas hold all in memory.\nSlope: of a straight line through the medians, as a share of what a write costs without replicas, for each replica; and of one through those with "
          "replicas: what each further one costs.\n\n| way | " + " | ".join(f"{count} replicas" for count in counts) + " | slope | from the first on |\n|---|" + "---:|" * (len(counts) + 2))
    found = {(way, count): [] for way in ways for count in counts}
    for _ in range(rounds):
        for way, count in found:
            kind, is_udp = ways[way]
            udp = [f"{GROUP}:{free_port(socket.SOCK_DGRAM)}", "--delta-udp-interface", "127.0.0.1"]
            primary = Server(kind, folder, extra=["--delta-udp", *udp] if is_udp else [])
            listen = ["--delta-udp-listen", *udp] if is_udp else []
            replicas = [Server(kind, folder, of=primary, durability="off", extra=listen) for _ in range(count)]
            for replica in replicas:
                replica.wait_for_link()
            load = Load(primary, "--ratio", "1:0", "--keys", "100000", "--value-size", "64", "--connections", "10", "--warmup", "500ms", "--loop", "open",
                        "--rate", rate, "--duration", f"{seconds + 1:g}s", first=True)
            time.sleep(1)
            calls, spent = primary.calls("set"), primary.cpu_s()
            time.sleep(seconds - 0.5)
            calls, spent = primary.calls("set") - calls, primary.cpu_s() - spent
            row = {"us": spent / calls * 1e6, "load": load.result()}
            for replica in replicas:
                replica.wait(lambda: replica.has_all_of(primary), "catch up")
                row.setdefault("replicas", []).append({name: value for name, value in replica.info("replication").items() if "datagram" in name or "sync" in name})
                replica.stop()
            found[way, count].append(row)
            primary.stop()
    lines = {}
    for way in ways:
        medians = [statistics.median([one["us"] for one in found[way, count]]) for count in counts]
        slopes = [slope(counts, medians), slope(counts[1:], medians[1:])]
        lines[way] = medians
        print(f"| {way} | " + " | ".join(text([one["us"] for one in found[way, count]], 1) for count in counts) + "".join(f" | {100 * one / medians[0]:.1f} %" for one in slopes) + " |")
        sys.stdout.flush()
    samples["cost"] = {f"{way} {count}": rows for (way, count), rows in found.items()}
    plot(samples["picture"], counts, lines)


def slope(xs, ys):
    """Of the straight line with the least squares."""
    mean = sum(xs) / len(xs)
    return sum((x - mean) * y for x, y in zip(xs, ys)) / sum((x - mean) ** 2 for x in xs)


def plot(path, counts, lines):
    width, height, left, bottom, right = 640, 360, 60, 50, 150
    most = 1.1 * max(max(line) for line in lines.values())
    x = lambda count: left + count * (width - left - right) / counts[-1]
    y = lambda us: height - bottom - us * (height - bottom - 20) / most
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for step in range(6):
        us = most * step / 5
        out.append(f'<path d="M{left} {y(us):.1f}H{width - right}" stroke="#ddd"/><text x="{left - 6}" y="{y(us) + 4:.1f}" text-anchor="end">{us:.0f}</text>')
    for count in counts:
        out.append(f'<text x="{x(count):.1f}" y="{height - bottom + 16}" text-anchor="middle">{count}</text>')
    for (way, line), colour in zip(lines.items(), ("#0a6ebd", "#c0392b", "#1e8449")):
        points = " ".join(f"{x(count):.1f},{y(us):.1f}" for count, us in zip(counts, line))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{width - right + 8}" y="{y(line[-1]) + 4:.1f}" fill="{colour}">{way}</text>')
    out.append(f'<text x="{left}" y="{height - 10}">replicas; µs of the primary\'s CPU for each write</text></svg>\n')
    with open(path, "w") as file:
        file.write("\n".join(out))


def sync(rounds, seconds, keys, folder, samples):
    """A full sync of much data while writing goes on."""
    print(f"\n## A full sync\n\n{keys:,} keys of 16 B with values of 64 B; from the start of an empty replica until it has all. Then once more beside SETs at 2,000 a second on the primary, "
          "open loop, p99 in µs; that replica gives way to the generator (SCHED_IDLE), whose core it is on. `dd`: the snapshot's file copied past the page cache on the same disk; `dd`, kept: the same, but what is written stays in memory, as the replica's "
          "data has to; loopback: the same bytes through a TCP connection.\n")
    primary = Server("millrace", folder, durability="everysec")
    Load(primary, "--prefill", "--keys", keys, "--ratio", "0:1", "--pipeline", 64, "-n", 1000, "--warmup", 0).result()
    print(f"- {keys:,} keys set", flush=True)
    rows = {name: [] for name in ("sync", "sync beside SETs", "dd", "dd, kept", "loopback", "p99 without", "p99 with")}
    sets = ["--ratio", "1:0", "--keys", "1000", "--key-prefix", "busy:", "--value-size", "64", "--connections", "10", "--loop", "open", "--rate", "2000", "--warmup", "300ms"]

    def synced(name, **more):
        begun = time.monotonic()
        replica = Server("millrace", folder, of=primary, durability="off", **more)
        replica.wait_for_link()
        replica.wait(lambda: int(replica.info("keyspace").get("db0", "keys=0,").split("=")[1].split(",")[0]) >= keys and replica.has_all_of(primary), "be in sync")
        rows[name].append(size / (time.monotonic() - begun))
        replica.stop()

    for _ in range(rounds):
        # The snapshot is part of it the first time: a replica that comes later is given the newest there is.
        primary.ask("SAVE")
        newest = max((entry for entry in os.scandir(primary.folder) if entry.name.endswith(".mrs")), key=lambda entry: entry.stat().st_mtime)
        size = newest.stat().st_size
        synced("sync")
        rows["p99 without"].append(Load(primary, *sets, "--duration", f"{seconds:g}s", first=True).result()["p99_us"])
        load = Load(primary, *sets, "--duration", f"{seconds + 2:g}s", first=True)
        time.sleep(1)
        # Elsewhere it would be on another machine: here it shares the generator's core, and must not be what is measured.
        synced("sync beside SETs", gives_way=True)
        rows["p99 with"].append(load.result()["p99_us"])
        copy = os.path.join(folder, "copy")
        for name, flags in (("dd", ["oflag=direct"]), ("dd, kept", [])):
            begun = time.monotonic()
            subprocess.run(["dd", f"if={newest.path}", f"of={copy}", "bs=1M", "iflag=direct", *flags, "conv=fdatasync", "status=none"], check=True)
            rows[name].append(size / (time.monotonic() - begun))
            os.unlink(copy)
        rows["loopback"].append(through_loopback(newest.path, size))
    primary.stop()
    slower = [min(disk, net) for disk, net in zip(rows["dd"], rows["loopback"])]
    samples["sync"] |= {"bytes": size, **rows}
    ratio = [ours / theirs for ours, theirs in zip(rows["sync"], slower)]
    kept = [ours / theirs for ours, theirs in zip(rows["sync"], rows["dd, kept"])]
    mb = lambda name: text([value / 1e6 for value in rows[name]])
    worse = [a / b for a, b in zip(rows["p99 with"], rows["p99 without"])]
    print(f"- a sync of {size / 1e9:.2f} GB: {mb('sync')} MB/s; beside SETs {mb('sync beside SETs')} MB/s\n- dd: {mb('dd')} MB/s; kept in memory: {mb('dd, kept')} MB/s\n- loopback: {mb('loopback')} MB/s\n- sync over the slower of the two: {text(ratio, 2)}; over the `dd` that keeps it: {text(kept, 2)}\n"
          f"- p99 of SETs: {text(rows['p99 without'])} without, {text(rows['p99 with'])} with; {text(worse, 2)}")


def through_loopback(path, size):
    """Bytes a second of a file in the page cache through one connection, one process on each core."""
    listener = socket.create_server(("127.0.0.1", 0))
    reader = "import socket,sys;s=socket.create_connection(('127.0.0.1',int(sys.argv[1])));b=bytearray(1<<20)\nwhile s.recv_into(b): pass"
    process = subprocess.Popen(["taskset", "-c", GENERATOR_CORE, sys.executable, "-c", reader, str(listener.getsockname()[1])])
    one, _ = listener.accept()
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass
        file.seek(0)
        begun = time.monotonic()
        one.sendfile(file)
    one.close()
    process.wait()
    return size / (time.monotonic() - begun)


PARTS = {"lag": lag, "cost": cost, "sync": sync}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement")
    parser.add_argument("--keys", type=int, default=10_000_000, help="for the full sync")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("out")
    options = parser.parse_args()
    samples = {"rounds": options.rounds, "seconds": options.seconds, "picture": options.out.removesuffix(".json") + ".svg"}
    print(f"# Replication\n\nMedians of {options.rounds} alternating rounds of {options.seconds:g} s (smallest–largest).")
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            if options.only is None or name in options.only:
                samples[name] = {}
                part(options.rounds, options.seconds, options.keys, folder, samples)
                sys.stdout.flush()
    with open(options.out, "w") as file:
        json.dump(samples, file, indent=1)


main()

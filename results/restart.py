#!/usr/bin/env python3
"""Figures of snapshots: how soon a server is ready after a restart, what a snapshot costs meanwhile, how fast it is written.

    results/restart.py [--keys N] [--rounds N] [--only NAME] [--shards N] [--folder DIR] OUT.json

| part | what is measured |
|---|---|
| start | from exec to the first correct GET, page cache warm and cold, beside the peers loading their own files |
| tail | the same after SIGKILL, with so many bytes of log behind the snapshot |
| first | p99 of GETs, 200 ms by 200 ms, over the first ten seconds after a cold start, beside the same load when all is warm |
| load | SETs at pipeline 16 while snapshots are taken one after the other, and without; longest turn; memory |
| writing | a snapshot's bytes a second, beside dd with O_DIRECT of the same bytes on the same disk |

Takes millrace and loadgen from target/release; redis-server, valkey-server and kevy from PATH, and says which are missing.
Servers that are measured under load run on the first core and generators on the second; a server that only starts may
use all. Targets alternate. Prints a Markdown report, writes every sample, command and condition to OUT.json, and plots of
`first` to OUT.svg.
"""

import argparse, json, os, platform, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MILLRACE, LOADGEN = (os.path.join(ROOT, "target/release", name) for name in ("millrace", "loadgen"))
SERVER_CORE, GENERATOR_CORE = "0", "1"
# A server that has not found its key by then is left out, and that is said.
PATIENCE_S = 180
MARKER, VALUE = "restart:marker", "what-a-correct-get-finds"
# Neither time nor bytes start a snapshot that nobody asked for.
QUIET = ["--snapshot-log-bytes", "0", "--snapshot-interval", "0"]
KINDS = {
    "millrace": [MILLRACE, "--port", "{port}", "--http", "no", "--shards", "{shards}", "--dir", "{dir}", *QUIET],
    "redis": ["redis-server", "--bind", "127.0.0.1", "--port", "{port}", "--save", "", "--appendonly", "no", "--dir", "{dir}"],
    "valkey": ["valkey-server", "--bind", "127.0.0.1", "--port", "{port}", "--save", "", "--appendonly", "no", "--dir", "{dir}"],
    "kevy": ["kevy", "--bind", "127.0.0.1", "--port", "{port}", "--threads", "1", "--no-aof", "--dir", "{dir}"],
}
PEERS = [kind for kind in KINDS if kind != "millrace"]


def say(text=""):
    print(text, flush=True)


class Connection:
    """As much of RESP as is needed here."""

    def __init__(self, port, timeout=600):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def line(self):
        while b"\r\n" not in self.buffer:
            self.more()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def more(self):
        bytes = self.socket.recv(1 << 16)
        if not bytes:
            raise ConnectionError("the server closed the connection")
        self.buffer += bytes

    def ask(self, *words):
        request = b"*%d\r\n" % len(words)
        for word in words:
            word = str(word).encode()
            request += b"$%d\r\n%s\r\n" % (len(word), word)
        self.socket.sendall(request)
        line = self.line()
        if line[:1] == b"$" and line != b"$-1":
            length = int(line[1:]) + 2
            while len(self.buffer) < length:
                self.more()
            bulk, self.buffer = self.buffer[:length - 2], self.buffer[length:]
            return bulk.decode()
        return line.decode()

    def info(self, section):
        lines = self.ask("INFO", section).split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A server in a directory, from the exec on."""

    def __init__(self, kind, folder, options, more=(), core=None):
        self.kind, self.folder, self.port = kind, folder, free_port()
        places = {"port": str(self.port), "dir": folder, "shards": str(options.shards)}
        self.words = [word.format(**places) for word in KINDS[kind]] + list(more)
        self.said = tempfile.TemporaryFile(mode="w+")
        words = ["taskset", "-c", core] + self.words if core else self.words
        self.begun = time.monotonic()
        self.process = subprocess.Popen(words, stdout=self.said, stderr=self.said, stdin=subprocess.DEVNULL)

    def output(self):
        self.said.seek(0)
        return self.said.read()

    def first_get(self, patience=PATIENCE_S):
        """Seconds from the exec until a GET is answered with what was set; what is answered before is not waited for."""
        connection = None
        while True:
            try:
                # One that loads before it answers is asked again, over a connection that it has not been silent on.
                connection = connection or Connection(self.port, timeout=0.2)
                reply = connection.ask("GET", MARKER)
                if reply == VALUE:
                    seconds = time.monotonic() - self.begun
                    connection.socket.close()
                    return seconds
                # A server that is still loading says so, or serves nothing yet.
                if not reply.startswith(("-LOADING", "$-1", "_")):
                    sys.exit(f"{self.kind}: expected {VALUE!r} under {MARKER}, found {reply!r}")
                if not reply.startswith("-LOADING") and self.kind == "millrace":
                    sys.exit(f"millrace served {reply!r} for a key that is in its snapshot: {self.output()}")
            except OSError:
                connection = None
            if self.process.poll() is not None:
                sys.exit(f"{self.kind} did not start: {' '.join(self.words)}\n{self.output()}")
            if time.monotonic() - self.begun > patience:
                raise TimeoutError(f"{self.kind} has not found the key in {patience} s: {' '.join(self.words)}")
            time.sleep(0.0002)

    def ready(self):
        while True:
            try:
                connection = Connection(self.port)
                if connection.ask("PING") == "+PONG":
                    return connection
            except OSError:
                pass
            if self.process.poll() is not None:
                sys.exit(f"{self.kind} did not start: {' '.join(self.words)}\n{self.output()}")
            time.sleep(0.01)

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            line = next(line for line in file if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        if self.process.wait() != 0 and self.kind == "millrace":
            sys.exit(f"millrace did not stop in order: {self.output()}")


def load(port, *words, core=GENERATOR_CORE):
    """One run of loadgen: its report."""
    out = tempfile.mktemp(suffix=".json")
    command = ["taskset", "-c", core, LOADGEN, "run", "--target", f"resp://127.0.0.1:{port}", "--json", out, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if not os.path.exists(out):
        sys.exit(f"loadgen: {done.stderr}")
    with open(out) as file:
        report = json.load(file)
    os.unlink(out)
    return report["runs"][0]


def percentile_us(run, percentile):
    latency = run["response_time"] or run["service_time"]
    found = next((one["ns"] for one in latency["percentiles"] if abs(one["quantile"] - percentile / 100) < 1e-9), None)
    # loadgen names no percentile of too few samples.
    return float("nan") if found is None else found / 1e3


def fill(server, keys):
    load(server.port, "--prefill", "--keys", keys, "--ratio", "0:1", "--pipeline", 64, "-n", 1000, "--warmup", 0)
    connection = server.ready()
    if connection.ask("SET", MARKER, VALUE) != "+OK":
        sys.exit(f"{server.kind} refuses SET")
    return connection


def save(connection, kind):
    """SAVE; None, or why not."""
    reply = connection.ask("SAVE")
    return None if reply == "+OK" else f"{kind} answers SAVE with {reply}"


def data_of(kind, options, made={}):
    """The directory of a server that was filled, has saved and was stopped: made once. None: it cannot be had."""
    if kind not in made:
        folder = os.path.join(options.folder, kind)
        os.mkdir(folder)
        begun = time.monotonic()
        server = Server(kind, folder, options, ["--durability", "everysec"] if kind == "millrace" else [])
        server.ready()
        connection = fill(server, options.keys)
        why = save(connection, kind)
        if kind == "millrace" and why is None:
            # With the second one the log goes back no further than the first, as it does in a server that runs on.
            connection.ask("SET", MARKER, VALUE)
            why = save(connection, kind)
        if why is None:
            # kevy answers before the file is complete and has its name.
            while any(entry.name.endswith(".tmp") for entry in os.scandir(folder)):
                time.sleep(0.05)
            server.stop()
            size = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
            say(f"- {kind}: {options.keys:,} keys set and saved in {time.monotonic() - begun:.0f} s, {size / 1e9:.2f} GB of files")
            options.samples["data"][kind] = {"command": server.words, "file_bytes": size}
        else:
            server.kill()
            if kind == "millrace":
                sys.exit(why)
            say(f"- {kind}: left out, {why}")
            folder = None
        made[kind] = folder
    return made[kind]


def kinds(options, wanted):
    """Those of a list that are on this machine and whose files can be had."""
    found = []
    for kind in wanted:
        if kind == "millrace" or shutil.which(KINDS[kind][0]):
            found.append(kind)
        elif kind not in options.missing:
            options.missing.append(kind)
            say(f"- {kind}: {KINDS[kind][0]} is not on PATH, left out")
    return [kind for kind in found if data_of(kind, options)]


def drop_cache(folder, options):
    """Has the kernel forget the files of a directory: all of the page cache if it lets us, else these files."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3\n")
        options.samples["cold_by"] = "echo 3 > /proc/sys/vm/drop_caches"
    except OSError:
        for entry in os.scandir(folder):
            if entry.is_file():
                descriptor = os.open(entry.path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        options.samples["cold_by"] = "posix_fadvise(POSIX_FADV_DONTNEED) of the server's files; drop_caches is not permitted here"


def read_all(folder):
    """Puts the files of a directory into the page cache."""
    for entry in os.scandir(folder):
        if entry.is_file():
            read_file(entry.path)


def read_file(path):
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except FileNotFoundError:
        # A server that runs lets go of segments meanwhile.
        pass


def text(values, digits=0, scale=1):
    values = [value * scale for value in values]
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def start_once(kind, folder, options, is_cold):
    if is_cold:
        drop_cache(folder, options)
    else:
        # The program too: the cold start before this one had it forgotten.
        read_file(shutil.which(KINDS[kind][0]))
        read_all(folder)
    server = Server(kind, folder, options)
    try:
        seconds = server.first_get()
    except TimeoutError as error:
        seconds = None
        say(f"- {kind}: {error}; its memory: {server.rss_bytes() / 1e6:.0f} MB")
    server.kill()
    return seconds


def start(options, samples):
    """From exec to the first correct GET."""
    say(f"\n## From exec to the first correct GET\n\n{options.keys:,} keys of 16 B with values of 64 B; milliseconds; SIGKILL between "
        "rounds; the server may use all cores.\n")
    found = kinds(options, KINDS)
    rows = {kind: {"warm": [], "cold": []} for kind in found}
    # Not in turns: a cold start has the kernel forget libraries too, which a warm one then reads.
    for state in ("warm", "cold"):
        for _ in range(options.rounds):
            for kind in list(rows):
                seconds = start_once(kind, data_of(kind, options), options, state == "cold")
                if seconds is None:
                    # Once is enough.
                    samples[f"{kind}, left out"] = f"no correct GET in {PATIENCE_S} s"
                    del rows[kind]
                    continue
                rows[kind][state].append(seconds)
                say(f"- {kind}, {state}: {rows[kind][state][-1] * 1e3:,.1f} ms")
    samples.update({"seconds": rows, "cold_by": options.samples.get("cold_by")})
    say(f"\nCold: {options.samples.get('cold_by')}.\n\n| server | warm | cold |\n|---|---:|---:|")
    for kind, row in rows.items():
        say(f"| {kind} | {text(row['warm'], 1, 1e3)} | {text(row['cold'], 1, 1e3)} |")
    say()
    for kind in rows:
        if kind == "millrace":
            continue
        for state in ("warm", "cold"):
            pairs = [theirs / ours for theirs, ours in zip(rows[kind][state], rows["millrace"][state])]
            samples[f"{kind} over millrace, {state}"] = pairs
            say(f"- {state}, {kind} takes {text(pairs, 1)} times as long")


def tail(options, samples):
    """A restart after SIGKILL with a tail of log."""
    say(f"\n## With {options.tail_bytes / 1e6:.0f} MB of log behind the snapshot\n")
    base = data_of("millrace", options)
    folder = os.path.join(options.folder, "tail")
    shutil.copytree(base, folder)
    server = Server("millrace", folder, options, ["--durability", "everysec"])
    server.first_get()
    connection = server.ready()
    count = 50_000
    while (written := int(connection.info("persistence")["log_bytes"])) < options.tail_bytes:
        load(server.port, "--keys", options.keys, "--ratio", "1:0", "--pipeline", 16, "-n", count, "--warmup", 0)
    server.kill()
    rows = {"snapshot alone": [], "with the tail": []}
    for _ in range(options.rounds):
        for name, place in (("snapshot alone", base), ("with the tail", folder)):
            read_file(MILLRACE)
            read_all(place)
            server = Server("millrace", place, options)
            rows[name].append(server.first_get())
            server.kill()
            said = server.output()
    shutil.rmtree(folder)
    more = [b - a for a, b in zip(rows["snapshot alone"], rows["with the tail"])]
    samples.update({"log_bytes": written, "seconds": rows, "more_s": more, "said": said.splitlines()})
    say(f"Page cache warm, milliseconds: {text(rows['snapshot alone'], 1, 1e3)} without, {text(rows['with the tail'], 1, 1e3)} with "
        f"{written / 1e6:.0f} MB of log; {text(more, 1, 1e3)} more. It said:\n")
    for line in said.splitlines():
        say(f"    {line}")


def first(options, samples):
    """GETs over the first ten seconds."""
    say(f"\n## The first ten seconds\n\nOpen loop, {options.rate:,} GETs a second from the first correct GET on, values compared with what was "
        "set; p99 of each 200 ms in which there were 100 replies, in µs.\n")
    found = kinds(options, ["millrace", "redis"])
    words = ["--keys", options.keys, "--ratio", "0:1", "--loop", "open", "--rate", options.rate, "--duration", "10s", "--warmup", 0, "--verify"]
    rows = {f"{kind}, {state}": [] for kind in found for state in ("just started", "warm")}
    wrong = 0
    for _ in range(max(1, options.rounds // 2)):
        for kind in found:
            drop_cache(data_of(kind, options), options)
            server = Server(kind, data_of(kind, options), options, core=SERVER_CORE)
            server.first_get()
            for state in ("just started", "warm"):
                run = load(server.port, *words)
                wrong += run["counts"]["wrong"] + run["counts"]["misses"] + run["counts"]["errors"]
                rows[f"{kind}, {state}"].append([(one["start_ms"], one["p99_ns"]) for one in run["intervals"]])
            server.kill()
    samples.update({"p99_ns": rows, "wrong": wrong, "cold_by": options.samples.get("cold_by")})
    say("| server | p99 of the first | worst | median |\n|---|---:|---:|---:|")
    for name, runs in rows.items():
        known = [[p99 / 1e3 for _, p99 in run if p99 is not None] for run in runs]
        say(f"| {name} | {text([run[0] for run in known])} | {text([max(run) for run in known])} | "
            f"{text([statistics.median(run) for run in known])} |")
    say(f"\nReplies that were missing, wrong or an error: {wrong}.")
    picture = options.out.removesuffix(".json") + ".svg"
    with open(picture, "w") as file:
        file.write(plot({name: runs[0] for name, runs in rows.items()}))
    say(f"The plot is in {os.path.basename(picture)}.")
    if wrong:
        sys.exit("a server that serves what is wrong has no figures")


def plot(series):
    """p99 over time as SVG, the values on a logarithmic scale."""
    import math
    width, height, left, bottom = 900, 420, 70, 50
    points = {name: [(ms, p99 / 1e3) for ms, p99 in run if p99] for name, run in series.items()}
    values = [value for run in points.values() for _, value in run] or [1]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)) + 1e-9)
    x = lambda ms: left + ms / 10_000 * (width - left - 20)
    y = lambda value: height - bottom - math.log10(value / low) / max(math.log10(high / low), 1e-9) * (height - bottom - 20)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    tick = low
    while tick <= high * 1.001:
        out.append(f'<path d="M{left} {y(tick):.1f}H{width - 20}" stroke="#ddd"/><text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g} µs</text>')
        tick *= 10
    for second in range(11):
        out.append(f'<text x="{x(second * 1000):.1f}" y="{height - bottom + 18}" text-anchor="middle">{second} s</text>')
    for number, (name, run) in enumerate(points.items()):
        color = ("#c0392b", "#2c6fbb", "#27804a", "#8e44ad")[number % 4]
        path = "L".join(f"{x(ms):.1f} {y(value):.1f}" for ms, value in run)
        out.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
                   f'<text x="{width - 24}" y="{34 + 16 * number}" text-anchor="end" fill="{color}">{name}</text>')
    out.append(f'<text x="{left}" y="{height - 10}">p99 of GETs, 200 ms by 200 ms, from the first correct GET after a cold start</text></svg>\n')
    return "\n".join(out)


class Snapshots:
    """Takes one after the other in the background."""

    def __init__(self, server):
        self.server, self.ended, self.taken, self.rss_max, self.seconds = server, threading.Event(), 0, 0, 0.0
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        connection, running_since = Connection(self.server.port), None
        while not self.ended.is_set():
            running = connection.info("persistence")["rdb_bgsave_in_progress"].strip() != "0"
            self.rss_max = max(self.rss_max, self.server.rss_bytes())
            now = time.monotonic()
            if running_since is not None:
                self.seconds += now - running_since
            running_since = now if running else None
            if not running:
                reply = connection.ask("BGSAVE")
                # While the last one is being tidied up there cannot be another.
                self.taken += reply.startswith("+")
                running_since = now if reply.startswith("+") else None
            self.ended.wait(0.02)
        while connection.info("persistence")["rdb_bgsave_in_progress"].strip() != "0":
            time.sleep(0.02)
        self.state = connection.info("persistence")["rdb_last_bgsave_status"].strip()

    def end(self):
        self.ended.set()
        self.thread.join()
        if self.state != "ok":
            sys.exit(f"{self.server.kind}: the last snapshot is {self.state}: {self.server.output()}")


def under_load(options, samples):
    """Snapshots while keys are overwritten."""
    say(f"\n## Snapshots under full write load\n\nClosed loop, {options.load_connections} connections, pipeline 16, SETs of {options.keys:,} keys; "
        f"{options.seconds} s without and {options.seconds} s with snapshots one after the other, {options.rounds} rounds.\n")
    found = kinds(options, ["millrace", "redis"])
    cases = [(kind, more) for kind in found
             for more in ([["--durability", "off"], ["--durability", "always"]] if kind == "millrace" else [[]])]
    words = ["--keys", options.keys, "--ratio", "1:0", "--connections", options.load_connections, "--pipeline", 16, "--duration",
             f"{options.seconds}s", "--warmup", "1s"]
    say("| server | SET/s without | with | ratio | p99.9 µs without | with | ratio | longest turn µs without | with | snapshots a round | "
        "running | memory over normal |\n|---|" + "---:|" * 11)
    for kind, more in cases:
        name = " ".join([kind, *more]).replace("--durability ", "")
        folder = os.path.join(options.folder, "load")
        shutil.copytree(data_of(kind, options), folder)
        server = Server(kind, folder, options, more, core=SERVER_CORE)
        server.first_get()
        connection = server.ready()
        # What a restart has to read in is read in first: this is about a server that has run for a while.
        if kind == "millrace":
            wait_until_warm(connection)
        load(server.port, *words)
        rows = {"without": [], "with": []}
        for _ in range(options.rounds):
            for state in rows:
                connection.ask("CONFIG", "RESETSTAT")
                normal = server.rss_bytes()
                snapshots = Snapshots(server) if state == "with" else None
                run = load(server.port, *words)
                row = {"per_s": run["throughput_per_s"], "p50_us": percentile_us(run, 50), "p99_us": percentile_us(run, 99),
                       "p999_us": percentile_us(run, 99.9), "verdict": run.get("verdict")}
                row["turn_us_max"] = int(connection.info("loop").get("loop_turn_nanoseconds_max", "0")) / 1e3
                if snapshots:
                    snapshots.end()
                    over = snapshots.rss_max - normal
                    if kind != "millrace":
                        over = int(connection.info("persistence")["rdb_last_cow_size"])
                    row.update({"snapshots": snapshots.taken, "running_s": snapshots.seconds, "normal_bytes": normal, "over_bytes": over})
                rows[state].append(row)
        server.kill()
        shutil.rmtree(folder)
        samples[name] = {"command": server.words, "rows": rows}
        column = lambda state, field: [row[field] for row in rows[state]]
        ratio = lambda field: [b / a for a, b in zip(column("without", field), column("with", field))]
        over = [row["over_bytes"] / row["normal_bytes"] for row in rows["with"]]
        samples[name].update({"throughput_ratio": ratio("per_s"), "p999_ratio": ratio("p999_us"), "memory_over_normal": over})
        turns = [text(column(state, "turn_us_max")) if kind == "millrace" else "–" for state in rows]
        say(f"| {name} | {text(column('without', 'per_s'))} | {text(column('with', 'per_s'))} | {text(ratio('per_s'), 2)} | "
            f"{text(column('without', 'p999_us'))} | {text(column('with', 'p999_us'))} | {text(ratio('p999_us'), 2)} | {turns[0]} | {turns[1]} | "
            f"{text(column('with', 'snapshots'))} | {text([row['running_s'] / (options.seconds + 1) for row in rows['with']], 0, 100)} % | "
            f"{text(over, 1, 100)} % |")
    say("\nThe longest turn is wall-clock time and has the machine's neighbours in it; memory over normal is resident memory, for Redis its "
        "rdb_last_cow_size.")


def wait_until_warm(connection):
    """Until all that was mapped has been read in."""
    while connection.info("persistence").get("warming", "0").strip() != "0":
        time.sleep(0.05)


def writing(options, samples):
    """Bytes a second of a snapshot, and of dd."""
    say("\n## Writing a snapshot\n\nSAVE of a server that does nothing else, and `dd oflag=direct bs=1M conv=fdatasync` of the same bytes.\n")
    folder = os.path.join(options.folder, "writing")
    shutil.copytree(data_of("millrace", options), folder)
    server = Server("millrace", folder, options, ["--durability", "everysec"])
    server.first_get()
    connection = server.ready()
    wait_until_warm(connection)
    rows = {"SAVE": [], "dd": []}
    copy = os.path.join(folder, "dd.out")
    for number in range(options.rounds):
        # So that there is something new to save.
        connection.ask("SET", "written", number)
        begun = time.monotonic()
        why = save(connection, "millrace")
        seconds = time.monotonic() - begun
        if why:
            sys.exit(why)
        newest = max((entry for entry in os.scandir(folder) if entry.name.endswith(".mrs")), key=lambda entry: entry.stat().st_mtime)
        size = newest.stat().st_size
        rows["SAVE"].append(size / seconds)
        read_all(folder)
        command = ["dd", f"if={newest.path}", f"of={copy}", "bs=1M", "oflag=direct", "conv=fdatasync", "status=none"]
        begun = time.monotonic()
        subprocess.run(command, check=True)
        rows["dd"].append(size / (time.monotonic() - begun))
        os.unlink(copy)
    server.stop()
    shutil.rmtree(folder)
    ratio = [ours / theirs for ours, theirs in zip(rows["SAVE"], rows["dd"])]
    samples.update({"bytes": size, "bytes_per_s": rows, "ratio": ratio, "dd": command[:-1]})
    say(f"- a snapshot of {size / 1e9:.2f} GB: {text(rows['SAVE'], 0, 1e-6)} MB/s\n- dd: {text(rows['dd'], 0, 1e-6)} MB/s\n- ratio: {text(ratio, 2)}")


PARTS = {"start": start, "tail": tail, "first": first, "load": under_load, "writing": writing}


def machine():
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    versions = {}
    for kind, words in KINDS.items():
        if kind == "millrace" or shutil.which(words[0]):
            done = subprocess.run([words[0], "--version"], capture_output=True, text=True)
            versions[kind] = (done.stdout or done.stderr).strip().splitlines()[0]
    return {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(), "kernel": platform.release(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "versions": versions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000_000, help="keys of 16 B with values of 64 B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10, help="length of a run of `load`")
    parser.add_argument("--load-connections", type=int, default=50)
    parser.add_argument("--rate", type=int, default=20_000, help="GETs a second of `first`")
    parser.add_argument("--tail-bytes", type=int, default=100_000_000)
    parser.add_argument("--folder", help="where data is kept meanwhile: on the disk that is measured [default: a temporary one]")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("out")
    options = parser.parse_args()
    options.samples = {"command": sys.argv, "rounds": options.rounds, "keys": options.keys, "machine": machine(), "data": {}}
    options.missing = options.samples["missing"] = []
    say(f"# Snapshots and restarts\n\nMedians of {options.rounds} alternating rounds (smallest–largest).\n")
    for name, value in options.samples["machine"].items():
        say(f"- {name}: {value}")
    say()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.folder = folder
        for name, part in PARTS.items():
            if options.only is None or name in options.only:
                part(options, options.samples.setdefault(name, {}))
                # What is there is kept, whatever becomes of the next part.
                with open(options.out, "w") as file:
                    json.dump(options.samples, file, indent=1)


main()

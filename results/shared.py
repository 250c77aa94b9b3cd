"""What the scripts beside this share: where the programs are, loadgen in the background, CPU time, medians."""

import json, os, statistics, subprocess, sys, tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MILLRACE, LOADGEN = (os.path.join(ROOT, "target/release", name) for name in ("millrace", "loadgen"))
SERVER_CORE, GENERATOR_CORE = "0", "1"
NAMES = {"millrace": "Millrace", "redis": "redis-server"}


def cpu_s(process):
    """What its threads have run, by the scheduler's account."""
    folder = f"/proc/{process.pid}/task"
    return sum(int(open(f"{folder}/{task}/schedstat").read().split()[0]) for task in os.listdir(folder)) / 1e9


def on_generator_core(*words, **more):
    return subprocess.Popen(["taskset", "-c", GENERATOR_CORE, *words], **more)


class Load:
    """loadgen in the background; `nice`: it yields the core to others that are not; `first`: it has the core before all others
    (SCHED_FIFO), so that it waits for the server and not for them."""

    def __init__(self, server, *words, nice=0, first=False):
        self.json = tempfile.mktemp(suffix=".json")
        before = ["chrt", "-f", "1"] if first else ["nice", "-n", str(nice)]
        words = [*before, LOADGEN, "run", "--target", f"resp://{server.address}", "--json", self.json, *map(str, words)]
        self.process = on_generator_core(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def result(self):
        _, said = self.process.communicate()
        if not os.path.exists(self.json):
            sys.exit(f"loadgen: {said.decode()}")
        with open(self.json) as file:
            run = json.load(file)["runs"][0]
        os.unlink(self.json)
        latency = run["response_time"] or run["service_time"]
        at = lambda share: next(one["ns"] for one in latency["percentiles"] if one["quantile"] == share)
        # loadgen prints no percentile of too few samples.
        us = lambda ns: float("nan") if ns is None else ns / 1e3
        return {"per_s": run["throughput_per_s"], "p50_us": us(at(0.5)), "p99_us": us(at(0.99)), "verdict": run["verdict"]}


def text(values, digits=0):
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"

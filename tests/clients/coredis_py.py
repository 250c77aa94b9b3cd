"""coredis, unchanged from PyPI, against a running server: its client-side cache, the one among these for which one
connection is told what all others read (CLIENT TRACKING ON REDIRECT), and a little of everything else.

Where to find the server comes from the environment, as run.sh sets it. Prints one line per check and, as the last
line, how many there were; the first failing check ends the program with exit code 1 and a traceback. With the word
`cache` only the client's own cache is tried. It does not hear of FLUSHALL: coredis passes over the null that says so.
"""

import asyncio
import os
import sys
import time

import coredis
from coredis.patterns.cache import LRUCache

PORT = int(os.environ["MILLRACE_PORT"])
SECURE_PORT = int(os.environ["MILLRACE_SECURE_PORT"])
PASSWORD = os.environ["MILLRACE_PASSWORD"]
# How long a cache may take to hear of a change.
PATIENCE_S = float(os.environ.get("MILLRACE_PATIENCE_S", "10"))

checks = 0


def check(name, condition, seen=None):
    global checks
    assert condition, f"{name}: {seen!r}"
    checks += 1
    print(f"  ok {name}")


async def caches():
    """The client's own cache: it asks once, and hears of what a second client writes."""
    cache = LRUCache()
    async with coredis.Redis(port=PORT, cache=cache) as reader, coredis.Redis(port=PORT) as writer:
        keys = [f"coredis:cache:{number}" for number in range(8)]  # on every shard

        async def gets():
            return (await writer.info("commandstats")).get("cmdstat_get", {"calls": 0})["calls"]

        async def becomes(value, keys=keys):
            # The invalidation may be on its way from another shard when the writer has its answer.
            deadline = time.monotonic() + PATIENCE_S
            while True:
                # Several at once, so that several connections read; what the cache answers waits for no socket.
                seen = await asyncio.gather(*(reader.get(key) for key in keys))
                await asyncio.sleep(0)
                if list(seen) == [value] * len(keys) or time.monotonic() > deadline:
                    return list(seen) == [value] * len(keys)

        await writer.flushall()
        for key in keys:
            await writer.set(key, "0")
        # What a connection reads with the command that has it tracked is not kept yet.
        check("cache: first reads", all([await becomes(b"0") for _ in range(5)]))
        before = await gets()
        check("cache: many reads", all([await becomes(b"0") for _ in range(50)]))
        check("cache: none of them asked the server", await gets() == before, await gets() - before)
        for number in range(1, 21):
            for key in keys:
                await writer.set(key, str(number))
            check("cache: what was written", await becomes(str(number).encode()))
        await writer.pexpire(keys[0], 50)
        check("cache: after its end", await becomes(None, keys[:1]))
        await writer.delete(keys)
        check("cache: after DEL", await becomes(None))
        check("cache: it says so itself", sum(cache.stats.hits.values()) >= 50 * len(keys), cache.stats)


async def everything():
    async with coredis.Redis(port=PORT, decode_responses=True) as r:
        await r.flushall()
        check("PING", await r.ping() == "PONG")
        check("SET, GET", await r.set("coredis:s", "hello") and await r.get("coredis:s") == "hello")
        check("a missing key is None", await r.get("coredis:none") is None)
        check("INCR, DECRBY", await r.incr("coredis:n") == 1 and await r.decrby("coredis:n", 3) == -2)
        check("MSET, MGET", await r.mset({"coredis:a": "1"}) and tuple(await r.mget(["coredis:a", "coredis:none"])) == ("1", None))
        check("EXPIRE, TTL", await r.expire("coredis:a", 100) and await r.ttl("coredis:a") > 98)
        check("DEL", await r.delete(["coredis:a", "coredis:none"]) == 1)
        counts = await asyncio.gather(*(r.incr("coredis:p") for _ in range(1000)))
        check("1,000 commands in flight", sorted(counts) == list(range(1, 1001)))
    async with coredis.Redis(port=SECURE_PORT, password=PASSWORD) as r:
        check("the password", await r.set("coredis:auth", "1"))


async def main():
    print("client-side cache")
    await caches()
    if sys.argv[1:] != ["cache"]:
        print("defaults")
        await everything()
    print(f"{checks} checks passed")


asyncio.run(main())

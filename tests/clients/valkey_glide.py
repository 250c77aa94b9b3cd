"""valkey-glide, unchanged from PyPI, against a running server: its client-side cache, for which it asks the server to
tell it of every key (CLIENT TRACKING ON BCAST), and a little of everything else.

Where to find the server comes from the environment, as run.sh sets it. Prints one line per check and, as the last
line, how many there were; the first failing check ends the program with exit code 1 and a traceback. With the word
`cache` only the client's own cache is tried.
"""

import asyncio
import os
import sys
import time

from glide import (
    Batch,
    ClientSideCache,
    ConditionalChange,
    GlideClient,
    GlideClientConfiguration,
    InfoSection,
    NodeAddress,
    ProtocolVersion,
    RequestError,
    ServerCredentials,
)

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


async def connect(port=PORT, **more):
    return await GlideClient.create(GlideClientConfiguration([NodeAddress("127.0.0.1", port)], request_timeout=10_000, **more))


async def gets(writer):
    info = (await writer.info([InfoSection.COMMAND_STATS])).decode()
    line = next((line for line in info.splitlines() if line.startswith("cmdstat_get:calls=")), "=0,")
    return int(line.split("=")[1].split(",")[0])


async def caches():
    """The client's own cache: it asks once, and hears of what a second client writes."""
    cache = ClientSideCache.create(max_cache_kb=1024, entry_ttl_ms=600_000, server_assisted=True)
    reader = await connect(protocol=ProtocolVersion.RESP3, client_side_cache=cache)
    writer = await connect()
    keys = [f"glide:cache:{number}" for number in range(8)]  # on every shard

    async def becomes(value, keys=keys):
        # The invalidation may be on its way from another shard when the writer has its answer.
        deadline = time.monotonic() + PATIENCE_S
        while True:
            seen = [await reader.get(key) for key in keys]
            if seen == [value] * len(keys) or time.monotonic() > deadline:
                return seen == [value] * len(keys)

    await writer.flushall()
    for key in keys:
        await writer.set(key, "0")
    check("cache: first reads", await becomes(b"0"))
    before = await gets(writer)
    check("cache: many reads", all([await reader.get(key) == b"0" for key in keys for _ in range(50)]))
    check("cache: none of them asked the server", await gets(writer) == before, await gets(writer) - before)
    for number in range(1, 21):
        for key in keys:
            await writer.set(key, str(number))
        check("cache: what was written", await becomes(str(number).encode()))
    await writer.pexpire(keys[0], 50)
    check("cache: after its end", await becomes(None, keys[:1]))
    await writer.flushall()
    check("cache: after FLUSHALL", await becomes(None))
    await reader.close()
    await writer.close()


async def everything(protocol):
    r = await connect(protocol=protocol)
    await r.flushall()
    check("PING", await r.ping() == b"PONG")
    check("SET, GET", await r.set("glide:s", "hello") == "OK" and await r.get("glide:s") == b"hello")
    check("a missing key is None", await r.get("glide:none") is None)
    check("SET NX on an existing key", await r.set("glide:s", "x", conditional_set=ConditionalChange.ONLY_IF_DOES_NOT_EXIST) is None)
    check("INCR, DECRBY", await r.incr("glide:n") == 1 and await r.decrby("glide:n", 3) == -2)
    check("MSET, MGET", await r.mset({"glide:a": "1", "glide:b": "2"}) == "OK" and await r.mget(["glide:a", "glide:none"]) == [b"1", None])
    check("EXPIRE, TTL", await r.expire("glide:a", 100) and await r.ttl("glide:a") > 98)
    check("DEL", await r.delete(["glide:a", "glide:b", "glide:none"]) == 2)
    try:
        await r.incr("glide:s")
        refusal = "none"
    except RequestError as error:
        refusal = str(error)
    check("INCR of text is refused", "not an integer" in refusal, refusal)
    transaction = Batch(is_atomic=True)
    transaction.set("glide:t", "1")
    transaction.incr("glide:t")
    check("MULTI/EXEC", await r.exec(transaction, raise_on_error=True) == ["OK", 2])
    counts = await asyncio.gather(*(r.incr("glide:p") for _ in range(1000)))
    check("1,000 commands in flight", sorted(counts) == list(range(1, 1001)))
    every_byte = bytes(range(256)) * 40
    check("a binary value comes back", await r.set(every_byte, every_byte) == "OK" and await r.get(every_byte) == every_byte)
    await r.close()


async def main():
    print("client-side cache")
    await caches()
    if sys.argv[1:] != ["cache"]:
        for protocol in (ProtocolVersion.RESP2, ProtocolVersion.RESP3):
            print(protocol.name)
            await everything(protocol)
        r = await connect(SECURE_PORT, credentials=ServerCredentials(password=PASSWORD))
        check("the password", await r.set("glide:auth", "1") == "OK")
        await r.close()
    print(f"{checks} checks passed")


asyncio.run(main())

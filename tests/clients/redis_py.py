"""redis-py, unchanged from PyPI, against a running server.

Where to find the server comes from the environment, as run.sh sets it. Prints one line per check and, as the last
line, how many there were; the first failing check ends the program with exit code 1 and a traceback. With the word
`cache` only the client's own cache is tried.
"""

import asyncio
import os
import sys
import threading
import time

import redis
import redis.asyncio
from redis.cache import CacheConfig

PORT = int(os.environ["MILLRACE_PORT"])
SECURE_PORT = int(os.environ["MILLRACE_SECURE_PORT"])
PASSWORD = os.environ["MILLRACE_PASSWORD"]
SOCKET = os.environ["MILLRACE_SOCKET"]
# How long a cache may take to hear of a change.
PATIENCE_S = float(os.environ.get("MILLRACE_PATIENCE_S", "10"))

checks = 0


def check(name, condition, seen=None):
    global checks
    assert condition, f"{name}: {seen!r}"
    checks += 1
    print(f"  ok {name}")


def raises(kind, function, text=""):
    try:
        function()
    except kind as error:
        return text in str(error)
    return False


def strings(r):
    check("PING", r.ping() is True)
    check("SET and GET", r.set("py:s", "hello") is True and r.get("py:s") == b"hello")
    check("a missing key is None", r.get("py:none") is None)
    check("SET NX on an existing key", r.set("py:s", "x", nx=True) is None)
    check("SET XX GET gives the old value", r.set("py:s", "y", xx=True, get=True) == b"hello")
    check("APPEND, STRLEN", r.append("py:s", "zz") == 3 and r.strlen("py:s") == 3)
    check("GETRANGE, SETRANGE", r.getrange("py:s", 1, -1) == b"zz" and r.setrange("py:s", 5, "!") == 6)
    check("SETRANGE fills with zeros", r.get("py:s") == b"yzz\0\0!", r.get("py:s"))
    check("INCR, DECRBY", r.incr("py:n") == 1 and r.incrby("py:n", 41) == 42 and r.decr("py:n", 2) == 40)
    check("INCRBYFLOAT", abs(r.incrbyfloat("py:f", 1.5) - 1.5) < 1e-12)
    check("INCR of text is refused", raises(redis.ResponseError, lambda: r.incr("py:s"), "not an integer"))
    check("MSET, MGET", r.mset({"py:a": 1, "py:b": 2}) and r.mget("py:a", "py:none", "py:b") == [b"1", None, b"2"])
    check("MSETNX", not r.msetnx({"py:a": 9, "py:new": 9}) and r.get("py:new") is None)
    check("GETDEL, GETEX", r.getdel("py:b") == b"2" and r.getex("py:a", ex=100) == b"1" and 98 <= r.ttl("py:a") <= 100)
    check("DEL, EXISTS, UNLINK", r.exists("py:a", "py:n") == 2 and r.delete("py:a") == 1 and r.unlink("py:n") == 1)
    check("RENAME, TYPE, COPY", r.rename("py:f", "py:g") and r.type("py:g") == b"string" and r.copy("py:g", "py:h"))


def expiry(r):
    r.set("py:e", "v", ex=100)
    check("EX sets a TTL", 99 <= r.ttl("py:e") <= 100)
    check("PERSIST", r.persist("py:e") and r.ttl("py:e") == -1)
    check("EXPIRE with GT, NX", not r.expire("py:e", 10, gt=True) and r.expire("py:e", 10, nx=True))
    at = int(time.time()) + 1000
    check("EXPIREAT, EXPIRETIME", r.expireat("py:e", at) and r.expiretime("py:e") == at)
    r.set("py:soon", "v", px=30)
    deadline = time.monotonic() + 5
    while r.get("py:soon") is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    check("PX runs out", r.get("py:soon") is None and r.ttl("py:soon") == -2)


def binary_and_big(r):
    every_byte = bytes(range(256)) * 4
    check("a binary value comes back", r.set(every_byte, every_byte) and r.get(every_byte) == every_byte)
    big = os.urandom(1 << 20) * 10
    check("a value of 10 MiB comes back", r.set("py:big", big) and r.get("py:big") == big)
    check("a value of nothing", r.set("py:empty", b"") and r.get("py:empty") == b"")
    r.delete("py:big", every_byte)


def pipelines(r):
    with r.pipeline(transaction=False) as pipe:
        for i in range(10_000):
            pipe.set(f"py:p:{i}", i)
            pipe.get(f"py:p:{i}")
        replies = pipe.execute()
    check("20,000 commands in one pipeline", replies[1::2] == [str(i).encode() for i in range(10_000)])
    with r.pipeline(transaction=False) as pipe:
        pipe.set("py:p:0", "text").incr("py:p:0").get("py:p:0")
        replies = pipe.execute(raise_on_error=False)
    check("an error stays in its place", isinstance(replies[1], redis.ResponseError) and replies[2] == b"text")


def transactions(r):
    with r.pipeline() as pipe:
        replies = pipe.set("py:t", 1).incr("py:t").get("py:t").execute()
    check("MULTI/EXEC", replies == [True, 2, b"2"], replies)

    with r.pipeline() as pipe:
        pipe.watch("py:t")
        before = int(pipe.get("py:t"))
        r.set("py:t", 100)
        pipe.multi()
        pipe.set("py:t", before + 1)
        check("WATCH notices another's write", raises(redis.WatchError, pipe.execute) and r.get("py:t") == b"100")

    def add_one(pipe):
        value = int(pipe.get("py:t"))
        pipe.multi()
        pipe.set("py:t", value + 1)

    check("transaction() helper", r.transaction(add_one, "py:t") == [True] and r.get("py:t") == b"101")

    with r.pipeline() as pipe:
        pipe.set("py:t", 5)
        pipe.execute_command("NOSUCHCOMMAND")
        check("a bad command aborts EXEC", raises(redis.ResponseError, pipe.execute, "unknown command") and r.get("py:t") == b"101")


def next_message(subscriber):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        message = subscriber.get_message(timeout=0.5)
        if message is not None:
            return message
    raise AssertionError("no message within 10 s")


def pubsub(r):
    with r.pubsub() as subscriber:
        subscriber.subscribe("py:news")
        check("SUBSCRIBE is confirmed", next_message(subscriber)["type"] == "subscribe")
        subscriber.psubscribe("py:*")
        check("PSUBSCRIBE is confirmed", next_message(subscriber)["type"] == "psubscribe")
        check("PUBLISH counts both", r.publish("py:news", b"\0\xff") == 2)
        check("message", next_message(subscriber)["data"] == b"\0\xff")
        message = next_message(subscriber)
        check("pmessage", (message["type"], message["pattern"], message["channel"]) == ("pmessage", b"py:*", b"py:news"))
        check("PUBSUB NUMSUB", dict(r.pubsub_numsub("py:news")) == {b"py:news": 1}, r.pubsub_numsub("py:news"))
        check("PUBSUB CHANNELS, NUMPAT", r.pubsub_channels("py:*") == [b"py:news"] and r.pubsub_numpat() == 1)
        subscriber.unsubscribe()
        check("UNSUBSCRIBE is confirmed", next_message(subscriber)["type"] == "unsubscribe")
        check("PUBLISH after it", r.publish("py:news", "x") == 1)


def iteration(r):
    r.flushdb()
    r.mset({f"py:k:{i}": i for i in range(5_000)})
    r.set("other", 1)
    check("SCAN MATCH finds every key", len(set(r.scan_iter(match="py:k:*", count=100))) == 5_000)
    check("SCAN TYPE", len(set(r.scan_iter(_type="string"))) == 5_001 and not list(r.scan_iter(_type="list")))
    check("DBSIZE, KEYS", r.dbsize() == 5_001 and r.keys("o*r") == [b"other"] and r.randomkey() is not None)
    check("FLUSHDB", r.flushdb() and r.dbsize() == 0)


def administration(r):
    info = r.info()
    check("INFO", info["redis_mode"] == "standalone" and info["connected_clients"] >= 1 and info["role"] == "master")
    check("INFO section", "used_memory" in r.info("memory") and "used_memory" not in r.info("server"))
    check("CONFIG GET", r.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}, r.config_get("maxmemory-policy"))
    check("CONFIG SET", r.config_set("maxmemory-policy", "allkeys-lru"))
    check("CONFIG SET took", r.config_get("maxmemory*")["maxmemory-policy"] == "allkeys-lru")
    r.config_set("maxmemory-policy", "noeviction")
    check("CLIENT SETNAME, GETNAME", r.client_setname("py-test") and r.client_getname() in (b"py-test", "py-test"))
    check("CLIENT LIST knows us", any(c["name"] == "py-test" for c in r.client_list()), r.client_list())
    check("CLIENT INFO", r.client_info()["lib-name"].startswith("redis-py") if "lib-name" in r.client_info() else r.client_id() > 0)
    check("COMMAND COUNT", r.command_count() > 80)
    check("TIME", abs(r.time()[0] - time.time()) < 60)
    check("MEMORY USAGE, OBJECT", r.set("py:o", 12) and r.memory_usage("py:o") > 0 and r.object("encoding", "py:o") in (b"int", "int"))
    check("SLOWLOG, CONFIG RESETSTAT", isinstance(r.slowlog_get(), list) and r.config_resetstat())
    check("an unknown command", raises(redis.ResponseError, lambda: r.execute_command("NOSUCH", "a"), "unknown command"))
    check("wrong number of arguments", raises(redis.ResponseError, lambda: r.execute_command("GET"), "wrong number of arguments"))


def reconnect(r, other):
    """The library must recover by itself once its connection is killed under it."""
    r.set("py:r", "before")
    number = r.client_id()
    check("CLIENT KILL ID", other.client_kill_filter(_id=number) == 1)
    check("the client reconnects by itself", r.get("py:r") == b"before" and r.client_id() != number)


def passwords():
    stranger = redis.Redis(port=SECURE_PORT)
    check("no password: refused", raises(redis.AuthenticationError, stranger.ping))
    wrong = redis.Redis(port=SECURE_PORT, password="wrong")
    check("a wrong password: refused", raises(redis.AuthenticationError, wrong.ping))
    for protocol in (2, 3):
        right = redis.Redis(port=SECURE_PORT, password=PASSWORD, protocol=protocol)
        check(f"the password, RESP{protocol}", right.ping() and right.set("py:auth", 1))
        named = redis.Redis(port=SECURE_PORT, username="default", password=PASSWORD, protocol=protocol)
        check(f"user default and the password, RESP{protocol}", named.get("py:auth") == b"1")


def many_threads(r):
    def work(n):
        for _ in range(200):
            r.incr("py:counter")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check("8 threads through one pool", r.get("py:counter") == b"1600")


async def asynchronous():
    r = redis.asyncio.Redis(port=PORT)
    check("asyncio: SET, GET", await r.set("py:async", "v") and await r.get("py:async") == b"v")
    values = await asyncio.gather(*(r.incr("py:async:n") for _ in range(100)))
    check("asyncio: 100 at once", sorted(values) == list(range(1, 101)))
    async with r.pubsub() as subscriber:
        await subscriber.subscribe("py:async:news")
        assert (await subscriber.get_message(timeout=10))["type"] == "subscribe"
        await r.publish("py:async:news", "hi")
        message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=10)
        check("asyncio: message", message is not None and message["data"] == b"hi", message)
    await r.aclose()


def caches():
    """The client's own cache: it asks once, and hears of what a second client writes."""
    reader = redis.Redis(port=PORT, protocol=3, cache_config=CacheConfig(), decode_responses=True)
    writer = redis.Redis(port=PORT, decode_responses=True)
    gets = lambda: writer.info("commandstats").get("cmdstat_get", {}).get("calls", 0)
    keys = [f"py:cache:{number}" for number in range(8)]  # on every shard

    def becomes(value, keys=keys):
        # The invalidation may be on its way from another shard when the writer has its answer.
        deadline = time.monotonic() + PATIENCE_S
        while any(reader.get(key) != value for key in keys) and time.monotonic() < deadline:
            pass
        return [reader.get(key) for key in keys] == [value] * len(keys)

    writer.flushall()
    for key in keys:
        writer.set(key, "0")
        check("cache: first read", reader.get(key) == "0")
    before = gets()
    check("cache: many reads", all(reader.get(key) == "0" for key in keys for _ in range(50)))
    check("cache: none of them asked the server", gets() == before, gets() - before)
    for number in range(1, 21):
        for key in keys:
            writer.set(key, str(number))
        check("cache: what was written", becomes(str(number)))
    writer.pexpire(keys[0], 50)
    check("cache: after its end", becomes(None, keys[:1]))
    writer.flushall()
    check("cache: after FLUSHALL", becomes(None))


def everything(connect):
    r = connect()
    r.flushall()
    for part in (strings, expiry, binary_and_big, pipelines, transactions, pubsub, iteration, administration):
        part(r)
    reconnect(connect(single_connection_client=True), r)


if sys.argv[1:] == ["cache"]:
    caches()
    print(f"{checks} checks passed")
    sys.exit()
print("defaults")
everything(lambda **more: redis.Redis(port=PORT, **more))
for protocol in (2, 3):
    print(f"RESP{protocol}")
    everything(lambda **more: redis.Redis(port=PORT, protocol=protocol, **more))
print("Unix socket")
everything(lambda **more: redis.Redis(unix_socket_path=SOCKET, **more))
print("client-side cache")
caches()
print("passwords, threads, asyncio")
passwords()
many_threads(redis.Redis(port=PORT))
asyncio.run(asynchronous())
print(f"{checks} checks passed")

// ioredis, unchanged from npm, against a running server. Where the server is comes from the environment, as run.sh
// sets it. One line per check, the number of checks last; the first failing check ends it with exit code 1.

import { strict as assert } from "node:assert";
import { createRequire } from "node:module";
import { once } from "node:events";
import { randomBytes } from "node:crypto";

// The packages are installed outside the source tree; require() finds them there through MILLRACE_NODE_MODULES.
const require = createRequire(process.env.MILLRACE_NODE_MODULES + "/");
const { Redis } = require("ioredis");

const port = Number(process.env.MILLRACE_PORT);
const securePort = Number(process.env.MILLRACE_SECURE_PORT);
const password = process.env.MILLRACE_PASSWORD;
const path = process.env.MILLRACE_SOCKET;

let checks = 0;
function check(name, seen, wanted = true) {
  assert.deepEqual(seen, wanted, name);
  checks += 1;
  console.log(`  ok ${name}`);
}

/** The next event of this name; one that never comes is an error, not a hang. */
const next = (emitter, event) => once(emitter, event, { signal: AbortSignal.timeout(10_000) });

async function everything(options) {
  const client = new Redis(options);
  await next(client, "ready"); // Only after INFO said loading:0.
  check("ready", client.status, "ready");
  await client.flushall();

  check("PING, ECHO", [await client.ping(), await client.echo("hi")], ["PONG", "hi"]);
  check("SET, GET", [await client.set("io:s", "hello"), await client.get("io:s")], ["OK", "hello"]);
  check("a missing key is null", await client.get("io:none"), null);
  check("SET NX, SET XX GET", [await client.set("io:s", "x", "NX"), await client.set("io:s", "y", "XX", "GET")], [null, "hello"]);
  check("INCR, DECRBY, INCRBYFLOAT", [await client.incr("io:n"), await client.decrby("io:n", 3), await client.incrbyfloat("io:n", "0.25")], [1, -2, "-1.75"]);
  check("MSET, MGET", [await client.mset("io:a", 1, "io:b", 2), await client.mget("io:a", "io:none", "io:b")], ["OK", ["1", null, "2"]]);
  check("SETEX, TTL, PERSIST", [await client.setex("io:e", 100, "v"), (await client.ttl("io:e")) > 98, await client.persist("io:e")], ["OK", true, 1]);
  await client.psetex("io:soon", 20, "v");
  const deadline = Date.now() + 5000;
  while ((await client.exists("io:soon")) && Date.now() < deadline);
  check("PSETEX runs out", await client.pttl("io:soon"), -2);
  await assert.rejects(client.incr("io:s"), /not an integer/);
  await assert.rejects(client.call("NOSUCH", "a"), /unknown command/);
  check("errors are errors", true);

  const everyByte = Buffer.from(Array.from({ length: 1024 }, (_, i) => i & 255));
  await client.set(everyByte, everyByte);
  check("a binary key and value come back", everyByte.equals(await client.getBuffer(everyByte)));
  const big = randomBytes(10 << 20);
  await client.set("io:big", big);
  check("a value of 10 MiB comes back", big.equals(await client.getBuffer("io:big")));
  await client.del("io:big");

  const pipeline = client.pipeline();
  for (let i = 0; i < 5000; i += 1) pipeline.set(`io:p:${i}`, i).get(`io:p:${i}`);
  const replies = await pipeline.exec();
  check("10,000 commands in one pipeline", replies.every(([error, reply], i) => error === null && reply === (i % 2 ? String(i >> 1) : "OK")));
  const mixed = await client.pipeline().set("io:t", "text").incr("io:t").get("io:t").exec();
  check("an error stays in its place", [mixed[0][1], /not an integer/.test(mixed[1][0].message), mixed[2][1]], ["OK", true, "text"]);
  check("MULTI/EXEC", await client.multi().set("io:t", 1).incr("io:t").exec(), [[null, "OK"], [null, 2]]);

  const rival = client.duplicate();
  await client.watch("io:t");
  await rival.set("io:t", 100);
  check("WATCH notices another's write", await client.multi().set("io:t", 3).exec(), null);
  await client.watch("io:t");
  check("WATCH of an untouched key", await client.multi().incr("io:t").exec(), [[null, 101]]);
  await client.multi({ pipeline: false });
  check("MULTI by hand", [await client.set("io:t", 5), await client.exec()], ["QUEUED", [[null, "OK"]]]);

  const subscriber = client.duplicate();
  check("SUBSCRIBE", await subscriber.subscribe("io:news"), 1);
  let message = next(subscriber, "message");
  check("PUBLISH", await client.publish("io:news", "hello"), 1);
  check("message", await message, ["io:news", "hello"]);
  await subscriber.psubscribe("io:*");
  message = next(subscriber, "pmessageBuffer");
  await client.publish("io:other", everyByte);
  const [, channel, data] = await message;
  check("pmessage, binary", [String(channel), everyByte.equals(data)], ["io:other", true]);
  check("PUBSUB", [await client.pubsub("CHANNELS"), await client.pubsub("NUMPAT")], [["io:news"], 1]);
  check("UNSUBSCRIBE, PUNSUBSCRIBE", [await subscriber.unsubscribe("io:news"), await subscriber.punsubscribe("io:*")], [1, 0]);

  await client.flushdb();
  await client.mset(Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`io:k:${i}`, "v"])));
  const seen = new Set();
  for await (const keys of client.scanStream({ match: "io:k:*", count: 100 })) for (const key of keys) seen.add(key);
  check("SCAN finds every key", [seen.size, await client.dbsize()], [3000, 3000]);

  check("INFO", (await client.info("server")).includes("redis_mode:standalone"));
  check("CONFIG GET", (await client.config("GET", "maxclients")).length !== 0);
  check("CONFIG SET", await client.config("SET", "slowlog-max-len", "64"), "OK");
  await client.client("SETNAME", "io-test");
  check("CLIENT GETNAME, LIST", [await client.client("GETNAME"), (await client.client("LIST")).includes("name=io-test")], ["io-test", true]);

  const id = await client.client("ID");
  check("CLIENT KILL ID", await rival.client("KILL", "ID", id), 1);
  await rival.set("io:r", "still here");
  check("the client reconnects by itself", [await client.get("io:r"), (await client.client("ID")) !== id], ["still here", true]);

  for (const each of [client, rival, subscriber]) await each.quit();
  check("QUIT", client.status === "end" || (await next(client, "end")).length === 0);
}

console.log("defaults");
await everything({ port });
for (const protocol of [2, 3]) {
  console.log(`RESP${protocol}`);
  await everything({ port, protocol });
}
console.log("Unix socket");
await everything({ path });

console.log("passwords");
const stranger = new Redis({ port: securePort, retryStrategy: null });
stranger.on("error", () => {});
await assert.rejects(stranger.get("x"), /NOAUTH/);
stranger.disconnect();
check("no password is refused", true);
const wrong = new Redis({ port: securePort, password: "wrong", retryStrategy: null });
const [error] = await next(wrong, "error");
check("a wrong password is refused", /WRONGPASS/.test(error.message));
wrong.disconnect();
const client = new Redis({ port: securePort, password });
check("the password", [await client.set("io:auth", 1), await client.get("io:auth")], ["OK", "1"]);
await client.quit();
console.log(`${checks} checks passed`);

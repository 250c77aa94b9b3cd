// node-redis, unchanged from npm, against a running server. Where the server is comes from the environment, as
// run.sh sets it. One line per check, the number of checks last; the first failing check ends it with exit code 1. With
// the word `cache` only the client's own cache is tried.

import { strict as assert } from "node:assert";
import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";

// The packages are installed outside the source tree; require() finds them there through MILLRACE_NODE_MODULES.
const require = createRequire(process.env.MILLRACE_NODE_MODULES + "/");
const { createClient, createClientPool, RESP_TYPES, WatchError } = require("redis");

const port = Number(process.env.MILLRACE_PORT);
const securePort = Number(process.env.MILLRACE_SECURE_PORT);
const password = process.env.MILLRACE_PASSWORD;
const socketPath = process.env.MILLRACE_SOCKET;
// How long a cache may take to hear of a change.
const patience = Number(process.env.MILLRACE_PATIENCE_S ?? 10) * 1000;

let checks = 0;
function check(name, seen, wanted = true) {
  assert.deepEqual(seen, wanted, name);
  checks += 1;
  console.log(`  ok ${name}`);
}

/** Resolves with the next call's arguments; a message that never comes is an error, not a hang. */
function expectCall() {
  let call;
  const called = new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("no message within 10 s")), 10_000);
    call = (...args) => {
      clearTimeout(timer);
      resolve(args);
    };
  });
  return [call, called];
}

async function connect(options) {
  const client = createClient(options);
  client.on("error", () => {}); // Reported again by the command that fails; without a listener Node would exit.
  return client.connect();
}

async function everything(options) {
  const client = await connect(options);
  await client.flushAll();

  check("PING", await client.ping(), "PONG");
  check("SET", await client.set("nr:s", "hello"), "OK");
  check("GET", await client.get("nr:s"), "hello");
  check("a missing key is null", await client.get("nr:none"), null);
  check("SET NX on an existing key", await client.set("nr:s", "x", { condition: "NX" }), null);
  check("SET XX GET", await client.set("nr:s", "y", { condition: "XX", GET: true }), "hello");
  check("INCR, INCRBY, INCRBYFLOAT", [await client.incr("nr:n"), await client.incrBy("nr:n", 41), await client.incrByFloat("nr:n", 0.5)], [1, 42, "42.5"]);
  check("MSET, MGET", [await client.mSet({ "nr:a": "1", "nr:b": "2" }), await client.mGet(["nr:a", "nr:none", "nr:b"])], ["OK", ["1", null, "2"]]);
  check("APPEND, STRLEN, GETRANGE", [await client.append("nr:s", "zz"), await client.strLen("nr:s"), await client.getRange("nr:s", 0, 1)], [3, 3, "yz"]);
  check("DEL, EXISTS", [await client.exists(["nr:a", "nr:b"]), await client.del(["nr:a", "nr:b", "nr:none"])], [2, 2]);
  await assert.rejects(client.incr("nr:s"), /not an integer/);
  check("INCR of text is refused", true);

  await client.set("nr:e", "v", { expiration: { type: "EX", value: 100 } });
  check("EX", (await client.ttl("nr:e")) > 98);
  check("PERSIST, EXPIRE GT", [await client.persist("nr:e"), await client.ttl("nr:e"), await client.expire("nr:e", 5, "GT")], [1, -1, 0]);
  await client.set("nr:soon", "v", { PX: 20 });
  const deadline = Date.now() + 5000;
  while ((await client.get("nr:soon")) !== null && Date.now() < deadline);
  check("PX runs out", await client.ttl("nr:soon"), -2);

  const bytes = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  const everyByte = Buffer.from(Array.from({ length: 1024 }, (_, i) => i & 255));
  await bytes.set(everyByte, everyByte);
  check("a binary key and value come back", everyByte.equals(await bytes.get(everyByte)));
  const big = randomBytes(10 << 20);
  await bytes.set("nr:big", big);
  check("a value of 10 MiB comes back", big.equals(await bytes.get("nr:big")));
  await client.del("nr:big");

  // Commands of one tick share a write: this is the library's own pipelining.
  const answers = await Promise.all(Array.from({ length: 5000 }, (_, i) => client.set(`nr:p:${i}`, String(i)).then(() => client.get(`nr:p:${i}`))));
  check("10,000 commands in flight", answers.every((answer, i) => answer === String(i)));
  check("MULTI/EXEC", await client.multi().set("nr:t", "1").incr("nr:t").get("nr:t").exec(), ["OK", 2, "2"]);
  await assert.rejects(client.multi().set("nr:t", "7").addCommand(["NOSUCHCOMMAND"]).exec());
  check("a bad command aborts EXEC", await client.get("nr:t"), "2");

  const rival = await client.duplicate().connect();
  await client.watch("nr:t");
  await rival.set("nr:t", "100");
  await assert.rejects(client.multi().set("nr:t", "3").exec(), WatchError);
  check("WATCH notices another's write", await client.get("nr:t"), "100");
  await client.watch("nr:t");
  check("WATCH of an untouched key", await client.multi().incr("nr:t").exec(), [101]);

  const subscriber = await client.duplicate().connect();
  let [call, called] = expectCall();
  await subscriber.subscribe("nr:news", call);
  check("PUBLISH finds the subscriber", await client.publish("nr:news", "hello"), 1);
  check("message", await called, ["hello", "nr:news"]);
  [call, called] = expectCall();
  await subscriber.pSubscribe("nr:*", call, true);
  await client.publish("nr:other", everyByte);
  check("pmessage, binary", everyByte.equals((await called)[0]));
  check("PUBSUB", [await client.pubSubChannels(), (await client.pubSubNumSub(["nr:news"]))["nr:news"], await client.pubSubNumPat()], [["nr:news"], 1, 1]);
  await subscriber.unsubscribe("nr:news");
  check("PUBLISH after UNSUBSCRIBE", await client.publish("nr:news", "x"), 1); // the pattern still hears it
  await subscriber.pUnsubscribe();

  await client.flushDb();
  await client.mSet(Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`nr:k:${i}`, "v"])));
  const seen = new Set();
  for await (const keys of client.scanIterator({ MATCH: "nr:k:*", COUNT: 100 })) for (const key of keys) seen.add(key);
  check("SCAN finds every key", [seen.size, await client.dbSize()], [3000, 3000]);

  check("INFO", (await client.info()).includes("redis_mode:standalone"));
  check("CONFIG GET", { ...(await client.configGet("maxclients")) }, { maxclients: "10000" });
  check("CONFIG SET", [await client.configSet("maxclients", "9999"), { ...(await client.configGet("maxclients")) }], ["OK", { maxclients: "9999" }]);
  await client.configSet("maxclients", "10000");
  await client.clientSetName("nr-test");
  check("CLIENT GETNAME, LIST", [await client.clientGetName(), (await client.clientList()).some((c) => c.name === "nr-test")], ["nr-test", true]);
  check("CLIENT INFO", (await client.clientInfo()).name, "nr-test");
  check("COMMAND COUNT, INFO", (await client.commandCount()) > 80 && (await client.commandInfo(["get"]))[0].name === "get");

  const id = await client.clientId();
  check("CLIENT KILL ID", await rival.clientKill({ filter: "ID", id }), 1);
  await rival.set("nr:r", "still here");
  // A command sent into the closing socket may be lost with it; after that the library reconnects by itself.
  const answer = await client.get("nr:r").catch(() => client.get("nr:r"));
  check("the client reconnects by itself", [answer, (await client.clientId()) !== id], ["still here", true]);

  for (const each of [client, rival, subscriber]) await each.close();
}

/** The client's own cache: it asks once, and hears of what a second client writes. */
async function caches(reader, writer) {
  const keys = Array.from({ length: 8 }, (_, i) => `nr:cache:${i}`); // on every shard
  const gets = async () => Number((await writer.info("commandstats")).match(/cmdstat_get:calls=(\d+)/)?.[1] ?? 0);
  const readAll = (of) => Promise.all(of.map((key) => reader.get(key)));
  /** The invalidation may be on its way from another shard when the writer has its answer. */
  async function becomes(value, of = keys) {
    const deadline = Date.now() + patience;
    // Reads that the cache answers never wait for a socket: somebody must let the invalidation in.
    while ((await readAll(of)).some((seen) => seen !== value) && Date.now() < deadline) await new Promise(setImmediate);
    return (await readAll(of)).every((seen) => seen === value);
  }

  await writer.flushAll();
  for (const key of keys) await writer.set(key, "0");
  // Each connection of a pool has read each key when as many are asked for at once.
  check("cache: first reads", await becomes("0"));
  const before = await gets();
  let all = true;
  for (let i = 0; i < 50; i++) all &&= (await readAll(keys)).every((seen) => seen === "0");
  check("cache: many reads", all);
  check("cache: none of them asked the server", (await gets()) - before, 0);
  for (let number = 1; number <= 20; number++) {
    for (const key of keys) await writer.set(key, String(number));
    check("cache: what was written", await becomes(String(number)));
  }
  await writer.pExpire(keys[0], 50);
  check("cache: after its end", await becomes(null, keys.slice(0, 1)));
  await writer.flushAll();
  check("cache: after FLUSHALL", await becomes(null));
}

async function clientSideCaches() {
  const writer = await connect({ url });
  const clientSideCache = { ttl: 0, maxEntries: 0, evictPolicy: "LRU" };
  const reader = await connect({ url, RESP: 3, clientSideCache });
  await caches(reader, writer);
  // What a cache held is not believed any more when its connection was lost, and it hears again on the next one.
  // That there is no value may be cached until the invalidation is read.
  await writer.set("nr:cache:0", "before");
  const soon = Date.now() + patience;
  while ((await reader.get("nr:cache:0")) !== "before" && Date.now() < soon) await new Promise(setImmediate);
  assert.equal(await reader.get("nr:cache:0"), "before");
  const id = await reader.clientId();
  await writer.clientKill({ filter: "ID", id });
  await writer.set("nr:cache:0", "meanwhile");
  const deadline = Date.now() + patience;
  while ((await reader.get("nr:cache:0").catch(() => null)) !== "meanwhile" && Date.now() < deadline) await new Promise(setImmediate);
  check("cache: after a lost connection", await reader.get("nr:cache:0"), "meanwhile");
  await caches(reader, writer);
  await reader.close();
  const pool = createClientPool({ url, RESP: 3 }, { clientSideCache, minimum: 4, maximum: 4 });
  await pool.on("error", () => {}).connect();
  console.log("client-side cache of a pool");
  await caches(pool, writer);
  for (const each of [pool, writer]) await each.close();
}

const url = `redis://127.0.0.1:${port}`;
if (process.argv[2] === "cache") {
  await clientSideCaches();
  console.log(`${checks} checks passed`);
  process.exit();
}
console.log("defaults");
await everything({ url });
for (const RESP of [2, 3]) {
  console.log(`RESP${RESP}`);
  await everything({ url, RESP });
}
console.log("Unix socket");
await everything({ socket: { path: socketPath } });

console.log("client-side cache");
await clientSideCaches();

console.log("passwords");
for (const RESP of [2, 3]) {
  const socket = { port: securePort, reconnectStrategy: false };
  const stranger = createClient({ socket, RESP }).on("error", () => {});
  await assert.rejects(async () => (await stranger.connect()).get("x"), /NOAUTH/); // RESP3 fails on connecting, RESP2 later
  if (stranger.isOpen) stranger.destroy();
  await assert.rejects(connect({ socket, RESP, password: "wrong" }), /WRONGPASS/);
  check(`no or a wrong password is refused, RESP${RESP}`, true);
  const client = await connect({ socket, RESP, password });
  check(`the password, RESP${RESP}`, await client.set("nr:auth", "1"), "OK");
  await client.close();
  const named = await connect({ socket, RESP, username: "default", password });
  check(`user default and the password, RESP${RESP}`, await named.get("nr:auth"), "1");
  await named.close();
}
console.log(`${checks} checks passed`);

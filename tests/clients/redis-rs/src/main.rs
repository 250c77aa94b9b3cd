//! redis-rs, unchanged from crates.io, against a running server.
//!
//! Where the server is comes from the environment, as `run.sh` sets it. Prints one line per check and the number of
//! checks last; the first failing check panics. With the word `cache` only the client's own cache is tried.

mod cache;

use std::collections::HashSet;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::{
    AsyncCommands, Client, Commands, Connection, ErrorKind, ExistenceCheck, RedisResult, SetExpiry,
    SetOptions, Value,
};

struct Checks(u32);

impl Checks {
    #[track_caller]
    fn equal<T: PartialEq + Debug>(&mut self, name: &str, seen: T, wanted: T) {
        assert_eq!(seen, wanted, "{name}");
        self.0 += 1;
        println!("  ok {name}");
    }

    #[track_caller]
    fn holds(&mut self, name: &str, condition: bool) {
        self.equal(name, condition, true);
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run.sh sets it"))
}

/// A password may hold bytes that mean something in a URL.
fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn everything(checks: &mut Checks, client: &Client) -> RedisResult<()> {
    let mut r = client.get_connection()?;
    let mut rival = client.get_connection()?;
    let () = redis::cmd("FLUSHALL").query(&mut r)?;
    strings(checks, &mut r)?;
    expiry(checks, &mut r)?;
    transactions(checks, &mut r, &mut rival)?;
    messages(checks, client, &mut r)?;
    administration(checks, &mut r)?;

    let id: i64 = redis::cmd("CLIENT").arg("ID").query(&mut r)?;
    checks.equal(
        "CLIENT KILL ID",
        redis::cmd("CLIENT").arg(&["KILL", "ID"]).arg(id).query::<i64>(&mut rival)?,
        1,
    );
    let failure = r.get::<_, Option<String>>("rs:s").expect_err("the connection was killed");
    checks.holds(
        "a killed connection is reported as dropped",
        failure.is_connection_dropped() || failure.is_io_error(),
    );
    r = client.get_connection()?;
    checks.holds("a new connection works", r.get::<_, Option<String>>("rs:s")?.is_none());
    Ok(())
}

fn strings(checks: &mut Checks, r: &mut Connection) -> RedisResult<()> {
    checks.equal("PING", redis::cmd("PING").query::<String>(r)?, "PONG".into());
    checks.equal(
        "SET, GET",
        (r.set::<_, _, String>("rs:s", "hello")?, r.get::<_, String>("rs:s")?),
        ("OK".into(), "hello".into()),
    );
    checks.equal("a missing key is None", r.get::<_, Option<String>>("rs:none")?, None);
    let only_new = SetOptions::default().conditional_set(ExistenceCheck::NX);
    checks.equal(
        "SET NX on an existing key",
        r.set_options::<_, _, Option<String>>("rs:s", "x", only_new)?,
        None,
    );
    let swap = SetOptions::default()
        .conditional_set(ExistenceCheck::XX)
        .get(true)
        .with_expiration(SetExpiry::EX(100));
    checks.equal(
        "SET XX EX GET",
        r.set_options::<_, _, Option<String>>("rs:s", "y", swap)?,
        Some("hello".into()),
    );
    checks.equal("INCR, DECR", (r.incr::<_, _, i64>("rs:n", 5)?, r.decr::<_, _, i64>("rs:n", 8)?), (5, -3));
    checks.equal("INCRBYFLOAT", r.incr::<_, _, f64>("rs:n", 0.5)?, -2.5);
    let () = r.mset(&[("rs:a", 1), ("rs:b", 2)])?;
    checks.equal(
        "MGET",
        r.mget::<_, Vec<Option<i32>>>(&["rs:a", "rs:none", "rs:b"])?,
        vec![Some(1), None, Some(2)],
    );
    checks.equal(
        "APPEND, STRLEN",
        (r.append::<_, _, u32>("rs:s", "zz")?, r.strlen::<_, u32>("rs:s")?),
        (3, 3),
    );
    checks.equal(
        "DEL, EXISTS",
        (r.exists::<_, u32>(&["rs:a", "rs:b"])?, r.del::<_, u32>(&["rs:a", "rs:b"])?),
        (2, 2),
    );
    let error = r.incr::<_, _, i64>("rs:s", 1).expect_err("it holds text");
    checks.holds("INCR of text is refused", error.to_string().contains("not an integer"));

    let every_byte: Vec<u8> = (0..=255).cycle().take(1024).collect();
    let () = r.set(&every_byte, &every_byte)?;
    checks.holds("a binary key and value come back", r.get::<_, Vec<u8>>(&every_byte)? == every_byte);
    let big: Vec<u8> = (0..10 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let () = r.set("rs:big", &big)?;
    checks.holds("a value of 10 MiB comes back", r.get_del::<_, Vec<u8>>("rs:big")? == big);
    Ok(())
}

fn expiry(checks: &mut Checks, r: &mut Connection) -> RedisResult<()> {
    checks.holds("EXPIRE, TTL", r.expire::<_, bool>("rs:s", 100)? && r.ttl::<_, i64>("rs:s")? > 98);
    checks.equal("PERSIST", (r.persist::<_, bool>("rs:s")?, r.ttl::<_, i64>("rs:s")?), (true, -1));
    let () = r.pset_ex("rs:soon", "v", 20)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while r.exists::<_, bool>("rs:soon")? && Instant::now() < deadline {}
    checks.equal("PSETEX runs out", r.pttl::<_, i64>("rs:soon")?, -2);
    Ok(())
}

fn transactions(checks: &mut Checks, r: &mut Connection, rival: &mut Connection) -> RedisResult<()> {
    let mut pipeline = redis::pipe();
    for i in 0..5_000 {
        pipeline.set(format!("rs:p:{i}"), i).ignore().get(format!("rs:p:{i}"));
    }
    checks.equal("10,000 commands in one pipeline", pipeline.query::<Vec<i32>>(r)?, (0..5_000).collect());
    let replies: (String, i64, i64) =
        redis::pipe().atomic().set("rs:t", 1).incr("rs:t", 1).get("rs:t").query(r)?;
    checks.equal("MULTI/EXEC", replies, ("OK".into(), 2, 2));

    let () = redis::cmd("WATCH").arg("rs:t").query(r)?;
    let () = rival.set("rs:t", 100)?;
    let replies: Value = redis::pipe().atomic().set("rs:t", 3).query(r)?;
    checks.equal("WATCH notices another's write", replies, Value::Nil);
    let mut attempts = 0;
    let (value,): (i64,) = redis::transaction(r, &["rs:t"], |r, pipe| {
        attempts += 1;
        if attempts == 1 {
            let () = rival.set("rs:t", 200)?;
        }
        let old: i64 = r.get("rs:t")?;
        pipe.set("rs:t", old + 1).ignore().get("rs:t").query(r)
    })?;
    checks.equal("transaction() tries again", (attempts, value), (2, 201));
    let error =
        redis::pipe().atomic().set("rs:t", 7).cmd("NOSUCH").query::<Value>(r).expect_err("no such command");
    checks.holds(
        "a bad command aborts EXEC",
        error.kind() == ErrorKind::Server(redis::ServerErrorKind::ExecAbort)
            || error.to_string().contains("unknown command"),
    );
    checks.equal("and nothing was done", r.get::<_, i64>("rs:t")?, 201);
    Ok(())
}

fn messages(checks: &mut Checks, client: &Client, r: &mut Connection) -> RedisResult<()> {
    let mut listening = client.get_connection()?;
    listening.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut subscriber = listening.as_pubsub();
    subscriber.subscribe("rs:news")?;
    subscriber.psubscribe("rs:*")?;
    checks.equal("PUBLISH", r.publish::<_, _, i64>("rs:news", b"\0\xff")?, 2);
    let message = subscriber.get_message()?;
    checks.equal(
        "message",
        (message.get_channel_name(), message.get_payload_bytes()),
        ("rs:news", &b"\0\xff"[..]),
    );
    let message = subscriber.get_message()?;
    checks.equal("pmessage", message.get_pattern::<String>()?, "rs:*".into());
    subscriber.unsubscribe("rs:news")?;
    subscriber.punsubscribe("rs:*")?;
    checks.equal("UNSUBSCRIBE", r.publish::<_, _, i64>("rs:news", "x")?, 0);
    Ok(())
}

fn administration(checks: &mut Checks, r: &mut Connection) -> RedisResult<()> {
    let () = redis::cmd("FLUSHDB").query(r)?;
    let pairs: Vec<(String, u32)> = (0..3_000).map(|i| (format!("rs:k:{i}"), i)).collect();
    let () = r.mset(&pairs)?;
    let keys = r.scan_match::<_, String>("rs:k:*")?.collect::<RedisResult<HashSet<_>>>()?;
    checks.equal("SCAN finds every key", keys.len(), 3_000);
    let info: redis::InfoDict = redis::cmd("INFO").query(r)?;
    checks.equal("INFO", info.get::<String>("redis_mode"), Some("standalone".into()));
    let found: std::collections::HashMap<String, String> =
        redis::cmd("CONFIG").arg(&["GET", "maxclients"]).query(r)?;
    checks.equal("CONFIG GET", found.get("maxclients").map(String::as_str), Some("10000"));
    let () = redis::cmd("CONFIG").arg(&["SET", "slowlog-max-len", "99"]).query(r)?;
    let () = redis::cmd("CLIENT").arg(&["SETNAME", "rs-test"]).query(r)?;
    checks
        .holds("CLIENT LIST", redis::cmd("CLIENT").arg("LIST").query::<String>(r)?.contains("name=rs-test"));
    Ok(())
}

async fn asynchronous(checks: &mut Checks, client: &Client) -> RedisResult<()> {
    let mut r = client.get_multiplexed_async_connection().await?;
    let counters = (0..200).map(|_| {
        let mut r = r.clone();
        async move { r.incr::<_, _, i64>("rs:async", 1).await }
    });
    let mut counts =
        futures_util::future::join_all(counters).await.into_iter().collect::<RedisResult<Vec<_>>>()?;
    counts.sort_unstable();
    checks.equal("200 requests over one multiplexed connection", counts, (1..=200).collect());

    let (mut sink, mut messages) = client.get_async_pubsub().await?.split();
    sink.subscribe("rs:async:news").await?;
    checks.equal("PUBLISH", r.publish::<_, _, i64>("rs:async:news", "hi").await?, 1);
    let message =
        tokio::time::timeout(Duration::from_secs(10), messages.next()).await.expect("no message in 10 s");
    checks.equal("message", message.map(|m| m.get_payload::<String>()).transpose()?, Some("hi".into()));

    let mut managed = client.get_connection_manager().await?;
    let id: i64 = redis::cmd("CLIENT").arg("ID").query_async(&mut managed).await?;
    let _: i64 = redis::cmd("CLIENT").arg(&["KILL", "ID"]).arg(id).query_async(&mut r).await?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let new = loop {
        // Requests fail until the manager has noticed and connected again; that it does is the check.
        match redis::cmd("CLIENT").arg("ID").query_async::<i64>(&mut managed).await {
            Ok(new) => break new,
            Err(error) => assert!(Instant::now() < deadline, "the manager did not reconnect: {error}"),
        }
    };
    checks.holds("the connection manager reconnects by itself", new != id);
    Ok(())
}

fn main() -> RedisResult<()> {
    let mut checks = Checks(0);
    let port = variable("MILLRACE_PORT");
    let socket = variable("MILLRACE_SOCKET");
    let secure = format!("127.0.0.1:{}", variable("MILLRACE_SECURE_PORT"));
    let password = percent_encoded(&variable("MILLRACE_PASSWORD"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;

    runtime.block_on(cache::caches(&mut checks, &port))?;
    if std::env::args().nth(1).as_deref() == Some("cache") {
        println!("{} checks passed", checks.0);
        return Ok(());
    }
    for (name, url) in [
        ("defaults", format!("redis://127.0.0.1:{port}")),
        ("RESP2", format!("redis://127.0.0.1:{port}/?protocol=resp2")),
        ("RESP3", format!("redis://127.0.0.1:{port}/?protocol=resp3")),
        ("Unix socket", format!("redis+unix://{socket}")),
    ] {
        println!("{name}");
        let client = Client::open(url)?;
        everything(&mut checks, &client)?;
        runtime.block_on(asynchronous(&mut checks, &client))?;
    }

    println!("passwords");
    for protocol in ["resp2", "resp3"] {
        let stranger = Client::open(format!("redis://{secure}/?protocol={protocol}"))?;
        let refused = stranger.get_connection().and_then(|mut r| r.get::<_, Option<String>>("x"));
        checks.holds(
            "no password is refused",
            refused.is_err_and(|error| {
                error.to_string().contains("NOAUTH") || error.kind() == ErrorKind::AuthenticationFailed
            }),
        );
        let wrong = Client::open(format!("redis://:wrong@{secure}/?protocol={protocol}"))?;
        checks.holds("a wrong password is refused", wrong.get_connection().is_err());
        let right = Client::open(format!("redis://:{password}@{secure}/?protocol={protocol}"))?;
        checks.equal("the password", right.get_connection()?.set::<_, _, String>("rs:auth", 1)?, "OK".into());
        let named = Client::open(format!("redis://default:{password}@{secure}/?protocol={protocol}"))?;
        checks.equal("user default and the password", named.get_connection()?.get::<_, i64>("rs:auth")?, 1);
    }
    println!("{} checks passed", checks.0);
    Ok(())
}

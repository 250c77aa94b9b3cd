//! redis-rs' own cache (feature `cache-aio`): it asks once, and hears of what a second client writes. It sends PTTL with
//! each GET, and, where only chosen commands are cached, CLIENT CACHING YES before them.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::caching::{CacheConfig, CacheMode};
use redis::{AsyncCommands, AsyncConnectionConfig, Client, CommandCacheConfig, RedisResult};

use crate::Checks;

/// As many keys as make sure that each shard has some.
const KEYS: usize = 8;

struct Reader {
    connection: MultiplexedConnection,
    is_opt_in: bool,
    patience: Duration,
}

impl Reader {
    async fn read(&mut self, key: &str) -> RedisResult<Option<String>> {
        let mut get = redis::cmd("GET");
        get.arg(key);
        if self.is_opt_in {
            get.set_cache_config(CommandCacheConfig::new().set_enable_cache(true));
        }
        get.query_async(&mut self.connection).await
    }

    /// The invalidation may be on its way from another shard when the writer has its answer.
    async fn becomes(&mut self, keys: &[String], value: Option<&str>) -> RedisResult<bool> {
        let deadline = Instant::now() + self.patience;
        loop {
            let mut all = true;
            for key in keys {
                all &= self.read(key).await?.as_deref() == value;
            }
            if all || Instant::now() > deadline {
                return Ok(all);
            }
            // The task that reads the socket has this thread, too.
            tokio::task::yield_now().await;
        }
    }
}

/// How many GETs the server has executed.
async fn gets(writer: &mut MultiplexedConnection) -> RedisResult<u64> {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(writer).await?;
    let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
    let count = line.and_then(|line| line.split(',').next()).and_then(|count| count.parse().ok());
    Ok(count.unwrap_or(0))
}

/// Everything in both modes; `port` is that of a server without a password.
pub async fn caches(checks: &mut Checks, port: &str) -> RedisResult<()> {
    // How long a cache may take to hear of a change.
    let patience = std::env::var("MILLRACE_PATIENCE_S").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let patience = Duration::from_secs(patience);
    let client = Client::open(format!("redis://127.0.0.1:{port}/?protocol=resp3"))?;
    // By itself the library gives up after half a second, which a busy machine may well take for a flush.
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
    let mut writer = client.get_multiplexed_async_connection_with_config(&config).await?;
    for is_opt_in in [false, true] {
        println!("client-side cache, {}", if is_opt_in { "of chosen commands" } else { "of all commands" });
        let mode = if is_opt_in { CacheMode::OptIn } else { CacheMode::All };
        let config = config.clone().set_cache_config(CacheConfig::new().set_mode(mode));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut reader = Reader { connection, is_opt_in, patience };
        cache(checks, &mut reader, &mut writer).await?;
    }
    Ok(())
}

async fn cache(
    checks: &mut Checks,
    reader: &mut Reader,
    writer: &mut MultiplexedConnection,
) -> RedisResult<()> {
    let keys: Vec<String> = (0..KEYS).map(|number| format!("rs:cache:{number}")).collect();
    let () = redis::cmd("FLUSHALL").query_async(writer).await?;
    for key in &keys {
        let () = writer.set(key, "0").await?;
    }
    checks.holds("cache: first reads", reader.becomes(&keys, Some("0")).await?);
    let before = gets(writer).await?;
    let mut all = true;
    for key in keys.iter().cycle().take(50 * KEYS) {
        all &= reader.read(key).await?.as_deref() == Some("0");
    }
    checks.holds("cache: many reads", all);
    checks.equal("cache: none of them asked the server", gets(writer).await? - before, 0);
    for number in (1..=20).map(|number| number.to_string()) {
        for key in &keys {
            let () = writer.set(key, &number).await?;
        }
        checks.holds("cache: what was written", reader.becomes(&keys, Some(&number)).await?);
    }
    if reader.is_opt_in {
        // What was not chosen asks the server each time.
        let before = gets(writer).await?;
        for _ in 0..10 {
            let _: Option<String> = reader.connection.get(&keys[0]).await?;
        }
        checks.equal("cache: commands that were not chosen", gets(writer).await? - before, 10);
    }
    // Read once, and then not before it has ended: redis-rs stores a reply after its task has handled what came behind
    // it, so a value and its invalidation in one packet leave the value (docs/caching.md), and PTTL 0 makes that last.
    let () = writer.pexpire(&keys[0], 200).await?;
    reader.read(&keys[0]).await?;
    while writer.exists(&keys[0]).await? {}
    checks.holds("cache: after its end", reader.becomes(&keys[..1], None).await?);
    let () = redis::cmd("FLUSHALL").query_async(writer).await?;
    checks.holds("cache: after FLUSHALL", reader.becomes(&keys, None).await?);
    let statistics = reader.connection.get_cache_statistics().expect("it has a cache");
    checks.holds("cache: it says so itself", statistics.hit >= 50 * KEYS && statistics.invalidate >= KEYS);
    Ok(())
}

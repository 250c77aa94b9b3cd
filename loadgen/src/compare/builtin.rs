//! The targets that are known by name: how each server is started, and how other load generators are told to drive it.

use super::cases::{Listener, TargetEntry, ToolOutput};
use std::collections::BTreeMap;

fn words(line: &str) -> Vec<String> {
    line.split_ascii_whitespace().map(|word| word.trim_matches('\'').to_string()).collect()
}

/// A target that speaks RESP, by its command lines.
pub fn target_entry(name: &str, command: &str, version: &str) -> TargetEntry {
    TargetEntry {
        name: name.into(),
        command: words(command),
        version: words(version),
        listener: Listener::Resp,
        http_path: "/v1/keys/{key}".into(),
        fill: true,
        freeze: true,
        tool: Vec::new(),
        tool_version: Vec::new(),
        tool_output: ToolOutput::default(),
        fill_prefix: None,
        files: BTreeMap::new(),
    }
}

/// The targets that need no entry in a file.
pub fn builtin() -> Vec<TargetEntry> {
    let entry = |name: &str, listener: Listener, command: &str, version: &str| TargetEntry {
        listener,
        ..target_entry(name, command, version)
    };
    let millrace = "millrace --bind 127.0.0.1 --port {port} --http-port {http-port} --unixsocket {socket} --dir {dir} \
                    --pin {core} --durability off";
    let redis = |program: &str| {
        format!(
            "{program} --bind 127.0.0.1 --port {{port}} --unixsocket {{socket}} --dir {{dir}} --save '' --appendonly no"
        )
    };
    let version = "millrace --version";
    let mut list = vec![
        entry("millrace", Listener::Resp, millrace, version),
        entry("millrace-unix", Listener::Unix, millrace, version),
        entry("millrace-http", Listener::Http, millrace, version),
        entry("millrace-epoll", Listener::Resp, &format!("{millrace} --io epoll"), version),
        entry("millrace-epoll-unix", Listener::Unix, &format!("{millrace} --io epoll"), version),
        entry("millrace-epoll-http", Listener::Http, &format!("{millrace} --io epoll"), version),
        entry("redis", Listener::Resp, &redis("redis-server"), "redis-server --version"),
        entry("redis-unix", Listener::Unix, &redis("redis-server"), "redis-server --version"),
        entry("valkey", Listener::Resp, &redis("valkey-server"), "valkey-server --version"),
    ];
    let mut kevy = entry(
        "kevy",
        Listener::Resp,
        "kevy --bind 127.0.0.1 --port {port} --threads 1 --no-aof --dir {dir}",
        "kevy --version",
    );
    // 3.17.3 takes the EINTR that follows SIGCONT for a fatal error.
    kevy.freeze = false;
    let mut null =
        entry("null", Listener::Resp, "nullresp --port {port} --cpu {core} --reply-bytes {reply-bytes}", "");
    null.fill = false;
    let mut null_epoll = null.clone();
    null_epoll.name = "null-epoll".into();
    null_epoll.command.extend(["--mode".to_string(), "epoll".to_string()]);
    let mut nginx = entry("nginx", Listener::Http, "nginx -p {dir} -c {dir}/nginx.conf", "nginx -v");
    nginx.fill = false;
    nginx.http_path = "/".into();
    let body = "x".repeat(64);
    nginx.files.insert(
        "nginx.conf".into(),
        format!(
            "daemon off;\nmaster_process off;\nworker_processes 1;\npid {{dir}}/nginx.pid;\nerror_log stderr crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  \
             client_body_temp_path {{dir}}/body;\n  proxy_temp_path {{dir}}/proxy;\n  \
             fastcgi_temp_path {{dir}}/fastcgi;\n  uwsgi_temp_path {{dir}}/uwsgi;\n  scgi_temp_path {{dir}}/scgi;\n  \
             server {{\n    listen 127.0.0.1:{{http-port}} backlog=4096;\n    location / {{ default_type text/plain; \
             return 200 \"{body}\"; }}\n  }}\n}}\n"
        ),
    );
    // The flags that each project gives for a cache that keeps nothing, on one thread.
    let dragonfly = entry(
        "dragonfly",
        Listener::Resp,
        "dragonfly --bind 127.0.0.1 --port {port} --dir {dir} --dbfilename= --proactor_threads=1 --version_check=false",
        "dragonfly --version",
    );
    let memcached = entry(
        "memcached",
        Listener::Memcache,
        "memcached -l 127.0.0.1 -p {port} -U 0 -t 1 -m 4096 -c 20000 -u nobody",
        "memcached --version",
    );
    let pogocache = entry(
        "pogocache",
        Listener::Resp,
        "pogocache -h 127.0.0.1 -p {port} --threads=1",
        "pogocache --version",
    );
    // Not pinned to a core by itself: it inherits the one it is started on.
    let paced = "loadgen calibrate --paced 20ms --port {port} --http-port {http-port}";
    let paced = [("paced", Listener::Resp), ("paced-http", Listener::Http)].map(|(name, listener)| {
        let mut paced = entry(name, listener, paced, "loadgen --version");
        paced.fill = false;
        paced
    });
    list.extend([dragonfly, memcached, pogocache, kevy, null, null_epoll, nginx]);
    list.extend(paced);
    list
}

/// Between the names of a server and a tool in that of a target, as in `millrace-by-memtier`.
const BY: &str = "-by-";

/// Another load generator that is known by name.
struct Tool {
    name: &'static str,
    command: &'static str,
    version: &'static str,
    output: ToolOutput,
    /// What keys begin with that are set for it, where it asks for others than this tool.
    fill_prefix: Option<&'static str>,
    /// A file that it needs: name and contents.
    file: Option<(&'static str, &'static str)>,
}

const REDIS_BENCHMARK: &str = "redis-benchmark -h 127.0.0.1 -p {port} -c {connections} -P {pipeline} -n {requests} -r {keys} \
                               -d {value-size} -t {test} --precision 3 --csv";

const TOOLS: [Tool; 6] = [
    Tool {
        name: "redis-benchmark",
        command: REDIS_BENCHMARK,
        version: "redis-benchmark --version",
        output: ToolOutput::RedisBenchmarkCsv,
        fill_prefix: None,
        file: None,
    },
    Tool {
        name: "valkey-benchmark",
        command: "valkey-benchmark -h 127.0.0.1 -p {port} -c {connections} -P {pipeline} -n {requests} -r {keys} \
                  -d {value-size} -t {test} --precision 3 --csv",
        version: "valkey-benchmark --version",
        output: ToolOutput::RedisBenchmarkCsv,
        fill_prefix: None,
        file: None,
    },
    Tool {
        // It does not pad the numbers of its keys, so these begin where all have twelve digits.
        name: "memtier",
        command: "memtier_benchmark -s 127.0.0.1 -p {port} -t 1 -c {connections} --pipeline {pipeline} --ratio {ratio} \
                  --key-prefix key: --key-minimum {first-key} --key-maximum {last-key} -d {value-size} --test-time {seconds} \
                  --hide-histogram --json-out-file {dir}/out.json",
        version: "memtier_benchmark --version",
        output: ToolOutput::MemtierJson,
        fill_prefix: Some("key:1"),
        file: None,
    },
    Tool {
        name: "wrk",
        command: "wrk --latency -t 1 -c {connections} -d {seconds}s http://127.0.0.1:{http-port}{path}",
        version: "wrk -v",
        output: ToolOutput::WrkText,
        fill_prefix: None,
        file: None,
    },
    Tool {
        name: "k6",
        command: "k6 run --quiet --no-usage-report --vus {connections} --duration {seconds}s --summary-export {dir}/out.json \
                  --summary-trend-stats med,p(99) {dir}/script.js",
        version: "k6 version",
        output: ToolOutput::K6Summary,
        fill_prefix: None,
        file: Some((
            "script.js",
            "import http from 'k6/http';\nexport const options = { discardResponseBodies: true };\n\
             export default function () {\n  const key = String(Math.floor(Math.random() * {keys})).padStart(12, '0');\n  \
             http.get(`http://127.0.0.1:{http-port}{path-by-key}`, { responseType: 'none', tags: { name: 'get' } });\n}\n",
        )),
    },
    Tool {
        // The limit of what one core can ask: it judges nothing and draws nothing.
        name: "bare",
        command: "nullresp --mode client --port {port} --cpu {generator-core} --reply-bytes {reply-bytes} --conns {connections} \
                  --pipeline {pipeline} --secs {seconds}",
        version: "",
        output: ToolOutput::NullClientText,
        fill_prefix: None,
        file: None,
    },
];

/// The names of all tools, this one first.
pub fn tool_names() -> Vec<&'static str> {
    std::iter::once(OWN).chain(TOOLS.iter().map(|tool| tool.name)).collect()
}

/// What this tool is called among them.
pub const OWN: &str = "loadgen";

/// The server, and the tool that drives it, by the name of a target; this one drives those without another.
pub fn server_and_tool(name: &str) -> (&str, &str) {
    name.split_once(BY).unwrap_or((name, OWN))
}

/// The target of that name: one of a file, one that is known, or either of them driven by another tool; then with the name of
/// the same server driven by this one. A tool that speaks HTTP takes a server's HTTP listener.
pub fn find(name: &str, entries: &[TargetEntry]) -> Result<(TargetEntry, Option<String>), String> {
    let known = builtin();
    let all = || entries.iter().chain(&known);
    let named = |name: &str| all().find(|entry| entry.name == name);
    if let Some(entry) = named(name) {
        return Ok((entry.clone(), None));
    }
    let unknown = || {
        let names: Vec<&str> = all().map(|entry| entry.name.as_str()).collect();
        let tools = tool_names()[1..].join(", ");
        format!(
            "no target is called \"{name}\"; there are {}, and each of them{BY}TOOL: {tools}",
            names.join(", ")
        )
    };
    let (server, tool) = name.split_once(BY).ok_or_else(unknown)?;
    let tool = TOOLS.iter().find(|known| known.name == tool).ok_or_else(unknown)?;
    let server = named(server).ok_or_else(unknown)?;
    let protocol = tool.output.protocol();
    let server = match server.listener.protocol() == protocol && server.listener != Listener::Unix {
        true => server,
        false => {
            let other =
                named(&format!("{}-http", server.name)).filter(|other| other.listener.protocol() == protocol);
            other.ok_or_else(|| format!("{name}: {} does not speak what {} does", server.name, tool.name))?
        }
    };
    let mut entry = server.clone();
    entry.name = name.into();
    entry.tool = words(tool.command);
    entry.tool_version = words(tool.version);
    entry.tool_output = tool.output;
    entry.fill_prefix = tool.fill_prefix.map(str::to_string);
    entry.files.extend(tool.file.map(|(name, contents)| (name.to_string(), contents.to_string())));
    Ok((entry, Some(server.name.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What may stand in braces.
    const FIELDS: [&str; 18] = [
        "port",
        "http-port",
        "socket",
        "dir",
        "core",
        "generator-core",
        "reply-bytes",
        "connections",
        "pipeline",
        "requests",
        "keys",
        "first-key",
        "last-key",
        "value-size",
        "ratio",
        "test",
        "path",
        "seconds",
    ];

    #[test]
    fn targets_have_distinct_names_and_known_fields() {
        let list = builtin();
        for entry in &list {
            assert_eq!(list.iter().filter(|other| other.name == entry.name).count(), 1, "{}", entry.name);
            assert!(!entry.name.contains(BY), "{}: that is how tools are named", entry.name);
            let driven = |tool: &Tool| Some(find(&format!("{}{BY}{}", entry.name, tool.name), &[]).ok()?.0);
            for entry in TOOLS.iter().filter_map(driven).chain([entry.clone()]) {
                for word in entry.command.iter().chain(&entry.tool) {
                    for part in word.split('{').skip(1) {
                        let field = part.split('}').next().unwrap_or_default();
                        assert!(FIELDS.contains(&field), "{}: {word}", entry.name);
                    }
                }
            }
        }
    }

    #[test]
    fn every_server_can_be_driven_by_every_tool_that_speaks_its_protocol() {
        let by = |name: &str| find(name, &[]).unwrap_or_else(|error| panic!("{error}"));
        for (name, program, listener, undriven) in [
            ("millrace-by-memtier", "memtier_benchmark", Listener::Resp, "millrace"),
            ("redis-by-valkey-benchmark", "valkey-benchmark", Listener::Resp, "redis"),
            // HTTP has a listener of its own.
            ("millrace-by-wrk", "wrk", Listener::Http, "millrace-http"),
            ("millrace-http-by-wrk", "wrk", Listener::Http, "millrace-http"),
            ("nginx-by-k6", "k6", Listener::Http, "nginx"),
            ("null-by-bare", "nullresp", Listener::Resp, "null"),
        ] {
            let (entry, same_server) = by(name);
            assert_eq!(
                (entry.name.as_str(), entry.tool[0].as_str(), entry.listener),
                (name, program, listener)
            );
            assert_eq!(same_server.as_deref(), Some(undriven), "{name}");
        }
        assert_eq!(by("millrace").1, None);
        assert_eq!(by("nginx-by-k6").0.files.len(), 2, "its own configuration, and the script");
        assert_eq!((server_and_tool("a-by-wrk"), server_and_tool("a")), (("a", "wrk"), ("a", OWN)));
        let refused = |name: &str| find(name, &[]).expect_err("must be refused");
        assert!(refused("redis-by-wrk").contains("does not speak what wrk does"));
        assert!(refused("millrace-unix-by-memtier").contains("does not speak"));
        for name in ["nothing", "nothing-by-wrk", "millrace-by-nothing"] {
            assert!(refused(name).contains("no target is called") && refused(name).contains("wrk, k6"));
        }
        // A target of a file counts before one that is known, and can be driven, too.
        let mut mine = target_entry("mine", "mine {port}", "");
        mine.listener = Listener::Http;
        assert_eq!(find("mine-by-wrk", &[mine]).expect("known").0.command, ["mine", "{port}"]);
    }
}

//! The flags of `loadgen audit`, and the plan they describe.

use super::connection::Endpoint;
use super::server::{Signal, split_words};
use crate::cli::{ParsedTarget, parse_duration, parse_target};
use crate::workload::Protocol;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Flags of `audit`.
#[derive(Clone, Debug, Args)]
pub struct AuditArgs {
    /// HOST:PORT, resp://HOST:PORT, unix:///PATH or http://HOST:PORT. Not needed beside --start if the command names
    /// {port} or the server prints a line "ready resp=HOST:PORT".
    #[arg(long, value_name = "URL", required_unless_present = "start")]
    pub target: Option<String>,
    /// The server's command line. It is started, killed and started again by this program, without a shell: write what
    /// `exec` would be given. {port}, {http-port}, {socket} and {dir} are filled in and stay the same.
    #[arg(long, value_name = "COMMAND LINE")]
    pub start: Option<String>,
    /// Let half of the clients speak HTTP, to this HOST:PORT; `ready` takes it from the server's ready line.
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
    /// How often the server goes away. Without --start somebody else kills and restarts it.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub cycles: u32,
    /// How it is killed: SIGKILL, SIGTERM, SIGINT, SIGQUIT or SIGABRT. With any other than SIGKILL the server may save
    /// first.
    #[arg(long, default_value = "SIGKILL", value_parser = Signal::parse, value_name = "SIGNAL", requires = "start")]
    pub kill: Signal,
    /// Acknowledged writes before a kill, on average: each cycle draws a number from 1 to twice this.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000), value_name = "N")]
    pub acks: u64,
    /// Clients, each with a connection and keys of its own.
    #[arg(long, short = 'c', default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000), value_name = "N")]
    pub clients: u16,
    /// Keys of each client.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(2..=10_000), value_name = "N")]
    pub keys: u16,
    /// Writes that a client sends together, at most; each time it draws a number.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000), value_name = "N")]
    pub pipeline: u16,
    /// Clients that only read, keys of all others: what they are shown must survive as well.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=100), value_name = "N")]
    pub readers: u16,
    /// Bytes of a value, at most. Appending makes some up to four times as long.
    #[arg(long, short = 'd', default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1 << 20), value_name = "BYTES")]
    pub value_size: u32,
    /// No answer takes longer.
    #[arg(long, default_value = "10s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// How long the server may take to start or, where somebody else kills it, to go away and to come back.
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "TIME")]
    pub patience: Duration,
    /// After this no other cycle begins, and the audit counts as incomplete.
    #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "TIME")]
    pub max_time: Duration,
    /// What keys begin with. All keys that begin so belong to the audit and are overwritten.
    #[arg(long, default_value = "audit:", value_name = "TEXT")]
    pub key_prefix: String,
    /// Seed of writes, pipelines and of the moments of the kills.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Name of an environment variable that holds the password.
    #[arg(long, value_name = "VARIABLE")]
    pub password_env: Option<String>,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// All that determines an audit but for the server.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// How often the server goes away.
    pub cycles: u32,
    /// Acknowledgements before a kill, on average.
    pub acks: u64,
    /// Writing clients.
    pub clients: usize,
    /// Keys of each.
    pub keys: usize,
    /// Writes sent together, at most.
    pub pipeline_max: usize,
    /// Reading clients.
    pub readers: usize,
    /// Bytes of a value, at most.
    pub value_bytes_max: usize,
    /// What keys begin with.
    pub key_prefix: String,
    /// The seed.
    pub seed: u64,
    /// No start takes longer.
    #[serde(skip)]
    pub patience: Duration,
    /// When no other cycle begins.
    #[serde(skip)]
    pub max_time: Duration,
}

/// How the server comes and goes.
#[derive(Clone, Debug)]
pub enum Way {
    /// Somebody else sees to it.
    Watched(Addresses),
    /// It is started and killed here.
    Started {
        /// Program and arguments, fields not filled in.
        words: Vec<String>,
        /// What to send it.
        signal: Signal,
        /// Where it listens, fields not filled in; `None`: its ready line says so.
        target: Option<String>,
        /// Where it speaks HTTP, if that is wanted.
        http: Option<String>,
        /// The password, if it wants one.
        password: Option<String>,
        /// No answer takes longer.
        timeout: Duration,
    },
}

/// Where clients go: to one address, or by turns to two.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// For every client, or for every other one.
    pub main: Endpoint,
    /// For the others.
    pub http: Option<Endpoint>,
}

impl Addresses {
    /// The address of one client.
    pub fn of(&self, client: usize) -> &Endpoint {
        match &self.http {
            Some(http) if client % 2 == 1 => http,
            _ => &self.main,
        }
    }

    /// Reads what the flags or a ready line say.
    pub fn parse(
        target: &str,
        http: Option<&str>,
        password: Option<&str>,
        timeout: Duration,
    ) -> Result<Addresses, String> {
        let endpoint =
            |target: ParsedTarget| Endpoint { target, password: password.map(str::to_string), timeout };
        let with_scheme = |text: &str, scheme: &str| match text.contains("://") {
            true => text.to_string(),
            false => format!("{scheme}://{text}"),
        };
        let main = parse_target(&with_scheme(target, "resp"))?;
        if main.protocol == Protocol::Memcache {
            return Err("memcached promises to keep nothing, so there is nothing to audit".into());
        }
        let http = http.map(|http| parse_target(&with_scheme(http, "http"))).transpose()?;
        if http.as_ref().is_some_and(|http| http.protocol != Protocol::Http) {
            return Err("--http wants the HOST:PORT of a server's HTTP listener".into());
        }
        Ok(Addresses { main: endpoint(main), http: http.map(endpoint) })
    }
}

impl AuditArgs {
    /// The plan these flags describe; `Err` is a usage error.
    pub fn plan(&self) -> Result<(Plan, Way), String> {
        let password = match &self.password_env {
            Some(name) => Some(
                std::env::var(name).map_err(|_| format!("--password-env: the variable {name} is not set"))?,
            ),
            None => None,
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":._-".contains(&byte);
        if self.key_prefix.is_empty() || !self.key_prefix.bytes().all(is_plain) {
            return Err("--key-prefix is made of letters, digits and : . _ -, and is not empty".into());
        }
        for (flag, time) in
            [("timeout", self.timeout), ("patience", self.patience), ("max-time", self.max_time)]
        {
            if time.is_zero() {
                return Err(format!("--{flag} must be more than nothing"));
            }
        }
        let way = match (&self.start, &self.target) {
            (None, Some(target)) => {
                if self.http.as_deref() == Some("ready") {
                    return Err("--http ready needs --start: name the HOST:PORT".into());
                }
                let http = self.http.as_deref();
                Way::Watched(Addresses::parse(target, http, password.as_deref(), self.timeout)?)
            }
            (Some(start), target) => {
                let words = split_words(start).map_err(|error| format!("--start: {error}"))?;
                let names_port = words.iter().any(|word| word.contains("{port}"));
                let default = names_port.then(|| "127.0.0.1:{port}".to_string());
                Way::Started {
                    words,
                    signal: self.kill,
                    target: target.clone().or(default),
                    http: self.http.clone(),
                    password,
                    timeout: self.timeout,
                }
            }
            (None, None) => return Err("an audit needs --target or --start".into()),
        };
        let plan = Plan {
            cycles: self.cycles,
            acks: self.acks,
            clients: usize::from(self.clients),
            keys: usize::from(self.keys),
            pipeline_max: usize::from(self.pipeline),
            readers: usize::from(self.readers),
            value_bytes_max: self.value_size as usize,
            key_prefix: self.key_prefix.clone(),
            seed: self.seed,
            patience: self.patience,
            max_time: self.max_time,
        };
        Ok((plan, way))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn plan(flags: &[&str]) -> Result<(Plan, Way), String> {
        let line = ["loadgen", "audit"].iter().chain(flags);
        let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
        match cli.command {
            Some(Command::Audit(arguments)) => arguments.plan(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_is_watched_or_started() {
        let (plan_of_it, way) = plan(&["--target", "127.0.0.1:7", "--http", "127.0.0.1:8"]).expect("valid");
        assert_eq!((plan_of_it.cycles, plan_of_it.acks), (10, 2_000));
        let Way::Watched(addresses) = way else { panic!("{way:?}") };
        assert_eq!(addresses.of(0).target.protocol, Protocol::Resp);
        assert_eq!(addresses.of(1).target.protocol, Protocol::Http);
        let (_, way) = plan(&["--start", "server --port {port} --save ''", "--kill", "TERM"]).expect("valid");
        let Way::Started { words, target, signal, .. } = way else { panic!("{way:?}") };
        assert_eq!(words, ["server", "--port", "{port}", "--save", ""]);
        assert_eq!((target.as_deref(), signal.name()), (Some("127.0.0.1:{port}"), "TERM"));
    }

    #[test]
    fn contradictions_are_usage_errors_that_say_what_to_do() {
        let wrong = |flags: &[&str]| plan(flags).expect_err("must be refused");
        assert!(wrong(&[]).contains("--target"));
        assert!(wrong(&["--target", "127.0.0.1:7", "--kill", "KILL"]).contains("--start"));
        assert!(wrong(&["--target", "127.0.0.1:7", "--http", "ready"]).contains("--start"));
        assert!(wrong(&["--target", "127.0.0.1:7", "--http", "resp://127.0.0.1:8"]).contains("--http"));
        assert!(wrong(&["--start", "server", "--kill", "SIGSTOP"]).contains("SIGKILL"));
        assert!(wrong(&["--start", "server 'x"]).contains("quote"));
        assert!(wrong(&["--start", " "]).contains("program"));
        assert!(wrong(&["--start", "server", "--cycles", "0"]).contains("cycles"));
        assert!(wrong(&["--start", "server", "--key-prefix", "a b"]).contains("--key-prefix"));
        assert!(wrong(&["--start", "server", "--patience", "0"]).contains("--patience"));
        assert!(
            wrong(&["--start", "server", "--password-env", "LOADGEN_NO_SUCH_VARIABLE"]).contains("not set")
        );
    }
}

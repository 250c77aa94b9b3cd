//! The server that comes and goes: started and killed here, or by somebody else.
//!
//! Whether it serves is asked with PING (or /healthz); a line `ready …` on its stdout tells where it listens. Looking
//! again and again is all that works with a server of another make, and with one that somebody else restarts.

use super::connection::{Connection, Endpoint};
use super::plan::{Addresses, Way};
use reactor::io::stop::StopSignal;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks whether a server serves: also the precision of recovery times.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long its last words are waited for when it has ended: a process it left behind may hold its pipes open.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(500);
/// Lines of its output that are kept for an error message.
const LOG_LINES_MAX: usize = 20;

/// A signal that ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(&'static str);

impl Signal {
    const ALL: [Signal; 5] = [Signal("KILL"), Signal("TERM"), Signal("INT"), Signal("QUIT"), Signal("ABRT")];

    /// Reads `SIGKILL` or `KILL`.
    pub fn parse(text: &str) -> Result<Signal, String> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        Signal::ALL
            .into_iter()
            .find(|signal| signal.0 == name)
            .ok_or_else(|| "one of SIGKILL, SIGTERM, SIGINT, SIGQUIT, SIGABRT ends a server".into())
    }

    /// Its name without SIG.
    pub fn name(self) -> &'static str {
        self.0
    }
}

/// Splits a command line into words at blanks outside quotes. There is no other syntax: no variables, no escapes.
pub fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, blank) if blank.is_ascii_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    match quote {
        Some(quote) => Err(format!("a quote {quote} is not closed")),
        None if words.first().is_none_or(|program| program.is_empty()) => Err("it names no program".into()),
        None => Ok(words),
    }
}

/// What a server has printed.
#[derive(Debug, Default)]
struct Output {
    /// The last lines.
    lines: VecDeque<String>,
    /// The line that says where it listens.
    ready: Option<String>,
}

/// A server that comes and goes.
#[derive(Debug)]
pub struct Server {
    way: Way,
    /// The running process, if it is ours.
    child: Mutex<Option<Child>>,
    /// Fields of the command line, filled in.
    fields: Vec<(&'static str, String)>,
    folder: Option<PathBuf>,
    output: Arc<Mutex<Output>>,
    /// The threads that read it.
    listeners: Vec<JoinHandle<()>>,
    addresses: Option<Addresses>,
    /// Leave its folder behind: something is wrong in it.
    pub keeps_folder: bool,
}

impl Server {
    /// A server that is not started yet.
    pub fn new(way: Way) -> Result<Server, String> {
        let mut server = Server {
            way,
            child: Mutex::new(None),
            fields: Vec::new(),
            folder: None,
            output: Arc::default(),
            listeners: Vec::new(),
            addresses: None,
            keeps_folder: false,
        };
        if let Way::Started { .. } = server.way {
            let folder = fresh_folder().map_err(|error| format!("no folder for the server: {error}"))?;
            let ports = free_ports().map_err(|error| format!("no free port: {error}"))?;
            server.fields = vec![
                ("{port}", ports[0].to_string()),
                ("{http-port}", ports[1].to_string()),
                ("{socket}", folder.join("s").display().to_string()),
                ("{dir}", folder.display().to_string()),
            ];
            server.folder = Some(folder);
        }
        Ok(server)
    }

    /// Whether it is started and killed here.
    pub fn is_ours(&self) -> bool {
        matches!(self.way, Way::Started { .. })
    }

    /// Where clients go.
    pub fn addresses(&self) -> &Addresses {
        self.addresses.as_ref().expect("a server is up before it is spoken to")
    }

    /// For messages.
    pub fn name(&self) -> String {
        match &self.way {
            Way::Watched(addresses) => addresses.main.target.host.clone(),
            Way::Started { words, .. } => {
                let quoted = |word: String| match word.is_empty() || word.contains(' ') {
                    true => format!("'{word}'"),
                    false => word,
                };
                words.iter().map(|word| quoted(self.fill_in(word))).collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// Its folder, where it has one of ours.
    pub fn folder(&self) -> Option<&PathBuf> {
        self.folder.as_ref()
    }

    fn fill_in(&self, text: &str) -> String {
        self.fields.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
    }

    /// Starts it, or waits for somebody else to; how long it took until it served.
    pub fn up(&mut self, patience: Duration, stop: &StopSignal) -> Result<Duration, String> {
        let began = Instant::now();
        if let Way::Watched(addresses) = &self.way {
            self.addresses = Some(addresses.clone());
        } else {
            self.spawn()?;
        }
        loop {
            if let Some(status) = self.ended() {
                return Err(format!("the server ended before it served ({status}){}", self.log_tail()));
            }
            self.learn_addresses()?;
            let latest = match &self.addresses {
                None => "it has not printed a line \"ready resp=HOST:PORT\"; is --target missing?".into(),
                Some(addresses) => match addresses.all().try_for_each(serves) {
                    Ok(()) => return Ok(began.elapsed()),
                    Err(error) => error.to_string(),
                },
            };
            if stop.is_requested() {
                return Err(INTERRUPTED.into());
            }
            if began.elapsed() > patience {
                let wait = patience.as_secs_f64();
                return Err(format!(
                    "the server does not serve within {wait} s: {latest}{}",
                    self.log_tail()
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn spawn(&mut self) -> Result<(), String> {
        let Way::Started { words, .. } = &self.way else { unreachable!("only ours are started") };
        let mut command = Command::new(self.fill_in(&words[0]));
        command.args(words[1..].iter().map(|word| self.fill_in(word)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("cannot start \"{}\": {error}", words[0]))?;
        // Not the old one emptied: its reader may not be at the end yet.
        self.output = Arc::default();
        self.addresses = None;
        self.listeners = vec![
            listen(child.stdout.take().expect("it is piped"), Arc::clone(&self.output)),
            listen(child.stderr.take().expect("it is piped"), Arc::clone(&self.output)),
        ];
        *self.lock_child() = Some(child);
        Ok(())
    }

    /// Takes addresses from the flags or the ready line, as soon as that is possible.
    fn learn_addresses(&mut self) -> Result<(), String> {
        let Way::Started { target, http, password, timeout, .. } = &self.way else { return Ok(()) };
        if self.addresses.is_some() {
            return Ok(());
        }
        let ready = self.lock_output().ready.clone();
        let said = |name: &str| {
            let line = ready.as_deref()?;
            line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_string)
        };
        let target = target.as_ref().map(|target| self.fill_in(target)).or_else(|| said("resp="));
        let http = match http.as_deref() {
            Some("ready") => match said("http=") {
                Some(address) => Some(address),
                None if ready.is_none() => return Ok(()),
                None => return Err("--http ready: the ready line names no http=".into()),
            },
            http => http.map(|http| self.fill_in(http)),
        };
        let Some(target) = target else { return Ok(()) };
        self.addresses = Some(Addresses::parse(&target, http.as_deref(), password.as_deref(), *timeout)?);
        Ok(())
    }

    /// Sends the signal, from whatever thread. Nothing happens to a server that is not ours or not there.
    pub fn kill(&self) {
        let Way::Started { signal, .. } = &self.way else { return };
        let mut child = self.lock_child();
        let Some(child) = child.as_mut() else { return };
        if signal.name() == "KILL" {
            let _ = child.kill();
            return;
        }
        // The shell's own kill: there may be no program of that name.
        let script = format!("kill -{} {}", signal.name(), child.id());
        let _ = Command::new("sh").arg("-c").arg(script).stdin(Stdio::null()).stderr(Stdio::null()).status();
    }

    /// Waits until the process has ended. Of a server that is not ours nobody can tell whether it is gone or already
    /// back: that every client has lost its connection must do.
    pub fn wait_until_gone(&mut self, patience: Duration) -> Result<(), String> {
        let began = Instant::now();
        while began.elapsed() < patience {
            if !self.is_ours() || self.ended().is_some() {
                *self.lock_child() = None;
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(format!(
            "the server does not end within {} s of the signal{}",
            patience.as_secs_f64(),
            self.log_tail()
        ))
    }

    /// Its status, if it is ours and has ended or does so soon: connections close a moment before the process is gone.
    pub fn ends_soon(&self) -> Option<ExitStatus> {
        let deadline = Instant::now() + LAST_WORDS_WITHIN;
        loop {
            let status = self.ended();
            if status.is_some() || !self.is_ours() || Instant::now() > deadline {
                return status;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Its status, if it is ours and has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.lock_child().as_mut()?.try_wait().ok()?
    }

    /// The end of what it printed, for an error message.
    pub fn log_tail(&self) -> String {
        // Of a process that has just ended the last words may be in the pipe still.
        let deadline = Instant::now() + LAST_WORDS_WITHIN;
        while self.ended().is_some()
            && !self.listeners.iter().all(JoinHandle::is_finished)
            && Instant::now() < deadline
        {
            std::thread::sleep(LOOK_EVERY);
        }
        let lines: Vec<String> = self.lock_output().lines.iter().cloned().collect();
        if lines.is_empty() { String::new() } else { format!("; it printed:\n  {}", lines.join("\n  ")) }
    }

    fn lock_child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_output(&self) -> std::sync::MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a server serves there; the error says why not yet.
fn serves(endpoint: &Endpoint) -> io::Result<()> {
    Connection::open(endpoint)?.ping()?.map_err(io::Error::other)
}

/// What an audit says that was interrupted.
pub const INTERRUPTED: &str = "interrupted";

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.lock_child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(folder) = self.folder.as_ref().filter(|_| !self.keeps_folder) {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl Addresses {
    fn all(&self) -> impl Iterator<Item = &Endpoint> {
        std::iter::once(&self.main).chain(&self.http)
    }
}

/// Somebody must read what a server prints, or it would block on a full pipe.
fn listen(stream: impl Read + Send + 'static, output: Arc<Mutex<Output>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        // A server may print what is not text.
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            line.clear();
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            if output.ready.is_none() && text.starts_with("ready ") {
                output.ready = Some(text.clone());
            }
            if output.lines.len() == LOG_LINES_MAX {
                output.lines.pop_front();
            }
            output.lines.push_back(text);
        }
    })
}

fn fresh_folder() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    for number in 0..10_000 {
        let folder = base.join(format!("loadgen-audit-{}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("ten thousand folders are taken"))
}

/// Ports that are free now. Another program may take one before the server does; then the server says so.
fn free_ports() -> io::Result<[u16; 2]> {
    let listeners = [TcpListener::bind(("127.0.0.1", 0))?, TcpListener::bind(("127.0.0.1", 0))?];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_split_at_blanks_outside_quotes() {
        let split = |line: &str| split_words(line).expect("a command line");
        assert_eq!(split("  a  b\tc "), ["a", "b", "c"]);
        assert_eq!(split("a --save '' \"b c\" d'e f'g"), ["a", "--save", "", "b c", "de fg"]);
        assert_eq!(split("a 'say \"x\"'"), ["a", "say \"x\""]);
        assert!(split_words("a \"b").is_err() && split_words("").is_err() && split_words("'' a").is_err());
    }

    #[test]
    fn signals_are_known_with_and_without_sig() {
        assert_eq!(Signal::parse("SIGKILL"), Signal::parse("kill"));
        assert_eq!(Signal::parse("sigterm").map(Signal::name), Ok("TERM"));
        assert!(Signal::parse("SIGSTOP").is_err() && Signal::parse("9").is_err());
    }
}

//! The binary as a process: started, spoken to, signalled, and never waited for without a limit.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longer than anything here takes; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const BINARY: &str = env!("CARGO_BIN_EXE_millrace");

/// The drivers this machine has.
pub fn drivers() -> &'static [&'static str] {
    match std::env::var_os("MILLRACE_WITHOUT_IO_URING") {
        None => &["io_uring", "epoll"],
        Some(_) => &["epoll"],
    }
}

/// A directory of one test's own, removed with the value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("millrace-server-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
    pub fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that has said `ready`; killed with the value if it still runs.
pub struct Running {
    pub child: Child,
    pub ready: String,
    /// stderr, line by line.
    pub messages: Receiver<String>,
}

impl Running {
    pub fn start(arguments: &[&str]) -> Running {
        Self::spawn(
            Command::new(BINARY)
                .args(["--port", "0", "--http-port", "0", "--durability", "off"])
                .args(arguments),
        )
    }

    pub fn spawn(command: &mut Command) -> Running {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = lines(child.stdout.take().unwrap());
        let messages = lines(child.stderr.take().unwrap());
        match output.recv_timeout(PATIENCE) {
            Ok(ready) => {
                assert!(ready.starts_with("ready "), "{ready}");
                Running { child, ready, messages }
            }
            Err(_) => {
                let _ = child.kill();
                let said: Vec<String> = messages.iter().collect();
                panic!("not ready: {:?}: {}", child.wait(), said.join("\n"));
            }
        }
    }

    /// The next line on stderr that has all these words. What was said before `ready`, on stdout, may be read after it.
    pub fn heard(&self, words: &[&str]) -> String {
        let mut said = Vec::new();
        while let Ok(line) = self.messages.recv_timeout(PATIENCE) {
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            said.push(line);
        }
        panic!("nothing of {words:?} in {said:?}");
    }

    /// A field of the ready line.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.ready.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    }

    pub fn resp(&self) -> SocketAddr {
        self.field("resp").unwrap().parse().unwrap()
    }

    pub fn client(&self) -> Client<TcpStream> {
        Client::tcp(self.resp())
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server has not ended after {limit:?}");
            // stderr ends with the process: waiting for that is waiting for the process.
            let _ = self.messages.recv_timeout(Duration::from_millis(20));
        }
    }

    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait(PATIENCE);
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn lines(source: impl Read + Send + 'static) -> Receiver<String> {
    let (give, take) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if give.send(line).is_err() {
                return;
            }
        }
    });
    take
}

/// Just enough of RESP.
pub struct Client<S>(pub S);

impl Client<TcpStream> {
    pub fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }
}

impl Client<UnixStream> {
    pub fn unix(path: &str) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_string()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.0.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        self.line()
    }

    /// A bulk reply, or an array of them joined by spaces.
    pub fn bulk(&mut self, command: &str) -> String {
        let head = self.ask(command);
        let (kind, count) = head.split_at(1);
        let count: usize = count.parse().unwrap();
        match kind {
            "$" => self.body(count),
            "*" => (0..count)
                .map(|_| {
                    let length = self.line()[1..].parse().unwrap();
                    self.body(length)
                })
                .collect::<Vec<_>>()
                .join(" "),
            _ => panic!("{command}: {head}"),
        }
    }

    pub fn body(&mut self, length: usize) -> String {
        let mut body = vec![0; length + 2];
        self.0.read_exact(&mut body).unwrap();
        body.truncate(length);
        String::from_utf8(body).unwrap()
    }

    pub fn ping(&mut self) {
        assert_eq!(self.ask("PING"), "+PONG");
    }
}

/// Runs the binary to its end.
pub fn run(arguments: &[&str]) -> Output {
    run_within(arguments, PATIENCE)
}

/// The same with less patience. A binary that does not end, because it serves what it should have refused, is killed and
/// said: a test that waits for ever says nothing.
pub fn run_within(arguments: &[&str], patience: Duration) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let whole = |mut source: Box<dyn Read + Send>| {
        let (give, take) = channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = source.read_to_end(&mut bytes);
            let _ = give.send(bytes);
        });
        take
    };
    let output = whole(Box::new(child.stdout.take().unwrap()));
    let messages = whole(Box::new(child.stderr.take().unwrap()));
    // Its output ends when it does.
    let Ok(stdout) = output.recv_timeout(patience) else {
        let _ = child.kill();
        let _ = child.wait();
        let said =
            |from: &Receiver<Vec<u8>>| String::from_utf8_lossy(&from.recv().unwrap_or_default()).into_owned();
        panic!(
            "millrace {} has not ended after {patience:?}; it was to refuse. It said: {}{}",
            arguments.join(" "),
            said(&output),
            said(&messages)
        );
    };
    Output { status: child.wait().unwrap(), stdout, stderr: messages.recv().unwrap() }
}

/// What a start that fails says.
pub fn refused(arguments: &[&str], code: i32) -> String {
    told(run(arguments), code)
}

pub fn told(output: Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is said on stdout");
    text
}

/// A shell that runs the binary below limits; as root it loses the privileges that lift them.
pub fn limited(limits: &str) -> Command {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let drop = match root {
        true => "setpriv --bounding-set=-ipc_lock,-sys_resource --inh-caps=-ipc_lock,-sys_resource --",
        false => "",
    };
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits}; exec {drop} \"$0\" \"$@\""), BINARY]);
    command
}

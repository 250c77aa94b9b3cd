//! NGINX with the configuration of docs/nginx on a host of its own, followed by its script; and requests through it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::hosts::{Host, PATIENCE};
use crate::runner::Skipped;

/// A process that is ended with the value.
#[derive(Debug)]
pub struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// NGINX and follow-primary.sh on a host, for nodes on these; returns the address of the former. Its files lie in a directory
/// that is made.
pub fn start_proxy(
    host: &Host,
    nodes: &[&Host],
    home: &Path,
) -> Result<(SocketAddr, Program, Program), Skipped> {
    let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
    let Some(nginx) = nginx else {
        return Err(Skipped("nginx is not installed".into()));
    };
    let documents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nginx");
    fs::create_dir_all(home).expect("a directory for NGINX");
    let site = fs::read_to_string(documents.join("millrace.conf")).expect("the documented configuration");
    let site = site.replace("listen 127.0.0.1:8088", &format!("listen {}:8088", host.address));
    fs::write(home.join("site.conf"), site).expect("written");
    fs::write(
        home.join("nginx.conf"),
        "pid nginx.pid; error_log error.log; worker_processes 1; events {}\nhttp { access_log off;\n\
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;\n\
         scgi_temp_path scgi; include site.conf; }\n",
    )
    .expect("written");
    let base = format!("{nginx} -p {} -c nginx.conf", home.display());
    let nodes: Vec<String> = nodes.iter().map(|node| format!("{}:8080", node.address)).collect();
    let follow = |once: &str| {
        let mut command = host.command(documents.join("follow-primary.sh"));
        command
            .args(&nodes)
            .env("UPSTREAMS", home.join("millrace-upstreams.conf"))
            .env("CHECK", format!("{base} -q -t"))
            .env("RELOAD", if once.is_empty() { format!("{base} -s reload") } else { "true".into() })
            .env("INTERVAL", "0.1")
            .env("ONCE", once);
        command
    };
    let end = Instant::now() + PATIENCE;
    while !home.join("millrace-upstreams.conf").exists() {
        assert!(Instant::now() < end, "no node is a primary");
        assert!(follow("1").status().expect("the script runs").success());
    }
    let arguments: Vec<&str> = base.split(' ').collect();
    let proxy = host.command(arguments[0]).args(&arguments[1..]).args(["-g", "daemon off;"]).spawn();
    let proxy = Program(proxy.expect("NGINX can be started"));
    let follower = Program(follow("").stdout(Stdio::null()).spawn().expect("the script can be started"));
    Ok(((host.address, 8088).into(), proxy, follower))
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The record that it names.
    pub token: Option<String>,
    /// Its body.
    pub body: String,
}

/// One request on a connection of its own.
pub fn ask(
    proxy: SocketAddr,
    method: &str,
    key: &str,
    body: &str,
    token: Option<&str>,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&proxy, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let field = token.map_or_else(String::new, |token| format!("X-Millrace-LSN: {token}\r\n"));
    let length = body.len();
    write!(
        stream,
        "{method} /v1/keys/{key} HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\nContent-Length: {length}\r\n{field}\r\n{body}"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("cut off: {text:?}")))?;
    let status = head.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or_default();
    let token = head.lines().find_map(|line| line.strip_prefix("X-Millrace-LSN: ")).map(str::to_string);
    Ok(Answer { status, token, body: body.to_string() })
}

//! The sockets of replicas: what `Primary` wants said is written, what they say is read, files are read for them.
//!
//! A socket takes what it takes; the rest waits here, and `Primary`'s window bounds it. Anybody may connect: until a replica
//! has proved who it is it costs a socket and nothing else, sockets are bounded, and so is what is said of strangers.
//! Whoever asks in RESP where replicas
//! connect is told (`REPLCONF replication-port`), so that it does not matter which of the two ports REPLICAOF names.

use super::log_side::LogRead;
use super::seldom::Seldom;
use super::thread::{Event, TapState, Worker};
use crate::clock::monotonic_ns;
use crate::io::log_files::checksum;
use crate::io::snapshot_files::{SnapshotReader, list_snapshots, snapshot_path};
use crate::server::recovery::RecoveryError;
use repl::backlog::SharedBytes;
use repl::fault::Reason;
use repl::message::SnapshotName;
use repl::primary::{Action, LinkId};
use snapshot::format::Header;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use wal::block::PAGE_BYTES;
use wal::record::Record;

/// Bytes read from a socket in one go, and in one round.
pub(super) const READ_BYTES: usize = 64 << 10;
const ROUND_BYTES: usize = 512 << 10;
/// How long the last words of a connection may take.
const LAST_WORDS_US: u64 = 1_000_000;
/// Connections there may be: replicas, strangers, those who still hear their last words. Others wait in the kernel.
const SOCKETS_MAX: usize = 256;
/// Connections taken in one round, so that a burst of them does not starve replicas.
const ACCEPT_BURST: usize = 64;
/// How long the listener rests after one could not be taken for want of descriptors or memory, unless one closes before.
const ACCEPT_REST_US: u64 = 100_000;
/// How long records go on being kept behind the last replica: one that is started anew, or whose network was gone for a
/// moment, is sent what it lacks from memory. Behind that it comes from the log.
const TAP_LINGER_US: u64 = 10_000_000;

/// How connections come in.
#[derive(Debug, Default)]
pub(super) struct Entrance {
    /// None is taken before then: there were no descriptors.
    rests_until: Option<u64>,
    /// Why the connections of strangers ended.
    strangers: Seldom,
    /// Why none could be taken.
    refusals: Seldom,
    /// Why the log could not be read for somebody.
    reads: Seldom,
    /// Who came a second time.
    twins: Seldom,
    /// Since when records are kept for nobody.
    idle_since: Option<u64>,
}

impl Entrance {
    /// When it wants to be looked at though nothing happens.
    pub(super) fn until(&self) -> Option<u64> {
        let linger = self.idle_since.map(|since| since + TAP_LINGER_US);
        let said = [&self.strangers, &self.refusals, &self.reads, &self.twins].map(Seldom::due);
        [self.rests_until, linger].into_iter().chain(said).flatten().min()
    }
}

/// A replica's connection.
pub(super) struct LinkSocket {
    pub(super) socket: TcpStream,
    /// Its address, for people.
    pub(super) peer: String,
    out: VecDeque<SharedBytes>,
    /// So many bytes of the first are written.
    written: usize,
    /// It is closed when everything is written, or then.
    closes_at: Option<u64>,
    /// Nothing has come yet.
    is_fresh: bool,
    /// The snapshot it is being sent.
    snapshot: Option<SnapshotReader>,
}

impl LinkSocket {
    /// There is something to be written now. Whoever connects speaks first: one that asks where replicas connect is told
    /// so, and nothing else.
    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty() && (!self.is_fresh || self.is_closing())
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closes_at.is_some()
    }
}

/// A replica that needs a snapshot.
pub(super) struct Finding {
    link: LinkId,
    partial: Option<SnapshotName>,
    /// One was asked for when so many had been completed.
    asked: Option<u64>,
    /// None was asked for since, because data was still being read in.
    has_waited: bool,
    attempts: u32,
}

impl Worker {
    /// Takes new connections.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPT_BURST {
            let listener = self.listener.as_ref().filter(|listener| self.is_ready(*listener));
            let Some(listener) = listener.filter(|_| self.takes_connections()) else { return };
            match listener.accept() {
                Ok((socket, peer)) => self.greet(socket, peer),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return,
                    // The peer went away while it waited.
                    Some(libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
                    _ => {
                        // What waits would be told of for ever.
                        self.entrance.rests_until = Some(monotonic_ns() / 1000 + ACCEPT_REST_US);
                        self.entrance.refusals.add(format!(
                            "no connection can be taken on the port for replicas: {error}; it is tried again. If it goes on, \
                             raise the limit of open files (ulimit -n)"
                        ));
                        return;
                    }
                },
            }
        }
        // More may be there: the listener stays readable.
    }

    /// Whether one more may come.
    pub(super) fn takes_connections(&self) -> bool {
        self.links.len() < SOCKETS_MAX && self.entrance.rests_until.is_none()
    }

    fn greet(&mut self, socket: TcpStream, peer: SocketAddr) {
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let _ = socket.set_nodelay(true);
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let link = LinkSocket {
            socket,
            peer: peer.to_string(),
            out: VecDeque::new(),
            written: 0,
            closes_at: None,
            is_fresh: true,
            snapshot: None,
        };
        self.links.insert(id, link);
        let (now, nonce) = (self.now(), self.nonce());
        self.primary.handle_connected(id, nonce, now);
    }

    /// Time has passed: what is to be said of strangers, the listener's rest, records that nobody needs any more.
    pub(super) fn see_to_entrance(&mut self, now_us: u64) {
        let is_idle =
            self.tap_state != TapState::Closed && self.replica.is_none() && !self.primary.has_replicas();
        let entrance = &mut self.entrance;
        entrance.rests_until = entrance.rests_until.filter(|&until| until > now_us);
        let Entrance { strangers, refusals, reads, twins, .. } = entrance;
        for seldom in [strangers, refusals, reads, twins] {
            if let Some(line) = seldom.poll(now_us) {
                eprintln!("millrace: replication: {line}");
            }
        }
        entrance.idle_since = is_idle.then(|| entrance.idle_since.unwrap_or(now_us));
        if entrance.idle_since.is_some_and(|since| now_us - since >= TAP_LINGER_US) && self.primary.rest() {
            self.entrance.idle_since = None;
            self.close_tap();
        }
    }

    /// Reads what has come, from replicas and from the primary.
    pub(super) fn serve_sockets(&mut self) {
        let ready = self.links.iter().filter(|(_, link)| self.is_ready(&link.socket));
        let ids: Vec<LinkId> = ready.map(|(&id, _)| id).collect();
        let mut buffer = std::mem::take(&mut self.buffer);
        for id in ids {
            self.read_link(id, &mut buffer);
        }
        if self.receiver.as_ref().is_some_and(|receiver| self.is_ready(receiver)) {
            self.read_datagrams();
        }
        if self.upstream.socket.as_ref().is_some_and(|socket| self.is_ready(socket)) {
            self.read_upstream(&mut buffer);
        }
        self.buffer = buffer;
    }

    fn read_link(&mut self, id: LinkId, buffer: &mut [u8]) {
        let now = self.now();
        let mut left = ROUND_BYTES;
        while left > 0 {
            let Some(link) = self.links.get_mut(&id) else { return };
            match link.socket.read(buffer) {
                Ok(0) => return self.drop_link(id),
                Ok(count) => {
                    left = left.saturating_sub(count);
                    if link.closes_at.is_some() {
                        // Read, so that the last words are not lost to a reset.
                        continue;
                    }
                    if std::mem::take(&mut link.is_fresh) && buffer[0] == b'*' {
                        let port = self.port();
                        self.tell_port(id, port);
                        return;
                    }
                    self.primary.handle_bytes(id, &buffer[..count], now);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.drop_link(id),
            }
        }
        // More may be there: the socket stays readable.
    }

    /// Where replicas connect; 0: nowhere.
    pub(super) fn port(&self) -> u16 {
        self.listener
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
            .map_or(0, |address| address.port())
    }

    fn tell_port(&mut self, id: LinkId, port: u16) {
        let http = self.options.ports.1;
        if let Some(link) = self.links.get_mut(&id) {
            // A short line into an empty socket.
            let _ = link.socket.write_all(format!("+REPLICATION {port} {http}\r\n").as_bytes());
        }
        self.drop_link(id);
    }

    fn drop_link(&mut self, id: LinkId) {
        if self.links.remove(&id).is_some() {
            // There is a descriptor.
            self.entrance.rests_until = None;
            self.primary.handle_closed(id);
            self.finding.retain(|finding| finding.link != id);
        }
    }

    /// Writes what waits. True: all that waited for somebody has gone.
    pub(super) fn flush_links(&mut self) -> bool {
        let ids: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| link.has_output() || link.is_closing())
            .map(|(&id, _)| id)
            .collect();
        let now = monotonic_ns() / 1000;
        ids.into_iter().filter(|&id| self.flush_link(id, now)).count() > 0
    }

    fn flush_link(&mut self, id: LinkId, now: u64) -> bool {
        let mut has_written = false;
        loop {
            let Some(link) = self.links.get_mut(&id) else { return false };
            let has_output = link.has_output();
            let Some(first) = link.out.front().filter(|_| has_output) else {
                if link.closes_at.is_some() {
                    self.drop_link(id);
                }
                return has_written;
            };
            match link.socket.write(&first[link.written..]) {
                Ok(count) => {
                    has_written = true;
                    link.written += count;
                    if link.written == first.len() {
                        link.out.pop_front();
                        link.written = 0;
                    }
                    self.primary.handle_written(id, count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if link.closes_at.is_some_and(|at| at <= now) {
                        self.drop_link(id);
                    }
                    return false;
                }
                Err(_) => {
                    self.drop_link(id);
                    return false;
                }
            }
        }
    }

    /// Does what `Primary` wants done.
    pub(super) fn perform_for_replica(&mut self, action: Action) {
        match action {
            Action::Send { link, bytes } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.out.push_back(bytes);
                }
            }
            Action::Feed => self.open_tap(),
            Action::Close { link, fault, is_stranger } => {
                let now = monotonic_ns() / 1000;
                if let Some(socket) = self.links.get_mut(&link) {
                    let peer = &socket.peer;
                    let line = format!("the connection of the replica at {peer} ends: {fault}");
                    match is_stranger {
                        // Anybody could fill the log of this server.
                        true => self.entrance.strangers.add(format!(
                            "a connection from {peer}, not known to be a replica's, ends: {fault}"
                        )),
                        // Two that take the place from each other do so for ever.
                        false if fault.reason == Reason::Replaced => self.entrance.twins.add(line),
                        false => eprintln!("millrace: replication: {line}"),
                    }
                    socket.closes_at = Some(now + LAST_WORDS_US);
                    socket.snapshot = None;
                }
                self.finding.retain(|finding| finding.link != link);
            }
            Action::ReadLog { link, from, until, bytes_max } => self.read_log(link, from, until, bytes_max),
            Action::FindSnapshot { link, partial } => {
                self.finding.push(Finding { link, partial, asked: None, has_waited: false, attempts: 0 });
                self.look_for_snapshots();
            }
            Action::ReadSnapshot { link, name, offset, length } => {
                let now = self.now();
                let file = self.links.get_mut(&link).and_then(|socket| socket.snapshot.as_mut());
                let read = match file {
                    Some(file) => file.read(offset, length),
                    None => Err(io::Error::from(io::ErrorKind::NotFound)),
                };
                match read {
                    Ok(bytes) => self.primary.handle_snapshot_bytes(link, offset, bytes, now),
                    Err(error) => {
                        let why = format!("reading the snapshot up to LSN {}: {error}", name.lsn_max);
                        self.primary.handle_no_snapshot(link, &why, now);
                    }
                }
            }
            Action::SnapshotSent { link } => {
                if let Some(socket) = self.links.get_mut(&link) {
                    socket.snapshot = None;
                }
            }
            // Shards count for themselves: see `Handle`.
            Action::WaitDone { .. } => {}
        }
    }

    // ---- snapshots ------------------------------------------------------------------------------------------------

    /// Looks whether there is a snapshot for those who need one; else has one taken.
    pub(super) fn look_for_snapshots(&mut self) {
        let now = self.now();
        for mut finding in std::mem::take(&mut self.finding) {
            let status = self.snapshots.as_ref().map(|snapshots| std::sync::Arc::clone(&snapshots.status));
            let Some(status) = status.filter(|_| self.options.keeps_log) else {
                let why = "this node keeps no log, and snapshots need one";
                self.primary.handle_no_snapshot(finding.link, why, now);
                continue;
            };
            let completed = status.completed.load(Ordering::Relaxed);
            let is_news = finding.asked.is_none_or(|asked| asked != completed);
            if is_news && self.offer_snapshot(&finding) {
                continue;
            }
            if !status.is_claimed() && status.is_warming() {
                // Until that is over, which it soon is, none can be taken.
                (finding.asked, finding.has_waited) = (Some(completed), true);
                self.say_once("a replica waits for a snapshot: data is still being read in".into());
            } else if !status.is_claimed() {
                let was_refused = finding.asked == Some(completed) && !finding.has_waited;
                if finding.attempts == 2 || was_refused {
                    let why = "none could be taken; its log says why";
                    self.primary.handle_no_snapshot(finding.link, why, now);
                    continue;
                }
                finding.has_waited = false;
                let takes = self.snapshots.as_ref().is_some_and(|snapshots| snapshots.take());
                if takes {
                    finding.attempts += 1;
                    finding.asked = Some(completed);
                }
            }
            self.finding.push(finding);
        }
    }

    /// Offers the newest snapshot that fits. False: there is none.
    fn offer_snapshot(&mut self, finding: &Finding) -> bool {
        let directory = &self.options.directory;
        let Ok(listing) = list_snapshots(directory) else { return false };
        let open = |id| -> Option<(SnapshotName, u32, SnapshotReader)> {
            let path = snapshot_path(directory, id);
            let mut file = SnapshotReader::open(&path).ok()?;
            let page = file.read(0, PAGE_BYTES).ok()?;
            let header = Header::decode(&path.display().to_string(), page, checksum()).ok()?;
            let is_whole = file.length().ok()? == header.length;
            let name = SnapshotName {
                epoch: header.epoch.0,
                lsn: header.lsn,
                lsn_max: header.lsn_max,
                uid: header.uid,
                length: header.length,
            };
            is_whole.then_some((name, header.shards, file))
        };
        let fitting = listing.snapshots.iter().filter_map(|&id| open(id));
        let mut fitting: Vec<_> =
            fitting.filter(|(name, ..)| self.primary.check_snapshot(name).is_ok()).collect();
        let wanted = fitting.iter().position(|(name, ..)| Some(*name) == finding.partial).unwrap_or(0);
        if fitting.is_empty() {
            return false;
        }
        let (name, shards, file) = fitting.swap_remove(wanted);
        if let Some(link) = self.links.get_mut(&finding.link) {
            link.snapshot = Some(file);
        }
        let now = self.now();
        // An error has been said to the replica, which comes back.
        let _ = self.primary.handle_snapshot_found(finding.link, name, shards, now.micros);
        true
    }

    /// What was read of the log for a replica.
    pub(super) fn handle_log_read(&mut self, link: LinkId, read: Result<LogRead, RecoveryError>) {
        match read {
            Ok(read) => {
                self.primary.handle_log_begins(Some(read.first_lsn));
                let records = read.records();
                let mut records = records.peekable();
                if records.peek().is_none() {
                    return self.primary.handle_log_gone(link);
                }
                self.primary.handle_log_records(link, records);
            }
            Err(error) => {
                let line = format!("reading the log for a replica: {error}");
                match error {
                    RecoveryError::Damage(..) => {
                        self.entrance.reads.add(format!("{line} Replicas that need it are sent a snapshot."));
                        self.primary.handle_log_damaged(link, "damage there");
                    }
                    _ => {
                        self.entrance.reads.add(line);
                        self.primary.handle_log_gone(link);
                    }
                }
            }
        }
    }

    fn read_log(&mut self, link: LinkId, from: wal::lsn::Lsn, until: wal::lsn::Lsn, bytes_max: usize) {
        let (directory, teller) = (self.options.directory.clone(), self.teller.clone());
        let bell = std::sync::Arc::clone(&self.bell);
        let read = move || {
            let _ = teller.send(Event::Read(link, LogRead::read(&directory, from, until, bytes_max)));
            bell.ring();
        };
        if std::thread::Builder::new().name("replica-log".into()).spawn(read).is_err() {
            self.primary.handle_log_gone(link);
        }
    }
}

/// As `Primary` takes them.
pub(super) fn as_record(lsn: u64, unix_us: u64, payload: &[u8]) -> Record<'_> {
    Record { lsn: wal::lsn::Lsn(lsn), unix_us, payload }
}

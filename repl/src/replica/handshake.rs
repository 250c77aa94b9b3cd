//! How a replica introduces itself, and whom it believes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use wal::lsn::Lsn;

use crate::fault::{Fault, Reason};
use crate::frame::encode_preamble;
use crate::identity::{Chain, Now};
use crate::lineage::{Branch, Common, Lineage};
use crate::message::{Challenge, Hello, Message, SnapshotName, Welcome, capability};
use crate::reads::ReadVerdict;
use crate::secret::{Nonce, Prover};

use super::{Action, Channel, Phase, Replica};

impl Replica {
    pub(super) fn say_hello(&mut self, nonce: Nonce, now: Now) {
        let bit = |set, bit| if set { bit } else { 0 };
        let hello = Message::Hello(Hello {
            node: self.node,
            nonce,
            last_lsn: self.intake.last_lsn(),
            partly_lsn: self.partly_lsn(),
            capabilities: bit(self.settings.datagrams, capability::DATAGRAMS)
                | bit(self.settings.reshards, capability::RESHARD),
            shards: self.settings.shards,
            port: self.settings.port,
            partial: self.partial,
            lineage: self.lineage.clone(),
        });
        hello.encode_body(&mut self.hello_body);
        self.actions.push_back(Action::Send(encode_preamble(self.checksum).to_vec()));
        self.say(&hello);
        self.phase = Phase::Greeting;
        self.heard_at = now.micros;
    }

    /// Shards that came with a snapshot may have records that are not all here: these, too, must be of the history
    /// that goes on.
    fn partly_lsn(&self) -> Lsn {
        self.intake.last_lsn().max(self.consistent_lsn)
    }

    pub(super) fn handle_challenge(&mut self, challenge: Challenge) -> Result<(), Fault> {
        let node = self.node;
        if challenge.node == node {
            let text = format!("expected another node, found {node}, which is this one");
            return Err(Fault::new(Reason::Itself, text));
        }
        let proof = self.secret.proof(Prover::Replica, &[&self.hello_body, &self.challenge_body]);
        self.say(&Message::Proof(proof));
        self.phase = Phase::Proving;
        // Acks from now on, so that a primary that takes a snapshot first knows that somebody waits.
        self.ack_at = 0;
        Ok(())
    }

    pub(super) fn handle_welcome(&mut self, welcome: Welcome, now: Now) -> Result<(), Fault> {
        let proven = welcome.proven();
        let said: [&[u8]; 3] = [&self.hello_body, &self.challenge_body, &proven];
        if !self.secret.is_proof(&welcome.proof, Prover::Primary, &said) {
            let text = "expected a primary that knows the replication secret, found one with another";
            return Err(Fault::new(Reason::Secret, text));
        }
        self.reader.trust();
        self.check_chain(&welcome.chain)?;
        let protocol = |text: String| Err(Fault::new(Reason::Protocol, text));
        if welcome.lineage.latest().is_none() {
            return protocol("expected a primary with a history, found none".into());
        }
        match welcome.full {
            None => {
                // The primary's word is checked: what is here must be a prefix of what will come.
                let (next, found) = (self.intake.last_lsn().next(), welcome.start_lsn);
                if found != next {
                    return protocol(format!(
                        "expected records from LSN {next} on, found an offer from LSN {found} on"
                    ));
                }
                let partly = self.partly_lsn();
                if welcome.lineage.common(&self.lineage, partly) != Common::Prefix {
                    return protocol(format!("expected the history that LSN {partly} is of, found another"));
                }
                if self.take_partial().is_some() {
                    self.actions.push_back(Action::DropSnapshot);
                }
                if self.lineage != welcome.lineage {
                    self.lineage = welcome.lineage.clone();
                    self.freshness.restart();
                    self.actions.push_back(Action::Follow(welcome.lineage));
                }
                self.counters.partial_syncs += 1;
                self.phase = Phase::Streaming;
            }
            Some((name, offset)) => {
                let kept = self.partial.filter(|(partial, _)| *partial == name).map_or(0, |(_, bytes)| bytes);
                if offset > kept {
                    return protocol(format!(
                        "expected a snapshot from byte {kept} on or before, found one from {offset} on"
                    ));
                }
                if !welcome.lineage.holds(name.epoch(), name.lsn_max) {
                    let (epoch, lsn) = (name.epoch, name.lsn_max);
                    return protocol(format!(
                        "expected a snapshot of its history, found epoch {epoch}, LSN {lsn}"
                    ));
                }
                self.counters.full_syncs += 1;
                self.counters.resumed_syncs += u64::from(offset > 0);
                self.partial = Some((name, offset));
                self.actions.push_back(Action::BeginSnapshot { name, offset });
                self.phase = Phase::Snapshot { name, offset };
                self.pending_lineage = Some(welcome.lineage);
                self.after_chunk(now);
            }
        }
        self.chain = welcome.chain;
        self.backoff_us = self.settings.backoff_us_min;
        self.channel = welcome.datagrams.then_some(Channel {
            stream: welcome.stream,
            salt: welcome.salt,
            key: None,
            is_live: false,
        });
        self.ack_at = now.micros;
        Ok(())
    }

    fn check_chain(&self, chain: &Chain) -> Result<(), Fault> {
        if !chain.contains(self.node) {
            return Ok(());
        }
        let text = format!(
            "expected a primary that does not follow this node, found a ring of {}",
            chain.nodes().len()
        );
        Err(Fault::new(Reason::Cycle, text))
    }

    pub(super) fn handle_chain(&mut self, chain: Chain) -> Result<(), Fault> {
        self.check_chain(&chain)?;
        self.chain = chain;
        Ok(())
    }

    pub(super) fn handle_branch(&mut self, branch: Branch) -> Result<(), Fault> {
        let last = match &self.phase {
            Phase::Snapshot { name, .. } => name.lsn_max,
            _ => self.intake.last_lsn(),
        };
        let lineage = self.pending_lineage.as_mut().unwrap_or(&mut self.lineage);
        if branch.first_lsn <= last || !lineage.follow(branch) {
            let (epoch, first) = (branch.epoch, branch.first_lsn);
            return Err(Fault::new(
                Reason::HistoryChanged,
                format!("expected a branch behind LSN {last}, found epoch {epoch} from LSN {first} on"),
            ));
        }
        if self.pending_lineage.is_none() {
            self.freshness.restart();
            self.actions.push_back(Action::Follow(self.lineage.clone()));
        }
        Ok(())
    }

    pub(super) fn handle_chunk(&mut self, at: u64, bytes: Vec<u8>, now: Now) -> Result<(), Fault> {
        let Phase::Snapshot { name, offset } = &mut self.phase else { return Ok(()) };
        if at != *offset || bytes.len() as u64 > name.length - at {
            let (expected, length) = (*offset, name.length);
            return Err(Fault::new(
                Reason::Protocol,
                format!(
                    "expected byte {expected} of a snapshot of {length} bytes, found {} bytes at {at}",
                    bytes.len()
                ),
            ));
        }
        *offset += bytes.len() as u64;
        self.actions.push_back(Action::StoreSnapshot { offset: at, bytes });
        self.after_chunk(now);
        Ok(())
    }

    fn after_chunk(&mut self, now: Now) {
        let Phase::Snapshot { name, offset } = self.phase else { return };
        if offset < name.length {
            return;
        }
        let Some(lineage) = self.pending_lineage.take() else { return };
        self.phase = Phase::Streaming;
        self.installing = Some((name, lineage.clone()));
        self.actions.push_back(Action::Install { name, lineage });
        self.reads.end_all(ReadVerdict::Loading);
        self.ack_at = self.ack_at.min(now.micros);
    }

    /// So many bytes of the snapshot's file are there, from its start, and will be after a crash.
    pub fn handle_snapshot_stored(&mut self, bytes: u64) {
        if let Some((_, stored)) = &mut self.partial {
            *stored = bytes;
        }
    }

    /// The snapshot has taken the place of everything. Or it has not, and all is as before.
    pub fn handle_installed(&mut self, result: Result<(), &str>, now: Now) {
        let Some((name, lineage)) = self.installing.take() else { return };
        self.partial = None;
        match result {
            Ok(()) => self.install(name, lineage),
            Err(why) if self.is_connected() => {
                let text = format!("expected to install a snapshot of {} bytes, found {why}", name.length);
                return self.fail(Fault::new(Reason::Snapshot, text), now);
            }
            Err(_) => (),
        }
        self.read_frames(now);
    }

    fn install(&mut self, SnapshotName { lsn, lsn_max, .. }: SnapshotName, lineage: Lineage) {
        self.lineage = lineage;
        self.intake.restart(lsn.next());
        self.reorder.restart();
        self.unapplied.clear();
        self.unapplied_bytes = 0;
        (self.applied_lsn, self.durable_lsn) = (lsn, Lsn::ZERO);
        self.consistent_lsn = lsn_max;
        self.freshness.restart();
        self.word.forget();
        self.ack_at = 0;
    }
}

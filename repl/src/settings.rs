//! What can be configured about replication, and what cannot work. Every bound of the crate is here.

use alloc::string::String;

use crate::datagram::{DATAGRAM_BYTES_LIMIT, OVERHEAD_BYTES};
use crate::frame::BODY_BYTES_LIMIT;
use crate::run::RUN_HEADER_BYTES;

/// The least room for records in a frame or a datagram: a few small ones.
const ROOM_BYTES_MIN: usize = 64;

/// Of the side that has the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimarySettings {
    /// Memory for the newest records. What is older is read from the log.
    pub backlog_bytes_max: usize,
    /// Bytes of the largest frame of records. A longer record is spread over several.
    pub frame_bytes_max: usize,
    /// Replicas; another one is refused.
    pub replicas_max: usize,
    /// Connections that have not proved who they are. Where another one comes, the oldest goes: who knows the secret
    /// has proved it long before.
    pub strangers_max: usize,
    /// Bytes on their way to one replica's socket. Beyond it nothing new is sent to that replica.
    pub send_window_bytes: usize,
    /// Bytes asked of the log at once.
    pub log_read_bytes: usize,
    /// Replicas for which the log is being read at once; the others wait their turn.
    pub log_reads_max: usize,
    /// Bytes of a snapshot read at once.
    pub snapshot_chunk_bytes: usize,
    /// How often a replica is told where the primary stands.
    pub heartbeat_us: u64,
    /// A connection that says nothing for so long is closed, and one that has not proved who it is by then.
    pub timeout_us: u64,
    /// Records that a replica may fall behind what it lacked when it began to stream. Beyond it the
    /// connection is closed, and the replica given a snapshot.
    pub lag_records_max: u64,
    /// Records that a replica without any is given one by one. If there are more it is given a snapshot, which
    /// costs less, unless none can be had.
    pub first_records_max: u64,
    /// WAITs at once; another one is answered at once with what there is.
    pub waits_max: usize,
    /// How many shards this node has; some replicas care.
    pub shards: u32,
    /// Records as datagrams, too.
    pub datagrams: Option<DatagramSettings>,
}

/// Of the datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramSettings {
    /// Bytes of a datagram: what the path carries in one packet, less the headers of IP and UDP.
    pub datagram_bytes: usize,
    /// Datagrams handed over at once, as one piece to be cut by the kernel.
    pub burst_datagrams_max: usize,
    /// The cap, in bytes a second; 0: none.
    pub bytes_per_second: u64,
    /// What may leave at once under the cap.
    pub burst_bytes: u64,
    /// The first heartbeat after the last record; each further one after twice that.
    pub heartbeat_us_min: u64,
    /// Until they are this far apart.
    pub heartbeat_us_max: u64,
}

impl Default for PrimarySettings {
    fn default() -> PrimarySettings {
        PrimarySettings {
            backlog_bytes_max: 64 << 20,
            frame_bytes_max: 64 << 10,
            replicas_max: 64,
            strangers_max: 64,
            send_window_bytes: 1 << 20,
            log_read_bytes: 256 << 10,
            log_reads_max: 2,
            snapshot_chunk_bytes: 256 << 10,
            heartbeat_us: 100_000,
            timeout_us: 5_000_000,
            lag_records_max: 50_000_000,
            first_records_max: 100_000,
            waits_max: 10_000,
            shards: 1,
            datagrams: None,
        }
    }
}

impl Default for DatagramSettings {
    fn default() -> DatagramSettings {
        DatagramSettings {
            datagram_bytes: 1400,
            // The kernel takes up to 128, and 64 KiB at once.
            burst_datagrams_max: 45,
            bytes_per_second: 0,
            burst_bytes: 256 << 10,
            heartbeat_us_min: 20_000,
            heartbeat_us_max: 100_000,
        }
    }
}

impl PrimarySettings {
    /// What is wrong with them, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        let frame = RUN_HEADER_BYTES + ROOM_BYTES_MIN;
        check(self.frame_bytes_max, frame, BODY_BYTES_LIMIT, "bytes of a frame of records")?;
        check(self.snapshot_chunk_bytes, 1, BODY_BYTES_LIMIT - 8, "bytes of a snapshot read at once")?;
        check(self.backlog_bytes_max, self.frame_bytes_max, usize::MAX, "bytes of the backlog")?;
        check(self.send_window_bytes, 1, usize::MAX, "bytes on their way to a replica")?;
        check(self.log_read_bytes, 1, usize::MAX, "bytes read from the log at once")?;
        check(self.log_reads_max, 1, usize::MAX, "replicas the log is read for at once")?;
        check(self.replicas_max, 1, usize::MAX, "replicas")?;
        check(self.strangers_max, 1, usize::MAX, "connections that have proved nothing")?;
        check(self.timeout_us as usize, 2 * self.heartbeat_us as usize, usize::MAX, "µs of silence")?;
        check(self.heartbeat_us as usize, 1, usize::MAX, "µs between heartbeats")?;
        let Some(datagrams) = &self.datagrams else { return Ok(()) };
        let least = OVERHEAD_BYTES + ROOM_BYTES_MIN;
        check(datagrams.datagram_bytes, least, DATAGRAM_BYTES_LIMIT, "bytes of a datagram")?;
        check(datagrams.burst_datagrams_max, 1, 128, "datagrams at once")?;
        check(datagrams.burst_bytes as usize, datagrams.datagram_bytes, usize::MAX, "bytes of a burst")?;
        check(
            datagrams.heartbeat_us_min as usize,
            1,
            datagrams.heartbeat_us_max as usize,
            "µs to a heartbeat",
        )
    }
}

/// Of the side that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaSettings {
    /// The longest record that is taken. The other side's word is not trusted with memory.
    pub record_bytes_max: usize,
    /// Bytes of records handed over and not applied yet. Beyond it the connection is not read, and datagrams
    /// are dropped.
    pub apply_bytes_max: usize,
    /// Datagrams that are early and wait.
    pub reorder_datagrams_max: usize,
    /// Their bytes.
    pub reorder_bytes_max: usize,
    /// How long a gap may be a matter of order before it is asked for.
    pub gap_delay_us: u64,
    /// Up to so much is added to that by chance: not all replicas of a group ask at once.
    pub gap_jitter_us: u64,
    /// What was asked for and has not come is asked for again.
    pub repair_timeout_us: u64,
    /// What was applied is acknowledged at the latest after this; at once if somebody waits for it. Each ack wakes the primary.
    pub ack_delay_us: u64,
    /// And so often even if there is nothing new.
    pub ack_interval_us: u64,
    /// A connection on which nothing comes for so long is closed.
    pub timeout_us: u64,
    /// Before the second attempt to connect; twice as long before each further one.
    pub backoff_us_min: u64,
    /// And never longer.
    pub backoff_us_max: u64,
    /// `replica-max-lag`: reads are refused when it may be further behind than this; 0: never.
    pub lag_us_max: u64,
    /// Reads that wait for an LSN; another one is answered at once.
    pub reads_waiting_max: usize,
    /// How long they wait.
    pub read_wait_us: u64,
    /// It can take datagrams.
    pub datagrams: bool,
    /// It can take a snapshot of another number of shards.
    pub reshards: bool,
    /// How many shards this node has.
    pub shards: u32,
    /// The port for clients, for the primary's INFO.
    pub port: u32,
}

impl Default for ReplicaSettings {
    fn default() -> ReplicaSettings {
        ReplicaSettings {
            record_bytes_max: 1 << 30,
            apply_bytes_max: 16 << 20,
            reorder_datagrams_max: 4096,
            reorder_bytes_max: 8 << 20,
            gap_delay_us: 100,
            gap_jitter_us: 400,
            repair_timeout_us: 50_000,
            ack_delay_us: 20_000,
            ack_interval_us: 100_000,
            timeout_us: 5_000_000,
            backoff_us_min: 50_000,
            backoff_us_max: 5_000_000,
            lag_us_max: 0,
            reads_waiting_max: 10_000,
            read_wait_us: 1_000_000,
            datagrams: false,
            reshards: true,
            shards: 1,
            port: 0,
        }
    }
}

impl ReplicaSettings {
    /// What is wrong with them, if anything is.
    pub fn validate(&self) -> Result<(), String> {
        check(self.record_bytes_max, 1, u32::MAX as usize, "bytes of a record")?;
        check(self.apply_bytes_max, 1, usize::MAX, "bytes of records to be applied")?;
        check(self.reorder_datagrams_max, 1, usize::MAX, "datagrams that wait")?;
        check(self.reorder_bytes_max, DATAGRAM_BYTES_LIMIT, usize::MAX, "bytes of datagrams that wait")?;
        check(self.timeout_us as usize, 2 * self.ack_interval_us as usize, usize::MAX, "µs of silence")?;
        check(self.ack_interval_us as usize, 1, usize::MAX, "µs between acks")?;
        check(self.repair_timeout_us as usize, 1, usize::MAX, "µs before a repair is asked for again")?;
        check(self.backoff_us_max as usize, self.backoff_us_min as usize, usize::MAX, "µs between attempts")
    }
}

fn check(value: usize, least: usize, most: usize, what: &str) -> Result<(), String> {
    match value {
        value if value < least => Err(alloc::format!("expected at least {least} {what}, found {value}")),
        value if value > most => Err(alloc::format!("expected at most {most} {what}, found {value}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_nonsense_is_named() {
        assert_eq!(ReplicaSettings::default().validate(), Ok(()));
        let datagrams = Some(DatagramSettings::default());
        let settings = PrimarySettings { datagrams, ..PrimarySettings::default() };
        assert_eq!(settings.validate(), Ok(()));
        let wrong = PrimarySettings { frame_bytes_max: 2 << 20, ..settings }.validate().unwrap_err();
        assert_eq!(wrong, "expected at most 1048576 bytes of a frame of records, found 2097152");
        let small = DatagramSettings { datagram_bytes: 100, ..DatagramSettings::default() };
        let wrong = PrimarySettings { datagrams: Some(small), ..settings }.validate().unwrap_err();
        assert!(wrong.starts_with("expected at least 168 bytes of a datagram"), "{wrong}");
        assert!(
            ReplicaSettings { ack_interval_us: 4_000_000, ..ReplicaSettings::default() }.validate().is_err()
        );
    }
}

//! The secret that nodes share: proofs in the handshake, and the keys of datagrams.
//!
//! Everything is HMAC-SHA-256 (RFC 2104), cut to 16 bytes. Each use begins with a label of its own, so that
//! what was made for one can never pass for another. Both sides of a connection prove that they know the
//! secret over both sides' nonces and every byte of the handshake, so a proof is worth nothing in another
//! connection.
//!
//! What this does not do: the stream behind the handshake is neither encrypted nor authenticated, so who can
//! change packets between two nodes can change records. Without a secret (the empty one) a proof proves
//! nothing, and a datagram's key protects against those only who have not seen the handshake that carried its
//! salt.

use alloc::vec::Vec;
use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::lineage::Branch;

/// Bytes of a proof and of a datagram's authenticator.
pub const MAC_BYTES: usize = 16;
/// Bytes of a nonce and of a salt.
pub const NONCE_BYTES: usize = 16;

/// Random bytes that are used once.
pub type Nonce = [u8; NONCE_BYTES];

/// Who proves that the secret is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prover {
    /// The side that follows.
    Replica,
    /// The side that has the records.
    Primary,
}

/// What both nodes were configured with; empty if nothing was.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// A secret of any length.
    pub fn new(secret: &[u8]) -> Secret {
        Secret(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"))
    }

    /// Proves to the other side that the secret is known, by what both have said so far.
    pub fn proof(&self, prover: Prover, said: &[&[u8]]) -> [u8; MAC_BYTES] {
        cut(self.over(prover, said).finalize().into_bytes().as_slice())
    }

    /// Checks the other side's proof, in a time that says nothing about the right one.
    pub fn is_proof(&self, proof: &[u8; MAC_BYTES], prover: Prover, said: &[&[u8]]) -> bool {
        self.over(prover, said).verify_truncated_left(proof).is_ok()
    }

    fn over(&self, prover: Prover, said: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(match prover {
            Prover::Replica => b"millrace replica's proof",
            Prover::Primary => b"millrace primary's proof",
        });
        for part in said {
            // With their lengths, so that no two rows of parts are the same bytes.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    /// The key of the datagrams that a primary sends in one run under one epoch.
    pub fn datagram_key(&self, salt: &Nonce, branch: Branch) -> DatagramKey {
        let mut mac = self.0.clone();
        mac.update(b"millrace datagrams");
        mac.update(salt);
        let mut bytes = Vec::new();
        branch.encode(&mut bytes);
        mac.update(&bytes);
        let key = mac.finalize().into_bytes();
        DatagramKey(Hmac::new_from_slice(key.as_slice()).expect("HMAC takes keys of any length"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

/// Authenticates the datagrams of one epoch.
#[derive(Clone)]
pub struct DatagramKey(Hmac<Sha256>);

impl DatagramKey {
    /// The authenticator of a datagram, whose bytes may come in parts.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
        cut(self.over(parts).finalize().into_bytes().as_slice())
    }

    /// Checks it.
    pub fn is_mac(&self, mac: &[u8], parts: &[&[u8]]) -> bool {
        mac.len() == MAC_BYTES && self.over(parts).verify_truncated_left(mac).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

impl fmt::Debug for DatagramKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatagramKey(not shown)")
    }
}

fn cut(mac: &[u8]) -> [u8; MAC_BYTES] {
    *mac.first_chunk().expect("SHA-256 gives 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::BranchId;
    use wal::lsn::{Epoch, Lsn};

    #[test]
    fn it_is_hmac_sha_256() {
        // RFC 4231, test case 2.
        let key = DatagramKey(Hmac::new_from_slice(b"Jefe").unwrap());
        let expected =
            [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7];
        assert_eq!(key.mac(&[b"what do ya want ", b"for nothing?"]), expected);
    }

    #[test]
    fn proofs_differ_by_secret_side_and_every_byte() {
        let (secret, other) = (Secret::new(b"s"), Secret::new(b""));
        let proof = secret.proof(Prover::Replica, &[b"ab", b"c"]);
        assert!(secret.is_proof(&proof, Prover::Replica, &[b"ab", b"c"]));
        assert!(!secret.is_proof(&proof, Prover::Primary, &[b"ab", b"c"]), "another side's");
        assert!(!secret.is_proof(&proof, Prover::Replica, &[b"a", b"bc"]), "parts moved");
        assert!(!other.is_proof(&proof, Prover::Replica, &[b"ab", b"c"]), "another secret's");
        let branch = Branch { epoch: Epoch(2), id: BranchId(7), first_lsn: Lsn(9) };
        let key = secret.datagram_key(&[1; 16], branch);
        let mac = key.mac(&[b"x"]);
        assert!(key.is_mac(&mac, &[b"x"]) && !key.is_mac(&mac, &[b"y"]) && !key.is_mac(&mac[1..], &[b"x"]));
        let next = Branch { epoch: Epoch(3), ..branch };
        for key in [secret.datagram_key(&[2; 16], branch), secret.datagram_key(&[1; 16], next)] {
            assert!(!key.is_mac(&mac, &[b"x"]), "another epoch's or run's key");
        }
    }
}

//! Tells our own records from those of whoever else may write to the topic (rule A7). The door has judged them already,
//! so that nothing behind it asks again who sent them: a forged one would bill anybody's customer.
//!
//! A tag of 128 bits stands behind each record: SipHash-2-4, a keyed hash made for authenticating short messages, at a tenth
//! of the cost of an HMAC.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::log::Partition;

pub(super) const TAG: usize = 16;

/// What our own records are sealed with: the secret of the log, shared by all nodes (`event_log.secret`).
#[derive(Clone)]
pub struct Seal {
    secret: [u8; TAG],
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    /// With this secret.
    #[must_use]
    pub fn new(secret: [u8; TAG]) -> Self {
        Self { secret }
    }

    fn tag(&self, partition: Partition, payload: &[u8]) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        // First: with its home in front, a record is good for no other partition.
        hasher.write(&partition.to_le_bytes());
        hasher.write(payload);
        hasher.finish128().as_u128()
    }

    /// Puts payload and tag into `sealed`.
    pub(super) fn seal(&self, partition: Partition, payload: &[u8], sealed: &mut Vec<u8>) {
        sealed.clear();
        sealed.extend_from_slice(payload);
        sealed.extend_from_slice(&self.tag(partition, payload).to_le_bytes());
    }

    /// The payload, if the tag is ours.
    pub(super) fn open<'a>(&self, partition: Partition, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (payload, tag) = sealed.split_last_chunk::<TAG>()?;
        // One comparison of whole words: how long it takes says nothing about where they differ.
        (self.tag(partition, payload) == u128::from_le_bytes(*tag)).then_some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_is_opened() {
        let seal = Seal::new([7; TAG]);
        let mut sealed = b"what was in it before".to_vec();
        seal.seal(3, b"payload", &mut sealed);
        assert_eq!(seal.open(3, &sealed), Some(&b"payload"[..]));
        assert_eq!(seal.open(2, &sealed), None, "another partition");
        assert_eq!(Seal::new([8; TAG]).open(3, &sealed), None, "another secret");
        for byte in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[byte] ^= 1;
            assert_eq!(seal.open(3, &forged), None, "byte {byte}");
        }
        assert_eq!(seal.open(3, &sealed[1..]), None);
        assert_eq!(seal.open(3, b"short"), None);
    }
}

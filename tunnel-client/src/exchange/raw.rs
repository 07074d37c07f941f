//! The same as it came and went, encoded: the history takes it without a look.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hookway_protocol::WHOLE_BODY;
use hookway_protocol::head::{self, ReplyHead};
use hookway_protocol::headers::Headers;
use jiff::Timestamp;

use super::{Attempt, Kept, Outcome, Reply};

/// A body, as far as it is kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawBody {
    pub(crate) bytes: Bytes,
    /// The size of the whole body.
    pub(crate) size: u64,
    /// As encoded by [`head::encode_trailers`].
    pub(crate) trailers: Bytes,
}

impl RawBody {
    pub(crate) fn of(kept: &Kept, trailers: &Headers) -> Self {
        let trailers = encoded(|out| head::encode_trailers(trailers, out));
        Self { bytes: kept.bytes.clone(), size: kept.size, trailers }
    }
}

/// An attempt that is over.
#[derive(Clone, Debug)]
pub(crate) struct RawAttempt {
    pub(crate) number: u32,
    pub(crate) at: Timestamp,
    pub(crate) url: String,
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
    pub(crate) connect: Option<Duration>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) duration: Duration,
    /// The answer's head as encoded; empty for none.
    pub(crate) reply: Bytes,
    pub(crate) body: RawBody,
}

impl RawAttempt {
    pub(crate) fn of(attempt: &Attempt) -> Self {
        let reply = attempt.reply.as_ref();
        let head = |reply: &Reply| {
            let head = ReplyHead::App { status: reply.status, headers: reply.headers.clone() };
            encoded(|out| head.encode(out))
        };
        Self {
            number: attempt.number,
            at: attempt.at,
            url: attempt.url.clone(),
            outcome: attempt.outcome.clone(),
            message: attempt.message.clone(),
            connect: attempt.connect,
            first_byte: attempt.first_byte,
            duration: attempt.duration,
            reply: reply.map(head).unwrap_or_default(),
            body: reply.map(|reply| RawBody::of(&reply.body, &reply.trailers)).unwrap_or_default(),
        }
    }
}

/// The bytes that `encode` writes.
pub(crate) fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.freeze()
}

/// As much of a body finds room also when half of it is taken: a few large ones leave it to the many small.
const SMALL: usize = 64 << 10;

/// How many bytes the bodies that are passing by may keep in memory, all together.
#[derive(Debug)]
pub(crate) struct Room {
    left: AtomicUsize,
    half: usize,
}

impl Room {
    pub(crate) const fn new(bytes: usize) -> Self {
        Self { left: AtomicUsize::new(bytes), half: bytes / 2 }
    }

    /// Takes up to so many bytes, for a body that has so many already.
    fn take(&self, most: usize, has: usize) -> usize {
        let granted = |left: usize| {
            let room = if left > self.half { left } else { left.min(SMALL.saturating_sub(has)) };
            room.min(most)
        };
        let less = |left: usize| Some(left - granted(left));
        // The closure never says no.
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0);
        granted(before)
    }
}

/// The beginning of a body that passes by: its first MiB, or what there is room for.
#[derive(Debug)]
pub(crate) struct Beginning {
    bytes: Bytes,
    taken: usize,
    room: Arc<Room>,
}

impl Beginning {
    pub(crate) const fn new(room: Arc<Room>) -> Self {
        Self { bytes: Bytes::new(), taken: 0, room }
    }

    fn take(&mut self, most: usize) -> usize {
        let taken = self.room.take(most.min(WHOLE_BODY - self.taken), self.taken);
        self.taken += taken;
        taken
    }

    /// Keeps what follows on what is kept.
    pub(crate) fn add(&mut self, data: &Bytes) {
        let taken = self.take(data.len());
        if self.bytes.is_empty() {
            // A part is copied, or it would hold the place of all.
            self.bytes = if taken == data.len() { data.clone() } else { Bytes::copy_from_slice(&data[..taken]) };
        } else if taken > 0 {
            let bytes = std::mem::take(&mut self.bytes);
            // In place, unless somebody else holds them.
            let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            bytes.extend_from_slice(&data[..taken]);
            self.bytes = bytes.freeze();
        }
    }

    pub(crate) const fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        self.room.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_room() {
        let room = Arc::new(Room::new(10));
        let (mut one, mut other) = (Beginning::new(room.clone()), Beginning::new(room.clone()));
        one.add(&Bytes::from_static(b"abc"));
        let looked_at = one.bytes().clone();
        one.add(&Bytes::from_static(b"def"));
        other.add(&Bytes::from_static(b"0123456789"));
        assert_eq!((&looked_at[..], &one.bytes()[..], &other.bytes()[..]), (&b"abc"[..], &b"abcdef"[..], &b"0123"[..]));
        drop(one);
        let mut next = Beginning::new(room.clone());
        next.add(&Bytes::from_static(b"0123456789"));
        assert_eq!(next.bytes().len(), 6);
        drop((other, next));
        assert_eq!(room.take(usize::MAX, 0), 10, "all of it came back");
    }

    #[test]
    fn large_bodies_leave_room_to_small_ones() {
        let room = Arc::new(Room::new(4 << 20));
        let large = Bytes::from(vec![b'x'; WHOLE_BODY]);
        let kept: Vec<_> = (0..10)
            .map(|_| {
                let mut beginning = Beginning::new(room.clone());
                beginning.add(&large);
                beginning
            })
            .collect();
        let sizes: Vec<_> = kept.iter().map(|beginning| beginning.bytes().len()).collect();
        assert_eq!(sizes[..2], [WHOLE_BODY; 2]);
        assert!(sizes[2..].iter().all(|size| *size == SMALL), "{sizes:?}");
        let mut small = Beginning::new(room);
        small.add(&large.slice(..2000));
        assert_eq!(small.bytes().len(), 2000);
    }

    #[test]
    fn a_beginning_has_a_mebibyte_at_most() {
        let mut beginning = Beginning::new(Arc::new(Room::new(usize::MAX)));
        beginning.add(&vec![b'x'; WHOLE_BODY - 1].into());
        beginning.add(&Bytes::from_static(b"yz"));
        assert_eq!((beginning.bytes().len(), beginning.bytes().last()), (WHOLE_BODY, Some(&b'y')));
    }
}

//! What a Hookway relay and client say to each other: the `hookway/1` protocol.
//!
//! `proto/hookway.proto` is the written spec of the messages. [`link`] carries them over QUIC, [`frame`] and
//! [`head`] are the bytes of one exchange, [`body`] sends the longest part of it, [`message`] those of the control stream.

pub mod body;
pub mod finding;
pub mod frame;
pub mod head;
pub mod headers;
pub mod host;
pub mod id;
pub mod link;
pub mod message;
mod protobuf;
pub mod seal;
pub mod settings;

/// The lowest version of the protocol this build speaks.
pub const MIN_VERSION: u32 = 1;
/// The highest version of the protocol this build speaks.
pub const MAX_VERSION: u32 = 1;

/// A body that ends within this many bytes is a value: it can be retried, queued and handed over. A larger one
/// streams through a live session and is never whole in memory.
pub const WHOLE_BODY: usize = 1 << 20;

/// The version both sides speak: the highest in common, or `None`.
#[must_use]
pub fn common_version(min: u32, max: u32) -> Option<u32> {
    let version = max.min(MAX_VERSION);
    (version >= min.max(MIN_VERSION)).then_some(version)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    #[rstest]
    #[case::same(1, 1, Some(1))]
    #[case::newer_peer_that_still_speaks_ours(1, 9, Some(1))]
    #[case::newer_peer_that_does_not(2, 9, None)]
    #[case::older_peer(0, 0, None)]
    #[case::nonsense(9, 1, None)]
    fn versions(#[case] min: u32, #[case] max: u32, #[case] common: Option<u32>) {
        assert_eq!(super::common_version(min, max), common);
    }
}

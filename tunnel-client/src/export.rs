//! Exchanges in the formats of others: a curl command, HAR, JSON lines.

pub(crate) mod curl;
pub(crate) mod har;
pub(crate) mod jsonl;

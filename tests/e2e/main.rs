//! End-to-end tests: what a sender and an app see, through a real relay and a real client.

mod exactness;
mod layers;
mod limits;
mod link;
mod queue;
mod readme;
mod semantics;
mod sessions;
mod streaming;

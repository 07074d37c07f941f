//! The client: takes the webhooks of an endpoint from a relay and puts them to a local app.
//!
//! [`Client`] is all that a test needs to get a public URL:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = hookway::Options::new("hooks.example.com", std::env::var("HOOKWAY_TOKEN")?, "127.0.0.1:3000")?;
//! let client = hookway::Client::connect(options.name("ci")?).await?;
//! println!("webhooks sent to {} arrive at port 3000", client.url());
//! let delivery = client.next_delivery().await;
//! client.close().await;
//! # drop(delivery); Ok(())
//! # }
//! ```

mod cassette;
pub mod cli;
mod client;
pub mod commands;
mod config;
mod content;
mod diff;
mod events;
mod exchange;
mod export;
mod filter;
mod forwarder;
mod harmless;
mod history;
mod inspector;
mod json;
mod mask;
mod output;
mod private;
mod queueing;
mod replay;
mod samples;
mod signature;
mod target;
mod tunnel;
mod view;
mod webhook;

pub use client::{Client, InvalidOptions, Options};
pub use events::Event;
pub use exchange::{Delivered, Outcome, Verdict, Webhook};
pub use forwarder::{HostHeader, Route, Settings as ForwardSettings};
pub use hookway_protocol::message::{Rule, Share};
pub use signature::{InvalidSecret, InvalidVerify, Secret, Verified};
pub use target::{InvalidTarget, Target};
pub use tunnel::{Backlog, ConnectError, RelayAddress, Transports, Welcomed};

//! A relay, clients, apps and senders in one process, over real sockets on port 0.
//!
//! ```ignore
//! let world = World::new().await;
//! let client = world.client("billing", echo).await;
//! world.send(post("billing", "/stripe").body(b"{}")).await.expect(200);
//! ```

mod app;
mod sender;
mod world;

pub use app::{App, AppResponse, Seen, body, text};
pub use sender::{Answer, Request, get, post, request};
pub use world::{World, transport};

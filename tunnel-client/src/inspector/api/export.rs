//! Exchanges as a file, written while it is read.

use std::io::{self, Write};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::asked::{Params, filter, secrets};
use super::{Answer, Refused, Shared, no_history};
use crate::export::har::har;
use crate::export::jsonl;
use crate::history::Which;
use crate::mask::Secrets;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Export {
    format: Format,
    #[serde(default)]
    filter: String,
    ids: Option<String>,
    #[serde(default, deserialize_with = "secrets")]
    secrets: Secrets,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Har,
    Jsonl,
}

pub(super) async fn export(State(context): Shared, Params(asked): Params<Export>) -> Answer {
    let filter = filter(&asked.filter)?;
    let ids = asked.ids.iter().flat_map(|ids| ids.split(',')).map(str::parse::<Which>);
    let ids = ids.collect::<Result<Vec<_>, _>>().map_err(Refused::wrong)?;
    let (kind, name) = match asked.format {
        Format::Har => ("application/json", "hookway.har"),
        Format::Jsonl => ("application/jsonl", "hookway.jsonl"),
    };
    let chosen = match ids.is_empty() {
        true => context.read(move |reader| reader.sequence(&filter)).await?,
        false => context.read(move |reader| reader.sequence_of(&ids)).await??,
    };
    let (history, secrets) = (context.history().ok_or_else(no_history)?.clone(), asked.secrets);
    let (pieces, receiver) = mpsc::channel(4);
    let end = pieces.clone();
    let write = async move {
        let done = history.read(move |reader| {
            let mut broken = None;
            let mut out = io::BufWriter::with_capacity(64 << 10, Pieces(pieces));
            let written = {
                let mut exchanges = reader.all(&chosen, &mut broken);
                match asked.format {
                    Format::Har => har(exchanges, secrets, &mut out),
                    Format::Jsonl => exchanges.try_for_each(|exchange| jsonl::write(&exchange, secrets, &mut out)),
                }
            };
            written.and_then(|()| out.flush())?;
            broken.map_or(Ok(()), Err)
        });
        if let Err(error) = done.await {
            tracing::debug!(%error, "an export broke off");
            // An answer that breaks off is not taken for whole.
            let _ = end.send(Err(io::Error::other(error.sentence()))).await;
        }
    };
    #[expect(clippy::disallowed_methods, reason = "ends when whoever reads is gone")]
    tokio::spawn(write);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece, receiver))
    });
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// What is written goes on in pieces; waits for whoever reads.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(piece))).map_err(gone)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

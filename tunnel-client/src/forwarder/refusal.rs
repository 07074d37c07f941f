//! Apps that refuse the public host name: Vite, webpack, Rails, Django and others do, to be safe from DNS rebinding.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::HostHeader;
use super::body::Passing;
use crate::events::{Event, Events};

/// As much of an answer is looked at.
const LOOKED_AT: usize = 4096;

/// Tells once what to do about an app that refuses the host.
#[derive(Debug)]
pub(super) struct HostHint {
    events: Events,
    told: AtomicBool,
}

impl HostHint {
    pub(super) fn new(events: Events, host_header: &HostHeader) -> Self {
        // Who has chosen what the app sees needs no hint.
        Self { events, told: AtomicBool::new(*host_header != HostHeader::Keep) }
    }

    /// The answer, looked through for such a refusal if it may be one.
    pub(super) fn watch(
        self: &Arc<Self>,
        answer: Response<Incoming>,
        host: Option<&HeaderValue>,
        passing: Arc<Passing>,
    ) -> Response<AppBody> {
        let host = self.suspect(answer.status(), host);
        answer.map(|body| AppBody { body, passing, watch: host.map(|host| (self.clone(), host)) })
    }

    fn suspect(&self, status: StatusCode, host: Option<&HeaderValue>) -> Option<String> {
        let refused =
            matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST);
        let host = host.filter(|_| refused && !self.told.load(Ordering::Relaxed))?.to_str().ok()?;
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        Some(name.to_ascii_lowercase())
    }

    fn look(&self, beginning: &[u8], host: &str) {
        let text = String::from_utf8_lossy(&beginning[..beginning.len().min(LOOKED_AT)]).to_ascii_lowercase();
        let refused = text.contains(host) || text.contains("host header");
        if refused && !self.told.swap(true, Ordering::Relaxed) {
            let text = "your app refuses the host name; try --host-header rewrite".to_owned();
            self.events.tell(Event::Hint { text });
        }
    }
}

/// The body of the app's answer.
#[derive(Debug)]
pub(crate) struct AppBody {
    body: Incoming,
    passing: Arc<Passing>,
    /// Who looks at its beginning, and for which host.
    watch: Option<(Arc<HostHint>, String)>,
}

impl Body for AppBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.passing.see(frame);
        }
        if let Some((hint, host)) = self.watch.take()
            && let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref())
        {
            hint.look(data, &host);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use rstest::rstest;

    #[rstest]
    #[case::vite(403, "Blocked request. This host (\"x.hooks.test\") is not allowed.", true)]
    #[case::rails(403, "<h1>Blocked hosts: X.hooks.test:3000</h1>", true)]
    #[case::webpack(403, "Invalid Host header", true)]
    #[case::another_refusal(403, "forbidden", false)]
    #[case::no_refusal(200, "x.hooks.test", false)]
    fn a_refused_host_is_hinted_at_once(#[case] status: u16, #[case] text: &str, #[case] hinted: bool) {
        let (events, mut told) = Events::channel();
        let hint = HostHint::new(events, &HostHeader::Keep);
        for _ in 0..2 {
            let host = HeaderValue::from_static("x.hooks.test:8443");
            let status = StatusCode::from_u16(status).expect("a status");
            if let Some(host) = hint.suspect(status, Some(&host)) {
                hint.look(text.as_bytes(), &host);
            }
        }
        let mut next = || told.next().now_or_never();
        assert_eq!(matches!(next(), Some(Some(Event::Hint { .. }))), hinted);
        assert!(next().is_none(), "once");
    }
}

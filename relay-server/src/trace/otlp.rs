//! Spans by OTLP over HTTP. The rest of OpenTelemetry's settings (service name, sampler, batches, headers) are its own
//! variables.

use std::pin::Pin;
use std::time::Duration;

use hookway_protocol::id::DeliveryId;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body_util::Full;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::TraceError;
use crate::fetch::fetch;

/// The collector must answer within this time, and what it answers is shorter.
const ANSWER_IN: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 << 10;
/// The fields that name a trace and the span that asks, and what systems on the way have added (W3C Trace Context §3).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Methods that a span is named after.
const KNOWN: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

/// Makes spans and sends them.
#[derive(Debug)]
pub(super) struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

#[derive(Debug)]
pub(super) struct Span {
    span: SdkSpan,
    /// Its sender is not known to have one.
    is_first: bool,
}

impl Spans {
    pub(super) fn new() -> Result<Self, TraceError> {
        let exporter = SpanExporter::builder().with_http().with_http_client(Collector(Handle::current())).build();
        let exporter = exporter.map_err(|error| TraceError(error.to_string()))?;
        Ok(Self::of(SdkTracerProvider::builder().with_batch_exporter(exporter)))
    }

    fn of(provider: opentelemetry_sdk::trace::TracerProviderBuilder) -> Self {
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = || Resource::builder().with_attribute(version.clone());
        // Unless its variables say so.
        let named = resource().build();
        let name = named.get(&Key::from_static_str("service.name"));
        let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
        let resource = if is_named { named } else { resource().with_service_name("hookway-relay").build() };
        let provider = provider.with_resource(resource).build();
        Self { tracer: provider.tracer("hookway-relay"), provider }
    }

    pub(super) fn begin(&self, delivery: DeliveryId, method: &Method, headers: &HeaderMap) -> Span {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next().filter(|parent| parents.next().is_none() && is_traceparent(parent.as_bytes()));
        let sender = parent.map_or_else(Context::new, |_| {
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers))
        });
        // Semantic conventions for HTTP spans: a method that is not known is a stranger's text.
        let is_known = KNOWN.contains(method);
        let (name, method) =
            if is_known { (method.to_string(), method.to_string()) } else { ("HTTP".into(), "_OTHER".into()) };
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Server).with_attributes([
            KeyValue::new("http.request.method", method),
            KeyValue::new("hookway.delivery", delivery.to_string()),
        ]);
        Span {
            span: self.tracer.build_with_context(builder, &sender),
            is_first: !sender.span().span_context().is_valid(),
        }
    }

    pub(super) async fn finish(&self) {
        // It waits for a thread that waits for this runtime.
        let provider = self.provider.clone();
        let _ = tokio::task::spawn_blocking(move || provider.shutdown()).await;
    }
}

impl Span {
    pub(super) fn carry_on(&self, headers: &mut HeaderMap) {
        let context = self.span.span_context();
        let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        let next = HeaderValue::try_from(format!("00-{trace}-{span}-{flags:02x}")).expect("digits");
        headers.insert(TRACEPARENT, next);
        if self.is_first {
            // It is of another trace, or of none (W3C Trace Context §4.3).
            headers.remove(TRACESTATE);
        }
    }

    pub(super) fn end(mut self, status: u16, reason: Option<&'static str>) {
        self.span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if let Some(reason) = reason {
            self.span.set_attribute(KeyValue::new("hookway.reason", reason));
        }
        if status >= 500 {
            self.span.set_status(Status::error(""));
        }
        self.span.end();
    }
}

/// Whether it is as W3C Trace Context §3.2 has it: four numbers of so many lower-case digits, and in a later version more.
/// That none is zero is looked at by who reads it.
fn is_traceparent(value: &[u8]) -> bool {
    let parts: Vec<&[u8]> = value.splitn(5, |byte| *byte == b'-').collect();
    let is_hex = |part: &&[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let [version, trace, span, flags, rest @ ..] = &parts[..] else { return false };
    let lengths = [version.len(), trace.len(), span.len(), flags.len()];
    lengths == [2, 32, 16, 2] && parts.iter().take(4).all(is_hex) && (rest.is_empty() || *version != b"00")
}

/// Asks the collector, on the relay's runtime: the batches are made by a thread that has none.
#[derive(Debug)]
struct Collector(Handle);

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let asked = self.0.spawn(async move { tokio::time::timeout(ANSWER_IN, ask(request)).await? });
        // The rest of OpenTelemetry says nothing of it. A batch a few seconds is no flood.
        Box::pin(async move {
            let answer: Result<Response<Bytes>, HttpError> = asked.await?;
            match &answer {
                Err(error) => {
                    let error: &(dyn std::error::Error + 'static) = &**error;
                    tracing::warn!(error, "spans are lost: the collector cannot be asked");
                }
                Ok(answer) if !answer.status().is_success() => {
                    tracing::warn!(status = answer.status().as_u16(), "spans are lost: the collector refuses them");
                }
                Ok(_) => {}
            }
            answer
        })
    }
}

async fn ask(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    if request.uri().scheme_str() != Some("http") {
        return Err("a collector is spoken to over http://; put one beside the relay that speaks on over TLS".into());
    }
    let authority = request.uri().authority().ok_or("the collector's URL has no host")?;
    let stream = TcpStream::connect((authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80)));
    fetch(stream.await?, request.map(Full::new), MAX_ANSWER).await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::trace::SpanData;

    use super::*;

    /// Keeps what is exported.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl opentelemetry_sdk::trace::SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> opentelemetry_sdk::error::OTelSdkResult {
            self.0.lock().expect("unpoisoned").extend(batch);
            Ok(())
        }
    }

    #[test]
    fn a_request_is_a_span_of_its_senders_trace_and_the_app_is_told() {
        let kept = Kept::default();
        let spans = Spans::of(SdkTracerProvider::builder().with_simple_exporter(kept.clone()));
        let mut headers = HeaderMap::new();
        let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert("traceparent", sent.parse().expect("a value"));
        let delivery = DeliveryId::now();
        let told = |span: &Span, mut headers: HeaderMap| {
            span.carry_on(&mut headers);
            headers["traceparent"].to_str().expect("text").to_owned()
        };
        let span = spans.begin(delivery, &Method::POST, &headers);
        let next = told(&span, headers.clone());
        span.end(503, Some("queue_full"));
        let kept = kept.0.lock().expect("unpoisoned").pop().expect("a span");
        assert_eq!(kept.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(kept.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(next, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", kept.span_context.span_id()));
        let attributes: Vec<String> = kept.attributes.iter().map(|it| format!("{}={}", it.key, it.value)).collect();
        assert!(attributes.contains(&"hookway.reason=queue_full".to_owned()), "{attributes:?}");
        assert!(attributes.contains(&"http.response.status_code=503".to_owned()), "{attributes:?}");
        // Without a trace of its own, or with nonsense for one, a request begins one.
        headers.insert("traceparent", "00-zz".parse().expect("a value"));
        let other = told(&spans.begin(delivery, &Method::POST, &headers), headers.clone());
        assert!(other.len() == 55 && !other.contains("4bf92f3577b34da6"), "{other}");
    }

    #[tokio::test]
    async fn spans_reach_a_collector() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1/traces", listener.local_addr().expect("an address"));
        let collector = async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut text = Vec::new();
            while !String::from_utf8_lossy(&text).contains("hookway.delivery") {
                let mut piece = [0; 4096];
                let count = stream.read(&mut piece).await.expect("read");
                text.extend_from_slice(&piece[..count]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("written");
            String::from_utf8_lossy(&text).into_owned()
        };
        let exporter = SpanExporter::builder().with_http().with_http_client(Collector(Handle::current()));
        let exporter = opentelemetry_otlp::WithExportConfig::with_endpoint(exporter, url).build().expect("an exporter");
        let spans = Spans::of(SdkTracerProvider::builder().with_batch_exporter(exporter));
        spans.begin(DeliveryId::now(), &Method::POST, &HeaderMap::new()).end(200, None);
        let ((), text) = tokio::join!(spans.finish(), collector);
        assert!(text.starts_with("POST /v1/traces HTTP/1.1") && text.contains("hookway-relay"), "{text}");
    }
}

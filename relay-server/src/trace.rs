//! Traces (feature `otel`): a span for each request, sent to an OpenTelemetry collector, and the trace's context carried
//! on to the app (W3C Trace Context). Without a collector, and without the feature, `traceparent` passes as it came.

#[cfg(feature = "otel")]
mod otlp;

use hookway_protocol::id::DeliveryId;
use http::{HeaderMap, Method};

/// Where the collector is, as OpenTelemetry has it: its base, or the place for traces.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Begins spans; none without a collector.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    #[cfg(feature = "otel")]
    spans: Option<otlp::Spans>,
}

/// A request's span.
#[derive(Debug)]
pub(crate) struct Span {
    #[cfg(feature = "otel")]
    inner: otlp::Span,
    #[cfg(not(feature = "otel"))]
    never: std::convert::Infallible,
}

/// The traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent: {0}")]
pub struct TraceError(String);

impl Tracer {
    /// What the environment asks for. To be called in a runtime, which sends the traces.
    pub(crate) fn from_env() -> Result<Self, TraceError> {
        let is_wanted = VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        if !is_wanted {
            return Ok(Self::default());
        }
        #[cfg(feature = "otel")]
        return Ok(Self { spans: Some(otlp::Spans::new()?) });
        #[cfg(not(feature = "otel"))]
        {
            tracing::warn!("{} is set, and this program was built without traces (feature otel)", VARIABLES[0]);
            Ok(Self::default())
        }
    }

    /// The span of a request that has begun, which is that delivery.
    pub(crate) fn begin(&self, delivery: DeliveryId, method: &Method, headers: &HeaderMap) -> Option<Span> {
        #[cfg(feature = "otel")]
        return Some(Span { inner: self.spans.as_ref()?.begin(delivery, method, headers) });
        #[cfg(not(feature = "otel"))]
        {
            let _ = (delivery, method, headers);
            None
        }
    }

    /// Sends what was not sent yet.
    pub(crate) async fn finish(&self) {
        #[cfg(feature = "otel")]
        if let Some(spans) = &self.spans {
            spans.finish().await;
        }
    }
}

impl Span {
    /// Tells the app, whose request has these fields, that it is the next of the same trace.
    pub(crate) fn carry_on(&self, headers: &mut HeaderMap) {
        #[cfg(feature = "otel")]
        self.inner.carry_on(headers);
        #[cfg(not(feature = "otel"))]
        {
            let _ = headers;
            match self.never {}
        }
    }

    /// It ends with this answer.
    pub(crate) fn end(self, status: u16, reason: Option<&'static str>) {
        #[cfg(feature = "otel")]
        self.inner.end(status, reason);
        #[cfg(not(feature = "otel"))]
        {
            let _ = (status, reason);
            match self.never {}
        }
    }
}

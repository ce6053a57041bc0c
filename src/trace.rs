//! Which trace work belongs to (W3C Trace Context), carried from a request to the events it brings.
//!
//! The current one is OpenTelemetry's: the span of the request if traces are collected, else what the client sent. It
//! does not follow work to another task by itself: [`within`] takes it there. `tracestate` is not carried.

use std::fmt;

use futures_util::future::Either;
use opentelemetry::Context;
use opentelemetry::context::{FutureExt, WithContext};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use serde::{Serialize, Serializer};

/// The header, the CloudEvents attribute and the message header that name a trace.
pub const TRACEPARENT: &str = "traceparent";

/// A trace and the span in it that caused what is said to have this parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traceparent {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

impl Traceparent {
    /// What is current where this is called; `None` costs a look at a thread-local.
    pub fn current() -> Option<Self> {
        Context::map_current(|context| {
            let context = context.has_active_span().then(|| context.span().span_context().clone());
            context.filter(SpanContext::is_valid).map(|context| Self {
                trace: context.trace_id(),
                span: context.span_id(),
                flags: context.trace_flags(),
            })
        })
    }

    /// `00-<32 hex digits>-<16>-<2>`, or as much of a later version; `None` for anything else, which is to be ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |digits: &str, length| {
            digits.len() == length && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        if !(known && hex(trace, 32) && hex(span, 16) && hex(flags, 2)) {
            return None;
        }
        let parent = Self {
            trace: TraceId::from_hex(trace).ok()?,
            span: SpanId::from_hex(span).ok()?,
            flags: TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        };
        (parent.trace != TraceId::INVALID && parent.span != SpanId::INVALID).then_some(parent)
    }

    fn context(self) -> Context {
        let Self { trace, span, flags } = self;
        Context::new().with_remote_span_context(SpanContext::new(trace, span, flags, true, TraceState::NONE))
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl Serialize for Traceparent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `work` with `parent` as its current trace, wherever it runs.
pub fn within<F: Future>(parent: Option<Traceparent>, work: F) -> Either<F, WithContext<F>> {
    match parent {
        None => Either::Left(work),
        Some(parent) => Either::Right(work.with_context(parent.context())),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider;
    use rstest::rstest;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[rstest]
    #[case(PARENT, Some(PARENT))]
    // A later version may say more; what we pass on is the part we know.
    #[case("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more", Some(PARENT))]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None)]
    #[case("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None)]
    #[case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None)]
    #[case("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None)]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None)]
    #[case("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None)]
    #[case("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", None)]
    #[case("", None)]
    fn only_what_the_standard_says_is_a_parent(#[case] text: &str, #[case] known: Option<&str>) {
        assert_eq!(Traceparent::parse(text).map(|parent| parent.to_string()).as_deref(), known);
    }

    #[test]
    fn a_span_that_is_recorded_is_the_parent_of_what_happens_in_it() {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let request = tracing::info_span!("request");
            let _ = request.set_parent(Traceparent::parse(PARENT).unwrap().context());
            let inside = request.in_scope(Traceparent::current).unwrap();
            let remote = Traceparent::parse(PARENT).unwrap();
            assert_eq!((inside.trace, inside.flags), (remote.trace, remote.flags));
            assert_ne!(inside.span, remote.span);
            assert_eq!(Traceparent::current(), None);
        });
    }

    #[tokio::test]
    async fn work_has_the_parent_it_was_given() {
        let parent = Traceparent::parse(PARENT);
        let current = async { Traceparent::current() };
        assert_eq!(tokio::spawn(within(parent, current)).await.unwrap(), parent);
        assert_eq!(within(None, async { Traceparent::current() }).await, None);
    }
}

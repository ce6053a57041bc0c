//! Every public error code with its status: one exhaustive table (API.md, Errors; RFC 9457).
//!
//! Domain code has its own error enums and never mentions HTTP; each module's `api.rs` turns them into an
//! [`ApiError`] by naming a [`Code`].

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use utoipa::ToSchema;

/// Declares [`Code`] and its table: word, status, whether a repeat may succeed, title.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $status:literal, $retryable:literal, $title:literal;)+) => {
        /// A stable, public error code; clients branch on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $($(#[$doc])* $variant,)+
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code as clients see it.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The HTTP status it is sent with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// Whether the same request may succeed later without being changed.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),+ }
            }

            /// Where it is explained (RFC 9457 `type`), relative to the server's root.
            pub const fn type_uri(self) -> &'static str {
                match self { $(Self::$variant => concat!("/docs/problems#", $word)),+ }
            }

            /// What it means, in a few words that never vary.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }
        }
    };
}

codes! {
    MalformedRequest = "malformed_request", 400, false, "The request cannot be read";
    Unauthenticated = "unauthenticated", 401, false, "A valid access token is needed";
    Forbidden = "forbidden", 403, false, "Your role does not allow this";
    NotFound = "not_found", 404, false, "There is no such thing here";
    MethodNotAllowed = "method_not_allowed", 405, false, "This method is not offered here";
    RequestTimeout = "request_timeout", 408, true, "The request body came too slowly";
    SoldOut = "sold_out", 409, false, "Everything is taken";
    TakeLimitReached = "take_limit_reached", 409, false, "You have taken as many as one user may";
    ActivityNotRunning = "activity_not_running", 409, false, "The activity is not running now";
    TransitionNotAllowed = "transition_not_allowed", 409, false, "The present state does not allow this";
    StockInsufficient = "stock_insufficient", 409, false, "There is not that much free stock";
    OrderNotPayable = "order_not_payable", 409, false, "The order cannot be paid now";
    OrderAlreadyPaid = "order_already_paid", 409, false, "The order is paid";
    OrderNotCancellable = "order_not_cancellable", 409, false, "The order cannot be cancelled any more";
    OrderNotRefundable = "order_not_refundable", 409, false, "There is nothing to be refunded";
    AlreadyRefunded = "already_refunded", 409, false, "The money went back already";
    CartFull = "cart_full", 409, false, "The cart holds as many different goods as it may";
    CouponUnusable = "coupon_unusable", 409, false, "The coupon cannot be used for this";
    BalanceInsufficient = "balance_insufficient", 409, false, "The balance does not cover this";
    GatewayRefused = "gateway_refused", 409, false, "The payment gateway refused";
    DeadLetterUnreadable = "dead_letter_unreadable", 409, false, "The message cannot be read, now as then";
    ConsumerGroupUnknown = "consumer_group_unknown", 409, false, "No consumer group has this name any more";
    IdempotencyInProgress = "idempotency_in_progress", 409, true, "The first request with this key is still running";
    BodyTooLarge = "body_too_large", 413, false, "The request body is too large";
    UnsupportedMediaType = "unsupported_media_type", 415, false, "Send application/json";
    ValidationFailed = "validation_failed", 422, false, "Some members of the request are not acceptable";
    GoodsNotFound = "goods_not_found", 422, false, "Some of the goods are not on sale";
    CouponNotFound = "coupon_not_found", 422, false, "You have no such coupon";
    PriceMismatch = "price_mismatch", 422, false, "The goods have another price now";
    ShippingFeeMismatch = "shipping_fee_mismatch", 422, false, "The shipping fee is another one";
    OrderAmountMismatch = "order_amount_mismatch", 422, false, "The amounts do not add up";
    PaymentMismatch = "payment_mismatch", 422, false, "The notice contradicts the payment";
    IdempotencyKeyReused = "idempotency_key_reused", 422, false, "This Idempotency-Key was used with another request";
    RateLimited = "rate_limited", 429, true, "Too many requests";
    InternalError = "internal_error", 500, true, "Something unexpected went wrong here";
    Overloaded = "overloaded", 503, true, "Too many requests are waiting";
    DependencyUnavailable = "dependency_unavailable", 503, true, "A service this request needs is not available";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One member of the request that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer into the request body (RFC 6901), or `?name` for a query parameter.
    pub pointer: String,
    /// What is wrong with it, for people.
    pub detail: String,
}

impl FieldError {
    /// What serde complains about, in a value that stands at `parent` (a JSON pointer) of the request's body.
    pub fn found(parent: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let message = error.inner().to_string();
        // Where in the text it is says less than the pointer.
        let detail = message.rsplit_once(" at line ").map_or(message.as_str(), |(detail, _)| detail);
        Self { pointer: format!("{parent}{}", pointer(error.path(), detail)), detail: detail.to_owned() }
    }
}

/// The JSON pointer (RFC 6901) of the member that `detail` complains about.
fn pointer(path: &serde_path_to_error::Path, detail: &str) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    let mut push = |name: &str| {
        pointer.push('/');
        pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
    };
    let mut last = None;
    for segment in path {
        match segment {
            Segment::Map { key } => push(key),
            Segment::Seq { index } => push(&index.to_string()),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
        last = Some(segment);
    }
    // For a missing or doubled member the path ends at its parent.
    if let Some(named) = named_member(detail)
        && !matches!(last, Some(Segment::Map { key }) if key == named)
    {
        push(named);
    }
    pointer
}

/// The member that serde names in "unknown field `x`, …" and its like.
pub(crate) fn named_member(detail: &str) -> Option<&str> {
    let rest = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| detail.strip_prefix(start))?;
    rest.split_once('`').map(|(name, _)| name)
}

/// What a request is refused with. Never carries causes or secrets: those go to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub code: Code,
    /// This occurrence, for people.
    pub detail: Cow<'static, str>,
    /// The members at fault, for `validation_failed`.
    pub errors: Vec<FieldError>,
    /// When to come back, for 429 and 503.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after_s = matches!(code.status(), 429 | 503).then_some(1);
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after_s }
    }

    /// `validation_failed` with the one member at fault.
    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::invalid_all(vec![FieldError { pointer: pointer.into(), detail: detail.into() }])
    }

    /// `validation_failed` with every member at fault.
    pub fn invalid_all(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] => format!("{}: {}", only.pointer, only.detail),
            several => format!("{} members are not acceptable; see errors", several.len()),
        };
        Self { errors, ..Self::new(Code::ValidationFailed, detail) }
    }

    /// `overloaded`, with the seconds after which it is worth another try.
    pub fn overloaded(retry_after_s: u32) -> Self {
        let detail = "More requests are waiting than can be served in time.";
        Self { retry_after_s: Some(retry_after_s), ..Self::new(Code::Overloaded, detail) }
    }

    /// `dependency_unavailable`: the change may have been made or not.
    pub fn unconfirmed() -> Self {
        Self::new(
            Code::DependencyUnavailable,
            "The database did not confirm in time. Repeat the request with the same Idempotency-Key to learn the outcome.",
        )
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for ApiError {}

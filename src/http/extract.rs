//! Parsed pieces of a request: bodies, path ids, idempotency keys. What arrives in a handler needs no second look.
//!
//! Bodies are read under a size limit and an overall deadline, because the framework limits only the head's time
//! (RELIABILITY R21). Checks of values are plain functions behind [`Validate`] rather than derived: most rules here
//! span members (an end after a start), and the error pointers must be the wire's names.

use std::fmt;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, TRANSFER_ENCODING,
};
use actix_web::web::{Bytes, BytesMut, Data};
use actix_web::{FromRequest, HttpRequest};
use futures_util::StreamExt;
use futures_util::future::{Either, LocalBoxFuture};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::{IntoParams, ToSchema};

use crate::error::{ApiError, Code, FieldError};
use crate::idempotency::RequestKey;
use crate::ids::UserId;

/// The largest body of most requests, in bytes.
pub const BODY_LIMIT: usize = 4096;

/// More than the framework takes to end a connection that it will not use again (one second).
const HANG_UP_WITHIN: Duration = Duration::from_secs(2);

/// How long a whole body may take; kept as application data.
#[derive(Debug, Clone, Copy)]
pub struct BodyDeadline(pub Duration);

/// A body that knows its rules.
pub trait Validate {
    /// Names every member that is not acceptable.
    fn validate(&self, errors: &mut Vec<FieldError>);
}

/// A member that is given, be it null: left out, it is `None` by default.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The body of a request that needs no members.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoMembers {}

impl Validate for NoMembers {
    fn validate(&self, _: &mut Vec<FieldError>) {}
}

/// Why an operator does something.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Kept with what is done.
    #[schema(min_length = 1, max_length = 256)]
    pub reason: String,
}

impl Validate for Reason {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        validate_reason(&self.reason, errors);
    }
}

/// Names the member `reason` if it is none.
pub fn validate_reason(reason: &str, errors: &mut Vec<FieldError>) {
    if reason.trim().is_empty() || reason.chars().count() > 256 || reason.chars().any(char::is_control) {
        let detail = "1 to 256 characters, not only blanks, no control characters".to_owned();
        errors.push(FieldError { pointer: "/reason".to_owned(), detail });
    }
}

/// A JSON body of at most `LIMIT` bytes, checked.
///
/// `T` denies unknown fields: a typo must not pass as an absent option.
#[derive(Debug)]
pub struct JsonBody<T, const LIMIT: usize = BODY_LIMIT> {
    pub value: T,
    /// SHA-256 of the body as it was sent.
    pub fingerprint: [u8; 32],
}

/// The body of a request whose members are all optional: nothing, or as [`JsonBody`].
#[derive(Debug)]
pub struct OptionalBody<T, const LIMIT: usize = BODY_LIMIT> {
    pub value: T,
    /// SHA-256 of the body as it was sent.
    pub fingerprint: [u8; 32],
}

impl<T: DeserializeOwned + Validate + 'static, const LIMIT: usize> FromRequest for JsonBody<T, LIMIT> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (req, payload) = (req.clone(), payload.take());
        Box::pin(async move {
            let body = read(&req, payload, LIMIT).await?;
            is_json(req.headers())?;
            Ok(Self { value: parse(&body)?, fingerprint: sha256(&body) })
        })
    }
}

impl<T, const LIMIT: usize> FromRequest for OptionalBody<T, LIMIT>
where
    T: DeserializeOwned + Default + Validate + 'static,
{
    type Error = ApiError;
    type Future = Either<Ready<Result<Self, ApiError>>, LocalBoxFuture<'static, Result<Self, ApiError>>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        if !has_body(req.headers()) {
            return Either::Left(ready(Ok(Self { value: T::default(), fingerprint: *OF_NOTHING })));
        }
        let (req, payload) = (req.clone(), payload.take());
        Either::Right(Box::pin(async move {
            let body = read(&req, payload, LIMIT).await?;
            let value = if body.is_empty() {
                T::default()
            } else {
                is_json(req.headers())?;
                parse(&body)?
            };
            Ok(Self { value, fingerprint: sha256(&body) })
        }))
    }
}

/// A body of at most `LIMIT` bytes as it came, whatever it is: signatures are over the bytes.
#[derive(Debug)]
pub struct RawBody<const LIMIT: usize = BODY_LIMIT>(pub Bytes);

impl<const LIMIT: usize> FromRequest for RawBody<LIMIT> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (req, payload) = (req.clone(), payload.take());
        Box::pin(async move { read(&req, payload, LIMIT).await.map(Self) })
    }
}

/// The fingerprint of an empty body.
static OF_NOTHING: LazyLock<[u8; 32]> = LazyLock::new(|| sha256(&[]));

/// Whether a body comes with these headers, by what they say.
pub fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// Reads a whole body, refusing what is too large or too slow.
async fn read(req: &HttpRequest, payload: Payload, limit: usize) -> Result<Bytes, ApiError> {
    if req.headers().get(CONTENT_ENCODING).is_some_and(|coding| coding.as_bytes() != b"identity") {
        return Err(ApiError::new(Code::UnsupportedMediaType, "Send the body without a content coding"));
    }
    let too_large = || ApiError::new(Code::BodyTooLarge, format!("The body may have up to {limit} bytes"));
    let declared = req.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if declared.is_some_and(|declared: u64| declared > limit as u64) {
        return Err(too_large());
    }
    let deadline = req.app_data::<Data<BodyDeadline>>().map_or(Duration::from_secs(3), |deadline| deadline.0);
    let mut payload = payload;
    let reading = async {
        let mut whole = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| {
                ApiError::new(Code::MalformedRequest, format!("The body cannot be read: {error}"))
            })?;
            if whole.len() + chunk.len() > limit {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    };
    let read = actix_web::rt::time::timeout(deadline, reading).await.unwrap_or_else(|_| {
        let detail = format!("The whole body must arrive within {} ms", deadline.as_millis());
        Err(ApiError::new(Code::RequestTimeout, detail))
    });
    if read.is_err() {
        hang_up_behind(payload);
    }
    read
}

/// Makes the framework hang up after the answer: a chunked body that nobody holds any more it would read to its end,
/// however long.
fn hang_up_behind(unread: Payload) {
    actix_web::rt::spawn(async move {
        actix_web::rt::time::sleep(HANG_UP_WITHIN).await;
        drop(unread);
    });
}

fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let declared = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(ApiError::new(Code::UnsupportedMediaType, "Send the body as application/json"))
    }
}

fn parse<T: DeserializeOwned + Validate>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Object(value): Object<T> =
        serde_path_to_error::deserialize(&mut json).map_err(|error| refusal(&error, body))?;
    json.end().map_err(|error| malformed(&error))?;
    let mut errors = Vec::new();
    value.validate(&mut errors);
    if errors.is_empty() { Ok(value) } else { Err(ApiError::invalid_all(errors)) }
}

/// A `T` that is spelled as an object: what is derived for a struct also reads its members from an array, in order of
/// declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members(PhantomData))
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = Object<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Object)
    }
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::new(Code::MalformedRequest, format!("The body is not JSON: {error}"))
}

/// What is JSON, but not what is expected, has a member at fault; serde does not tell the two apart reliably.
fn refusal(error: &serde_path_to_error::Error<serde_json::Error>, body: &[u8]) -> ApiError {
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        return malformed(&error);
    }
    ApiError::invalid_all(vec![FieldError::found("", error)])
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    fingerprint
}

/// The id in the path; a malformed one names nothing, so it answers 404.
#[derive(Debug, Clone, Copy)]
pub struct PathId<T>(pub T);

impl<T: FromStr> FromRequest for PathId<T> {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let id = req.match_info().get("id").and_then(|id| id.parse().ok());
        ready(id.map(Self).ok_or_else(|| ApiError::new(Code::NotFound, "There is nothing with this id")))
    }
}

/// The name in the path.
#[derive(Debug, Clone)]
pub struct PathName(pub String);

impl FromRequest for PathName {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let name = req.match_info().get("name").map(str::to_owned);
        ready(name.map(Self).ok_or_else(|| ApiError::new(Code::NotFound, "There is nothing with this name")))
    }
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The `Idempotency-Key` header, if it was sent: bare, or quoted as a structured-field string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(pub Option<String>);

impl IdempotencyKey {
    /// Whether one was sent, well-formed or not.
    pub fn is_in(req: &HttpRequest) -> bool {
        req.headers().contains_key(IDEMPOTENCY_KEY)
    }
}

impl FromRequest for IdempotencyKey {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let mut values = req.headers().get_all(IDEMPOTENCY_KEY);
        ready(match (values.next(), values.next()) {
            (None, _) => Ok(Self(None)),
            (Some(value), None) => match idempotency_key(value.as_bytes()) {
                Some(key) => Ok(Self(Some(key))),
                None => Err(ApiError::new(
                    Code::MalformedRequest,
                    "Idempotency-Key: 1 to 128 visible ASCII characters, bare or quoted",
                )),
            },
            (Some(_), Some(_)) => {
                Err(ApiError::new(Code::MalformedRequest, "Idempotency-Key: send only one"))
            }
        })
    }
}

fn idempotency_key(value: &[u8]) -> Option<String> {
    let key = match value {
        [b'"', inner @ .., b'"'] => unquote(inner)?,
        [b'"', ..] => return None,
        bare => bare.to_vec(),
    };
    let visible = key.iter().all(u8::is_ascii_graphic);
    if (1..=128).contains(&key.len()) && visible { String::from_utf8(key).ok() } else { None }
}

/// The text of a structured-field string (RFC 9651), in which `\` may stand only before `"` and `\`.
fn unquote(inner: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => text.push(*bytes.next().filter(|next| matches!(next, b'"' | b'\\'))?),
            b'"' => return None,
            other => text.push(other),
        }
    }
    Some(text)
}

impl IntoParams for IdempotencyKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(130));
        let parameter = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .description(Some(
                "A request that succeeded is answered again to a repeat with the same key and body, for 24 hours. What \
                 was refused or failed is not kept: a repeat tries again.",
            ))
            .schema(Some(schema.pattern(Some(r"^[!-~]+$"))))
            .build();
        vec![parameter]
    }
}

/// What a repeat of this request is recognised by, if the client asked for it.
pub fn request_key(
    caller: UserId,
    req: &HttpRequest,
    key: &IdempotencyKey,
    fingerprint: [u8; 32],
) -> Option<RequestKey> {
    let key = key.0.as_deref()?;
    // As the routes see it: `/orders/%37` is `/orders/7`.
    let route = format!("{} {}", req.method(), req.match_info().as_str());
    Some(RequestKey::new(caller, &route, key, fingerprint))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[serde(default)]
        items: Vec<Object<Item>>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Item {
        quantity: u8,
    }

    impl Validate for Order {
        fn validate(&self, errors: &mut Vec<FieldError>) {
            if self.items.iter().any(|item| item.0.quantity == 0) {
                errors.push(FieldError { pointer: "/items".into(), detail: "at least one each".into() });
            }
        }
    }

    async fn order(request: TestRequest, body: &str) -> Result<Order, ApiError> {
        let request = request.set_payload(body.to_owned());
        let (req, mut payload) = request.to_http_parts();
        JsonBody::<Order, 64>::from_request(&req, &mut payload).await.map(|body| body.value)
    }

    fn json() -> TestRequest {
        TestRequest::post().insert_header((CONTENT_TYPE, "application/json; charset=utf-8"))
    }

    #[actix_web::test]
    async fn a_body_is_parsed_or_refused_with_a_pointer() {
        let one = Order { items: vec![Object(Item { quantity: 1 })] };
        assert_eq!(order(json(), r#"{"items":[{"quantity":1}]}"#).await, Ok(one));

        let too_long = format!(r#"{{"items":[]}}{}"#, " ".repeat(60));
        let nested = "[".repeat(30) + &"]".repeat(30);
        for (body, code, pointer) in [
            ("", Code::MalformedRequest, None),
            ("{", Code::MalformedRequest, None),
            ("{} {}", Code::MalformedRequest, None),
            (r#"{"items":[{"quantity":1}]"#, Code::MalformedRequest, None),
            ("[]x", Code::MalformedRequest, None),
            ("[[[[", Code::MalformedRequest, None),
            (r#"{"itmes":[]"#, Code::MalformedRequest, None),
            (r#"{"items":[{"quantity":1e999}]}"#, Code::ValidationFailed, Some("/items/0/quantity")),
            (&too_long, Code::BodyTooLarge, None),
            (&nested, Code::ValidationFailed, Some("")),
            (r#"{"items":[[1]]}"#, Code::ValidationFailed, Some("/items/0")),
            ("[[]]", Code::ValidationFailed, Some("")),
            ("null", Code::ValidationFailed, Some("")),
            ("3", Code::ValidationFailed, Some("")),
            (r#"{"itmes":[]}"#, Code::ValidationFailed, Some("/itmes")),
            (r#"{"items":[{}]}"#, Code::ValidationFailed, Some("/items/0/quantity")),
            (r#"{"items":[{"quantity":"1"}]}"#, Code::ValidationFailed, Some("/items/0/quantity")),
            (r#"{"items":[{"quantity":256}]}"#, Code::ValidationFailed, Some("/items/0/quantity")),
            (r#"{"items":[{"quantity":1,"x/y":2}]}"#, Code::ValidationFailed, Some("/items/0/x~1y")),
            (r#"{"items":[],"items":[]}"#, Code::ValidationFailed, Some("/items")),
            (r#"{"items":[{"quantity":0}]}"#, Code::ValidationFailed, Some("/items")),
        ] {
            let error = order(json(), body).await.unwrap_err();
            assert_eq!(error.code, code, "{body}: {error}");
            assert_eq!(error.errors.first().map(|error| error.pointer.as_str()), pointer, "{body}: {error}");
        }
    }

    #[actix_web::test]
    async fn only_plain_json_is_read() {
        let text = TestRequest::post().insert_header((CONTENT_TYPE, "text/plain"));
        assert_eq!(order(text, "{}").await.unwrap_err().code, Code::UnsupportedMediaType);
        assert_eq!(order(TestRequest::post(), "{}").await.unwrap_err().code, Code::UnsupportedMediaType);
        let gzip = json().insert_header((CONTENT_ENCODING, "gzip"));
        assert_eq!(order(gzip, "{}").await.unwrap_err().code, Code::UnsupportedMediaType);
        let (req, mut payload) = json().insert_header((CONTENT_LENGTH, "4097")).to_http_parts();
        let declared = JsonBody::<Order>::from_request(&req, &mut payload).await.unwrap_err();
        assert_eq!(declared.code, Code::BodyTooLarge);
    }

    #[actix_web::test]
    async fn a_body_that_never_ends_is_given_up() {
        let req = json()
            .app_data(Data::new(BodyDeadline(Duration::from_millis(20))))
            .insert_header((CONTENT_LENGTH, "2"))
            .to_http_request();
        let endless = futures_util::stream::pending::<Result<Bytes, actix_web::error::PayloadError>>();
        let mut payload: Payload = Payload::Stream { payload: Box::pin(endless) };
        let error = JsonBody::<Order>::from_request(&req, &mut payload).await.unwrap_err();
        assert_eq!(error.code, Code::RequestTimeout);
    }

    #[actix_web::test]
    async fn no_body_is_an_empty_object_where_all_is_optional() {
        for (request, body, ok) in [
            (TestRequest::post(), "", true),
            (json().insert_header((CONTENT_LENGTH, "2")), "{}", true),
            (json().insert_header((CONTENT_LENGTH, "7")), r#"{"x":1}"#, false),
            (TestRequest::post().insert_header((CONTENT_LENGTH, "2")), "{}", false),
        ] {
            let (req, mut payload) = request.set_payload(body).to_http_parts();
            let read = OptionalBody::<Order>::from_request(&req, &mut payload).await;
            assert_eq!(read.is_ok(), ok, "{body}: {read:?}");
        }
    }

    #[actix_web::test]
    async fn an_idempotency_key_is_bare_or_quoted() {
        let long = "k".repeat(129);
        for (sent, key) in [
            (None, Ok(None)),
            (Some("abc"), Ok(Some("abc"))),
            (Some("\"abc\""), Ok(Some("abc"))),
            (Some(r#""a\"b""#), Ok(Some("a\"b"))),
            (Some(&long[..128]), Ok(Some(&long[..128]))),
            (Some(&long), Err(())),
            (Some(""), Err(())),
            (Some("\"\""), Err(())),
            (Some("a b"), Err(())),
            (Some(r#""a"b""#), Err(())),
        ] {
            let mut request = TestRequest::post();
            if let Some(sent) = sent {
                request = request.insert_header(("Idempotency-Key", sent));
            }
            let extracted = IdempotencyKey::extract(&request.to_http_request()).await;
            let extracted = extracted.map_err(|error| assert_eq!(error.code, Code::MalformedRequest));
            assert_eq!(extracted, key.map(|key| IdempotencyKey(key.map(str::to_owned))), "{sent:?}");
        }
    }

    #[actix_web::test]
    async fn a_path_is_one_route_however_it_is_spelled() {
        let key = |uri| {
            let req = TestRequest::post().uri(uri).to_http_request();
            request_key(UserId(1), &req, &IdempotencyKey(Some("k".to_owned())), [0; 32]).unwrap().id
        };
        assert_eq!(key("/api/v1/orders/7/cancel"), key("/api/v1/orders/%37/c%61ncel"));
        assert_ne!(key("/api/v1/orders/7/cancel"), key("/api/v1/orders/8/cancel"));
    }

    #[actix_web::test]
    async fn a_malformed_id_names_nothing() {
        for (id, found) in [
            ("7", Some(UserId(7))),
            ("x", None),
            ("-1", None),
            ("+7", None),
            ("007", None),
            ("99999999999999999999", None),
        ] {
            let req = TestRequest::get().param("id", id).to_http_request();
            let extracted = PathId::<UserId>::extract(&req).await.map(|id| id.0);
            assert_eq!(extracted.map_err(|error| error.code), found.ok_or(Code::NotFound));
        }
    }
}

//! An event as everyone sees it: CloudEvents 1.0 in structured JSON, whichever bus carries it.
//!
//! `sequence` is the extension of that name: a string that sorts as text, hence the version in 19 digits with leading
//! zeros. `traceparent` is the distributed-tracing extension. Attributes we do not know are ignored; a missing or wrong
//! one is not: what cannot be read now cannot be read later either.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::error::Category;
use serde_json::value::RawValue;
use thiserror::Error;

use super::catalogue::{Event, EventType};
use super::outbox;
use crate::ids::EventId;
use crate::ports::clock::Timestamp;
use crate::trace::Traceparent;

/// What an event is sent as.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// Who speaks.
pub const SOURCE: &str = "tombola";

/// The largest event that is read.
pub const MAX_BYTES: usize = 1 << 20;

/// The longest type and the longest subject, in characters: what the columns take.
const MAX_TERM: usize = 64;

pub(super) const SPEC_VERSION: &str = "1.0";
pub(super) const DATA_CONTENT_TYPE: &str = "application/json";

/// An event on its way.
#[derive(Debug, Clone)]
pub struct Envelope {
    pub id: EventId,
    /// One that this version does not know, if a later version wrote it.
    pub event_type: String,
    /// The id of the aggregate.
    pub subject: String,
    /// The version of the aggregate, where it has one.
    pub sequence: Option<i64>,
    pub time: Timestamp,
    pub traceparent: Option<Traceparent>,
    /// The payload as it was written.
    pub data: Box<RawValue>,
}

/// Why bytes are no event of ours, or an event not what its reader expects. Trying again does not help.
#[derive(Debug, Error)]
pub enum Undecodable {
    #[error("{0} bytes are more than an event may have ({MAX_BYTES})")]
    TooLarge(usize),
    #[error("not JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("not events as the outbox keeps them: {0}")]
    Row(serde_json::Error),
    #[error("not a JSON object")]
    NotAnObject,
    #[error("not a CloudEvent of ours: {0}")]
    Attributes(String),
    #[error("`{attribute}` is {found:?}, not {expected:?}")]
    Attribute { attribute: &'static str, expected: &'static str, found: String },
    #[error("`{0}` is not 1 to {MAX_TERM} characters without control characters")]
    NoTerm(&'static str),
    #[error("{0} is not for this group")]
    Unexpected(String),
    #[error("{found} was read as {expected}")]
    Type { expected: EventType, found: String },
    #[error("the data of {event_type} cannot be read: {error}")]
    Data { event_type: EventType, error: serde_json::Error },
}

/// The attributes in the order of the specification.
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    specversion: Cow<'a, str>,
    id: EventId,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    subject: Cow<'a, str>,
    #[serde(serialize_with = "outbox::serialize_rfc3339")]
    time: Timestamp,
    #[serde(borrow)]
    datacontenttype: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<Sequence>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Envelope {
    /// The type, if this version knows it.
    pub fn known_type(&self) -> Option<EventType> {
        EventType::parse(&self.event_type)
    }

    /// Why a group refuses an event that it does not listen to.
    pub fn unexpected(&self) -> Undecodable {
        Undecodable::Unexpected(self.event_type.clone())
    }

    /// The payload of an event that is an `E`.
    pub fn payload<E: Event + DeserializeOwned>(&self) -> Result<E, Undecodable> {
        let expected = E::TYPE;
        if self.event_type != expected.word() {
            return Err(Undecodable::Type { expected, found: self.event_type.clone() });
        }
        serde_json::from_str(self.data.get())
            .map_err(|error| Undecodable::Data { event_type: expected, error })
    }

    /// The CloudEvent. `data` goes as it is, without being read.
    pub fn to_json(&self) -> Vec<u8> {
        let wire = Wire {
            specversion: SPEC_VERSION.into(),
            id: self.id,
            source: SOURCE.into(),
            r#type: self.event_type.as_str().into(),
            subject: self.subject.as_str().into(),
            time: self.time,
            datacontenttype: DATA_CONTENT_TYPE.into(),
            sequence: self.sequence.map(Sequence),
            traceparent: self.traceparent.map(|parent| parent.to_string().into()),
            data: &self.data,
        };
        serde_json::to_vec(&wire).unwrap_or_else(|_| unreachable!("strings and JSON are JSON"))
    }

    /// [`Envelope::to_json`] as text.
    pub fn to_text(&self) -> String {
        String::from_utf8(self.to_json()).unwrap_or_else(|_| unreachable!("serde_json writes UTF-8"))
    }

    /// Reads a CloudEvent of this server, as [`Envelope::to_json`] wrote it.
    pub fn parse(json: &[u8]) -> Result<Self, Undecodable> {
        if json.len() > MAX_BYTES {
            return Err(Undecodable::TooLarge(json.len()));
        }
        let wire: Wire<'_> = serde_json::from_slice(json).map_err(|error| match error.classify() {
            Category::Data => Undecodable::Attributes(named(json, &error)),
            Category::Io | Category::Syntax | Category::Eof => Undecodable::NotJson(error),
        })?;
        // Members without names, in the right order, would do as well.
        if json.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Undecodable::NotAnObject);
        }
        must_be("specversion", SPEC_VERSION, wire.specversion)?;
        must_be("source", SOURCE, wire.source)?;
        must_be("datacontenttype", DATA_CONTENT_TYPE, wire.datacontenttype)?;
        Ok(Self {
            id: wire.id,
            event_type: term("type", wire.r#type)?,
            subject: term("subject", wire.subject)?,
            sequence: wire.sequence.map(|Sequence(number)| number),
            time: wire.time,
            traceparent: wire.traceparent.as_deref().and_then(Traceparent::parse),
            data: wire.data.to_owned(),
        })
    }
}

/// `error` with the attribute it is about: read once more, because keeping track costs half as much as reading.
fn named(json: &[u8], error: &serde_json::Error) -> String {
    let mut again = serde_json::Deserializer::from_slice(json);
    let again: Result<Wire<'_>, _> = serde_path_to_error::deserialize(&mut again);
    again.err().map_or_else(|| error.to_string(), |named| named.to_string())
}

fn must_be(attribute: &'static str, expected: &'static str, found: Cow<'_, str>) -> Result<(), Undecodable> {
    if found == expected {
        Ok(())
    } else {
        Err(Undecodable::Attribute { attribute, expected, found: found.into_owned() })
    }
}

fn term(attribute: &'static str, text: Cow<'_, str>) -> Result<String, Undecodable> {
    if is_term(&text) { Ok(text.into_owned()) } else { Err(Undecodable::NoTerm(attribute)) }
}

/// Whether `text` can be a type or a subject: fit to be kept, compared and shown in a line.
pub(super) fn is_term(text: &str) -> bool {
    (1..=MAX_TERM).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// A version, as text that sorts as the numbers do.
struct Sequence(i64);

impl Serialize for Sequence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:019}", self.0))
    }
}

impl<'de> Deserialize<'de> for Sequence {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits).map(Self);
        number.ok_or_else(|| serde::de::Error::custom("`sequence` is a decimal number of up to 19 digits"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::ids::{ActivityId, TakeId, UserId};
    use crate::messaging::outbox::Events;
    use crate::ports::clock::from_micros;
    use crate::stock::events::{SoldOut, Taken};

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn event() -> Value {
        serde_json::from_str(EventType::ActivityStateChanged.fixture()).unwrap()
    }

    #[rstest]
    #[case::source("source", json!("elsewhere"), r#"`source` is "elsewhere", not "tombola""#)]
    #[case::specversion("specversion", json!("0.3"), r#"`specversion` is "0.3", not "1.0""#)]
    #[case::content("datacontenttype", json!("text/xml"), r#"`datacontenttype` is "text/xml", not "application/json""#)]
    #[case::number("specversion", json!(1.0), "ours: specversion: invalid type: floating point `1.0`, expected a string")]
    #[case::id("id", json!("A234-1234"), "ours: id: an id is a decimal number")]
    #[case::null("subject", json!(null), "ours: subject: invalid type: null, expected a string")]
    #[case::no_type("type", json!(""), "`type` is not 1 to 64 characters")]
    #[case::no_subject("subject", json!(""), "`subject` is not 1 to 64 characters")]
    #[case::long_type("type", json!("x".repeat(65)), "`type` is not 1 to 64 characters")]
    #[case::control("subject", json!("7\u{0}"), "`subject` is not 1 to 64 characters without control")]
    #[case::time("time", json!("yesterday"), "ours: time: ")]
    #[case::sequence("sequence", json!(4), "ours: sequence: ")]
    #[case::sign("sequence", json!("-4"), "a decimal number of up to 19 digits")]
    #[case::traceparent("traceparent", json!(7), "ours: traceparent: ")]
    fn a_wrong_attribute_is_named(#[case] attribute: &str, #[case] value: Value, #[case] why: &str) {
        let mut event = event();
        event[attribute] = value;
        let error = Envelope::parse(event.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    #[rstest]
    fn a_missing_attribute_is_named(
        #[values("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data")]
        attribute: &str,
    ) {
        let mut event = event();
        event.as_object_mut().unwrap().remove(attribute);
        let error = Envelope::parse(event.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("missing field `{attribute}`")), "{error}");
    }

    #[rstest]
    #[case(b"", "not JSON")]
    #[case(b"{\"specversion\"", "not JSON")]
    #[case(b"\xff\xfe", "not JSON")]
    #[case(b"{} {}", "missing field")]
    #[case(b"42", "not a CloudEvent of ours")]
    #[case(b"[\"1.0\",\"1\",\"tombola\",\"a.b.v1\",\"1\",\"2026-11-21T08:00:00Z\",\"application/json\",null,null,{}]",
        "not a JSON object")]
    #[case(&[b' '; MAX_BYTES + 1], "1048577 bytes")]
    fn what_is_no_event_is_refused(#[case] body: &[u8], #[case] why: &str) {
        let error = Envelope::parse(body).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn what_others_may_add_is_ignored() {
        let mut event = event();
        event["tracestate"] = json!("vendor=1");
        event["traceparent"] = json!("nonsense");
        let envelope = Envelope::parse(event.to_string().as_bytes()).unwrap();
        assert_eq!((envelope.sequence, envelope.traceparent), (Some(4), None));
    }

    #[test]
    fn a_payload_is_read_as_what_it_is() {
        let taken = Envelope::parse(EventType::ActivityTaken.fixture().as_bytes()).unwrap();
        assert_eq!(taken.payload::<Taken>().unwrap().token_no, 1);
        let error = taken.payload::<SoldOut>().unwrap_err().to_string();
        assert_eq!(error, "activity.taken.v1 was read as activity.sold_out.v1");
        let broken = Envelope { data: RawValue::from_string("{}".to_owned()).unwrap(), ..taken };
        let error = broken.payload::<Taken>().unwrap_err().to_string();
        assert!(error.starts_with("the data of activity.taken.v1 cannot be read: missing field"), "{error}");
    }

    #[test]
    fn what_a_module_writes_is_what_a_reader_gets() {
        let mut events = Events::at(from_micros(1_700_000_000_123_456));
        let at = events.time().to_owned();
        let taken = |take: i64| Taken {
            take_id: TakeId(take),
            activity_id: ActivityId(7),
            user_id: UserId(3),
            token_no: 5,
            take_no: 1,
            taken_at: at.as_str(),
        };
        let own = Traceparent::parse(&PARENT.replace("736-", "737-"));
        events.push_traced(EventId(1), &taken(11), own).unwrap();
        events.push(EventId(2), &taken(12)).unwrap();
        let row = events.into_json();
        let read = outbox::read(&row, Some(PARENT)).unwrap();
        let sent: Vec<Envelope> = read.iter().map(|e| Envelope::parse(&e.to_json()).unwrap()).collect();
        assert_eq!(sent.iter().map(|e| e.traceparent).collect::<Vec<_>>(), [own, Traceparent::parse(PARENT)]);
        for (event, (id, take)) in sent.iter().zip([(1, 11), (2, 12)]) {
            assert_eq!((event.id, event.subject.as_str(), event.sequence), (EventId(id), "7", None));
            assert_eq!(event.event_type, "activity.taken.v1");
            let payload: Taken = event.payload().unwrap();
            assert_eq!((payload.take_id, payload.taken_at), (TakeId(take), event.time));
            assert_eq!(event.time, from_micros(1_700_000_000_123_456));
        }
        assert_eq!(outbox::read(&row, None).unwrap()[1].traceparent, None);
        assert!(outbox::read("[]", None).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(
            id in 0..=i64::MAX,
            (event_type, subject) in ("\\PC{1,64}", "\\PC{1,64}"),
            sequence in proptest::option::of(0..=i64::MAX),
            micros in 0..253_402_300_799_000_000_i64,
            text in ".*",
            traced in any::<bool>(),
        ) {
            let data = RawValue::from_string(json!({ "text": text, "n": [1, 2.5, null] }).to_string()).unwrap();
            let sent = Envelope {
                id: EventId(id),
                event_type,
                subject,
                sequence,
                time: from_micros(micros),
                traceparent: Traceparent::parse(PARENT).filter(|_| traced),
                data,
            };
            let json = sent.to_json();
            let arrived = Envelope::parse(&json).unwrap();
            prop_assert_eq!(arrived.to_json(), json);
            prop_assert_eq!((arrived.id, arrived.sequence, arrived.time), (sent.id, sent.sequence, sent.time));
            prop_assert_eq!((arrived.event_type, arrived.subject), (sent.event_type, sent.subject));
            prop_assert_eq!((arrived.traceparent, arrived.data.get()), (sent.traceparent, sent.data.get()));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::parse(&bytes);
        }

        #[test]
        fn sequences_sort_as_text(a in 0..=i64::MAX, b in 0..=i64::MAX) {
            let text = |number| serde_json::to_string(&Sequence(number)).unwrap();
            prop_assert_eq!(text(a).cmp(&text(b)), a.cmp(&b));
        }
    }
}

//! The AsyncAPI 3.1 document of what is published on RabbitMQ, made from the catalogue.
//!
//! Each type is a channel, because its routing key is the channel's address, with one message whose payload is the whole
//! CloudEvent and whose example is the fixture. With `bus = "embedded"` nobody outside gets events, but the document is
//! the same.

use std::sync::LazyLock;

use actix_web::web::Bytes;
use actix_web::{HttpResponse, get};
use serde_json::{Map, Value, json};

use super::catalogue::EventType;
use super::envelope::{CONTENT_TYPE, DATA_CONTENT_TYPE, SOURCE, SPEC_VERSION};
use crate::ids::ID_PATTERN;
use crate::ports::event_bus::rabbitmq::EVENTS;
use crate::trace::TRACEPARENT;

/// The version of AMQP's part of AsyncAPI.
const BINDING: &str = "0.3.0";

const DESCRIPTION: &str = "\
Every event is published after its cause is committed, at least once: remember the `id`s you have applied. Bind a queue of \
your own to the topic exchange `tombola.events`; a binding key may have wildcards, as in `activity.#`.\n\n\
Events of one `subject` are published one after the other, but a repeated one may come late. Where an event has a \
`sequence`, the one that sorts later is about a later version of its subject; not every version has an event.\n\n\
Types end in a version. A version only gains optional members: ignore those you do not know.";

/// The document.
pub fn document() -> Value {
    let mut schemas = Vec::new();
    let (mut channels, mut operations) = (Map::new(), Map::new());
    for &event in EventType::ALL {
        let word = event.word();
        let data = json!(event.schema(&mut schemas));
        channels.insert(word.to_owned(), channel(event, data));
        operations.insert(word.to_owned(), operation(word));
    }
    let mut schemas: Map<String, Value> =
        schemas.into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    schemas.insert("Headers".to_owned(), headers());
    json!({
        "asyncapi": "3.1.0",
        "info": {
            "title": "Tombola events",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0 OR MIT" },
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": { "rabbitmq": {
            "host": "{host}:{port}",
            "protocol": "amqp",
            "protocolVersion": "0.9.1",
            "description": "The broker that the setting `bus` names.",
            "variables": { "host": { "default": "localhost" }, "port": { "default": "5672" } },
        } },
        "channels": channels,
        "operations": operations,
        "components": { "schemas": schemas },
    })
}

fn channel(event: EventType, data: Value) -> Value {
    let word = event.word();
    let example: Value = serde_json::from_str(event.fixture()).unwrap_or_default();
    let message = json!({
        "name": word,
        "title": word,
        "summary": event.summary(),
        "contentType": CONTENT_TYPE,
        "headers": { "$ref": "#/components/schemas/Headers" },
        "payload": cloud_event(event, data),
        "bindings": { "amqp": { "messageType": word, "bindingVersion": BINDING } },
        "examples": [{ "name": word, "payload": example }],
    });
    json!({
        "address": word,
        "description": event.summary(),
        "messages": { word: message },
        "bindings": { "amqp": {
            "is": "routingKey",
            "exchange": { "name": EVENTS, "type": "topic", "durable": true, "autoDelete": false },
            "bindingVersion": BINDING,
        } },
    })
}

fn operation(word: &str) -> Value {
    json!({
        "action": "send",
        "channel": { "$ref": format!("#/channels/{word}") },
        "messages": [{ "$ref": format!("#/channels/{word}/messages/{word}") }],
        "bindings": { "amqp": { "deliveryMode": 2, "bindingVersion": BINDING } },
    })
}

fn cloud_event(event: EventType, data: Value) -> Value {
    let mut attributes = json!({
        "specversion": { "type": "string", "const": SPEC_VERSION },
        "id": {
            "type": "string",
            "pattern": ID_PATTERN,
            "description": "The same each time this event is delivered, and of no other event.",
        },
        "source": { "type": "string", "const": SOURCE },
        "type": { "type": "string", "const": event.word() },
        "subject": {
            "type": "string",
            "pattern": ID_PATTERN,
            "description": format!("What it happened to: `data.{}`.", event.subject_member()),
        },
        "time": { "type": "string", "format": "date-time", "description": "When it happened." },
        "datacontenttype": { "type": "string", "const": DATA_CONTENT_TYPE },
        "traceparent": { "type": "string", "description": "The trace of its cause (W3C Trace Context), if there is one." },
    });
    let mut required = vec!["specversion", "id", "source", "type", "subject", "time", "datacontenttype"];
    if let Some(member) = event.sequence_member() {
        attributes["sequence"] = json!({
            "type": "string",
            "pattern": "^[0-9]{19}$",
            "description": format!("`data.{member}` with leading zeros, so that it sorts as text."),
        });
        required.push("sequence");
    }
    attributes["data"] = data;
    required.push("data");
    json!({ "type": "object", "required": required, "properties": attributes })
}

/// What the message says of the event beside it, so that a broker can route by it.
fn headers() -> Value {
    let attribute = |name: &str| json!({ "type": "string", "description": format!("The event's `{name}`.") });
    let names = ["specversion", "id", "source", "type", "subject", "time"];
    let mut headers: Map<String, Value> =
        names.into_iter().map(|name| (format!("cloudEvents_{name}"), attribute(name))).collect();
    headers.insert(TRACEPARENT.to_owned(), attribute(TRACEPARENT));
    json!({ "type": "object", "properties": headers })
}

/// The events as an AsyncAPI document.
#[utoipa::path(tag = "operating", responses((status = 200, description = "AsyncAPI 3.1", body = Object)))]
#[get("/asyncapi.json")]
pub(crate) async fn asyncapi_json() -> HttpResponse {
    static JSON: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    HttpResponse::Ok().content_type("application/json").body(JSON.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_in_the_document() {
        let document = document();
        for &event in EventType::ALL {
            let channel = &document["channels"][event.word()];
            assert_eq!(channel["address"], event.word());
            let message = &channel["messages"][event.word()];
            assert_eq!(message["examples"][0]["payload"]["type"], event.word());
            assert_eq!(message["payload"]["properties"]["type"]["const"], event.word());
            assert!(message["payload"]["properties"]["data"]["properties"].is_object(), "{event}");
            assert_eq!(document["operations"][event.word()]["action"], "send");
        }
        assert_eq!(document["channels"].as_object().unwrap().len(), EventType::ALL.len());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn visit(value: &Value, document: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(reference)) = members.get("$ref") {
                        let target = reference.strip_prefix('#').and_then(|path| document.pointer(path));
                        assert!(target.is_some(), "{reference}");
                    }
                    members.values().for_each(|member| visit(member, document));
                }
                Value::Array(items) => items.iter().for_each(|item| visit(item, document)),
                _ => {}
            }
        }
        let document = document();
        visit(&document, &document);
    }
}

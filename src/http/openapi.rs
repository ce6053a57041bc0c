//! The OpenAPI 3.1 document, made from the routes themselves.
//!
//! What every operation has in common is added here, so that no handler can forget it: the bearer token (unless a
//! handler says `security(())`), ids and names in the path, and the refusals that follow from taking a body, a token, an id.
//! A handler documents only its own, by [`refusals!`](crate::refusals).

use std::collections::{BTreeMap, HashMap};

use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse, get};
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::Components;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required, Response, ResponseBuilder};

use super::problem::{PROBLEM_JSON, Problem};
use crate::error::{ApiError, Code, FieldError};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tombola",
        description = "Flash sales, prize draws and coupon give-aways that sell out exactly.\n\nEvery refusal is `application/problem+json` with a stable `code`; `/docs/problems` lists them all.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    components(schemas(Problem<'static>, Code, FieldError)),
    tags(
        (name = "sessions", description = "Who is calling"),
        (name = "users", description = "Who has signed in, or may"),
        (name = "activities", description = "What is on offer, when and to whom"),
        (name = "takes", description = "Drawing a token from the drum"),
        (name = "shop", description = "Goods with a price and a quantity, and what users are about to order"),
        (name = "orders", description = "What was bought, until it ends well"),
        (name = "payments", description = "Money for orders, and back"),
        (name = "wallet", description = "Balances and points, and what changed them"),
        (name = "coupons", description = "What takes something off an order"),
        (name = "notifications", description = "What users are told"),
        (name = "jobs", description = "Work that one node does for all, by schedule or when asked for"),
        (name = "messaging", description = "Events on their way, and those that did not arrive"),
        (name = "reconciliation", description = "What should agree and does not"),
        (name = "operating", description = "Health, metrics and this document"),
    )
)]
struct Base;

/// The document before the routes have added themselves.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

/// The document as it is served, and what the routes in it allow.
#[derive(Debug, Clone)]
pub(super) struct Document {
    json: Bytes,
    allowed: HashMap<String, HeaderValue>,
}

impl Document {
    pub(super) fn new(api: &utoipa::openapi::OpenApi) -> Self {
        let allowed = api.paths.paths.iter().map(|(path, item)| {
            let mut methods: Vec<_> = operations(item).map(|(method, _)| method).collect();
            if methods.contains(&"GET") {
                methods.push("HEAD");
            }
            let methods = HeaderValue::try_from(methods.join(", "));
            (path.clone(), methods.unwrap_or_else(|_| HeaderValue::from_static("")))
        });
        Self { json: api.to_json().unwrap_or_default().into(), allowed: allowed.collect() }
    }
}

/// The operations of `item` by their method.
pub(super) fn operations(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    [
        ("GET", &item.get),
        ("POST", &item.post),
        ("PUT", &item.put),
        ("PATCH", &item.patch),
        ("DELETE", &item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

/// Adds to every operation what all of its kind have in common.
pub(super) fn complete(api: &mut utoipa::openapi::OpenApi) {
    let components = api.components.get_or_insert_with(Components::new);
    components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    for (path, item) in &mut api.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            complete_operation(path, operation);
        }
    }
}

fn complete_operation(path: &str, operation: &mut Operation) {
    let mut codes = vec![Code::InternalError];
    if path.starts_with("/api/") {
        codes.push(Code::DependencyUnavailable);
        if operation.security.is_none() {
            operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], _>("bearer", [])]);
        }
    }
    let public =
        operation.security.as_ref().is_none_or(|needs| needs.contains(&SecurityRequirement::default()));
    if !public {
        codes.extend([Code::Unauthenticated, Code::RateLimited]);
        if path.starts_with("/api/v1/admin/") {
            codes.push(Code::Forbidden);
        }
    }
    let in_path = [
        ("id", <crate::ids::TakeId as utoipa::PartialSchema>::schema()),
        ("name", <String as utoipa::PartialSchema>::schema()),
    ];
    for (name, schema) in in_path.into_iter().filter(|(name, _)| path.contains(&format!("{{{name}}}"))) {
        codes.push(Code::NotFound);
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(schema))
            .build();
        operation.parameters.get_or_insert_default().insert(0, parameter.into());
    }
    if operation.request_body.is_some() {
        codes.extend([Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType]);
        codes.extend([Code::MalformedRequest, Code::ValidationFailed]);
    }
    for parameter in operation.parameters.iter().flatten() {
        match parameter {
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => {
                codes.push(Code::ValidationFailed);
            }
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Header => {
                codes.extend([
                    Code::MalformedRequest,
                    Code::IdempotencyKeyReused,
                    Code::IdempotencyInProgress,
                ]);
            }
            _ => {}
        }
    }
    codes.dedup();
    for (status, response) in refusals(&codes) {
        match operation.responses.responses.get_mut(&status) {
            None => drop(operation.responses.responses.insert(status, response)),
            Some(RefOr::T(own)) if own.content.contains_key(PROBLEM_JSON) => {
                if let RefOr::T(common) = response {
                    for meaning in common.description.lines() {
                        if !own.description.lines().any(|known| known == meaning) {
                            own.description.push('\n');
                            own.description.push_str(meaning);
                        }
                    }
                }
            }
            // An answer with a body of its own, such as the 503 of /readyz.
            Some(_) => {}
        }
    }
}

/// Documents answers with these codes; called by [`refusals!`](crate::refusals).
pub fn refusals(codes: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    let mut meanings = BTreeMap::<u16, Vec<String>>::new();
    for code in codes {
        let meaning = format!("`{code}`: {}", code.title());
        let of_status = meanings.entry(code.status()).or_default();
        if !of_status.contains(&meaning) {
            of_status.push(meaning);
        }
    }
    let document = |meanings: Vec<String>| {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        ResponseBuilder::new().description(meanings.join("\n")).content(PROBLEM_JSON, problem).build().into()
    };
    meanings.into_iter().map(|(status, meanings)| (status.to_string(), document(meanings))).collect()
}

/// Names a set of refusals for the `responses(…)` of a handler: `refusals!(TakeRefusals: SoldOut, TakeLimitReached);`
#[macro_export]
macro_rules! refusals {
    ($name:ident: $($code:ident),+ $(,)?) => {
        enum $name {}

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::response::Response>,
            > {
                $crate::http::openapi::refusals(&[$($crate::error::Code::$code),+])
            }
        }
    };
}

/// This document.
#[utoipa::path(tag = "operating", responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
#[get("/openapi.json")]
pub(super) async fn openapi_json(document: Data<Document>) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(document.json.clone())
}

/// Answers what no route does: the method is not offered here, or there is nothing at all.
pub(super) async fn not_offered(req: HttpRequest, document: Data<Document>) -> HttpResponse {
    const ALLOW: HeaderName = header::ALLOW;
    match req.match_pattern().and_then(|pattern| document.allowed.get(&pattern).cloned()) {
        Some(allowed) => {
            let detail = format!("Use one of: {}", allowed.to_str().unwrap_or_default());
            let mut refusal = HttpResponse::from_error(ApiError::new(Code::MethodNotAllowed, detail));
            refusal.headers_mut().insert(ALLOW, allowed);
            refusal
        }
        None => HttpResponse::from_error(ApiError::new(Code::NotFound, "There is nothing at this address")),
    }
}

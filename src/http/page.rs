//! Query strings and pages of lists.
//!
//! Unknown parameters are refused, so that a typo never passes as an absent filter. A cursor is opaque: the last id
//! of the page and a tag of the list it came from, so that a cursor of another list or filter is refused rather than
//! answered with the wrong rows.

use std::borrow::Cow;
use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::{IntoParams, ToSchema};

use crate::error::{ApiError, named_member};

/// How many items a page has if the client does not say.
const DEFAULT_LIMIT: u32 = 20;
/// How many items a page may have.
const MAX_LIMIT: u32 = 100;

/// Query parameters, all of them known to `T`. `T` denies unknown fields.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

/// The query of a list: which page of it, and a filter that denies unknown fields.
#[derive(Debug, Clone)]
pub struct ListQuery<T = NoFilter> {
    pub page: Page,
    pub filter: T,
}

/// The filter of a list without one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoFilter {}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// 1..=100.
    limit: u32,
    after: Option<i64>,
    list: [u8; 4],
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// Where the next page begins; null at the end.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// All there is, on one page.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next_cursor: None }
    }
}

impl Page {
    /// How many rows to read: one more than are shown, to see whether there is a next page.
    pub fn rows(&self) -> u64 {
        u64::from(self.limit) + 1
    }

    /// The id behind which the page begins, in the list's own order; `None` for its beginning.
    pub fn after(&self) -> Option<i64> {
        self.after
    }

    /// The page made of up to [`Page::rows`] rows.
    pub fn list<Row, T>(
        &self,
        mut rows: Vec<Row>,
        id: impl Fn(&Row) -> i64,
        show: impl FnMut(Row) -> T,
    ) -> List<T> {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|last| self.cursor(id(last)));
        List { items: rows.into_iter().map(show).collect(), next_cursor }
    }

    /// The page of a list that was read whole, because it is short; its ids ascend.
    pub fn of<Row, T>(&self, all: Vec<Row>, id: impl Fn(&Row) -> i64, show: impl FnMut(Row) -> T) -> List<T> {
        let behind = all.into_iter().filter(|row| self.after.is_none_or(|after| id(row) > after));
        let rows = behind.take(self.limit as usize + 1).collect();
        self.list(rows, id, show)
    }

    fn cursor(&self, last: i64) -> String {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&last.to_be_bytes());
        bytes[8..].copy_from_slice(&self.list);
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }
}

type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

fn pairs(req: &HttpRequest) -> Vec<Pair<'_>> {
    form_urlencoded::parse(req.query_string().as_bytes()).collect()
}

fn parse<T: DeserializeOwned>(pairs: &[Pair<'_>]) -> Result<T, ApiError> {
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let query = serde_urlencoded::Deserializer::new(form_urlencoded::parse(encoded.as_bytes()));
    serde_path_to_error::deserialize(query).map_err(|error| {
        let detail = error.inner().to_string();
        let name = match named_member(&detail) {
            Some(name) => name.to_owned(),
            None => error.path().to_string(),
        };
        ApiError::invalid(format!("?{name}"), detail)
    })
}

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(parse(&pairs(req)).map(Self))
    }
}

impl<T: DeserializeOwned> FromRequest for ListQuery<T> {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(list_query(req))
    }
}

fn list_query<T: DeserializeOwned>(req: &HttpRequest) -> Result<ListQuery<T>, ApiError> {
    let (paging, mut filter): (Vec<_>, Vec<_>) =
        pairs(req).into_iter().partition(|(name, _)| name == "limit" || name == "cursor");
    let only = |wanted: &str| {
        let mut values = paging.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_ref());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(ApiError::invalid(format!("?{wanted}"), "given more than once")),
        }
    };
    let limit = match only("limit")? {
        None => DEFAULT_LIMIT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=MAX_LIMIT).contains(limit))
            .ok_or_else(|| ApiError::invalid("?limit", "a number from 1 to 100"))?,
    };
    filter.sort();
    let list = tag(req.path(), &filter);
    let after = match only("cursor")? {
        None => None,
        Some(cursor) => Some(
            position(cursor, list)
                .ok_or_else(|| ApiError::invalid("?cursor", "not a cursor of this list with this filter"))?,
        ),
    };
    Ok(ListQuery { page: Page { limit, after, list }, filter: parse(&filter)? })
}

/// Tells one list, filter included, from another; the same on every node.
fn tag(path: &str, filter: &[Pair<'_>]) -> [u8; 4] {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(path.as_bytes());
    for part in filter.iter().flat_map(|(name, value)| [name, value]) {
        hash.update(&[0]);
        hash.update(part.as_bytes());
    }
    let mut tag = [0; 4];
    tag.copy_from_slice(&hash.finish().as_ref()[..4]);
    tag
}

fn position(cursor: &str, list: [u8; 4]) -> Option<i64> {
    let bytes: [u8; 12] = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?.try_into().ok()?;
    let (id, of_list) = bytes.split_first_chunk()?;
    (*of_list == list).then_some(i64::from_be_bytes(*id))
}

impl IntoParams for Page {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let query = |name: &str| ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query);
        let limit = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(MAX_LIMIT))
            .default(Some(DEFAULT_LIMIT.into()));
        let cursor = ObjectBuilder::new().schema_type(Type::String);
        vec![
            query("limit").description(Some("How many items at most.")).schema(Some(limit)).build(),
            query("cursor")
                .description(Some("`next_cursor` of the page before."))
                .schema(Some(cursor))
                .build(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::error::Code;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Filter {
        state: Option<String>,
        min: Option<u32>,
    }

    fn query(uri: &str) -> Result<ListQuery<Filter>, ApiError> {
        list_query(&TestRequest::with_uri(uri).to_http_request())
    }

    #[test]
    fn a_query_is_parsed_or_refused_with_its_parameter() {
        let asked = query("/a?min=3&limit=100&state=a%20b").unwrap();
        assert_eq!(asked.filter, Filter { state: Some("a b".into()), min: Some(3) });
        assert_eq!((asked.page.limit, asked.page.after), (100, None));
        assert_eq!(query("/a").unwrap().page.rows(), 21);

        for (query_string, pointer) in [
            ("limit=0", "?limit"),
            ("limit=101", "?limit"),
            ("limit=ten", "?limit"),
            ("limit=1&limit=2", "?limit"),
            ("cursor=", "?cursor"),
            ("cursor=%00", "?cursor"),
            ("stat=x", "?stat"),
            ("%6Cimits=3", "?limits"),
            ("min=-1", "?min"),
            ("state=a&state=b", "?state"),
        ] {
            let error = query(&format!("/a?{query_string}")).unwrap_err();
            assert_eq!(error.code, Code::ValidationFailed);
            assert_eq!(error.errors[0].pointer, pointer, "{error}");
        }
    }

    #[test]
    fn a_cursor_leads_on_in_its_own_list_only() {
        let first = query("/a?limit=2&state=x&min=1").unwrap().page;
        let page = first.list(vec![9, 8, 7], |id| *id, |id| id);
        assert_eq!(page.items, [9, 8]);
        let cursor = page.next_cursor.unwrap();

        let next = query(&format!("/a?cursor={cursor}&min=1&state=x")).unwrap().page;
        assert_eq!(next.after(), Some(8));
        assert_eq!(next.list(vec![7], |id| *id, |id| id).next_cursor, None);

        let cut = |page: &Page| page.of(vec![5, 7, 8, 9], |id| *id, |id| id).items;
        assert_eq!((cut(&first), cut(&next)), (vec![5, 7], vec![9]));

        for other in ["/b?state=x&min=1", "/a?state=x", "/a?state=y&min=1"] {
            assert!(query(&format!("{other}&cursor={cursor}")).is_err(), "{other}");
        }
    }
}

//! Goods over HTTP (API.md, Shop).

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, patch, post};
use serde::Deserialize;
use utoipa::ToSchema;

use super::ledger::StockEntry;
use super::model::{
    Adjusted, Adjustment, CatalogError, Description, Edit, GoodsView, Invalid, Name, NewGoods, Price, State,
};
use super::service::CatalogService;
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, Operator, Page, PathId, Staff, Validate, answered,
    present, request_key, validate_reason,
};
use crate::identity::Caller;
use crate::ids::{GoodsId, LedgerEntryId, StoreId};
use crate::money::MOST_MINOR;
use crate::refusals;

refusals!(AdjustRefusals: StockInsufficient);

/// The largest body with a description: its characters may come as `\u` escapes.
const GOODS_BODY_LIMIT: usize = 32 * 1024;

/// Goods to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GoodsBody {
    #[schema(min_length = 1, max_length = 128, example = "Mooncakes, a box of six")]
    name: String,
    #[serde(default)]
    #[schema(max_length = 2000)]
    description: String,
    /// The store they belong to, if any; it need not be known here.
    store_id: Option<StoreId>,
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    price_minor: i64,
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    stock_total: i64,
}

/// What to change about goods; what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GoodsEdit {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 128)]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, max_length = 2000)]
    description: Option<String>,
    /// Null: of no store any more.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<StoreId>)]
    store_id: Option<Option<StoreId>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 0, maximum = 1_000_000_000_000_i64)]
    price_minor: Option<i64>,
    /// Whether customers see it and can buy it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool, required = false)]
    on_sale: Option<bool>,
}

/// How the stock of goods is to change.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GoodsAdjustmentBody {
    /// Units to add; to withdraw, if negative. Not 0.
    delta: i32,
    /// Kept with the adjustment.
    #[schema(min_length = 1, max_length = 256)]
    reason: String,
}

/// Shows goods that are on sale.
#[utoipa::path(tag = "shop", responses((status = 200, description = "The goods", body = GoodsView)))]
#[get("/goods/{id}")]
pub(crate) async fn show(
    catalog: Data<CatalogService>,
    _: Caller,
    id: PathId<GoodsId>,
) -> ApiResult<Json<GoodsView>> {
    Ok(Json(catalog.shown(id.0).await?.ok_or(CatalogError::NotFound)?))
}

/// Lists the goods on sale, newest first.
#[utoipa::path(tag = "shop", params(Page),
    responses((status = 200, description = "A page of goods", body = List<GoodsView>)))]
#[get("/goods")]
pub(crate) async fn list_shown(
    catalog: Data<CatalogService>,
    _: Caller,
    query: ListQuery,
) -> ApiResult<Json<List<GoodsView>>> {
    page(&catalog, true, query.page).await
}

/// Shows goods, on sale or not.
#[utoipa::path(tag = "shop", responses((status = 200, description = "The goods", body = GoodsView)))]
#[get("/admin/goods/{id}")]
pub(crate) async fn get(
    catalog: Data<CatalogService>,
    _: Staff,
    id: PathId<GoodsId>,
) -> ApiResult<Json<GoodsView>> {
    Ok(Json(catalog.get(id.0).await?.ok_or(CatalogError::NotFound)?))
}

/// Lists all goods, newest first.
#[utoipa::path(tag = "shop", params(Page),
    responses((status = 200, description = "A page of goods", body = List<GoodsView>)))]
#[get("/admin/goods")]
pub(crate) async fn list_all(
    catalog: Data<CatalogService>,
    _: Staff,
    query: ListQuery,
) -> ApiResult<Json<List<GoodsView>>> {
    page(&catalog, false, query.page).await
}

/// Creates goods with their stock; they are on sale at once.
#[utoipa::path(tag = "shop", params(IdempotencyKey), request_body = GoodsBody,
    responses((status = 201, description = "The new goods", body = GoodsView)))]
#[post("/admin/goods")]
pub(crate) async fn create(
    catalog: Data<CatalogService>,
    req: HttpRequest,
    operator: Operator,
    key: IdempotencyKey,
    body: JsonBody<GoodsBody, GOODS_BODY_LIMIT>,
) -> ApiResult<HttpResponse> {
    let user = operator.0.user;
    let key = request_key(user, &req, &key, body.fingerprint);
    let new = body.value.parse().map_err(ApiError::invalid_all)?;
    Ok(answered(StatusCode::CREATED, catalog.create(user, new, key).await?))
}

/// Changes goods. Orders keep the price they were made at.
#[utoipa::path(tag = "shop", request_body = GoodsEdit,
    responses((status = 200, description = "The changed goods", body = GoodsView)))]
#[patch("/admin/goods/{id}")]
pub(crate) async fn edit(
    catalog: Data<CatalogService>,
    _: Operator,
    id: PathId<GoodsId>,
    body: JsonBody<GoodsEdit, GOODS_BODY_LIMIT>,
) -> ApiResult<Json<GoodsView>> {
    let changes = body.value.parse().map_err(ApiError::invalid_all)?;
    Ok(Json(catalog.edit(id.0, changes).await?))
}

/// Adds units to the stock of goods or withdraws free ones, also while they are sold.
#[utoipa::path(tag = "shop", params(IdempotencyKey), request_body = GoodsAdjustmentBody,
    responses((status = 201, description = "The stock as it is now", body = Adjusted), AdjustRefusals))]
#[post("/admin/goods/{id}/stock-adjustments")]
pub(crate) async fn adjust_stock(
    catalog: Data<CatalogService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<GoodsId>,
    key: IdempotencyKey,
    body: JsonBody<GoodsAdjustmentBody>,
) -> ApiResult<HttpResponse> {
    let by = operator.0.user;
    let key = request_key(by, &req, &key, body.fingerprint);
    let GoodsAdjustmentBody { delta, reason } = body.value;
    let change = Adjustment { goods: id.0, delta, reason, by };
    Ok(answered(StatusCode::CREATED, catalog.adjust(change, key).await?))
}

/// What moved the stock of goods, newest first; the free units are the sum of it.
#[utoipa::path(tag = "shop", params(Page),
    responses((status = 200, description = "A page of movements", body = List<StockEntry>)))]
#[get("/admin/goods/{id}/stock-entries")]
pub(crate) async fn stock_entries(
    catalog: Data<CatalogService>,
    _: Staff,
    id: PathId<GoodsId>,
    query: ListQuery,
) -> ApiResult<Json<List<StockEntry>>> {
    let page = query.page;
    let found = catalog.stock_entries(id.0, page.after().map(LedgerEntryId), page.rows()).await?;
    Ok(Json(page.list(found, |entry| entry.id.0, |entry| entry)))
}

async fn page(catalog: &CatalogService, on_sale_only: bool, page: Page) -> ApiResult<Json<List<GoodsView>>> {
    let found = catalog.list(on_sale_only, page.after().map(GoodsId), page.rows()).await?;
    Ok(Json(page.list(found, |goods| goods.id.0, |goods| goods)))
}

impl GoodsBody {
    fn parse(&self) -> Result<NewGoods, Vec<FieldError>> {
        let mut errors = Vec::new();
        let name = parsed(&mut errors, "/name", Name::parse(self.name.clone()));
        let description = parsed(&mut errors, "/description", Description::parse(self.description.clone()));
        let price = parsed(&mut errors, "/price_minor", Price::parse(self.price_minor));
        let units = i32::try_from(self.stock_total).ok().filter(|&units| units >= 0);
        let stock_total = parsed(&mut errors, "/stock_total", units.ok_or(Invalid::Stock));
        match (name, description, price, stock_total) {
            (Some(name), Some(description), Some(price), Some(stock_total)) => {
                Ok(NewGoods { name, description, store: self.store_id, price, stock_total })
            }
            _ => Err(errors),
        }
    }
}

impl GoodsEdit {
    fn parse(&self) -> Result<Edit, Vec<FieldError>> {
        let mut errors = Vec::new();
        let name = self.name.clone().map(Name::parse);
        let description = self.description.clone().map(Description::parse);
        let changes = Edit {
            name: name.and_then(|name| parsed(&mut errors, "/name", name)),
            description: description.and_then(|text| parsed(&mut errors, "/description", text)),
            store: self.store_id,
            price: self
                .price_minor
                .and_then(|minor| parsed(&mut errors, "/price_minor", Price::parse(minor))),
            state: self.on_sale.map(|on_sale| if on_sale { State::OnSale } else { State::OffSale }),
        };
        if errors.is_empty() { Ok(changes) } else { Err(errors) }
    }
}

/// The value, or a note of what is wrong with the member at `pointer`.
fn parsed<T>(errors: &mut Vec<FieldError>, pointer: &str, value: Result<T, Invalid>) -> Option<T> {
    value
        .map_err(|invalid| {
            errors.push(FieldError { pointer: pointer.to_owned(), detail: invalid.to_string() });
        })
        .ok()
}

impl Validate for GoodsBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        errors.extend(self.parse().err().unwrap_or_default());
    }
}

impl Validate for GoodsEdit {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        errors.extend(self.parse().err().unwrap_or_default());
    }
}

impl Validate for GoodsAdjustmentBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        if self.delta == 0 {
            let detail = "a change of 0 changes nothing".to_owned();
            errors.push(FieldError { pointer: "/delta".to_owned(), detail });
        }
        validate_reason(&self.reason, errors);
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        let detail = error.to_string();
        match error {
            CatalogError::NotFound => Self::new(Code::NotFound, detail),
            CatalogError::Insufficient { .. } => Self::new(Code::StockInsufficient, detail),
            CatalogError::OutOfRange(_) => Self::invalid("/delta", detail),
            CatalogError::Key(refusal) => refusal.into(),
            CatalogError::Db(fault) => fault.into(),
        }
    }
}

// The OpenAPI document says it in digits.
const _: () = assert!(MOST_MINOR == 1_000_000_000_000);

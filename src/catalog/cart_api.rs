//! Carts over HTTP (API.md, Shop).

use actix_web::web::{Data, Json};
use actix_web::{HttpResponse, delete, get, put};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cart::{Cart, CartError, CartItem, CartService, MOST_UNITS};
use crate::error::{ApiError, Code, FieldError};
use crate::http::{ApiResult, JsonBody, List, PathId, Validate};
use crate::identity::Caller;
use crate::ids::GoodsId;
use crate::money::Currency;
use crate::refusals;

refusals!(PutRefusals: CartFull);

/// How many units are to be in the cart.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CartItemBody {
    #[schema(minimum = 1, maximum = 999)]
    quantity: i64,
}

impl Validate for CartItemBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        if !(1..=i64::from(MOST_UNITS)).contains(&self.quantity) {
            let detail = format!("must be 1 to {MOST_UNITS}");
            errors.push(FieldError { pointer: "/quantity".to_owned(), detail });
        }
    }
}

/// A user's cart, in the order things were put into it; all of it at once.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Cart)]
pub(crate) struct CartView {
    #[serde(flatten)]
    list: List<CartItem>,
    /// What everything that is on sale costs now.
    goods_amount_minor: i64,
    currency: Currency,
}

impl From<Cart> for CartView {
    fn from(cart: Cart) -> Self {
        let Cart { items, goods_amount_minor, currency } = cart;
        Self { list: List::whole(items), goods_amount_minor, currency }
    }
}

/// The caller's cart, with the prices and the stock of now.
#[utoipa::path(tag = "shop", responses((status = 200, description = "The cart", body = CartView)))]
#[get("/cart")]
pub(crate) async fn show(carts: Data<CartService>, caller: Caller) -> ApiResult<Json<CartView>> {
    Ok(Json(carts.show(caller.user).await?.into()))
}

/// Puts goods into the caller's cart, or changes how many.
#[utoipa::path(tag = "shop", request_body = CartItemBody,
    responses((status = 200, description = "The item as it is now", body = CartItem), PutRefusals))]
#[put("/cart/items/{id}")]
pub(crate) async fn put(
    carts: Data<CartService>,
    caller: Caller,
    id: PathId<GoodsId>,
    body: JsonBody<CartItemBody>,
) -> ApiResult<Json<CartItem>> {
    let quantity = i32::try_from(body.value.quantity).unwrap_or(MOST_UNITS);
    Ok(Json(carts.put(caller.user, id.0, quantity).await?))
}

/// Takes goods out of the caller's cart. What is not in it is no error.
#[utoipa::path(tag = "shop", responses((status = 204, description = "They are not in the cart")))]
#[delete("/cart/items/{id}")]
pub(crate) async fn remove(
    carts: Data<CartService>,
    caller: Caller,
    id: PathId<GoodsId>,
) -> ApiResult<HttpResponse> {
    carts.remove(caller.user, id.0).await?;
    Ok(HttpResponse::NoContent().finish())
}

impl From<CartError> for ApiError {
    fn from(error: CartError) -> Self {
        let detail = error.to_string();
        match error {
            CartError::NotFound => Self::new(Code::NotFound, detail),
            CartError::Full => Self::new(Code::CartFull, detail),
            CartError::Db(fault) => fault.into(),
        }
    }
}

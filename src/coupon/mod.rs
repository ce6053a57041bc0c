//! Coupons in the hands of users: unused, locked by an order, used, expired or void.
//!
//! [`model`] has the rules, purely; [`store`] is the one place that changes coupons, each under its row's lock. So two
//! orders never hold one coupon, and an order that locks its coupon again has it already.
//!
//! What becomes of a coupon follows from its order: paid, it is used (CPN-14); cancelled, it is unused again, or expired
//! if its time ended meanwhile; refunded before the goods had left, the same; refunded after that, it is void (CPN-5),
//! because it brought its user what it was for. Each effect asks whether this order holds the coupon, so events that come
//! twice or out of order do no harm.

pub mod api;
pub mod events;
pub mod groups;
pub mod jobs;
pub mod model;
pub mod reconcile_orders;
mod service;
pub mod store;

pub use model::{Coupon, CouponError, Spend};
pub use service::CouponService;

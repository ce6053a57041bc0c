//! Coupons in the hands of users: unused, locked by an order, used, expired or void.

pub mod events;

//! Stories told over HTTP to a whole server: one file per theme, each story on each database (see `support`).
#![expect(clippy::unwrap_used, reason = "a story that cannot go on ends there")]

mod activities;
mod bad_input;
mod books;
mod bus;
mod callbacks;
mod catalog;
mod coupons;
mod dead_letters;
mod docker;
mod events;
mod faults;
mod gateways;
mod jobs;
mod lists;
mod nodes;
mod notifications;
mod orders;
mod pay_page;
mod reconciliation;
mod refunds;
mod sessions;
mod shop;
mod stock;
mod subscribe;
mod support;
mod takes;
mod wallet;

//! Tombola: flash sales, prize draws and coupon give-aways that sell out exactly.
//!
//! Stock is a drum of numbered tokens, and each sale draws exactly one. README.md tells one sale end to end;
//! this page is the table of contents.

pub mod activity; // campaigns: what is on offer, when, to whom, how many each
pub mod actors; // actors that come and go, found by key
pub mod app; // the only place that wires: start and stop order
pub mod catalog; // goods with a price and a quantity, and carts
pub mod cli; // arguments, exit codes
pub mod cluster; // this node's number, leased in the database
pub mod config; // settings in layers; default.toml explains every key
pub mod coupon; // coupons users hold
pub mod db; // one door to SQLite, PostgreSQL and MySQL: deadlines, transactions, a pool that heals
pub mod demo; // a running sale and simulated shoppers
pub mod error; // every public error code with its status
pub mod faults; // named places where tests make the server die, panic, wait or fail
pub mod http; // every route, and what requests and answers have in common
pub mod idempotency; // answers kept for repeats of a request
pub mod identity; // users, sessions, roles
pub mod ids; // typed ids over snowflakes, strings in JSON
pub mod jobs; // work by schedule or on demand that one node does for all, and its history
pub mod lease; // which node does a piece of work, until when
pub mod messaging; // events, written with their cause
pub mod money; // integer minor units, and the currency beside them
pub mod notification; // what users are told
pub mod order; // created, paid, cancelled, shipped, refunded
pub mod payment; // money through gateways
pub mod ports; // what the outside gives us: time, an event bus, payment gateways
pub mod reconciliation; // what should agree and does not, each with a proposed action
pub mod shop; // what it is for good: its currency
pub mod stock; // who gets which unit, exactly
pub mod tasks; // what runs as long as the server, again after a panic
pub mod telemetry; // logs, metrics, traces
pub mod trace; // which trace work belongs to, and so its events
pub mod wallet; // balance and points, each a ledger
mod words; // enums that are one word per variant

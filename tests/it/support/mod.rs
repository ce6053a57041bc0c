//! What stories and faults stand on: databases of their own, real server processes, a driver that keeps a ledger.

pub(crate) mod database;
pub(crate) mod ledger;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod wire;

pub(crate) use database::Engine;

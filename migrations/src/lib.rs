//! Tombola's schema, one file per change. The same steps run on SQLite, PostgreSQL and MySQL / MariaDB.
//!
//! Conventions: ids are 63-bit integers made by the server; instants are microseconds since the Unix epoch in
//! columns ending `_at`; money is in minor units; enums are lower-snake words. Text compares bytewise everywhere.

use sea_orm_migration::prelude::*;

pub use sea_orm_migration::MigratorTrait;

mod columns;
mod m20261121_000001_identity;
mod m20261121_000002_cluster;
mod m20261121_000003_activity_and_stock;
mod m20261121_000004_messaging;
mod m20261121_000005_consumers;
mod m20261121_000006_jobs;
mod m20261121_000007_stock_projection;
mod m20261121_000008_reconciliation;
mod m20261121_000009_catalog;
mod m20261121_000010_orders;
mod m20261121_000011_payment;
mod m20261121_000012_wallet_and_coupon;
mod m20261121_000013_notification;
mod m20261121_000014_reconciliation_kept;
mod m20261121_000015_payment_wish;
mod m20261121_000016_points_and_stores;
mod m20261121_000017_recheck_and_trimming;
mod m20261121_000018_shop;
mod m20261121_000019_payment_contradictions;
mod m20261121_000020_dead_letters_settled;
mod steps;

#[cfg(feature = "faults")]
pub use steps::AFTER_STEP;

/// Applies the schema changes in the order of [`Migrator::migrations`].
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261121_000001_identity::Migration),
            Box::new(m20261121_000002_cluster::Migration),
            Box::new(m20261121_000003_activity_and_stock::Migration),
            Box::new(m20261121_000004_messaging::Migration),
            Box::new(m20261121_000005_consumers::Migration),
            Box::new(m20261121_000006_jobs::Migration),
            Box::new(m20261121_000007_stock_projection::Migration),
            Box::new(m20261121_000008_reconciliation::Migration),
            Box::new(m20261121_000009_catalog::Migration),
            Box::new(m20261121_000010_orders::Migration),
            Box::new(m20261121_000011_payment::Migration),
            Box::new(m20261121_000012_wallet_and_coupon::Migration),
            Box::new(m20261121_000013_notification::Migration),
            Box::new(m20261121_000014_reconciliation_kept::Migration),
            Box::new(m20261121_000015_payment_wish::Migration),
            Box::new(m20261121_000016_points_and_stores::Migration),
            Box::new(m20261121_000017_recheck_and_trimming::Migration),
            Box::new(m20261121_000018_shop::Migration),
            Box::new(m20261121_000019_payment_contradictions::Migration),
            Box::new(m20261121_000020_dead_letters_settled::Migration),
        ]
    }
}

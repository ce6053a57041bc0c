//! The column kinds the schema is made of, spelled once for the three databases.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

/// A new table; on MySQL with bytewise text, so that `A` and `a` stay two values as everywhere else.
pub(crate) fn table(manager: &SchemaManager<'_>, name: impl IntoTableRef) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name);
    if manager.get_database_backend() == DbBackend::MySql {
        table.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_bin");
    }
    table
}

/// A server-made 63-bit id as the primary key.
pub(crate) fn id(name: impl IntoIden) -> ColumnDef {
    required_big(name).primary_key().take()
}

/// A 64-bit integer: an id, an instant or an amount.
pub(crate) fn required_big(name: impl IntoIden) -> ColumnDef {
    ColumnDef::new(name).big_integer().not_null().take()
}

pub(crate) fn optional_big(name: impl IntoIden) -> ColumnDef {
    ColumnDef::new(name).big_integer().null().take()
}

pub(crate) fn required_int(name: impl IntoIden) -> ColumnDef {
    ColumnDef::new(name).integer().not_null().take()
}

pub(crate) fn optional_int(name: impl IntoIden) -> ColumnDef {
    ColumnDef::new(name).integer().null().take()
}

pub(crate) fn required_text(name: impl IntoIden, length: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(length).not_null().take()
}

pub(crate) fn optional_text(name: impl IntoIden, length: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(length).null().take()
}

/// A SHA-256.
pub(crate) fn required_hash(name: impl IntoIden) -> ColumnDef {
    ColumnDef::new(name).binary_len(32).not_null().take()
}

/// Text without a practical limit: MySQL's plain TEXT ends at 64 KiB, which one batch's events exceed.
pub(crate) fn long_text(manager: &SchemaManager<'_>, name: impl IntoIden) -> ColumnDef {
    match manager.get_database_backend() {
        DbBackend::MySql => ColumnDef::new(name).custom("longtext").not_null().take(),
        _ => ColumnDef::new(name).text().not_null().take(),
    }
}

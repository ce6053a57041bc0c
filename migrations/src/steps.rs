//! What schema changes are made of. A step that was done before is not done again: MySQL and MariaDB commit each by
//! itself, and a change whose server died in the middle of it starts once more from its beginning.

use sea_orm_migration::prelude::*;

/// A table with the keys that are part of it.
pub(crate) async fn create_table(
    manager: &SchemaManager<'_>,
    statement: TableCreateStatement,
) -> Result<(), DbErr> {
    let Some(TableRef::Table(TableName(_, name), _)) = statement.get_table_name() else {
        return Err(DbErr::Custom("a table without a name".to_owned()));
    };
    if manager.has_table(name.to_string()).await? {
        return Ok(());
    }
    manager.create_table(statement).await?;
    done().await
}

pub(crate) async fn drop_table(manager: &SchemaManager<'_>, table: impl IntoIden) -> Result<(), DbErr> {
    manager.drop_table(Table::drop().table(table.into_iden()).if_exists().take()).await?;
    done().await
}

/// One column: SQLite adds no more at once.
pub(crate) async fn add_column(
    manager: &SchemaManager<'_>,
    table: impl IntoIden,
    column: ColumnDef,
) -> Result<(), DbErr> {
    let table = table.into_iden();
    if manager.has_column(table.to_string(), column.get_column_name()).await? {
        return Ok(());
    }
    manager.alter_table(Table::alter().table(table).add_column(column).take()).await?;
    done().await
}

pub(crate) async fn drop_column(
    manager: &SchemaManager<'_>,
    table: impl IntoIden,
    column: impl IntoIden,
) -> Result<(), DbErr> {
    let (table, column) = (table.into_iden(), column.into_iden());
    if !manager.has_column(table.to_string(), column.to_string()).await? {
        return Ok(());
    }
    manager.alter_table(Table::alter().table(table).drop_column(column).take()).await?;
    done().await
}

pub(crate) async fn index<const N: usize>(
    manager: &SchemaManager<'_>,
    table: impl IntoIden,
    name: &str,
    columns: [impl IntoIden; N],
) -> Result<(), DbErr> {
    create_index(manager, Index::create(), table.into_iden(), name, columns.map(IntoIden::into_iden)).await
}

pub(crate) async fn unique_index<const N: usize>(
    manager: &SchemaManager<'_>,
    table: impl IntoIden,
    name: &str,
    columns: [impl IntoIden; N],
) -> Result<(), DbErr> {
    let unique = Index::create().unique().take();
    create_index(manager, unique, table.into_iden(), name, columns.map(IntoIden::into_iden)).await
}

async fn create_index<const N: usize>(
    manager: &SchemaManager<'_>,
    mut index: IndexCreateStatement,
    table: DynIden,
    name: &str,
    columns: [DynIden; N],
) -> Result<(), DbErr> {
    if manager.has_index(table.to_string(), name).await? {
        return Ok(());
    }
    index.name(name).table(table);
    for column in columns {
        index.col(column);
    }
    manager.create_index(index).await?;
    done().await
}

pub(crate) async fn drop_index(
    manager: &SchemaManager<'_>,
    table: impl IntoIden,
    name: &str,
) -> Result<(), DbErr> {
    let table = table.into_iden();
    if !manager.has_index(table.to_string(), name).await? {
        return Ok(());
    }
    manager.drop_index(Index::drop().name(name).table(table).to_owned()).await?;
    done().await
}

/// Any other statement, which always runs: a second time it must change nothing more.
pub(crate) async fn run(manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
    manager.get_connection().execute_unprepared(sql).await?;
    done().await
}

/// Where a test lets the server die: after each step.
#[cfg(feature = "faults")]
async fn done() -> Result<(), DbErr> {
    match AFTER_STEP.get() {
        Some(point) => point().await,
        None => Ok(()),
    }
}

#[cfg(not(feature = "faults"))]
#[expect(clippy::unused_async, reason = "the other build waits here")]
#[inline(always)]
async fn done() -> Result<(), DbErr> {
    Ok(())
}

/// The server's fault point.
#[cfg(feature = "faults")]
pub static AFTER_STEP: std::sync::OnceLock<fn() -> Passing> = std::sync::OnceLock::new();

#[cfg(feature = "faults")]
type Passing = std::pin::Pin<Box<dyn Future<Output = Result<(), DbErr>> + Send>>;

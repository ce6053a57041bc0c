//! Many rows through one statement of one shape.
//!
//! A statement whose text grows with the rows would be prepared anew for every count and flush the statement cache.
//! So rows travel as parameters: one array per column on PostgreSQL (`unnest`, about a third faster than VALUES there),
//! one JSON document elsewhere (`JSON_TABLE`, `json_each`).

use std::borrow::Cow;
use std::fmt::Write;

use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, Value};

use super::Tx;

/// The values of one column, a value per row.
#[derive(Debug, Clone)]
pub enum Column {
    Big(Vec<i64>),
    Int(Vec<i32>),
    Text(Vec<String>),
    /// A SHA-256.
    Hash(Vec<[u8; 32]>),
}

/// Rows to hand to a statement, by column.
#[derive(Debug, Clone, Default)]
pub struct Rows(Vec<(&'static str, Column)>);

impl Rows {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column; all columns must have the same length.
    pub fn column(mut self, name: &'static str, values: Column) -> Self {
        debug_assert!(self.0.first().is_none_or(|(_, first)| first.len() == values.len()));
        self.0.push((name, values));
        self
    }

    /// The statement `template`, in which each `?` stands for the next of `scalars` and `{rows}` for these rows as a
    /// table named `r`: `INSERT INTO take (id, activity_id) SELECT r.id, ? FROM {rows}`. A table joined to `{rows}` is
    /// looked up for each of them.
    pub fn statement(
        self,
        backend: DbBackend,
        template: &str,
        scalars: impl IntoIterator<Item = Value>,
    ) -> Statement {
        let (mut sql, mut values) = (String::with_capacity(template.len() + 256), Vec::new());
        render(backend, template, scalars, Some(self), &mut sql, &mut values);
        Statement::from_sql_and_values(backend, sql, values)
    }

    fn render(self, backend: DbBackend, sql: &mut String, values: &mut Vec<Value>) {
        match backend {
            DbBackend::Postgres => self.render_arrays(sql, values),
            DbBackend::MySql => {
                let columns = self.list(|i, name, column| {
                    let kind = match column {
                        Column::Big(_) => "BIGINT",
                        Column::Int(_) => "INT",
                        Column::Text(_) => "LONGTEXT",
                        Column::Hash(_) => "CHAR(64)",
                    };
                    format!("{name} {kind} PATH '$[{i}]'")
                });
                let read = self.list(|_, name, column| match column {
                    Column::Hash(_) => format!("UNHEX({name}) AS {name}"),
                    Column::Big(_) | Column::Int(_) | Column::Text(_) => name.to_owned(),
                });
                let _ =
                    write!(sql, "(SELECT {read} FROM JSON_TABLE(?, '$[*]' COLUMNS ({columns})) AS j) AS r");
                values.push(self.json().into());
            }
            _ => {
                let columns = self.list(|i, name, column| match column {
                    Column::Hash(_) => format!("unhex(value ->> {i}) AS {name}"),
                    Column::Big(_) | Column::Int(_) | Column::Text(_) => format!("value ->> {i} AS {name}"),
                });
                let _ = write!(sql, "(SELECT {columns} FROM json_each(?)) AS r");
                values.push(self.json().into());
            }
        }
    }

    fn render_arrays(self, sql: &mut String, values: &mut Vec<Value>) {
        let names = self.list(|_, name, _| name.to_owned());
        sql.push_str("unnest(");
        for (i, (_, column)) in self.0.into_iter().enumerate() {
            if i > 0 {
                sql.push_str(", ");
            }
            let (array, cast) = column.into_array();
            values.push(array);
            placeholder(DbBackend::Postgres, sql, values.len());
            sql.push_str(cast);
        }
        let _ = write!(sql, ") AS r({names})");
    }

    fn list(&self, item: impl Fn(usize, &'static str, &Column) -> String) -> String {
        let items: Vec<String> =
            self.0.iter().enumerate().map(|(i, (name, column))| item(i, name, column)).collect();
        items.join(", ")
    }

    /// An array of rows, each an array of its columns' values.
    fn json(&self) -> String {
        let rows = self.0.first().map_or(0, |(_, column)| column.len());
        let mut json = String::with_capacity(2 + rows * self.0.len() * 20);
        json.push('[');
        for row in 0..rows {
            json.push_str(if row == 0 { "[" } else { ",[" });
            for (i, (_, column)) in self.0.iter().enumerate() {
                if i > 0 {
                    json.push(',');
                }
                column.write_json(row, &mut json);
            }
            json.push(']');
        }
        json.push(']');
        json
    }
}

/// The statement `template`, in which each `?` stands for the next of `scalars`.
pub fn statement(backend: DbBackend, template: &str, scalars: impl IntoIterator<Item = Value>) -> Statement {
    Rows::new().statement(backend, template, scalars)
}

/// The template of an UPDATE of each row of `table` that `rows` name by `on`: `update(backend, "take", "state = r.to_state",
/// "id = r.take")`. They name its primary key. The names of the rows' columns are none of the table's; only `set` has
/// placeholders.
pub fn update(backend: DbBackend, table: &str, set: &str, on: &str) -> String {
    match backend {
        DbBackend::MySql => {
            let joined = join_locked(backend, table, PRIMARY_KEY);
            format!("UPDATE {{rows}} {joined} ON {on} SET {set}")
        }
        _ => format!("UPDATE {table} SET {set} FROM {{rows}} WHERE {on}"),
    }
}

/// The template of a SELECT that reads and locks each row of `table` that `rows` name by `key`, its primary key, in the
/// order of the keys: who locks several never waits in a circle.
pub fn select_for_update(backend: DbBackend, table: &str, key: &str, named: &str) -> String {
    let joined = join_locked(backend, &format!("{table} AS t"), PRIMARY_KEY);
    let order = match backend {
        // The rows are read, and so locked, in the order in which they are named.
        DbBackend::MySql => String::new(),
        _ => format!(" ORDER BY t.{key}"),
    };
    let lock = for_update(backend, "t");
    format!("SELECT t.* FROM {{rows}} {joined} ON t.{key} = r.{named}{order}{lock}")
}

/// What MySQL calls the index of a primary key.
pub const PRIMARY_KEY: &str = "PRIMARY";

/// How `table` is joined to `{rows}` by a statement that locks it: those rows of it that they name by `index`, and no
/// others.
pub fn join_locked(backend: DbBackend, table: &str, index: &str) -> String {
    match backend {
        // Free to choose, it reads all of a small table, locks it and waits for whoever changes a row of it.
        DbBackend::MySql => format!("STRAIGHT_JOIN {table} FORCE INDEX ({index})"),
        _ => format!("JOIN {table}"),
    }
}

/// How a SELECT ends that locks the rows of `alias` for changes. MySQL locks those of all its tables; SQLite has one
/// writer.
pub fn for_update(backend: DbBackend, alias: &str) -> String {
    match backend {
        DbBackend::Postgres => format!(" FOR UPDATE OF {alias}"),
        DbBackend::MySql => " FOR UPDATE".to_owned(),
        _ => String::new(),
    }
}

/// How a SELECT ends that keeps the rows of `alias` as they are, and lets others do so too; as [`for_update`].
pub fn for_share(backend: DbBackend, alias: &str) -> String {
    match backend {
        DbBackend::Postgres => format!(" FOR SHARE OF {alias}"),
        DbBackend::MySql => " LOCK IN SHARE MODE".to_owned(),
        _ => String::new(),
    }
}

/// The template of an INSERT that leaves out what is there already: `insert_if_absent(backend, "INTO take (id) VALUES (?)")`.
/// It touches the rows that it inserted. Rows come by a SELECT with a WHERE.
pub fn insert_if_absent(backend: DbBackend, into: &str) -> String {
    match backend {
        // ON DUPLICATE KEY UPDATE would count a row that stays as it is as touched (CLIENT_FOUND_ROWS is on).
        DbBackend::MySql => format!("INSERT IGNORE {into}"),
        // Without a WHERE before it, SQLite takes ON for the condition of a join.
        _ => format!("INSERT {into} ON CONFLICT DO NOTHING"),
    }
}

/// What a CAST calls an `i64`; sums have another type, each database its own.
pub fn integer(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::MySql => "SIGNED",
        _ => "BIGINT",
    }
}

/// Appends `template` to `sql`, and what its placeholders stand for to `values`.
pub(super) fn render(
    backend: DbBackend,
    template: &str,
    scalars: impl IntoIterator<Item = Value>,
    mut rows: Option<Rows>,
    sql: &mut String,
    values: &mut Vec<Value>,
) {
    let mut scalars = scalars.into_iter();
    let mut rest = template;
    while let Some(at) = rest.find(['?', '{']) {
        sql.push_str(&rest[..at]);
        if let Some(after) = rest[at..].strip_prefix("{rows}") {
            if let Some(rows) = rows.take() {
                rows.render(backend, sql, values);
            }
            rest = after;
            // Free to choose, SQLite reads all that another condition leaves before it looks at the rows.
            if backend == DbBackend::Sqlite
                && let Some(joined) = rest.strip_prefix(" JOIN ")
            {
                sql.push_str(" CROSS JOIN ");
                rest = joined;
            }
        } else {
            values.extend(scalars.next());
            placeholder(backend, sql, values.len());
            rest = &rest[at + 1..];
        }
    }
    sql.push_str(rest);
}

/// Changes that are sent to the database together: one round trip on PostgreSQL and SQLite, one each on MySQL.
///
/// Every change is an INSERT, UPDATE or DELETE in the notation of [`Rows::statement`]. None sees what the others do.
#[derive(Debug, Default)]
pub struct Script {
    changes: Vec<(Cow<'static, str>, Vec<Value>, Option<Rows>)>,
    announces: bool,
}

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a change without rows.
    pub fn push(&mut self, template: impl Into<Cow<'static, str>>, scalars: impl IntoIterator<Item = Value>) {
        self.changes.push((template.into(), scalars.into_iter().collect(), None));
    }

    /// Adds a change with rows.
    pub fn push_rows(
        &mut self,
        template: impl Into<Cow<'static, str>>,
        scalars: impl IntoIterator<Item = Value>,
        rows: Rows,
    ) {
        self.changes.push((template.into(), scalars.into_iter().collect(), Some(rows)));
    }

    /// Says that it writes events: whoever waits at [`Database::announced`](super::Database::announced) is woken when
    /// they are committed.
    pub fn announce(&mut self) {
        self.announces = true;
    }

    pub(super) fn announces(&self) -> bool {
        self.announces
    }

    /// Makes the changes within `tx`; tells how many rows they touched in all.
    pub async fn execute(self, tx: &Tx) -> Result<u64, DbErr> {
        if self.announces {
            tx.announce();
        }
        let backend = tx.get_database_backend();
        let (mut sql, mut values) = (String::with_capacity(1024), Vec::new());
        match backend {
            DbBackend::Postgres => {
                let changes = self.write_clauses(&mut sql, &mut values);
                let rows: Vec<String> = (0..changes).map(rows_of_clause).collect();
                let _ = write!(sql, " SELECT {} AS touched", rows.join(" + "));
                let counted = tx.query_one_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
                let touched: i64 = counted.map_or(Ok(0), |row| row.try_get("", "touched"))?;
                Ok(touched.unsigned_abs())
            }
            DbBackend::MySql => {
                let mut touched = 0;
                for (template, scalars, rows) in self.changes {
                    let (mut sql, mut values) = (String::new(), Vec::new());
                    render(backend, &template, scalars, rows, &mut sql, &mut values);
                    let statement = Statement::from_sql_and_values(backend, sql, values);
                    touched += tx.execute_raw(statement).await?.rows_affected();
                }
                Ok(touched)
            }
            _ => {
                self.write_one_after_the_other(&mut sql, &mut values);
                Ok(tx
                    .execute_raw(Statement::from_sql_and_values(backend, sql, values))
                    .await?
                    .rows_affected())
            }
        }
    }

    /// PostgreSQL: appends `WITH c0 AS (… RETURNING 1), c1 AS (… RETURNING 1)`, behind the clauses that `sql` has; tells
    /// how many. They are made in the order in which their [rows are counted](rows_of_clause).
    pub(super) fn write_clauses(self, sql: &mut String, values: &mut Vec<Value>) -> usize {
        let changes = self.changes.len();
        for (i, (template, scalars, rows)) in self.changes.into_iter().enumerate() {
            let _ = write!(sql, "{} c{i} AS (", if sql.is_empty() { "WITH" } else { "," });
            render(DbBackend::Postgres, &template, scalars, rows, sql, values);
            sql.push_str(" RETURNING 1)");
        }
        changes
    }

    /// SQLite: appends each change with a `;` behind it.
    pub(super) fn write_one_after_the_other(self, sql: &mut String, values: &mut Vec<Value>) {
        for (template, scalars, rows) in self.changes {
            render(DbBackend::Sqlite, &template, scalars, rows, sql, values);
            sql.push(';');
        }
    }
}

/// How many rows the change of clause `c{i}` touched.
pub(super) fn rows_of_clause(i: usize) -> String {
    format!("(SELECT count(*) FROM c{i})")
}

fn placeholder(backend: DbBackend, sql: &mut String, number: usize) {
    match backend {
        DbBackend::Postgres => {
            let _ = write!(sql, "${number}");
        }
        _ => sql.push('?'),
    }
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Big(values) => values.len(),
            Self::Int(values) => values.len(),
            Self::Text(values) => values.len(),
            Self::Hash(values) => values.len(),
        }
    }

    fn into_array(self) -> (Value, &'static str) {
        let array = |kind, values: Vec<Value>| Value::Array(kind, Some(Box::new(values)));
        match self {
            Self::Big(values) => {
                (array(ArrayType::BigInt, values.into_iter().map(Value::from).collect()), "::int8[]")
            }
            Self::Int(values) => {
                (array(ArrayType::Int, values.into_iter().map(Value::from).collect()), "::int4[]")
            }
            Self::Text(values) => {
                (array(ArrayType::String, values.into_iter().map(Value::from).collect()), "::text[]")
            }
            Self::Hash(values) => {
                let bytes = values.into_iter().map(|hash| Value::from(hash.to_vec())).collect();
                (array(ArrayType::Bytes, bytes), "::bytea[]")
            }
        }
    }

    fn write_json(&self, row: usize, json: &mut String) {
        match self {
            Self::Big(values) => {
                let _ = write!(json, "{}", values[row]);
            }
            Self::Int(values) => {
                let _ = write!(json, "{}", values[row]);
            }
            Self::Text(values) => {
                let _ = write!(json, "{}", serde_json::Value::from(values[row].as_str()));
            }
            Self::Hash(values) => {
                let _ = write!(json, "\"{}\"", hex::encode(values[row]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str =
        "INSERT INTO take (id, activity_id, name) SELECT r.id, ?, r.name FROM {rows} WHERE r.id > ?";

    fn rows() -> Rows {
        Rows::new()
            .column("id", Column::Big(vec![i64::MAX, 2]))
            .column("name", Column::Text(vec!["a\"b".into(), "?{rows}".into()]))
    }

    #[test]
    fn arrays_on_postgresql() {
        let statement = rows().statement(DbBackend::Postgres, TEMPLATE, [7_i64.into(), 1_i64.into()]);
        assert_eq!(
            statement.sql,
            "INSERT INTO take (id, activity_id, name) SELECT r.id, $1, r.name \
             FROM unnest($2::int8[], $3::text[]) AS r(id, name) WHERE r.id > $4"
        );
        assert_eq!(statement.values.map(|values| values.0.len()), Some(4));
    }

    #[test]
    fn one_json_document_elsewhere() {
        for backend in [DbBackend::MySql, DbBackend::Sqlite] {
            let statement = rows().statement(backend, TEMPLATE, [7_i64.into(), 1_i64.into()]);
            let values = statement.values.unwrap().0;
            assert_eq!(values.len(), 3, "{}", statement.sql);
            assert_eq!(values[1], r#"[[9223372036854775807,"a\"b"],[2,"?{rows}"]]"#.into());
            assert_eq!(statement.sql.matches('?').count(), 3);
        }
    }
}

//! The consumer groups at work on this node.

use std::collections::HashMap;
use std::sync::Arc;

use entities::consumer_group;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cemetery::Cemetery;
use super::consumer::{Consumer, Group, Repeats};
use super::measure::measure_until;
use super::parking::Retries;
use crate::db::bulk::{insert_if_absent, statement};
use crate::db::{self, Database, DbFault};
use crate::ids::Ids;
use crate::ports::event_bus::{EventBus, GroupSpec};
use crate::tasks::Tasks;

/// Every consumer group of the installation.
#[derive(Debug, Clone)]
pub struct Groups {
    groups: Arc<[Arc<Group>]>,
    specs: Arc<[GroupSpec]>,
}

impl Groups {
    /// # Panics
    ///
    /// If two groups have one name: they would share a queue and a log. If one coalesces and keeps a log: events that were
    /// left out would be missing there.
    pub fn new(groups: Vec<Group>) -> Self {
        let keeps_log = |group: &Group| group.repeats == Repeats::Logged;
        assert!(!groups.iter().any(|group| group.spec.coalesced && keeps_log(group)), "a log with gaps");
        let specs: Arc<[GroupSpec]> = groups.iter().map(|group| group.spec).collect();
        let names: HashMap<&str, ()> = specs.iter().map(|spec| (spec.name, ())).collect();
        assert_eq!(names.len(), specs.len(), "two consumer groups have one name");
        Self { groups: groups.into_iter().map(Arc::new).collect(), specs }
    }

    /// What the bus must know of them.
    pub fn specs(&self) -> Arc<[GroupSpec]> {
        self.specs.clone()
    }

    /// Those that keep a log of what they applied.
    pub fn logged(&self) -> Vec<GroupSpec> {
        let logged = self.groups.iter().filter(|group| group.repeats == Repeats::Logged);
        logged.map(|group| group.spec).collect()
    }

    /// Notes which groups keep a log, and since when: what was sent before is not missing there.
    async fn note_logs(&self, db: &Database) -> Result<(), DbFault> {
        let logged: Vec<&'static str> = self.logged().iter().map(|group| group.name).collect();
        let others: Vec<&'static str> =
            self.specs.iter().map(|group| group.name).filter(|name| !logged.contains(name)).collect();
        let noting = db.transaction(move |tx| {
            let (logged, others) = (logged.clone(), others.clone());
            async move {
                let others = consumer_group::Column::Name.is_in(others);
                consumer_group::Entity::delete_many().filter(others).exec(&tx).await?;
                let (backend, now) = (tx.get_database_backend(), db::now_micros(&tx).await?);
                let note =
                    insert_if_absent(backend, "INTO consumer_group (name, logged_since) VALUES (?, ?)");
                for name in logged {
                    tx.execute_raw(statement(backend, &note, [name.into(), now.into()])).await?;
                }
                Ok(())
            }
        });
        noting.await
    }

    /// Consumes for every group until `stop`.
    pub async fn run(
        &self,
        db: Database,
        ids: Ids,
        bus: Arc<dyn EventBus>,
        retries: Retries,
        stop: CancellationToken,
    ) {
        if let Err(fault) = self.note_logs(&db).await {
            warn!(error = %fault, "Cannot note since when the consumer groups keep their logs: {fault}");
        }
        let cemetery = Cemetery::new(db.clone(), ids.clone());
        let consumers: Vec<Arc<Consumer>> = self
            .groups
            .iter()
            .map(|group| {
                Arc::new(Consumer {
                    db: db.clone(),
                    ids: ids.clone(),
                    bus: bus.clone(),
                    cemetery: cemetery.clone(),
                    group: group.clone(),
                    retries: retries.clone(),
                    wake: Arc::new(Notify::new()),
                })
            })
            .collect();
        let mut tasks = Tasks::new(Handle::current(), stop);
        for consumer in &consumers {
            let (bus, consumer) = (bus.clone(), consumer.clone());
            tasks.keep(format!("group:{}", consumer.name()), move |stop| {
                let (bus, consumer) = (bus.clone(), consumer.clone());
                async move {
                    let delivering = bus.deliver(consumer.group.spec, consumer.clone(), stop.clone());
                    tokio::join!(delivering, consumer.sweep_until(&stop));
                }
            });
        }
        let (reminders, wakes) = (bus.clone(), Arc::<[Arc<Consumer>]>::from(consumers));
        tasks.keep("reminders", move |stop| {
            let (bus, consumers) = (reminders.clone(), wakes.clone());
            async move {
                let reminder = Notify::new();
                let wake = async {
                    while stop.run_until_cancelled(reminder.notified()).await.is_some() {
                        consumers.iter().for_each(|consumer| consumer.wake.notify_one());
                    }
                };
                tokio::join!(bus.reminded(&reminder, stop.clone()), wake);
            }
        });
        let cemetery = Arc::new(cemetery);
        tasks.keep("exhausted", move |stop| {
            let (bus, cemetery) = (bus.clone(), cemetery.clone());
            async move { bus.exhausted(cemetery, stop).await }
        });
        let specs = self.specs.clone();
        tasks.keep("waiting", move |stop| {
            let (db, specs) = (db.clone(), specs.clone());
            async move { measure_until(&db, &specs, &stop).await }
        });
        tasks.ended().await;
    }
}

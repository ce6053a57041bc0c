//! The modules, and what they add to the server: jobs, consumer groups, comparisons.

use std::sync::Arc;

use actix_web::web::Data;
use chrono::TimeDelta;
use futures_util::FutureExt;
use utoipa_actix_web::service_config::ServiceConfig;

use super::ground::Ground;
use crate::activity::ActivityService;
use crate::activity::jobs::activity_states;
use crate::actors::batching::{AdmissionLimits, BatchSettings};
use crate::catalog::reconcile::GoodsAgainstLedger;
use crate::catalog::reconcile_orders::GoodsAgainstOrders;
use crate::catalog::{self, CartService, CatalogService};
use crate::config::{Config, ShippingConfig};
use crate::coupon::jobs::coupon_expiry;
use crate::coupon::reconcile_orders::CouponsAgainstOrders;
use crate::coupon::{self, CouponService};
use crate::idempotency;
use crate::ids::ActivityId;
use crate::jobs::{self, Host, Job, JobService, Log};
use crate::messaging::dead_letter::DeadLetters;
use crate::messaging::groups::Groups;
use crate::messaging::jobs::{dead_letter_replay, outbox_sweep};
use crate::messaging::outbox_rows::OutboxRows;
use crate::messaging::reconcile::{CommittedAgainstSent, SentAgainstApplied};
use crate::messaging::{consumer, dead_letter, outbox_rows};
use crate::notification::{self, NotificationService};
use crate::order::OrderService;
use crate::order::checkout::Shipping;
use crate::order::desk::REQUESTS;
use crate::order::flash_sale::Terms;
use crate::order::jobs::{order_deadlines, overdue_payments};
use crate::order::reconcile::{OrdersAmounts, OrdersOverdue};
use crate::order::saga::{Checkout, Rules};
use crate::order::store::Policy;
use crate::payment::jobs::payment_queries;
use crate::payment::reconcile::{Contradictions, PaymentsAgainstOrders, RefundsStuck};
use crate::payment::reconcile_gateway::GatewayAgainstPayments;
use crate::payment::{self, PaymentService};
use crate::ports::clock::SharedClock;
use crate::ports::event_bus::Listener;
use crate::ports::notifier::Notifier;
use crate::ports::payment_gateway::{Gateways, InvalidSetting};
use crate::reconciliation::jobs::reconciliation;
use crate::reconciliation::{self, Comparison, ReconciliationService};
use crate::stock::reconcile::{BlocksAgainstTakes, ProjectionAgainstBlocks, TotalAgainstBlocks};
use crate::stock::reconcile_orders::TakesAgainstOrders;
use crate::stock::{self, StockService};
use crate::wallet::reconcile::AccountsAgainstEntries;
use crate::wallet::reconcile_orders::BalancesAgainstOrders;
use crate::wallet::{self, Ledger, WalletService};

/// What the outside world gives the modules.
#[derive(Debug)]
pub struct Ports {
    gateways: Gateways,
    notifier: Option<Arc<dyn Notifier>>,
}

impl Ports {
    /// As they are set up.
    pub fn new(config: &Config, clock: &SharedClock) -> Result<Self, InvalidSetting> {
        Ok(Self { gateways: config.gateways(clock)?, notifier: config.notifier()? })
    }
}

/// Every module of the shop, wired. Clones share them.
#[derive(Debug, Clone)]
pub struct Modules {
    /// None in a command, which has no actors.
    pub stock: Option<StockService>,
    pub activities: ActivityService,
    /// None in a command, as well.
    pub catalog: Option<CatalogService>,
    pub carts: CartService,
    pub coupons: CouponService,
    pub ledger: Ledger,
    pub payments: PaymentService,
    pub orders: OrderService,
    notifier: Option<Arc<dyn Notifier>>,
    config: Arc<Config>,
    clock: SharedClock,
}

impl Modules {
    /// Modules with actors. Must be called within an actix `System`.
    pub fn for_server(ground: &Ground, config: &Config, ports: Ports) -> Self {
        let stock = StockService::new(
            ground.db.clone(),
            ground.cluster.clone(),
            ground.clock.clone(),
            terms(config),
            batches(config),
        );
        let actors = stock.clone();
        let on_change = move |activity| actors.activity_changed(activity);
        let (db, ids, clock) = (ground.db.clone(), ground.cluster.ids().clone(), ground.clock.clone());
        let catalog = CatalogService::new(db, ids, clock, config.shop.currency, batches(config));
        let modules = Self::new(ground, config, ports, Arc::new(on_change), Some(batches(config)));
        Self { stock: Some(stock), catalog: Some(catalog), ..modules }
    }

    /// Modules without actors: on this node nobody has to be told what they change.
    pub fn for_command(ground: &Ground, config: &Config, ports: Ports) -> Self {
        Self::new(ground, config, ports, Arc::new(|_| {}), None)
    }

    fn new(
        ground: &Ground,
        config: &Config,
        ports: Ports,
        on_change: Arc<dyn Fn(ActivityId) + Send + Sync>,
        batches: Option<BatchSettings>,
    ) -> Self {
        let (db, ids, clock) = (ground.db.clone(), ground.cluster.ids().clone(), ground.clock.clone());
        let (policy, currency) = (policy(config), config.shop.currency);
        let Ports { gateways, notifier } = ports;
        let payments = PaymentService::new(db.clone(), ids.clone(), clock.clone(), gateways, policy, batches);
        Self {
            stock: None,
            activities: ActivityService::new(db.clone(), clock.clone(), ids.clone(), currency, on_change),
            catalog: None,
            carts: CartService::new(db.clone(), clock.clone(), currency),
            coupons: CouponService::new(db.clone(), ids.clone(), clock.clone(), currency),
            ledger: Ledger::new(ids.clone(), currency),
            orders: OrderService::new(db, ids, clock.clone(), policy, payments.clone(), batches),
            payments,
            notifier,
            config: Arc::new(config.clone()),
            clock,
        }
    }

    /// Every job there is.
    pub fn jobs(&self, ground: &Ground) -> JobService {
        let (db, ids, clock) = (ground.db.clone(), ground.cluster.ids().clone(), self.clock.clone());
        let schedules = self.config.jobs.schedules.clone();
        let mut all = vec![
            activity_states(self.activities.clone(), schedules.activity_states),
            coupon_expiry(self.coupons.clone(), schedules.coupon_expiry),
            dead_letter_replay(self.dead_letters(ground), schedules.dead_letter_replay),
            outbox_sweep(self.outbox(ground), schedules.outbox_sweep),
            reconciliation(self.reconciliation(ground), schedules.reconciliation),
            order_deadlines(self.orders.clone(), schedules.order_deadlines),
            overdue_payments(self.orders.clone(), schedules.overdue_payments),
            payment_queries(self.payments.clone(), schedules.payment_queries),
        ];
        let names = all.iter().map(Job::name).chain([jobs::LOG_TRIMMING]);
        let logs = self.logs(ground, names);
        all.push(jobs::log_trimming(db.clone(), clock.clone(), schedules.log_trimming, logs));
        JobService::new(Host { db, clock, ids, holder: ground.cluster.incarnation() }, all)
    }

    /// What is of use only for a time; `names` are those of all jobs.
    pub(super) fn logs(&self, ground: &Ground, names: impl IntoIterator<Item = &'static str>) -> Vec<Log> {
        let keep = self.config.messaging.keep;
        let keep_runs = self.config.jobs.keep_runs;
        let mut logs = vec![
            idempotency::LOG,
            REQUESTS,
            jobs::history(keep_runs),
            jobs::history_of_others(keep_runs, names),
            outbox_rows::queues_of_others(keep, &self.groups(ground).specs()),
            outbox_rows::log(keep),
            consumer::log(keep),
            dead_letter::log(keep),
        ];
        logs.extend(reconciliation::logs(keep_runs));
        logs
    }

    /// Every consumer group there is.
    pub fn groups(&self, ground: &Ground) -> Groups {
        let (ids, clock) = (ground.cluster.ids().clone(), self.clock.clone());
        let mut groups = vec![
            stock::projection::group(),
            stock::release::group(ids.clone(), clock.clone()),
            catalog::returns::group(ids.clone(), clock.clone()),
            coupon::groups::orders(ids.clone(), clock.clone()),
            wallet::groups::balances(self.ledger.clone(), clock.clone()),
            wallet::groups::points(self.ledger.clone(), clock.clone(), self.config.shop.points_per_major),
            notification::groups::orders(ids.clone(), clock.clone()),
            payment::groups::orders(ids, clock.clone(), policy(&self.config)),
            payment::groups::log(),
            payment::groups::refunds(self.payments.clone()),
        ];
        // A broker's queue is there, and grows, whether or not there is anything to do; in ours nothing is put for nobody.
        if self.notifier.is_some() || !self.config.bus.is_embedded() {
            groups.push(notification::groups::notifier(ground.db.clone(), clock, self.notifier.clone()));
        }
        Groups::new(groups)
    }

    /// Everything that should agree with something else.
    pub fn reconciliation(&self, ground: &Ground) -> ReconciliationService {
        let (db, ids) = (ground.db.clone(), ground.cluster.ids().clone());
        let embedded = self.config.bus.is_embedded();
        let mut comparisons: Vec<Box<dyn Comparison>> = vec![
            Box::new(TotalAgainstBlocks(db.clone())),
            Box::new(BlocksAgainstTakes(db.clone())),
            Box::new(ProjectionAgainstBlocks(db.clone())),
            Box::new(CommittedAgainstSent(db.clone())),
            Box::new(SentAgainstApplied::new(db.clone(), ids.clone(), &self.groups(ground), embedded)),
            Box::new(GoodsAgainstLedger { db: db.clone(), clock: self.clock.clone() }),
            Box::new(AccountsAgainstEntries(db.clone())),
            Box::new(GoodsAgainstOrders { db: db.clone(), ids: ids.clone(), clock: self.clock.clone() }),
            Box::new(TakesAgainstOrders { db: db.clone(), ids: ids.clone(), clock: self.clock.clone() }),
            Box::new(BalancesAgainstOrders {
                db: db.clone(),
                clock: self.clock.clone(),
                ledger: self.ledger.clone(),
            }),
            Box::new(CouponsAgainstOrders { db: db.clone(), ids: ids.clone(), clock: self.clock.clone() }),
            Box::new(OrdersAmounts(db.clone())),
            Box::new(PaymentsAgainstOrders {
                db: db.clone(),
                ids: ids.clone(),
                clock: self.clock.clone(),
                policy: policy(&self.config),
            }),
            Box::new(Contradictions { db: db.clone(), clock: self.clock.clone() }),
            Box::new(OrdersOverdue {
                db: db.clone(),
                clock: self.clock.clone(),
                orders: self.orders.clone(),
            }),
            Box::new(RefundsStuck {
                db: db.clone(),
                clock: self.clock.clone(),
                payments: self.payments.clone(),
            }),
        ];
        comparisons.extend(self.payments.gateways().with_money().iter().map(|gateway| {
            Box::new(GatewayAgainstPayments {
                db: db.clone(),
                clock: self.clock.clone(),
                payments: self.payments.clone(),
                gateway: gateway.clone(),
            }) as Box<dyn Comparison>
        }));
        ReconciliationService::new(db, ids, self.clock.clone(), comparisons)
    }

    /// What the consumer groups could not apply.
    pub fn dead_letters(&self, ground: &Ground) -> DeadLetters {
        let ids = ground.cluster.ids().clone();
        DeadLetters::new(ground.db.clone(), self.clock.clone(), ids, self.groups(ground).specs())
    }

    /// What was committed to be published.
    pub fn outbox(&self, ground: &Ground) -> OutboxRows {
        OutboxRows::new(ground.db.clone(), self.clock.clone())
    }

    /// What handlers take as `Data`.
    pub fn services(
        &self,
        ground: &Ground,
        jobs: JobService,
    ) -> impl Fn(&mut ServiceConfig<'_>) + Clone + Send + 'static {
        let (activities, orders) = (Data::new(self.activities.clone()), Data::new(self.orders.clone()));
        let (payments, jobs) = (Data::new(self.payments.clone()), Data::new(jobs));
        let takes = self.stock.clone().map(Data::new);
        let goods = self.catalog.clone().map(Data::new);
        let (carts, coupons) = (Data::new(self.carts.clone()), Data::new(self.coupons.clone()));
        let wallets = WalletService::new(ground.db.clone(), self.clock.clone(), self.ledger.clone());
        let checkout = self.catalog.clone().map(|catalog| {
            Data::new(Checkout {
                db: ground.db.clone(),
                ids: ground.cluster.ids().clone(),
                clock: self.clock.clone(),
                rules: rules(&self.config),
                catalog,
                wallets: wallets.clone(),
                ledger: self.ledger.clone(),
                orders: self.orders.clone(),
            })
        });
        let wallets = Data::new(wallets);
        let notifications = NotificationService::new(ground.db.clone(), self.clock.clone());
        let notifications = Data::new(notifications);
        let reconciliation = Data::new(self.reconciliation(ground));
        let (letters, outbox) = (Data::new(self.dead_letters(ground)), Data::new(self.outbox(ground)));
        move |routes| {
            if let Some(takes) = &takes {
                routes.app_data(takes.clone());
            }
            if let Some(goods) = &goods {
                routes.app_data(goods.clone());
            }
            if let Some(checkout) = &checkout {
                routes.app_data(checkout.clone());
            }
            routes
                .app_data(carts.clone())
                .app_data(coupons.clone())
                .app_data(wallets.clone())
                .app_data(notifications.clone())
                .app_data(activities.clone())
                .app_data(orders.clone())
                .app_data(payments.clone())
                .app_data(reconciliation.clone())
                .app_data(jobs.clone())
                .app_data(letters.clone())
                .app_data(outbox.clone());
        }
    }

    /// What this node does when another one says that something changed.
    pub fn ear(&self) -> Listener {
        match &self.stock {
            Some(stock) => stock.ear(),
            None => Arc::new(|_| std::future::ready(()).boxed()),
        }
    }

    /// Lets every actor finish what was accepted.
    pub async fn stop(&self) {
        if let Some(stock) = &self.stock {
            stock.stop().await;
        }
        if let Some(catalog) = &self.catalog {
            catalog.stop().await;
        }
        self.payments.stop().await;
        self.orders.stop().await;
    }
}

fn policy(config: &Config) -> Policy {
    Policy {
        refund_approval: config.order.refund_approval,
        payment_timeout: time_delta(config.order.payment_timeout),
    }
}

fn terms(config: &Config) -> Terms {
    Terms { currency: config.shop.currency, payment_timeout: time_delta(config.order.payment_timeout) }
}

fn rules(config: &Config) -> Rules {
    let ShippingConfig { fee_minor, free_from_minor } = config.shop.shipping;
    Rules {
        currency: config.shop.currency,
        shipping: Shipping { fee_minor, free_from_minor },
        draft_timeout: time_delta(config.order.draft_timeout),
    }
}

/// The configuration has looked at its length.
fn time_delta(time: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(time).unwrap_or(TimeDelta::zero())
}

fn batches(config: &Config) -> BatchSettings {
    let stock = &config.stock;
    BatchSettings {
        max_batch: stock.max_batch,
        admission: AdmissionLimits {
            waiting_per_key: stock.max_waiting_per_activity,
            waiting_in_process: stock.max_waiting,
            wait: stock.max_wait,
        },
        // Whoever was let in waits for the batch before theirs, then for their own.
        answer_deadline: stock.max_wait + config.database.deadline,
        passivate_after: stock.passivate_after,
    }
}

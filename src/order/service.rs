//! The front door of orders: one method per use case.

use std::fmt;
use std::iter::Sum;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use thiserror::Error;
use tracing::{info, warn};

use super::desk::{OrderDesk, Work, WorkRefusal};
use super::machine::{Command, Refusal, State};
use super::model::{Address, Cause, Order, OrderView, TimelineEntry};
use super::store::{self, Advanced, Due, Listing, Overdue, Policy, Step, StepRefusal};
use crate::actors::batching::BatchSettings;
use crate::actors::lanes::{LaneError, Lanes};
use crate::db::{AsDbFault, Database, DbFault};
use crate::idempotency::{self, Answered, KeyRefusal, RequestKey};
use crate::ids::{Ids, OrderId, UserId};
use crate::payment::service::{OpenPayments, PaymentError, PaymentService};
use crate::ports::clock::SharedClock;
use crate::ports::payment_gateway::Channel;

/// Overdue orders that are given up in one transaction.
const PAGE: u64 = 500;
/// Overdue orders with open payments that are closed in one go, and how many gateways are asked at once.
const CLOSED_TOGETHER: u64 = 64;
const AT_ONCE: usize = 16;

/// Why an order was not made or changed.
#[derive(Debug, Error)]
pub enum OrderError {
    #[error("there is no such order")]
    NotFound,
    #[error("the order is {state}: {refusal}")]
    Refused { command: Command, state: State, refusal: Refusal },
    /// It has left, or never will.
    #[error("the order is {0}: its address stays")]
    AddressFixed(State),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
    /// A gateway does not say whether money is still coming.
    #[error("a payment of the order is unclear: {0}")]
    PaymentUnclear(#[from] PaymentError),
    #[error(transparent)]
    Lane(LaneError<()>),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for OrderError {
    fn db_fault(&self) -> Option<&DbFault> {
        if let Self::Db(fault) = self { Some(fault) } else { None }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Sees and moves only what is theirs.
    Customer(UserId),
    Operator(UserId),
}

impl By {
    fn cause(self) -> Cause {
        match self {
            Self::Customer(user) => Cause::Customer(user),
            Self::Operator(user) => Cause::Operator(user),
        }
    }

    fn may_see(self, order: &Order) -> bool {
        match self {
            Self::Customer(user) => order.is_visible_to(user),
            Self::Operator(_) => true,
        }
    }
}

/// What became of the orders whose time was up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expired {
    pub cancelled: u64,
    /// Paid in the last moment.
    pub paid: u64,
    /// Left for later, because a gateway does not say whether it took money for them.
    pub unclear: u64,
}

impl Sum for Expired {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            cancelled: sum.cancelled + one.cancelled,
            paid: sum.paid + one.paid,
            unclear: sum.unclear + one.unclear,
        })
    }
}

/// Makes orders, shows them and moves them on. Clones share everything.
#[derive(Clone)]
pub struct OrderService(Arc<Inner>);

struct Inner {
    db: Database,
    ids: Ids,
    clock: SharedClock,
    policy: Policy,
    payments: PaymentService,
    lanes: Option<Lanes<OrderDesk>>,
}

impl fmt::Debug for OrderService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderService").finish_non_exhaustive()
    }
}

impl OrderService {
    /// Without `settings` it has no lanes and only gives up what is overdue: for a command.
    ///
    /// With them it must be called within an actix `System`.
    pub fn new(
        db: Database,
        ids: Ids,
        clock: SharedClock,
        policy: Policy,
        payments: PaymentService,
        settings: Option<BatchSettings>,
    ) -> Self {
        let desk = OrderDesk { ids: ids.clone(), clock: clock.clone(), policy };
        let lanes = settings.map(|settings| Lanes::new(db.clone(), settings, desk));
        Self(Arc::new(Inner { db, ids, clock, policy, payments, lanes }))
    }

    /// An order, whoever's it is.
    pub(super) async fn find(&self, id: OrderId) -> Result<Option<Order>, DbFault> {
        self.0.db.read(move |db| async move { store::find(&db, id).await }).await
    }

    /// An order that `by` may see.
    pub async fn get(&self, by: By, id: OrderId) -> Result<Order, OrderError> {
        self.find(id).await?.filter(|order| by.may_see(order)).ok_or(OrderError::NotFound)
    }

    /// A page of orders, newest first.
    pub async fn list(&self, listing: Listing) -> Result<Vec<Order>, DbFault> {
        self.0.db.read(move |db| async move { store::page(&db, listing).await }).await
    }

    /// What made of an order that `by` may see the versions behind `after`, oldest first.
    pub async fn timeline(
        &self,
        by: By,
        id: OrderId,
        after: i64,
        limit: u64,
    ) -> Result<Vec<TimelineEntry>, OrderError> {
        let order = self.get(by, id).await?;
        Ok(self.0.db.read(move |db| async move { store::timeline(&db, &order, after, limit).await }).await?)
    }

    /// Cancels an order that is not paid (ORD-15). Open payments are closed at their gateways first (R22).
    pub async fn cancel(
        &self,
        by: By,
        id: OrderId,
        reason: Option<String>,
        key: Option<RequestKey>,
    ) -> Result<Answered<Order>, OrderError> {
        self.get(by, id).await?;
        let mut step = Step::new(id, Command::Cancel, by.cause());
        step.reason = reason;
        match self.ask(step.clone(), key, 200).await {
            Err(OrderError::Refused { refusal: Refusal::PaymentOpen, .. }) => {
                if let OpenPayments::Captured(payment) = self.0.payments.close_open(id).await? {
                    let paid = Step::new(id, Command::Pay(payment), Cause::Payment(payment));
                    self.ask(paid, None, 200).await?;
                }
                self.ask(step, key, 200).await
            }
            answer => answer,
        }
    }

    /// Says where an order goes, until it is shipped: a flash sale leaves no time to ask before.
    pub async fn send_to(
        &self,
        by: By,
        id: OrderId,
        address: &Address,
        key: Option<RequestKey>,
    ) -> Result<Answered<OrderView>, OrderError> {
        let address = serde_json::to_string(address).map_err(DbFault::from)?;
        let clock = self.0.clock.clone();
        idempotency::once(&self.0.db, &self.0.clock, key, 200, move |tx| {
            let (address, now) = (address.clone(), clock.now());
            async move {
                let order = store::lock_one(&tx, id).await?.filter(|order| by.may_see(order));
                let mut order = order.ok_or(OrderError::NotFound)?;
                match order.state {
                    State::AwaitingPayment | State::Paid => {}
                    state => return Err(OrderError::AddressFixed(state)),
                }
                if order.address.as_ref() != Some(&address) {
                    store::set_address(&tx, &mut order, address, by.cause(), now).await?;
                }
                Ok(order.view()?)
            }
        })
        .await
    }

    /// An operator says that the goods have left, or have arrived.
    pub async fn deliver(
        &self,
        by: UserId,
        id: OrderId,
        command: Command,
        key: Option<RequestKey>,
    ) -> Result<Answered<Order>, OrderError> {
        self.ask(Step::new(id, command, Cause::Operator(by)), key, 200).await
    }

    /// Asks for the money of an order back; it is on its way when this answers, or waits for an operator.
    pub async fn refund(
        &self,
        by: By,
        id: OrderId,
        reason: String,
        key: Option<RequestKey>,
    ) -> Result<Answered<Order>, OrderError> {
        self.get(by, id).await?;
        let step = Step { reason: Some(reason), ..Step::new(id, Command::Refund, by.cause()) };
        self.ask(step, key, 202).await
    }

    async fn ask(
        &self,
        step: Step,
        key: Option<RequestKey>,
        status: u16,
    ) -> Result<Answered<Order>, OrderError> {
        let (id, command, cause) = (step.order, step.command, step.cause);
        let answer = self.work(Work::Step { step, key, status }).await.map_err(|error| match error {
            LaneError::Refused(WorkRefusal::Step(StepRefusal::NotFound)) => OrderError::NotFound,
            LaneError::Refused(WorkRefusal::Step(StepRefusal::Refused(state, refusal))) => {
                OrderError::Refused { command, state, refusal }
            }
            LaneError::Refused(WorkRefusal::Key(refusal)) => refusal.into(),
            LaneError::Unavailable => OrderError::Lane(LaneError::Unavailable),
            LaneError::Unserved(unserved) => OrderError::Lane(unserved.into()),
        })?;
        if let Answered::Fresh(order) = &answer {
            info!(order.id = %id, "Order {id} is {} after {command:?} by {cause}", order.state);
        }
        Ok(answer)
    }

    /// Asks the order's lane.
    pub(super) async fn work(&self, work: Work) -> Result<Answered<Order>, LaneError<WorkRefusal>> {
        match &self.0.lanes {
            Some(lanes) => lanes.ask(work.order().0, work).await,
            None => Err(LaneError::Unavailable),
        }
    }

    /// Gives up every draft and every unpaid order whose time is up (ORD-13, ORD-14), but for those that a gateway may
    /// have taken money for: see [`Self::close_due`].
    pub async fn expire_due(&self) -> Result<Expired, DbFault> {
        let mut expired = Expired::default();
        for due in [Due::Drafts, Due::Unpaid] {
            let mut after = Overdue::FIRST;
            while let Some(page) = self.due(due, after, PAGE).await? {
                after = page.last;
                self.expire(page.orders, &mut expired).await?;
            }
        }
        Ok(expired)
    }

    /// Gives up the orders of one page, behind `after`, whose time is up and that `channel` may have taken money for, when
    /// the gateway has closed their payments (R22). Answers where the next page begins.
    pub async fn close_due(
        &self,
        channel: Channel,
        after: Overdue,
        expired: &mut Expired,
    ) -> Result<Option<Overdue>, DbFault> {
        let Some(page) = self.due(Due::Open(Some(channel)), after, CLOSED_TOGETHER).await? else {
            return Ok(None);
        };
        self.close(page.orders, expired).await?;
        Ok(Some(page.last))
    }

    /// Gives one order up if its time is up.
    pub async fn expire_one(&self, order: OrderId) -> Result<Expired, DbFault> {
        let mut expired = Expired::default();
        let open = self.expire(vec![order], &mut expired).await?;
        self.close(open, &mut expired).await?;
        Ok(expired)
    }

    async fn due(&self, due: Due, after: Overdue, limit: u64) -> Result<Option<DuePage>, DbFault> {
        let now = self.0.clock.now();
        let page = self.0.db.read(move |db| async move { store::due(&db, due, now, after, limit).await });
        let page: Vec<Overdue> = page.await?;
        let Some(&last) = page.last() else { return Ok(None) };
        Ok(Some(DuePage { last, orders: page.into_iter().map(|overdue| overdue.order).collect() }))
    }

    /// Gives `orders` up; answers those with open payments, which stay.
    async fn expire(&self, orders: Vec<OrderId>, expired: &mut Expired) -> Result<Vec<OrderId>, DbFault> {
        let steps: Vec<Step> = orders.iter().map(|&order| expiry(order)).collect();
        let mut open = Vec::new();
        for (order, answer) in orders.into_iter().zip(self.advance(steps).await?) {
            match answer {
                Some(Ok(Advanced::Changed(_))) => expired.cancelled += 1,
                Some(Err(StepRefusal::Refused(_, Refusal::PaymentOpen))) => open.push(order),
                Some(Ok(Advanced::AlreadyDone(_)) | Err(_)) => {}
                None => expired.unclear += 1,
            }
        }
        Ok(open)
    }

    /// Closes the payments of `open` at their gateways, and gives up those that nothing was paid for.
    async fn close(&self, open: Vec<OrderId>, expired: &mut Expired) -> Result<(), DbFault> {
        let closing =
            stream::iter(open).map(|order| async move { (order, self.0.payments.close_open(order).await) });
        let (mut steps, mut unclear) = (Vec::new(), None);
        for (order, closed) in closing.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
            match closed {
                Ok(OpenPayments::Closed) => steps.push(expiry(order)),
                Ok(OpenPayments::Captured(payment)) => {
                    steps.push(Step::new(order, Command::Pay(payment), Cause::Payment(payment)));
                }
                Err(error) => {
                    expired.unclear += 1;
                    unclear = Some((order, error));
                }
            }
        }
        if let Some((order, error)) = unclear {
            warn!(order.id = %order, %error, "Order {order}, for one, is overdue, and a payment of it is unclear");
        }
        for answer in self.advance(steps).await? {
            match answer.map(|answer| answer.map(|advanced| advanced.into_order().state)) {
                Some(Ok(State::Cancelled | State::Invalid)) => expired.cancelled += 1,
                Some(Ok(_)) => expired.paid += 1,
                Some(Err(_)) => {}
                None => expired.unclear += 1,
            }
        }
        Ok(())
    }

    /// Takes `steps` together; if the database is there and that fails nevertheless, one by one, so that an order that
    /// cannot be changed now keeps no other from its end. `None` for a step that failed alone as well.
    async fn advance(&self, steps: Vec<Step>) -> Result<Vec<Option<Result<Advanced, StepRefusal>>>, DbFault> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        match self.advance_together(steps.clone()).await {
            Ok(answers) => return Ok(answers.into_iter().map(Some).collect()),
            Err(fault) if fault.is_outage() => return Err(fault),
            Err(fault) => warn!(error = %fault, "{} orders are tried one by one", steps.len()),
        }
        let mut answers = Vec::with_capacity(steps.len());
        for step in steps {
            let order = step.order;
            match self.advance_together(vec![step]).await {
                Ok(answer) => answers.extend(answer.into_iter().map(Some)),
                Err(fault) if fault.is_outage() => return Err(fault),
                Err(fault) => {
                    warn!(order.id = %order, error = %fault, "Order {order} is overdue and stays as it is");
                    answers.push(None);
                }
            }
        }
        Ok(answers)
    }

    async fn advance_together(
        &self,
        steps: Vec<Step>,
    ) -> Result<Vec<Result<Advanced, StepRefusal>>, DbFault> {
        let (ids, clock, policy) = (self.0.ids.clone(), self.0.clock.clone(), self.0.policy);
        let steps = Arc::new(steps);
        self.0
            .db
            .transaction(move |tx| {
                let (ids, clock, steps) = (ids.clone(), clock.clone(), steps.clone());
                async move { store::advance(&tx, &ids, clock.now(), policy, &steps).await }
            })
            .await
    }

    /// Lets what was accepted be done.
    pub async fn stop(&self) {
        if let Some(lanes) = &self.0.lanes {
            lanes.stop().await;
        }
    }
}

struct DuePage {
    last: Overdue,
    orders: Vec<OrderId>,
}

fn expiry(order: OrderId) -> Step {
    Step::new(order, Command::Expire, Cause::Deadline)
}

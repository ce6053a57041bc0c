//! Orders that should have ended (I11).

use async_trait::async_trait;
use chrono::TimeDelta;

use super::machine::State;
use super::service::{Expired, OrderService};
use super::store::{self, Due, Overdue};
use crate::db::{Database, DbFault};
use crate::ids::OrderId;
use crate::ports::clock::SharedClock;
use crate::reconciliation::{Comparison, ComparisonError, Found};

/// How long after its time an order may wait to be given up.
const PATIENCE: TimeDelta = TimeDelta::seconds(60);
/// Orders that are read at a time.
const PAGE: u64 = 500;

/// Drafts and unpaid orders that nobody gave up in time.
#[derive(Debug)]
pub struct OrdersOverdue {
    pub db: Database,
    pub clock: SharedClock,
    pub orders: OrderService,
}

#[async_trait]
impl Comparison for OrdersOverdue {
    fn name(&self) -> &'static str {
        "orders_overdue"
    }

    async fn compare(&self) -> Result<Vec<Found>, ComparisonError> {
        let until = self.clock.now() - PATIENCE;
        let mut differences = Vec::new();
        for (due, state) in [
            (Due::Drafts, State::Draft),
            (Due::Unpaid, State::AwaitingPayment),
            (Due::Open(None), State::AwaitingPayment),
        ] {
            let mut after = Overdue::FIRST;
            loop {
                let read =
                    move |connection| async move { store::due(&connection, due, until, after, PAGE).await };
                let page: Result<Vec<Overdue>, DbFault> = self.db.read(read).await;
                let page = page?;
                let Some(last) = page.last() else { break };
                after = *last;
                differences.extend(page.iter().map(|overdue| Found {
                    subject: overdue.order.to_string(),
                    expected: "given up, or paid".to_owned(),
                    found: state.to_string(),
                    detail: format!("Order {} is {state}, although its time is up.", overdue.order),
                    action: "expire",
                }));
            }
        }
        Ok(differences)
    }

    async fn apply(&self, subject: &str) -> Result<Option<String>, ComparisonError> {
        let Ok(id) = subject.parse::<OrderId>() else { return Ok(None) };
        match self.orders.expire_one(id).await? {
            Expired { unclear: 1.., .. } => Err(ComparisonError::Outside(format!(
                "a gateway does not say whether it took money for order {id}"
            ))),
            Expired { cancelled: 1.., .. } => Ok(Some(format!("gave order {id} up"))),
            Expired { paid: 1.., .. } => Ok(Some(format!("order {id} is paid: its gateway had the money"))),
            Expired { .. } => Ok(None),
        }
    }
}

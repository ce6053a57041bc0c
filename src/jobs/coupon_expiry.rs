//! Lets coupons expire (JOB-3).

use super::job::{Job, RunContext, Summary};
use super::schedule::Schedule;
use crate::coupon::CouponService;

/// The job that ends the unused coupons whose time is over, each with its event.
pub fn coupon_expiry(coupons: CouponService, schedule: Schedule) -> Job {
    Job::new("coupon_expiry", schedule, move |_: RunContext| {
        let coupons = coupons.clone();
        async move {
            match coupons.expire().await? {
                0 => Ok(Summary::NOTHING),
                expired => Ok(Summary::of(format!("{expired} coupons expired"))),
            }
        }
    })
}

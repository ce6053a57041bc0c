//! What time does to coupons: it lets them expire (JOB-3).

use super::CouponService;
use crate::jobs::{Job, RunContext, Schedule, Summary};

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

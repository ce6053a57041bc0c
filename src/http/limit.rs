//! How many requests one user, and how many sign-ins and refused tokens one address, may send to this process a second.
//!
//! Generous by default: it protects the process from a client that runs wild; the stock is protected by the take
//! limit. GCRA in memory, one word per user who was seen in the last seconds: a full bucket is forgotten.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpMessage, HttpRequest, web};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::{StateInformationMiddleware, StateSnapshot};
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;

use crate::error::{ApiError, Code};
use crate::ids::UserId;

/// The limits, per second; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitSettings {
    /// Requests of one user.
    pub per_user_per_s: u32,
    /// Sign-ins and refused tokens of one address.
    pub sign_in_per_address_per_s: u32,
}

impl Default for RateLimitSettings {
    fn default() -> Self {
        Self { per_user_per_s: 1000, sign_in_per_address_per_s: 20 }
    }
}

/// How many numbers of what is left are kept as they are written.
const WRITTEN: u32 = 1000;

type Limiter<K> = RateLimiter<K, DashMapStateStore<K>, DefaultClock, StateInformationMiddleware>;

/// The buckets of this process, shared by its workers.
#[derive(Debug, Clone)]
pub struct RateLimits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    users: Option<Limiter<UserId>>,
    addresses: Option<Limiter<IpAddr>>,
    /// `RateLimit-Policy` of the users' limit.
    policy: HeaderValue,
    /// `RateLimit` for what may be left of it, the first thousand numbers: written once, not for each answer.
    states: Vec<HeaderValue>,
    trusted_proxies: Vec<IpNet>,
}

/// What is left of the caller's bucket, kept in the request for the answer's headers.
#[derive(Debug, Clone, Copy)]
struct Remaining(u32);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl RateLimits {
    pub fn new(settings: RateLimitSettings, trusted_proxies: Vec<IpNet>) -> Self {
        let policy = format!("\"user\";q={};w=1", settings.per_user_per_s);
        Self(Arc::new(Inner {
            users: limiter(settings.per_user_per_s),
            addresses: limiter(settings.sign_in_per_address_per_s),
            policy: HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("")),
            states: (0..settings.per_user_per_s.min(WRITTEN)).map_while(state).collect(),
            trusted_proxies,
        }))
    }

    /// Forgets full buckets every two seconds, for as long as somebody holds the limits.
    pub fn forget_regularly(&self) {
        let limits = Arc::downgrade(&self.0);
        actix_web::rt::spawn(async move {
            loop {
                actix_web::rt::time::sleep(Duration::from_secs(2)).await;
                let Some(limits) = limits.upgrade() else { return };
                limits.users.iter().for_each(forget);
                limits.addresses.iter().for_each(forget);
            }
        });
    }

    /// Counts a request of `user`.
    pub(super) fn admit_user(&self, user: UserId, req: &HttpRequest) -> Result<(), ApiError> {
        let Some(users) = &self.0.users else { return Ok(()) };
        let admitted = users.check_key(&user);
        let remaining = admitted.as_ref().map_or(0, StateSnapshot::remaining_burst_capacity);
        req.extensions_mut().insert(Remaining(remaining));
        admitted.map(drop).map_err(|until| refusal(until.wait_time_from(DefaultClock::default().now())))
    }

    /// Counts a sign-in or a refused token against the address it came from.
    pub(super) fn admit_address(&self, req: &HttpRequest) -> Result<(), ApiError> {
        let (Some(addresses), Some(address)) = (&self.0.addresses, self.client(req)) else { return Ok(()) };
        let admitted = addresses.check_key(&neighbourhood(address));
        admitted.map(drop).map_err(|until| refusal(until.wait_time_from(DefaultClock::default().now())))
    }

    /// The client's address: the peer's, or what proxies we trust say they had before them.
    fn client(&self, req: &HttpRequest) -> Option<IpAddr> {
        let trusted = |address: &IpAddr| self.0.trusted_proxies.iter().any(|net| net.contains(address));
        let mut client = req.peer_addr()?.ip().to_canonical();
        let forwarded = req.headers().get_all("x-forwarded-for").collect::<Vec<_>>();
        let hops = forwarded.iter().rev().filter_map(|value| value.to_str().ok());
        for hop in hops.flat_map(|value| value.rsplit(',')) {
            if !trusted(&client) {
                break;
            }
            let Ok(before) = hop.trim().parse::<IpAddr>() else { break };
            client = before.to_canonical();
        }
        Some(client)
    }
}

fn limiter<K: std::hash::Hash + Eq + Clone>(per_s: u32) -> Option<Limiter<K>> {
    let quota = Quota::per_second(NonZeroU32::new(per_s)?);
    Some(RateLimiter::dashmap(quota).with_middleware())
}

fn forget<K: std::hash::Hash + Eq + Clone>(limiter: &Limiter<K>) {
    limiter.retain_recent();
    limiter.shrink_to_fit();
}

fn refusal(wait: Duration) -> ApiError {
    let seconds = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
    ApiError {
        retry_after_s: Some(seconds),
        ..ApiError::new(Code::RateLimited, "Too many requests in a short time; wait and repeat")
    }
}

/// `RateLimit` when so many requests are left.
fn state(remaining: u32) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("\"user\";r={remaining};t=1")).ok()
}

/// An IPv6 customer has a whole /64 to send from.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// Tells the caller of a counted request what is left (draft-ietf-httpapi-ratelimit-headers).
pub(super) fn describe(req: &HttpRequest, headers: &mut HeaderMap) {
    let Some(Remaining(remaining)) = req.extensions().get().copied() else { return };
    let Some(limits) = req.app_data::<web::Data<RateLimits>>() else { return };
    let written = limits.0.states.get(remaining as usize).cloned();
    if let Some(state) = written.or_else(|| state(remaining)) {
        headers.insert(RATE_LIMIT, state);
        headers.insert(RATE_LIMIT_POLICY, limits.0.policy.clone());
    }
}

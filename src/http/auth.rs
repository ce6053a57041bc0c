//! Who is calling: `Authorization: Bearer`, verified in memory, counted against the caller's rate limit.
//!
//! A handler says what it needs by what it takes: [`Caller`] anyone signed in, [`Staff`] whoever may see what
//! operators see, [`Operator`] whoever may change it.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::header::AUTHORIZATION;
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest};

use super::limit::RateLimits;
use crate::error::{ApiError, Code};
use crate::identity::{Caller, Role, Tokens};

/// A caller who may change what operators change.
#[derive(Debug, Clone, Copy)]
pub struct Operator(pub Caller);

/// A caller who may see what operators see.
#[derive(Debug, Clone, Copy)]
pub struct Staff(pub Caller);

/// A sign-in that its address may try now.
#[derive(Debug, Clone, Copy)]
pub struct SignIn;

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(caller(req))
    }
}

impl FromRequest for Operator {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(with_role(req, &[Role::Operator]).map(Self))
    }
}

impl FromRequest for Staff {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(with_role(req, &[Role::Operator, Role::Viewer]).map(Self))
    }
}

impl FromRequest for SignIn {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let admitted = req.app_data::<Data<RateLimits>>().map_or(Ok(()), |limits| limits.admit_address(req));
        ready(admitted.map(|()| Self))
    }
}

fn caller(req: &HttpRequest) -> Result<Caller, ApiError> {
    let limits = req.app_data::<Data<RateLimits>>();
    let tokens = req
        .app_data::<Data<Tokens>>()
        .ok_or_else(|| ApiError::new(Code::InternalError, "This server cannot verify access tokens"))?;
    let Some(token) = bearer(req) else {
        return Err(ApiError::new(Code::Unauthenticated, "Send an access token: Authorization: Bearer …"));
    };
    match tokens.verify(token) {
        Ok(caller) => {
            limits.map_or(Ok(()), |limits| limits.admit_user(caller.user, req))?;
            Ok(caller)
        }
        Err(refusal) => {
            limits.map_or(Ok(()), |limits| limits.admit_address(req))?;
            Err(ApiError::new(Code::Unauthenticated, refusal.to_string()))
        }
    }
}

fn bearer(req: &HttpRequest) -> Option<&str> {
    // `HeaderValue::to_str` looks at each of the token's hundreds of bytes by itself.
    let header = std::str::from_utf8(req.headers().get(AUTHORIZATION)?.as_bytes()).ok()?;
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn with_role(req: &HttpRequest, any: &[Role]) -> Result<Caller, ApiError> {
    let caller = caller(req)?;
    if any.iter().any(|role| caller.roles.contains(*role)) {
        Ok(caller)
    } else {
        Err(ApiError::new(Code::Forbidden, Code::Forbidden.title()))
    }
}

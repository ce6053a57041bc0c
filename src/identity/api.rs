//! Sessions over HTTP.

use std::fmt;

use actix_web::web::Data;
use actix_web::{HttpResponse, delete, get, post};
use secrecy::SecretString;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor, value};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{
    Caller, IdentityError, IdentityService, IssueError, Role, Roles, Session, TokenRefusal, User, UserName,
};
use crate::error::{ApiError, Code, FieldError};
use crate::http::{ApiResult, JsonBody, SignIn, Validate};
use crate::money::Currency;
use crate::ports::clock::Timestamp;
use crate::refusals;
use crate::wallet::{Account, WalletService};

/// How someone signs in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "provider", rename_all = "snake_case", deny_unknown_fields, try_from = "Members")]
pub(crate) enum SignInBody {
    /// Under any name, with any role, no questions asked; only where `auth.dev_login` is on.
    Dev {
        #[schema(min_length = 1, max_length = 64)]
        name: String,
        #[serde(default = "customer")]
        #[schema(min_items = 1, default = json!(["customer"]))]
        roles: Roles,
    },
    /// As a user whom `tombola user add` has made.
    Password {
        #[schema(min_length = 1, max_length = 64)]
        name: String,
        #[schema(value_type = String, format = Password)]
        password: SecretString,
    },
}

fn customer() -> Roles {
    Role::Customer.into()
}

/// What a [`SignInBody`] is read from: serde buffers a tagged enum, and then no longer knows where a member stood.
#[derive(Default)]
struct Members {
    provider: Option<Provider>,
    name: Option<String>,
    roles: Option<Roles>,
    password: Option<SecretString>,
    /// The first that is none of these. It may be one of a provider that is not known here, and that is to be told first.
    unknown: Option<String>,
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Members::default();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "provider" => once(&mut map, "provider", &mut members.provider)?,
                "name" => once(&mut map, "name", &mut members.name)?,
                "roles" => once(&mut map, "roles", &mut members.roles)?,
                "password" => once(&mut map, "password", &mut members.password)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    members.unknown.get_or_insert(name);
                }
            }
        }
        Ok(members)
    }
}

fn once<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    name: &'static str,
    member: &mut Option<T>,
) -> Result<(), A::Error> {
    match member.replace(map.next_value()?) {
        None => Ok(()),
        Some(_) => Err(A::Error::duplicate_field(name)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Provider {
    Dev,
    Password,
}

impl TryFrom<Members> for SignInBody {
    type Error = value::Error;

    fn try_from(members: Members) -> Result<Self, value::Error> {
        const OF_DEV: &[&str] = &["provider", "name", "roles"];
        const OF_PASSWORD: &[&str] = &["provider", "name", "password"];
        let Members { provider, name, roles, password, unknown } = members;
        let provider = provider.ok_or_else(|| value::Error::missing_field("provider"))?;
        let (others, expected) = match provider {
            Provider::Dev => (password.as_ref().map(|_| "password"), OF_DEV),
            Provider::Password => (roles.as_ref().map(|_| "roles"), OF_PASSWORD),
        };
        if let Some(unknown) = unknown.as_deref().or(others) {
            return Err(value::Error::unknown_field(unknown, expected));
        }
        let name = name.ok_or_else(|| value::Error::missing_field("name"))?;
        match provider {
            Provider::Dev => Ok(Self::Dev { name, roles: roles.unwrap_or_else(customer) }),
            Provider::Password => {
                let password = password.ok_or_else(|| value::Error::missing_field("password"))?;
                Ok(Self::Password { name, password })
            }
        }
    }
}

impl Validate for SignInBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        let (Self::Dev { name, .. } | Self::Password { name, .. }) = self;
        errors.extend(user_name(name).err());
        if let Self::Dev { roles, .. } = self
            && roles.is_empty()
        {
            errors.push(FieldError { pointer: "/roles".into(), detail: "at least one role".into() });
        }
    }
}

fn user_name(text: &str) -> Result<UserName, FieldError> {
    UserName::parse(text)
        .map_err(|invalid| FieldError { pointer: "/name".into(), detail: invalid.to_string() })
}

/// A session and its access token.
#[derive(Serialize, ToSchema)]
pub(crate) struct SessionView {
    /// Send it as `Authorization: Bearer …`.
    access_token: String,
    #[schema(value_type = String, example = "Bearer")]
    token_type: &'static str,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// Whether this is the user's first login ever.
    first_login: bool,
    user: User,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        Self {
            access_token: session.token.token,
            token_type: "Bearer",
            expires_at: session.token.expires_at,
            first_login: session.first_login,
            user: session.user,
        }
    }
}

refusals!(SignInRefusals: Unauthenticated, Forbidden, RateLimited, Overloaded);

/// Signs in.
#[utoipa::path(tag = "sessions", security(()), request_body = SignInBody,
    responses((status = 201, description = "Signed in", body = SessionView), SignInRefusals))]
#[post("/sessions")]
pub(crate) async fn sign_in(
    identity: Data<IdentityService>,
    _: SignIn,
    body: JsonBody<SignInBody>,
) -> ApiResult<HttpResponse> {
    let refusal = |error| ApiError::invalid_all(vec![error]);
    let session = match body.value {
        SignInBody::Dev { name, roles } => {
            identity.dev_login(user_name(&name).map_err(refusal)?, roles).await?
        }
        SignInBody::Password { name, password } => {
            identity.password_login(&user_name(&name).map_err(refusal)?, password).await?
        }
    };
    Ok(HttpResponse::Created().json(SessionView::from(session)))
}

/// Signs out: the access token is refused from now on, here at once and on other nodes within a second.
#[utoipa::path(tag = "sessions", responses((status = 204, description = "Signed out")))]
#[delete("/sessions/current")]
pub(crate) async fn sign_out(identity: Data<IdentityService>, caller: Caller) -> ApiResult<HttpResponse> {
    identity.log_out(&caller).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The caller, and what they have.
#[derive(Serialize, ToSchema)]
pub(crate) struct MeView {
    #[serde(flatten)]
    user: User,
    balance_minor: i64,
    points: i64,
    currency: Currency,
    red_dots: RedDots,
}

/// What the caller has not looked at yet.
#[derive(Serialize, ToSchema)]
pub(crate) struct RedDots {}

/// The caller, with their balance and points.
#[utoipa::path(tag = "sessions", responses((status = 200, description = "You", body = MeView)))]
#[get("/me")]
pub(crate) async fn me(
    identity: Data<IdentityService>,
    wallets: Data<WalletService>,
    caller: Caller,
) -> ApiResult<HttpResponse> {
    let user = identity.user(caller.user).await?;
    let Account { balance_minor, points } = wallets.account(caller.user).await?;
    let currency = wallets.currency();
    Ok(HttpResponse::Ok().json(MeView { user, balance_minor, points, currency, red_dots: RedDots {} }))
}

impl From<IdentityError> for ApiError {
    fn from(error: IdentityError) -> Self {
        use IdentityError::{
            Busy, Db, DevLoginDisabled, Event, Hashing, Issue, NameTaken, NoId, UserUnknown, WrongCredentials,
        };
        match error {
            DevLoginDisabled => Self::new(Code::Forbidden, error.to_string()),
            WrongCredentials | UserUnknown => Self::new(Code::Unauthenticated, error.to_string()),
            NameTaken => Self::invalid("/name", error.to_string()),
            Busy => Self::new(Code::Overloaded, error.to_string()),
            Issue(error) => error.into(),
            NoId(error) => IssueError::NoId(error).into(),
            Db(fault) => fault.into(),
            Hashing(_) | Event(_) => {
                tracing::error!(%error, "A login failed for a reason of our own");
                Self::new(Code::InternalError, "The server failed to do this; the log has the cause.")
            }
        }
    }
}

impl From<TokenRefusal> for ApiError {
    fn from(refusal: TokenRefusal) -> Self {
        Self::new(Code::Unauthenticated, refusal.to_string())
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        tracing::error!(%error, "Cannot issue an access token");
        match error {
            IssueError::NoKey | IssueError::NoId(_) => {
                Self::new(Code::DependencyUnavailable, "No access token can be issued at the moment.")
            }
            IssueError::Claims(_) => {
                Self::new(Code::InternalError, "The server failed to do this; the log has the cause.")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::App;
    use actix_web::http::header::AUTHORIZATION;
    use actix_web::test::{TestRequest, call_service, init_service, read_body_json};
    use serde_json::{Value, json};

    use super::super::NewPassword;
    use super::super::tests::Story;
    use super::*;
    use crate::db::testing::Engine;

    async fn send(story: &Story, request: TestRequest) -> Result<(u16, Value), ApiError> {
        let app = App::new()
            .app_data(Data::new(story.identity.clone()))
            .app_data(Data::new(story.tokens.tokens().clone()))
            .app_data(Data::new(story.wallets()))
            .service(sign_in)
            .service(sign_out)
            .service(me);
        let app = init_service(app).await;
        let answer = call_service(&app, request.to_request()).await;
        let status = answer.status().as_u16();
        if let Some(refusal) = answer.response().error() {
            return Err(refusal.as_error::<ApiError>().unwrap().clone());
        }
        Ok((status, if status == 204 { Value::Null } else { read_body_json(answer).await }))
    }

    async fn post(story: &Story, body: Value) -> Result<(u16, Value), ApiError> {
        send(story, TestRequest::post().uri("/sessions").set_json(body)).await
    }

    fn bearing(request: TestRequest, session: &Value) -> TestRequest {
        let token = session["access_token"].as_str().unwrap();
        request.insert_header((AUTHORIZATION, format!("Bearer {token}")))
    }

    #[actix_web::test]
    async fn a_session_begins_and_ends() {
        let story = Story::begin(Engine::Sqlite).await;
        let (status, session) = post(&story, json!({"provider": "dev", "name": "alice"})).await.unwrap();
        assert_eq!(status, 201);
        assert_eq!(session["token_type"], "Bearer");
        assert_eq!(session["expires_at"], "2027-01-15T08:15:00Z");
        assert_eq!(session["first_login"], true);
        let alice = json!({"id": session["user"]["id"], "name": "alice", "roles": ["customer"]});
        assert_eq!(session["user"], alice);
        let who = || bearing(TestRequest::get().uri("/me"), &session);
        let mut shown = alice;
        for (member, value) in [
            ("balance_minor", json!(0)),
            ("points", json!(0)),
            ("currency", json!("CNY")),
            ("red_dots", json!({})),
        ] {
            shown[member] = value;
        }
        assert_eq!(send(&story, who()).await, Ok((200, shown)));
        let out = || bearing(TestRequest::delete().uri("/sessions/current"), &session);
        assert_eq!(send(&story, out()).await, Ok((204, Value::Null)));
        // The token ends nothing any more, not even its own session.
        assert_eq!(send(&story, out()).await.unwrap_err().code, Code::Unauthenticated);
        assert_eq!(send(&story, who()).await.unwrap_err().code, Code::Unauthenticated);
    }

    #[actix_web::test]
    async fn a_login_that_cannot_be_is_refused() {
        let story = Story::begin(Engine::Sqlite).await;
        let password = NewPassword::parse("correct horse".into()).unwrap();
        let olga = UserName::parse("olga").unwrap();
        story.identity.add_user(&olga, Role::Operator.into(), password).await.unwrap();
        let password =
            |name: &str, password: &str| json!({"provider": "password", "name": name, "password": password});
        assert_eq!(post(&story, password("olga", "correct horse")).await.unwrap().0, 201);
        for (body, code, pointer) in [
            (password("olga", "wrong"), Code::Unauthenticated, None),
            (password("nobody", "wrong"), Code::Unauthenticated, None),
            (json!({"provider": "dev", "name": ""}), Code::ValidationFailed, Some("/name")),
            (json!({"provider": "dev", "name": "a\u{7}"}), Code::ValidationFailed, Some("/name")),
            (json!({"provider": "dev", "name": "a", "roles": []}), Code::ValidationFailed, Some("/roles")),
            (
                json!({"provider": "dev", "name": "a", "roles": ["root"]}),
                Code::ValidationFailed,
                Some("/roles/0"),
            ),
            (
                json!({"provider": "dev", "name": "a", "role": "viewer"}),
                Code::ValidationFailed,
                Some("/role"),
            ),
            (json!({"provider": "wechat", "code": "x"}), Code::ValidationFailed, Some("/provider")),
            (json!({"name": "alice"}), Code::ValidationFailed, Some("/provider")),
        ] {
            let refusal = post(&story, body.clone()).await.unwrap_err();
            assert_eq!(refusal.code, code, "{body}: {refusal}");
            assert_eq!(
                refusal.errors.first().map(|error| error.pointer.as_str()),
                pointer,
                "{body}: {refusal}"
            );
        }
        let wechat = post(&story, json!({"provider": "wechat", "code": "x"})).await.unwrap_err();
        assert!(wechat.detail.contains("expected `dev` or `password`"), "{wechat}");
    }

    #[actix_web::test]
    async fn a_dev_login_that_is_switched_off_says_what_to_set() {
        let story = Story::begin(Engine::Sqlite).await.without_dev_login();
        let refusal = post(&story, json!({"provider": "dev", "name": "alice"})).await.unwrap_err();
        assert_eq!(refusal.code, Code::Forbidden);
        assert!(refusal.detail.contains("auth.dev_login"), "{refusal}");
    }
}

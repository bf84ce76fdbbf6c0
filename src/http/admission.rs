//! Headers → [`Verified`]: a caller that may do what the route asks for → [`Admitted`]: within its quota. Runs before the body
//! is read.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::response::Response;
use hyper::header::{AUTHORIZATION, HeaderName};
use hyper::http::request::Parts;
use memchr::memchr2;

use super::problem::Error;
use super::quota::Told;
use crate::app::App;
use crate::auth::certificates::ClientCertificate;
use crate::auth::keys::PREFIX;
use crate::auth::{self, Caller, Credential, Scope};
use crate::limiter::{Loss, Standing};
use crate::telemetry::metrics::CredentialKind as Kind;
use crate::telemetry::notes::Notes;

/// The header that pins the version which answers.
pub(super) const PIN: HeaderName = HeaderName::from_static("x-model-version");

/// The largest credential that is looked at.
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

/// A caller that is who it says, and may do what the route is for.
#[derive(Debug)]
pub struct Verified {
    caller: Caller,
}

impl Verified {
    /// Who it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Takes one row of the caller's quota, which every request costs, and of that for the `model` that it scores with.
    ///
    /// # Errors
    /// [`Error::Quota`] saying when to come again.
    pub async fn admit(self, app: &App, model: Option<&str>, loss: Loss) -> Result<Admitted, Error> {
        let standing = app.limiter.admit(&self.caller, model, loss, Instant::now()).await;
        let legacy = app.settings.quota.legacy_headers;
        let standing = standing.map_err(|error| Error::Quota { error, legacy })?;
        Ok(Admitted { caller: self.caller, told: Told { standing, legacy } })
    }
}

/// A caller that passed admission. Handlers that score ask for one, so that no route forgets.
#[derive(Debug, Clone)]
pub struct Admitted {
    caller: Caller,
    told: Told,
}

impl Admitted {
    /// Who it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// How it stands under its quota.
    pub fn standing(&self) -> &Standing {
        &self.told.standing
    }

    /// Takes the rest of a batch's `rows` of the caller's quota.
    ///
    /// # Errors
    /// [`Error::Quota`] saying when to come again, or with how many rows.
    pub async fn settle(&mut self, app: &App, rows: usize) -> Result<(), Error> {
        let settled = app.limiter.settle(&self.caller, &self.told.standing, rows, Instant::now()).await;
        if let Some(standing) = settled.map_err(|error| Error::Quota { error, legacy: self.told.legacy })? {
            self.told.standing = standing;
        }
        Ok(())
    }

    /// The answer, be it a refusal, with what is left of the caller's quota.
    pub(super) fn answer(&self, answer: Result<Response, Error>) -> Response {
        self.told.answer(answer)
    }
}

/// Verifies the request's one credential, that it carries `scope` and, where a `model` is asked for, that it holds for that
/// one. What comes out is final, and counted here.
///
/// # Errors
/// [`Error::Auth`] saying what to fix, to an honest client.
pub async fn verify(app: &App, parts: &Parts, scope: Scope, model: Option<&str>) -> Result<Verified, Error> {
    let certificate = parts.extensions.get::<Arc<ClientCertificate>>().map(AsRef::as_ref);
    let (kind, decided) = match credential(parts) {
        Err(error) => (Kind::None, Err(error)),
        Ok(credential) => {
            let verified = app.auth.verify(credential, certificate, SystemTime::now()).await;
            let kind = match credential {
                Credential::Key(_) => Kind::Key,
                Credential::UnverifiedToken(_) => Kind::Token,
                Credential::None if certificate.is_some() => Kind::Certificate,
                Credential::None => Kind::None,
            };
            if let Ok(caller) = &verified {
                Notes::of(parts).caller(caller);
            }
            (kind, verified.and_then(|caller| permitted(caller, parts, scope, model)))
        }
    };
    app.metrics.count_credential(kind, decided.as_ref().err().copied());
    decided
        .map(|caller| Verified { caller })
        .map_err(|error| Error::Auth { error, resource_metadata: Arc::clone(&app.resource_metadata) })
}

fn permitted(
    caller: Caller,
    parts: &Parts,
    scope: Scope,
    model: Option<&str>,
) -> Result<Caller, auth::Error> {
    if !caller.may(scope) {
        return Err(auth::Error::InsufficientScope(scope));
    }
    // Which versions there are is not for everybody who scores.
    if scope == Scope::ScorePredict && parts.headers.contains_key(&PIN) && !caller.may(Scope::ModelsRead) {
        return Err(auth::Error::InsufficientScope(Scope::ModelsRead));
    }
    match model {
        Some(model) if !caller.may_use(model) => Err(auth::Error::ModelNotAllowed),
        _ => Ok(caller),
    }
}

fn credential(parts: &Parts) -> Result<Credential<'_>, auth::Error> {
    let invalid = |message| Err(auth::Error::InvalidRequest(message));
    let mut keys = parts.headers.get_all("x-api-key").iter();
    let mut authorizations = parts.headers.get_all(AUTHORIZATION).iter();
    let (key, authorization) = (keys.next(), authorizations.next());
    if keys.next().is_some() || authorizations.next().is_some() || (key.is_some() && authorization.is_some())
    {
        return invalid("expected one credential, found several");
    }
    if parts.uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("access_token="))) {
        return invalid("expected the credential in a header, found it in the query");
    }
    for value in key.iter().chain(&authorization) {
        if value.len() > MAX_CREDENTIAL_BYTES {
            return Err(auth::Error::TooLarge);
        }
    }
    if let Some(key) = key {
        // A key that is no ASCII is no key of ours.
        return Ok(Credential::Key(key.to_str().unwrap_or_default()));
    }
    let Some(authorization) = authorization else { return Ok(Credential::None) };
    let Ok(authorization) = authorization.to_str() else {
        return invalid("expected ASCII characters in the Authorization header");
    };
    let (scheme, token) = authorization.split_once(' ').unwrap_or((authorization, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        // A certificate does not stand in for a credential that is there and not understood.
        return Err(auth::Error::Missing);
    }
    let token = token.trim_matches(' ');
    if token.is_empty() {
        return invalid("expected a token after \"Bearer\", found none");
    }
    if memchr2(b' ', b',', token.as_bytes()).is_some() {
        return invalid("expected one token after \"Bearer\"");
    }
    Ok(if token.starts_with(PREFIX) { Credential::Key(token) } else { Credential::UnverifiedToken(token) })
}

//! Headers → [`Admitted`]: a verified caller that may do what the route asks for. Runs before the body is read.

use std::time::SystemTime;

use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

use super::problem::Error;
use crate::app::App;
use crate::auth::keys::PREFIX;
use crate::auth::{self, Caller, Scope};

/// The largest credential that is looked at.
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

/// A caller that passed admission. Handlers that score ask for one, so that no route forgets.
#[derive(Debug)]
pub struct Admitted {
    caller: Caller,
}

impl Admitted {
    /// Checks that the caller may use `model`.
    ///
    /// # Errors
    /// [`auth::Error::ModelNotAllowed`] if not.
    pub fn may_use(&self, model: &str) -> Result<(), Error> {
        if self.caller.may_use(model) { Ok(()) } else { Err(auth::Error::ModelNotAllowed.into()) }
    }
}

/// Verifies the request's one credential and that it carries `scope`.
///
/// # Errors
/// [`Error::Auth`] saying what to fix, to an honest client.
pub fn admit(app: &App, parts: &Parts, scope: Scope) -> Result<Admitted, Error> {
    let caller = match credential(parts)? {
        Credential::Key(key) => app.keys.ring().verify(key, SystemTime::now())?,
        Credential::Token => return Err(auth::Error::InvalidToken.into()),
    };
    if !caller.may(scope) {
        return Err(auth::Error::InsufficientScope(scope).into());
    }
    Ok(Admitted { caller })
}

enum Credential<'r> {
    Key(&'r str),
    /// A bearer token that is no key of ours.
    Token,
}

fn credential(parts: &Parts) -> Result<Credential<'_>, Error> {
    let invalid = |message| Err(Error::Auth(auth::Error::InvalidRequest(message)));
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
            return Err(Error::CredentialTooLarge);
        }
    }
    if let Some(key) = key {
        // A key that is no ASCII is no key of ours.
        return Ok(Credential::Key(key.to_str().unwrap_or_default()));
    }
    let Some(authorization) = authorization else { return Err(auth::Error::Missing.into()) };
    let Ok(authorization) = authorization.to_str() else {
        return invalid("expected ASCII characters in the Authorization header");
    };
    let (scheme, token) = authorization.split_once(' ').unwrap_or((authorization, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(auth::Error::Missing.into());
    }
    let token = token.trim_matches(' ');
    if token.is_empty() {
        return invalid("expected a token after \"Bearer\", found none");
    }
    if token.contains([' ', ',']) {
        return invalid("expected one token after \"Bearer\"");
    }
    Ok(if token.starts_with(PREFIX) { Credential::Key(token) } else { Credential::Token })
}

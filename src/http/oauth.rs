//! `POST /oauth/token` of the built-in issuer, and the documents below `/.well-known` that say where tokens come from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{RawPathParams, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, PRAGMA};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use url::{Url, form_urlencoded};

use super::body::{Format, accepted_format, receive_at_most};
use super::predict::no_parameters;
use super::problem::Error;
use crate::app::App;
use crate::auth::Scope;
use crate::auth::issuer::clients::ScopeError;
use crate::auth::issuer::{AccessToken, GrantError, Issuer};
use crate::config::Settings;

/// The only type of body that a token is asked for with.
const FORM: &str = "application/x-www-form-urlencoded";
/// The largest such body.
const MAX_FORM_BYTES: usize = 64 * 1024;

const TOKEN: &str = "/oauth/token";
const JWKS: &str = "/.well-known/jwks.json";

/// Why no token is given.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request is not as it should be.
    #[error("{0}")]
    Request(&'static str),
    /// There is only one way to be given a token.
    #[error("expected the grant type client_credentials")]
    GrantType,
    /// The client does not prove to be one.
    #[error("{0}")]
    Client(&'static str),
    /// There is no token with these scopes.
    #[error(transparent)]
    Scope(ScopeError),
    /// Too many ask.
    #[error("too many clients ask for tokens at the moment; try again later")]
    Busy,
    /// No token is given without a record.
    #[error("tokens cannot be recorded at the moment; try again later")]
    Unrecorded,
    /// The token could not be made.
    #[error(transparent)]
    Failed(GrantError),
    /// What any request may be refused for.
    #[error(transparent)]
    Other(Box<Error>),
}

impl From<GrantError> for Refusal {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::Client => Self::Client("no client has this id and secret"),
            GrantError::Scope(error) => Self::Scope(error),
            GrantError::Busy => Self::Busy,
            GrantError::Unrecorded => Self::Unrecorded,
            GrantError::Sign(_) | GrantError::Random(_) => Self::Failed(error),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Other(Box::new(error))
    }
}

/// A token for a client that shows its id and secret (RFC 6749, 4.4).
pub(super) async fn token(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let as_json = !names_problems(request.headers());
    match grant(&app, request).await {
        Ok(token) => Ok(answer(&token)),
        Err(refusal) => Err(Error::Token { refusal, as_json }),
    }
}

async fn grant(app: &App, request: Request) -> Result<AccessToken, Refusal> {
    let issuer = issuer(app)?;
    let (parts, body) = request.into_parts();
    no_parameters(&parts)?;
    is_form(&parts.headers)?;
    accepted_format(&parts.headers, &[Format::Json])?;
    let received = receive_at_most(app, &parts, body, MAX_FORM_BYTES).await?;
    let form = read_form(&received.decode(MAX_FORM_BYTES)?)?;
    let parameter = |name: &str| form.get(name).map(String::as_str);
    match parameter("grant_type") {
        None => return Err(Refusal::Request("expected the parameter grant_type")),
        Some("client_credentials") => {}
        Some(_) => return Err(Refusal::GrantType),
    }
    let (id, secret) =
        credentials(&parts.headers, parameter("client_id"), parameter("client_secret"))?.ok_or(NO_CLIENT)?;
    Ok(issuer.grant(&id, secret.expose_secret(), parameter("scope"), SystemTime::now()).await?)
}

fn issuer(app: &App) -> Result<&Issuer, Error> {
    app.issuer.as_ref().ok_or(Error::NoRoute)
}

fn is_form(headers: &HeaderMap) -> Result<(), Error> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let found = types.next().and_then(|value| value.to_str().ok()).filter(|_| types.next().is_none());
    let essence = found.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(FORM) { Ok(()) } else { Err(Error::MediaType(FORM)) }
}

/// The parameters of a form. Those without a value are as good as absent (RFC 6749, 3.2); none may be there twice.
fn read_form(body: &[u8]) -> Result<BTreeMap<String, String>, Refusal> {
    let mut form = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(body).into_owned() {
        if form.insert(name, value).is_some() {
            return Err(Refusal::Request("expected each parameter once"));
        }
    }
    form.retain(|_, value| !value.is_empty());
    Ok(form)
}

/// The client's id and secret, from the header or from the body, if they are there.
fn credentials(
    headers: &HeaderMap,
    client_id: Option<&str>,
    client_secret: Option<&str>,
) -> Result<Option<(String, SecretString)>, Refusal> {
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    let (Some(authorization), None) = (authorizations.next(), authorizations.next()) else {
        if headers.contains_key(AUTHORIZATION) {
            return Err(Refusal::Request("expected one Authorization header"));
        }
        return Ok(client_id.zip(client_secret).map(|(id, secret)| (id.to_owned(), secret.into())));
    };
    let (id, secret) = basic(authorization).ok_or(NO_CLIENT)?;
    if client_secret.is_some() {
        return Err(Refusal::Request("expected the client's secret once, by HTTP Basic or in the body"));
    }
    if client_id.is_some_and(|named| named != id) {
        return Err(Refusal::Request(
            "expected one client, found another one in the body than in the header",
        ));
    }
    Ok(Some((id, secret)))
}

/// The client says nothing of who it is, or says it in another way.
const NO_CLIENT: Refusal = Refusal::Client("expected a client's id and secret, by HTTP Basic or in the body");

/// What HTTP Basic says, each part encoded as in a form (RFC 6749, 2.3.1).
fn basic(authorization: &HeaderValue) -> Option<(String, SecretString)> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    // A form of one name without a value.
    let decode = |part: &str| {
        let part = part.replace('&', "%26").replace('=', "%3D");
        form_urlencoded::parse(part.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
    };
    Some((decode(id), decode(secret).into()))
}

/// Whether the client asks for problem documents by name. Others get plain JSON here, which is what OAuth clients read
/// (RFC 6749, 5.2).
fn names_problems(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = accepted.flat_map(|text| text.split(','));
    ranges.any(|range| {
        range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/problem+json")
    })
}

fn answer(token: &AccessToken) -> Response {
    let document = json!({
        "access_token": token.token.expose_secret(),
        "token_type": "Bearer",
        "expires_in": token.expires_in.as_secs(),
        "scope": token.scope,
    });
    let mut response = document_of(document.to_string(), HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// How long the documents may be kept.
const KEPT: Duration = Duration::from_secs(300);

/// How long the keys may be: who keeps them has a new one well before it signs.
fn keys_kept(notice: Duration) -> Duration {
    KEPT.min(notice / 2)
}

fn kept_for(time: Duration) -> HeaderValue {
    HeaderValue::try_from(format!("public, max-age={}", time.as_secs()))
        .unwrap_or(HeaderValue::from_static("no-cache"))
}

fn document_of(document: impl Into<axum::body::Body>, kept: HeaderValue) -> Response {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json")), (CACHE_CONTROL, kept)];
    (headers, document.into()).into_response()
}

/// The keys that tokens are verified with (RFC 7517).
pub(super) async fn jwks(State(app): State<Arc<App>>, request: Request) -> Result<Response, Error> {
    let issuer = issuer(&app)?;
    check(request)?;
    Ok(document_of(issuer.jwks().to_vec(), kept_for(keys_kept(issuer.notice()))))
}

/// What the issuer is (RFC 8414).
pub(super) async fn server(
    State(app): State<Arc<App>>,
    path: RawPathParams,
    request: Request,
) -> Result<Response, Error> {
    let issuer = issuer(&app)?.issuer();
    is_path_of(issuer, &path)?;
    check(request)?;
    let document = json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}{TOKEN}"),
        "jwks_uri": format!("{issuer}{JWKS}"),
        "scopes_supported": Scope::ALL.map(Scope::as_str),
        // There is no page where a user could be asked.
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    });
    Ok(document_of(document.to_string(), kept_for(KEPT)))
}

/// What the gateway takes tokens from (RFC 9728).
pub(super) async fn resource(
    State(app): State<Arc<App>>,
    path: RawPathParams,
    request: Request,
) -> Result<Response, Error> {
    let url = app.settings.public_url();
    is_path_of(&url, &path)?;
    check(request)?;
    Ok(document_of(resource_document(&app.settings, &url).to_string(), kept_for(KEPT)))
}

fn resource_document(settings: &Settings, url: &str) -> serde_json::Value {
    let own = settings.oauth.iter().map(|oauth| oauth.issuer.as_str());
    let issuers: Vec<&str> =
        own.chain(settings.auth.issuers.iter().map(|issuer| issuer.issuer.as_str())).collect();
    let mut document = json!({
        "resource": url,
        "scopes_supported": Scope::ALL.map(Scope::as_str),
        "bearer_methods_supported": ["header"],
    });
    if !issuers.is_empty() {
        document["authorization_servers"] = json!(issuers);
    }
    if settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) {
        document["tls_client_certificate_bound_access_tokens"] = true.into();
    }
    document
}

/// Checks that what follows the well-known path, if anything does, is the path of `url`: clients put the one before the
/// other (RFC 8414, 3.1; RFC 9728, 3.1).
fn is_path_of(url: &str, path: &RawPathParams) -> Result<(), Error> {
    let Some((_, asked)) = path.iter().next() else { return Ok(()) };
    let own = Url::parse(url).map_err(|_| Error::NoRoute)?;
    if own.path().trim_start_matches('/') == asked { Ok(()) } else { Err(Error::NoRoute) }
}

fn check(request: Request) -> Result<(), Error> {
    let (parts, _) = request.into_parts();
    no_parameters(&parts)?;
    accepted_format(&parts.headers, &[Format::Json])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic_header(text: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(text)).parse().unwrap();
        HeaderMap::from_iter([(AUTHORIZATION, value)])
    }

    #[test]
    fn a_form_says_each_thing_once() {
        let form = read_form(b"grant_type=client_credentials&scope=a+b%3Ac&client_id=").unwrap();
        assert_eq!((form["scope"].as_str(), form.contains_key("client_id")), ("a b:c", false));
        for twice in ["scope=a&scope=b", "scope=a&scope=a", "other=&other=1", "scope=a&%73cope=b"] {
            assert!(matches!(read_form(twice.as_bytes()), Err(Refusal::Request(_))), "{twice}");
        }
        assert!(read_form(b"").unwrap().is_empty());
    }

    #[test]
    fn a_client_shows_its_credentials_in_one_of_two_ways() {
        let none = HeaderMap::new();
        let read = |headers: &HeaderMap, id: Option<&str>, secret: Option<&str>| {
            credentials(headers, id, secret)
                .map(|found| found.map(|(id, secret)| format!("{id} {}", secret.expose_secret())))
        };
        assert_eq!(read(&none, Some("a"), Some("b")).unwrap().unwrap(), "a b");
        assert!(read(&none, Some("a"), None).unwrap().is_none());
        for (text, expected) in
            [("a:b", "a b"), ("a%3Ab:c+d%25", "a:b c d%"), ("a:b:c=d&e", "a b:c=d&e"), ("a:", "a ")]
        {
            assert_eq!(read(&basic_header(text), None, None).unwrap().unwrap(), expected, "{text}");
        }
        assert_eq!(read(&basic_header("a:b"), Some("a"), None).unwrap().unwrap(), "a b");
        for (id, secret) in [(Some("a"), Some("b")), (None, Some("b")), (Some("other"), None)] {
            let refused = read(&basic_header("a:b"), id, secret);
            assert!(matches!(refused, Err(Refusal::Request(_))), "{id:?} {secret:?}");
        }
        for value in ["Bearer abc", "Basic", "Basic !", "Basic YQ==", "Basic /w=="] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            assert!(matches!(read(&headers, None, None), Err(Refusal::Client(_))), "{value}");
        }
        let mut two = basic_header("a:b");
        two.append(AUTHORIZATION, two[AUTHORIZATION].clone());
        assert!(matches!(read(&two, None, None), Err(Refusal::Request(_))));
    }

    #[test]
    fn problem_documents_are_for_those_who_name_them() {
        assert!(!names_problems(&HeaderMap::new()));
        for (accept, expected) in [
            ("application/problem+json", true),
            ("application/json, Application/Problem+JSON;q=0.5", true),
            ("application/json", false),
            ("application/*", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(names_problems(&headers), expected, "{accept}");
        }
    }

    #[test]
    fn keys_are_not_kept_until_a_new_one_signs() {
        for (notice, expected) in [(3_600, 300), (600, 300), (300, 150), (5, 2)] {
            let kept = keys_kept(Duration::from_secs(notice));
            assert_eq!(kept_for(kept), format!("public, max-age={expected}"));
        }
    }
}

//! What a token claims → whether it holds here and now, and for whom.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use super::json::{Object, Value};
use super::reason::Reason;
use crate::auth::certificates::ClientCertificate;
use crate::auth::{Caller, Error, Grant, Identity};
use crate::config::IssuerSettings;

/// The end of the year 9999; later times are none that anybody means.
const LAST: f64 = 253_402_300_799.0;

/// Seconds since 1970, as tokens count time.
pub(super) fn seconds(now: SystemTime) -> f64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Who vouches for claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voucher {
    /// The issuer's signature on them (RFC 7519, RFC 9068).
    Signature,
    /// The issuer itself, which was asked (RFC 7662) and need not repeat what goes without saying.
    Answer,
}

/// Claims that hold, but for what can change with the moment: time, deny list, connection.
#[derive(Debug)]
pub(super) struct Claims {
    caller: Caller,
    /// From when on they do not hold any more; seconds since 1970, leeway included.
    ends: f64,
    token_id: Option<String>,
    /// SHA-256 of the certificate that they are bound to.
    certificate: Option<[u8; 32]>,
}

impl Claims {
    /// Checks everything about `claims` that stays as it is. `now` is in seconds since 1970.
    pub(super) fn check(
        claims: &Object<'_>,
        voucher: Voucher,
        settings: &IssuerSettings,
        now: f64,
    ) -> Result<Self, Reason> {
        let signed = voucher == Voucher::Signature;
        match claims.get("iss") {
            None if !signed => {}
            Some(Value::Text(issuer)) if *issuer == settings.issuer => {}
            _ => return Err(Reason::Issuer),
        }
        if !is_for(claims.get("aud"), &settings.audience) {
            return Err(Reason::Audience);
        }
        let name = |claim: &str| claims.get(claim).and_then(Value::text).filter(|name| !name.is_empty());
        let issuer = &settings.issuer;
        let id = match claims.get("sub") {
            // Whoever may choose the subject of a token must not become a client so.
            None if !signed => name("client_id").map(|client| format!("client:{issuer}#{client}")),
            _ => name("sub").map(|subject| format!("{issuer}#{subject}")),
        };
        let id = id.ok_or(Reason::Subject)?;
        let ends = check_times(claims, signed, settings, now)?;
        let token_id = match claims.get("jti") {
            None => None,
            Some(id) => Some(id.text().ok_or(Reason::TokenId)?.to_owned()),
        };
        let named = |claim: &str, reason| match claims.get(claim) {
            None => Ok(None),
            Some(Value::Text(name)) if !name.is_empty() => Ok(Some(name.clone().into_owned())),
            Some(_) => Err(reason),
        };
        let tenant = named(&settings.tenant_claim, Reason::Tenant)?;
        let plan = named(&settings.plan_claim, Reason::Plan)?;
        let certificate = match claims.get("cnf") {
            None => None,
            Some(confirmation) => Some(thumbprint(confirmation).ok_or(Reason::Confirmation)?),
        };
        let grant = granted(claims, settings).ok_or(Reason::Scope)?;
        let caller = Caller::new(Identity { id, tenant, plan, grant });
        Ok(Self { caller, ends, token_id, certificate })
    }

    /// The caller, if the claims hold at the time `now`, shown over a connection with this `certificate`.
    pub(super) fn caller(
        &self,
        certificate: Option<&ClientCertificate>,
        denied: Option<&HashSet<String>>,
        now: f64,
    ) -> Result<Caller, Error> {
        if let Some(bound) = &self.certificate
            && !certificate.is_some_and(|shown| bool::from(shown.sha256.ct_eq(bound)))
        {
            return Err(Error::InvalidToken(Reason::Certificate));
        }
        if let (Some(id), Some(denied)) = (&self.token_id, denied)
            && denied.contains(id)
        {
            return Err(Error::InvalidToken(Reason::Revoked));
        }
        // Last, so that only a token that would hold otherwise is called expired.
        if now < self.ends { Ok(self.caller.clone()) } else { Err(Error::ExpiredToken) }
    }

    /// Whether they hold over one connection only.
    pub(super) fn are_bound(&self) -> bool {
        self.certificate.is_some()
    }

    /// Whether they have ended at the time `now`.
    pub(super) fn have_ended(&self, now: f64) -> bool {
        now >= self.ends
    }
}

/// Whether `audience`, a text or a list of texts, names one of `ours`.
fn is_for(audience: Option<&Value<'_>>, ours: &[String]) -> bool {
    let is_ours = |text: &str| ours.iter().any(|our| our == text);
    match audience {
        Some(Value::Text(text)) => is_ours(text),
        Some(Value::List(list)) => {
            list.iter().all(|item| item.text().is_some()) && list.iter().filter_map(Value::text).any(is_ours)
        }
        _ => false,
    }
}

/// Checks when the token begins and that it is not valid for too long. Returns when it ends, leeway included.
fn check_times(
    claims: &Object<'_>,
    is_end_required: bool,
    settings: &IssuerSettings,
    now: f64,
) -> Result<f64, Reason> {
    let time = |name: &str, reason: Reason| match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(time)) if (0.0..=LAST).contains(time) => Ok(Some(*time)),
        Some(_) => Err(reason),
    };
    let leeway = settings.leeway.as_secs_f64();
    let ends = time("exp", Reason::Expiry)?;
    if time("nbf", Reason::NotBefore)?.is_some_and(|begins| begins > now + leeway) {
        return Err(Reason::NotBefore);
    }
    let issued = time("iat", Reason::IssuedAt)?;
    if issued.is_some_and(|issued| issued > now + leeway) {
        return Err(Reason::IssuedAt);
    }
    let Some(ends) = ends else {
        return if is_end_required { Err(Reason::Expiry) } else { Ok(f64::INFINITY) };
    };
    let is_too_long = ends - issued.unwrap_or(now) > settings.max_lifetime.as_secs_f64() + leeway;
    if is_too_long || issued.is_some_and(|issued| ends <= issued) {
        return Err(Reason::Lifetime);
    }
    Ok(ends + leeway)
}

/// The digest in a confirmation (RFC 8705) that says nothing else: what else it asks for cannot be checked here.
fn thumbprint(confirmation: &Value<'_>) -> Option<[u8; 32]> {
    let Value::Object(confirmation) = confirmation else { return None };
    let digest = confirmation.get("x5t#S256").filter(|_| confirmation.len() == 1)?.text()?;
    URL_SAFE_NO_PAD.decode(digest).ok()?.try_into().ok()
}

/// What the scopes grant; nothing if there are none.
fn granted(claims: &Object<'_>, settings: &IssuerSettings) -> Option<Grant> {
    let scopes = match &settings.scope_claim {
        Some(name) => claims.get(name),
        None => claims.get("scope").or_else(|| claims.get("scp")),
    };
    match scopes {
        None => Some(Grant::default()),
        Some(Value::Text(scopes)) => Some(Grant::of_scopes(scopes.split(' '))),
        Some(list) => Some(Grant::of_scopes(list.texts()?)),
    }
}

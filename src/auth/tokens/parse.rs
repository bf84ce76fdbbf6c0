//! A text → the parts of an unverified token (RFC 7515), strictly: one text has one reading, or none.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use memchr::memchr_iter;

use super::json::Object;
use super::jwk::algorithm;
use super::reason::Reason;
use crate::config::IssuerSettings;

/// The longest token that is looked at.
pub(in crate::auth) const MAX_BYTES: usize = 8 * 1024;

/// The three texts of an unverified token; the first two are decoded.
#[derive(Debug)]
pub(super) struct Segments<'t> {
    /// What is signed.
    pub(super) message: &'t [u8],
    /// In base64url.
    pub(super) signature: &'t str,
    /// Header and payload, one behind the other.
    decoded: Vec<u8>,
    header_length: usize,
}

impl<'t> Segments<'t> {
    /// Takes `unverified_token` apart. [`Reason::Structure`] is said only of what is no signed token at all, and may be an opaque
    /// one.
    pub(super) fn of(unverified_token: &'t str) -> Result<Self, Reason> {
        let mut dots = memchr_iter(b'.', unverified_token.as_bytes());
        let (Some(first), Some(second), None) = (dots.next(), dots.next(), dots.next()) else {
            return Err(Reason::Structure);
        };
        let (message, signature) = (&unverified_token[..second], &unverified_token[second + 1..]);
        let (header, payload) = (&message[..first], &message[first + 1..]);
        // The engine takes neither padding nor bits that mean nothing.
        let mut decoded = Vec::with_capacity(message.len());
        URL_SAFE_NO_PAD.decode_vec(header, &mut decoded).map_err(|_| Reason::Structure)?;
        let header_length = decoded.len();
        URL_SAFE_NO_PAD.decode_vec(payload, &mut decoded).map_err(|_| Reason::Payload)?;
        Ok(Self { message: message.as_bytes(), signature, decoded, header_length })
    }

    /// JSON in UTF-8, or something else.
    pub(super) fn header(&self) -> &[u8] {
        &self.decoded[..self.header_length]
    }

    /// The same.
    pub(super) fn payload(&self) -> &[u8] {
        &self.decoded[self.header_length..]
    }
}

/// What a token's header says. Keys in it, or places where to find them, are nobody's word but the token's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header<'h> {
    pub(super) algorithm: Algorithm,
    pub(super) typ: Option<&'h str>,
    pub(super) kid: Option<&'h str>,
}

impl<'h> Header<'h> {
    /// Reads what matters of `header`.
    pub(super) fn of(header: &'h Object<'_>) -> Result<Self, Reason> {
        // Whoever does not understand what these ask for has to refuse; nothing of it is understood here.
        if ["crit", "b64", "zip"].iter().any(|name| header.get(name).is_some()) {
            return Err(Reason::Critical);
        }
        let text = |name| match header.get(name) {
            None => Ok(None),
            Some(value) => value.text().map(Some).ok_or(Reason::Header),
        };
        let algorithm =
            header.get("alg").and_then(|name| algorithm(name.text()?)).ok_or(Reason::Algorithm)?;
        Ok(Self { algorithm, typ: text("typ")?, kid: text("kid")? })
    }

    /// Whether the issuer makes access tokens like this.
    pub(super) fn check(&self, settings: &IssuerSettings) -> Result<(), Reason> {
        if !settings.algorithms.contains(&self.algorithm) {
            return Err(Reason::Algorithm);
        }
        let is_named = |named: &String| match self.typ {
            None => named.is_empty(),
            Some(typ) => !named.is_empty() && short(typ).eq_ignore_ascii_case(short(named)),
        };
        if settings.typ.iter().any(is_named) { Ok(()) } else { Err(Reason::Type) }
    }
}

/// A media type as RFC 7515 (4.1.9) recommends to write it.
fn short(typ: &str) -> &str {
    const PREFIX: &str = "application/";
    match typ.split_at_checked(PREFIX.len()) {
        Some((prefix, short)) if prefix.eq_ignore_ascii_case(PREFIX) && !short.contains('/') => short,
        _ => typ,
    }
}

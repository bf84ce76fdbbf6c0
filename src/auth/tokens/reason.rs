//! [`Reason`]: why a token does not hold.

/// Why a token does not hold; for logs and metrics only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is longer than any token may be.
    TooLong,
    /// It is no signed token: three texts, the first of them a JSON object in base64url.
    Structure,
    /// Its header is not what a header has to be.
    Header,
    /// Its header asks for what is not understood here (`crit`, `b64`, `zip`).
    Critical,
    /// Its payload is no JSON object in base64url, or is ambiguous.
    Payload,
    /// Its `alg` is none that its issuer uses.
    Algorithm,
    /// Its `typ` is that of another kind of token.
    Type,
    /// Its `iss` is missing, no text, or nobody that is trusted.
    Issuer,
    /// Its issuer has no such key.
    UnknownKey,
    /// It names no key, and several fit.
    AmbiguousKey,
    /// The key that it names is for other algorithms.
    KeyMismatch,
    /// Its signature is not that of the key over these bytes.
    Signature,
    /// Its `aud` is missing, malformed, or somebody else.
    Audience,
    /// Its `sub` is missing, empty or no text.
    Subject,
    /// Its `exp` is missing or no time.
    Expiry,
    /// Its `nbf` is no time, or not yet there.
    NotBefore,
    /// Its `iat` is no time, or not yet there.
    IssuedAt,
    /// It ends before it begins, or is valid for too long.
    Lifetime,
    /// Its `jti` is no text.
    TokenId,
    /// Its `jti` is on the deny list.
    Revoked,
    /// Its scopes are no list of texts.
    Scope,
    /// Its tenant is no text, or empty.
    Tenant,
    /// Its plan is no text, or empty.
    Plan,
    /// It is bound to its holder in a way that cannot be checked here.
    Confirmation,
    /// It is bound to another certificate than the connection's.
    Certificate,
    /// The server that issued it says that it is not valid.
    Inactive,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 26] = [
        Self::TooLong,
        Self::Structure,
        Self::Header,
        Self::Critical,
        Self::Payload,
        Self::Algorithm,
        Self::Type,
        Self::Issuer,
        Self::UnknownKey,
        Self::AmbiguousKey,
        Self::KeyMismatch,
        Self::Signature,
        Self::Audience,
        Self::Subject,
        Self::Expiry,
        Self::NotBefore,
        Self::IssuedAt,
        Self::Lifetime,
        Self::TokenId,
        Self::Revoked,
        Self::Scope,
        Self::Tenant,
        Self::Plan,
        Self::Confirmation,
        Self::Certificate,
        Self::Inactive,
    ];

    /// A stable name for log lines and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Structure => "structure",
            Self::Header => "header",
            Self::Critical => "critical",
            Self::Payload => "payload",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown_key",
            Self::AmbiguousKey => "ambiguous_key",
            Self::KeyMismatch => "key_mismatch",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::Subject => "subject",
            Self::Expiry => "expiry",
            Self::NotBefore => "not_before",
            Self::IssuedAt => "issued_at",
            Self::Lifetime => "lifetime",
            Self::TokenId => "token_id",
            Self::Revoked => "revoked",
            Self::Scope => "scope_claim",
            Self::Tenant => "tenant",
            Self::Plan => "plan",
            Self::Confirmation => "confirmation",
            Self::Certificate => "certificate",
            Self::Inactive => "inactive",
        }
    }
}

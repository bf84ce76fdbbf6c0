//! Who may call: API keys, issuers of access tokens, certificates, the built-in issuer, TLS.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use url::{Host, Url};

use super::reader::{ENVIRONMENT, Reader, TableReader};
use super::values::{base_url, lifetime, one_or_many, optional_path, switch, text};
use crate::auth::Scope;
use crate::auth::file::check_models;

/// Who may score.
#[derive(Debug, Clone)]
pub struct AuthSettings {
    /// `SCOREGATE_API_KEYS_FILE` (`api_keys.json`).
    pub api_keys_file: PathBuf,
    /// `SCOREGATE_OAUTH_CLIENTS_FILE` (`oauth_clients.json`): the clients of the built-in issuer.
    pub clients_file: PathBuf,
    /// `SCOREGATE_JWT_DENY_LIST` (none): a file of token ids (`jti`), one a line, that are refused before they expire.
    pub deny_list: Option<PathBuf>,
    /// Whose access tokens are taken: the one of `SCOREGATE_JWT_…`, and the tables `[[auth.issuer]]` of the settings file.
    pub issuers: Vec<IssuerSettings>,
    /// Client certificates that are identities: the tables `[[auth.certificate]]` of the settings file.
    pub certificates: Vec<CertificateSettings>,
}

/// Whose access tokens are taken, and how they are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerSettings {
    /// `SCOREGATE_JWT_ISSUER`, `issuer`: exactly what its tokens say as `iss`.
    pub issuer: String,
    /// `SCOREGATE_JWT_AUDIENCE`, `audience`: what tokens for this gateway say as `aud`; one of several.
    pub audience: Vec<String>,
    /// Where its keys come from.
    pub keys: KeyLocation,
    /// `SCOREGATE_JWT_HS256_SECRET_FILE`, `hs256_secret_file`: a secret of at least 32 bytes that it shares with the gateway. With
    /// one, keys are looked for only where `jwks` says so.
    pub hs256_secret_file: Option<PathBuf>,
    /// `algorithms` (all signatures by a private key, and HS256 with a secret): what tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// `typ` (`at+jwt`): what token headers may say as `typ`; `application/` in front makes no difference. An empty one stands
    /// for a header without it.
    pub typ: Vec<String>,
    /// `scope_claim` (`scope`, else `scp`): the claim with the scopes, as a text with spaces or a list.
    pub scope_claim: Option<String>,
    /// `tenant_claim` (`tenant`): the claim that names the caller's tenant.
    pub tenant_claim: String,
    /// `plan_claim` (`plan`): the claim that names the caller's plan.
    pub plan_claim: String,
    /// `leeway` (60s): by how much clocks may differ.
    pub leeway: Duration,
    /// `max_lifetime` (24h): the longest time that a token may be valid for.
    pub max_lifetime: Duration,
    /// `cooldown` (30s): the least time between two fetches of the keys because of an unknown one.
    pub cooldown: Duration,
    /// `refresh` (10m): how often the keys are fetched without any reason.
    pub refresh: Duration,
    /// `allow_http` (false): plain HTTP to places other than this machine, for issuers on a private network.
    pub allow_http: bool,
    /// `introspection` and what belongs to it: where tokens that are no JWT are asked about.
    pub introspection: Option<IntrospectionSettings>,
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLocation {
    /// Nowhere: it has a shared secret only, or tokens that are asked about.
    Nowhere,
    /// The metadata under the issuer's own URL says it.
    Discovered,
    /// `SCOREGATE_JWT_JWKS`, `jwks`: a URL.
    Url(Url),
    /// `SCOREGATE_JWT_JWKS`, `jwks`: a file.
    File(PathBuf),
}

/// Where tokens that are no JWT are asked about (RFC 7662).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntrospectionSettings {
    /// `introspection`: the endpoint.
    pub endpoint: Url,
    /// `introspection_client_id`: whom the gateway says it is there.
    pub client_id: String,
    /// `introspection_client_secret_file`: with what secret.
    pub client_secret_file: PathBuf,
    /// `introspection_cache` (30s): how long an answer is believed, though never beyond the token's own end.
    pub cache: Duration,
}

/// A client certificate that is an identity. All that is given of the first four has to be found in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateSettings {
    /// `sha256`: the digest of the certificate (DER), in hexadecimal.
    pub sha256: Option<String>,
    /// `dns`: a DNS name among its alternative names.
    pub dns: Option<String>,
    /// `uri`: a URI among its alternative names, such as a SPIFFE id.
    pub uri: Option<String>,
    /// `common_name`: its subject's.
    pub common_name: Option<String>,
    /// `name`: what the caller is called in logs.
    pub name: String,
    /// `scopes`: what it may do.
    pub scopes: Vec<Scope>,
    /// `models` (`*`): what it may use.
    pub models: Vec<String>,
    /// `tenant` (none): see [`crate::auth::Identity::tenant`].
    pub tenant: Option<String>,
    /// `plan` (none): see [`crate::auth::Identity::plan`].
    pub plan: Option<String>,
}

/// The issuer that is built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OauthSettings {
    /// `SCOREGATE_OAUTH_ISSUER`: the URL that clients reach it by, and its tokens' `iss`.
    pub issuer: String,
    /// `SCOREGATE_OAUTH_AUDIENCE` (the issuer): its tokens' `aud`.
    pub audience: String,
    /// See [`AuthSettings::clients_file`].
    pub clients_file: PathBuf,
    /// `SCOREGATE_OAUTH_KEYS_FILE` (`issuer_keys.json` in the state directory): its signing keys; replicas share it.
    pub keys_file: PathBuf,
    /// `SCOREGATE_OAUTH_TOKEN_TTL` (15m): how long its tokens are valid.
    pub token_ttl: Duration,
    /// `SCOREGATE_OAUTH_KEY_ROTATION` (30d): how often it changes its signing key.
    pub key_rotation: Duration,
    /// `SCOREGATE_OAUTH_ONLY` (false): tokens are all there is; no model is loaded.
    pub only: bool,
}

/// TLS on both listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// `SCOREGATE_TLS_CERT`: the certificate chain, PEM.
    pub cert: PathBuf,
    /// `SCOREGATE_TLS_KEY`: its private key, PEM.
    pub key: PathBuf,
    /// `SCOREGATE_TLS_CLIENT_CA` (none): whose client certificates are taken, PEM.
    pub client_ca: Option<PathBuf>,
    /// `SCOREGATE_TLS_CLIENT_CRL` (none): which of their certificates are revoked, PEM.
    pub client_crl: Option<PathBuf>,
    /// `SCOREGATE_TLS_CLIENT_AUTH` (`required`, or `optional`): whether the public listener takes connections without a client
    /// certificate, where there is a CA. The admin one always does.
    pub client_auth_required: bool,
}

impl Reader {
    /// The issuer that is built in.
    pub(super) fn oauth(&mut self, clients_file: PathBuf) -> Option<OauthSettings> {
        let issuer = self.take("SCOREGATE_OAUTH_ISSUER", "oauth.issuer", "", |text| match text {
            "" => Ok(None),
            text => base_url(text).map(Some),
        });
        let audience = self.take("SCOREGATE_OAUTH_AUDIENCE", "oauth.audience", "", text);
        let keys_file = self.take("SCOREGATE_OAUTH_KEYS_FILE", "oauth.keys_file", "", optional_path);
        let token_ttl = self.take("SCOREGATE_OAUTH_TOKEN_TTL", "oauth.token_ttl", "15m", lifetime);
        let key_rotation = self.take("SCOREGATE_OAUTH_KEY_ROTATION", "oauth.key_rotation", "30d", lifetime);
        let allow_http = self.take("SCOREGATE_OAUTH_ALLOW_HTTP", "oauth.allow_http", "false", switch);
        let only = self.take("SCOREGATE_OAUTH_ONLY", "oauth.only", "false", switch);
        if only && issuer.is_none() {
            self.mistakes.push(
                "SCOREGATE_OAUTH_ONLY (oauth.only) leaves nothing to do without SCOREGATE_OAUTH_ISSUER"
                    .into(),
            );
        }
        let issuer = issuer?;
        if !allow_http && !Url::parse(&issuer).is_ok_and(|url| is_safe(&url)) {
            self.mistakes.push(format!(
                "SCOREGATE_OAUTH_ISSUER: found {issuer}, expected https: secrets and tokens would go over the network for \
                 anybody to read; on a private network set SCOREGATE_OAUTH_ALLOW_HTTP=true"
            ));
        }
        let audience = if audience.is_empty() { issuer.clone() } else { audience };
        // The default needs the state directory, which is read later.
        let keys_file = keys_file.unwrap_or_default();
        Some(OauthSettings { issuer, audience, clients_file, keys_file, token_ttl, key_rotation, only })
    }

    /// TLS.
    pub(super) fn tls(&mut self) -> Option<TlsSettings> {
        let cert = self.take("SCOREGATE_TLS_CERT", "tls.cert", "", optional_path);
        let key = self.take("SCOREGATE_TLS_KEY", "tls.key", "", optional_path);
        let client_ca = self.take("SCOREGATE_TLS_CLIENT_CA", "tls.client_ca", "", optional_path);
        let client_crl = self.take("SCOREGATE_TLS_CLIENT_CRL", "tls.client_crl", "", optional_path);
        let client_auth = self.take("SCOREGATE_TLS_CLIENT_AUTH", "tls.client_auth", "", |text| match text {
            "" => Ok(None),
            "required" => Ok(Some(true)),
            "optional" => Ok(Some(false)),
            _ => Err("required or optional".into()),
        });
        // Who sets these expects that certificates are asked for; without a CA none would be.
        let expects = client_auth.is_some() || client_crl.is_some() || !self.certificate.is_empty();
        if expects && client_ca.is_none() {
            self.mistakes.push(
                "SCOREGATE_TLS_CLIENT_AUTH, SCOREGATE_TLS_CLIENT_CRL and [[auth.certificate]] need SCOREGATE_TLS_CLIENT_CA: \
                 without it no client certificate is taken"
                    .into(),
            );
        }
        let client_auth_required = client_auth.unwrap_or(true);
        match (cert, key) {
            (Some(cert), Some(key)) => {
                Some(TlsSettings { cert, key, client_ca, client_crl, client_auth_required })
            }
            (None, None) if client_ca.is_none() => None,
            _ => {
                let needs = "TLS needs both SCOREGATE_TLS_CERT and SCOREGATE_TLS_KEY, and so does SCOREGATE_TLS_CLIENT_CA";
                self.mistakes.push(needs.into());
                None
            }
        }
    }

    /// The issuers whose tokens are taken; none of them may have the name of the one that is `built_in`.
    pub(super) fn issuers(&mut self, built_in: Option<&str>) -> Vec<IssuerSettings> {
        let mut tables = Vec::new();
        let issuer = self.take("SCOREGATE_JWT_ISSUER", "auth.jwt_issuer", "", text);
        let audience = self.take("SCOREGATE_JWT_AUDIENCE", "auth.jwt_audience", "", text);
        let jwks = self.take("SCOREGATE_JWT_JWKS", "auth.jwt_jwks", "", text);
        let secret = self.take("SCOREGATE_JWT_HS256_SECRET_FILE", "auth.jwt_hs256_secret_file", "", text);
        let one = [("issuer", issuer), ("audience", audience), ("jwks", jwks), ("hs256_secret_file", secret)];
        let one: toml::Table = one
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), toml::Value::String(value)))
            .collect();
        if !one.is_empty() {
            tables.push((ENVIRONMENT.to_owned(), one));
        }
        let more = std::mem::take(&mut self.issuer).into_iter().enumerate();
        tables.extend(more.map(|(at, table)| (format!("auth.issuer[{at}]"), table)));
        let mut issuers: Vec<IssuerSettings> = Vec::new();
        for (name, mut table) in tables {
            let reader =
                TableReader { name, table: &mut table, known: Vec::new(), mistakes: &mut self.mistakes };
            let found = issuer_settings(reader);
            if !found.issuer.is_empty() && issuers.iter().any(|other| other.issuer == found.issuer) {
                self.mistakes.push(format!("the issuer {} is there twice", found.issuer));
            }
            if built_in == Some(found.issuer.as_str()) {
                let issuer = &found.issuer;
                let mistake =
                    format!("the issuer {issuer} is the one that is built in: its tokens are taken already");
                self.mistakes.push(mistake);
            }
            issuers.push(found);
        }
        if issuers.iter().filter(|issuer| issuer.introspection.is_some()).count() > 1 {
            self.mistakes.push(
                "introspection is there for several issuers: nothing says which of them a token without a structure is from"
                    .into(),
            );
        }
        issuers
    }

    /// The certificates that are identities.
    pub(super) fn certificates(&mut self) -> Vec<CertificateSettings> {
        let tables = std::mem::take(&mut self.certificate).into_iter().enumerate();
        let read = tables.map(|(at, mut table)| {
            let mut reader = TableReader {
                name: format!("auth.certificate[{at}]"),
                table: &mut table,
                known: Vec::new(),
                mistakes: &mut self.mistakes,
            };
            let name = reader.text("name");
            let scopes = reader.take("scopes", "a list of scopes such as [\"score:predict\"]", |value| {
                one_or_many(value)?.iter().map(|scope| scope.parse().ok()).collect::<Option<Vec<Scope>>>()
            });
            let settings = CertificateSettings {
                sha256: reader.take("sha256", "64 hexadecimal digits", |value| {
                    let text = value.as_str()?.replace(':', "").to_ascii_lowercase();
                    let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                    is_digest.then_some(text)
                }),
                dns: reader.text("dns"),
                uri: reader.text("uri"),
                common_name: reader.text("common_name"),
                name: reader.required("name", name),
                scopes: reader.required("scopes", scopes),
                models: reader
                    .texts("models", "a list of models, or [\"*\"]")
                    .unwrap_or_else(|| vec!["*".into()]),
                tenant: reader.text("tenant"),
                plan: reader.text("plan"),
            };
            let CertificateSettings { sha256, dns, uri, common_name, .. } = &settings;
            if sha256.is_none() && dns.is_none() && uri.is_none() && common_name.is_none() {
                reader.mistake("expected one of sha256, dns, uri and common_name to know the certificate by");
            }
            if let Err(error) = check_models(&settings.models) {
                reader.mistake(&error.to_string());
            }
            reader.finish();
            settings
        });
        read.collect()
    }
}

/// What one issuer's table says.
fn issuer_settings(mut reader: TableReader<'_>) -> IssuerSettings {
    let issuer = reader.text("issuer");
    let issuer = reader.required("issuer", issuer);
    // An empty audience would be everybody's.
    let audience = reader.take("audience", "a text or a list of texts, none of them empty", |value| {
        one_or_many(value).filter(|texts| texts.iter().all(|text| !text.is_empty()))
    });
    let audience = reader.required("audience", audience);
    let allow_http = reader.take("allow_http", "true or false", toml::Value::as_bool).unwrap_or(false);
    let hs256_secret_file = reader.path("hs256_secret_file");
    let endpoint =
        reader.take("introspection", "an http or https URL", |value| match key_location(value.as_str()?) {
            Ok(KeyLocation::Url(url)) => Some(url),
            _ => None,
        });
    let client_id = reader.text("introspection_client_id");
    let client_secret_file = reader.path("introspection_client_secret_file");
    let cache = reader.duration("introspection_cache").unwrap_or(Duration::from_secs(30));
    let introspection = match (endpoint, client_id, client_secret_file) {
        (Some(endpoint), Some(client_id), Some(client_secret_file)) => {
            Some(IntrospectionSettings { endpoint, client_id, client_secret_file, cache })
        }
        (None, None, None) => None,
        _ => {
            reader.mistake(
                "expected introspection, introspection_client_id and introspection_client_secret_file together",
            );
            None
        }
    };
    let jwks = reader
        .take("jwks", "an http or https URL, or a file", |value| key_location(value.as_str()?).ok())
        .unwrap_or(if hs256_secret_file.is_some() || introspection.is_some() {
            KeyLocation::Nowhere
        } else {
            KeyLocation::Discovered
        });
    let mut all: Vec<Algorithm> = if jwks == KeyLocation::Nowhere { Vec::new() } else { SIGNATURES.into() };
    all.extend(hs256_secret_file.as_ref().map(|_| Algorithm::HS256));
    let named = reader.take(
        "algorithms",
        "a list out of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA and HS256",
        |value| algorithms(&one_or_many(value)?),
    );
    if named.as_ref().is_some_and(|named| named.contains(&Algorithm::HS256)) && hs256_secret_file.is_none() {
        reader.mistake("HS256 needs hs256_secret_file: a secret is never taken from a key set");
    }
    let urls: Vec<Url> = match &jwks {
        KeyLocation::Discovered => {
            match Url::parse(&issuer) {
                Ok(url) if matches!(url.scheme(), "http" | "https") => vec![url],
                _ if issuer.is_empty() => Vec::new(),
                _ => {
                    reader.mistake("an issuer that is no URL needs jwks or hs256_secret_file: its keys cannot be discovered");
                    Vec::new()
                }
            }
        }
        KeyLocation::Url(url) => vec![url.clone()],
        KeyLocation::File(_) | KeyLocation::Nowhere => Vec::new(),
    };
    let asked = introspection.iter().map(|introspection| introspection.endpoint.clone());
    for url in urls.into_iter().chain(asked) {
        if !allow_http && !is_safe(&url) {
            reader.mistake(&format!(
                "found {url}, expected https: what plain HTTP brings may come from anybody; for an issuer on a private network \
                 set allow_http = true"
            ));
        }
    }
    let settings = IssuerSettings {
        issuer,
        audience,
        keys: jwks,
        hs256_secret_file,
        algorithms: named.unwrap_or(all),
        typ: reader
            .take("typ", "a text or a list of texts", one_or_many)
            .unwrap_or_else(|| vec!["at+jwt".into()]),
        scope_claim: reader.text("scope_claim"),
        tenant_claim: reader.text("tenant_claim").unwrap_or_else(|| "tenant".into()),
        plan_claim: reader.text("plan_claim").unwrap_or_else(|| "plan".into()),
        leeway: reader.duration("leeway").unwrap_or(Duration::from_secs(60)),
        max_lifetime: reader.duration("max_lifetime").unwrap_or(Duration::from_secs(86_400)),
        cooldown: reader.duration("cooldown").unwrap_or(Duration::from_secs(30)),
        refresh: reader.duration("refresh").unwrap_or(Duration::from_secs(600)),
        allow_http,
        introspection,
    };
    if settings.leeway > Duration::from_secs(600) {
        reader.mistake("leeway: expected at most 10m");
    }
    if settings.cooldown < Duration::from_secs(1) || settings.refresh < Duration::from_secs(1) {
        reader.mistake("cooldown and refresh: expected at least 1s");
    }
    reader.finish();
    settings
}

/// Whether nobody can change on the way what this URL brings.
pub fn is_safe(url: &Url) -> bool {
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || is_here
}

/// Where keys come from: a URL, or else a file.
fn key_location(text: &str) -> Result<KeyLocation, String> {
    match Url::parse(text) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Err("a URL without user and password: whoever sees the settings would have them".into())
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(KeyLocation::Url(url)),
        _ if text.is_empty() || text.contains("://") => Err("an http or https URL, or a file".into()),
        _ => Ok(KeyLocation::File(text.into())),
    }
}

fn algorithms(text: &[String]) -> Option<Vec<Algorithm>> {
    let found: Vec<Algorithm> = text.iter().map(|name| name.parse().ok()).collect::<Option<_>>()?;
    let is_known = |algorithm: &Algorithm| *algorithm == Algorithm::HS256 || SIGNATURES.contains(algorithm);
    (!found.is_empty() && found.iter().all(is_known)).then_some(found)
}

/// Every algorithm that signs with a private key.
const SIGNATURES: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    #[test]
    fn issuers_come_from_variables_and_from_tables() {
        let environment = [
            ("SCOREGATE_JWT_ISSUER", "https://one.example"),
            ("SCOREGATE_JWT_AUDIENCE", "scores"),
            ("SCOREGATE_JWT_HS256_SECRET_FILE", "secret"),
            ("SCOREGATE_TLS_CERT", "a"),
            ("SCOREGATE_TLS_KEY", "b"),
            ("SCOREGATE_TLS_CLIENT_CA", "c"),
        ];
        let file = "[[auth.issuer]]\nissuer = \"https://two.example/realms/x\"\naudience = [\"a\", \"b\"]\ntyp = \"JWT\"\n\
                    algorithms = [\"ES256\", \"EdDSA\"]\nleeway = \"5s\"\nscope_claim = \"permissions\"\n\
                    [[auth.issuer]]\nissuer = \"three\"\naudience = \"c\"\njwks = \"keys.json\"\n\
                    [[auth.certificate]]\nname = \"batch\"\ndns = \"batch.example\"\nscopes = [\"score:predict\"]\n\
                    sha256 = \"AA:00000000000000000000000000000000000000000000000000000000000000\"\n";
        let auth = load(&environment, Some(file)).unwrap().auth;
        let [one, two, three] = auth.issuers.as_slice() else { panic!("{:?}", auth.issuers) };
        assert_eq!((&one.keys, one.algorithms.as_slice()), (&KeyLocation::Nowhere, &[Algorithm::HS256][..]));
        assert_eq!(one.typ, ["at+jwt"]);
        assert_eq!((&two.keys, two.leeway), (&KeyLocation::Discovered, Duration::from_secs(5)));
        assert_eq!(two.algorithms, [Algorithm::ES256, Algorithm::EdDSA]);
        assert_eq!((two.audience.len(), two.scope_claim.as_deref()), (2, Some("permissions")));
        assert_eq!(three.keys, KeyLocation::File("keys.json".into()));
        assert_eq!(three.algorithms, SIGNATURES);
        let [certificate] = auth.certificates.as_slice() else { panic!("{:?}", auth.certificates) };
        assert_eq!(
            (certificate.name.as_str(), certificate.scopes.as_slice()),
            ("batch", &[Scope::ScorePredict][..])
        );
        assert!(certificate.sha256.as_ref().unwrap().starts_with("aa00"));
    }

    #[test]
    fn mistakes_about_issuers_and_certificates_name_the_table() {
        let issuer =
            |rest: &str| format!("[[auth.issuer]]\nissuer = \"https://a\"\naudience = \"b\"\n{rest}");
        for (file, expected) in [
            ("[[auth.issuer]]\nissuer = \"https://a\"", "audience of the settings file is missing"),
            ("[[auth.issuer]]\naudience = \"b\"", "issuer of the settings file is missing"),
            (&issuer("algoritms = [\"RS256\"]"), "did you mean algorithms?"),
            (&issuer("algorithms = [\"none\"]"), "expected a list out of RS256"),
            (&issuer("algorithms = [\"HS512\"]"), "expected a list out of RS256"),
            (&issuer("algorithms = [\"HS256\"]"), "HS256 needs hs256_secret_file"),
            (&issuer("jwks = \"http://a/keys\""), "allow_http = true"),
            (&issuer("jwks = \"ftp://a/keys\""), "an http or https URL, or a file"),
            (&issuer("jwks = \"https://me:secret@a/keys\""), "found \"https://…@a/keys\""),
            (
                "[[auth.issuer]]\nissuer = \"https://a\"\naudience = \"\"",
                "audience of the settings file: found \"\"",
            ),
            (&issuer("introspection = \"https://a/ask\""), "introspection_client_id"),
            (&issuer("leeway = \"1h\""), "at most 10m"),
            (&issuer("cooldown = \"0s\""), "at least 1s"),
            (&format!("{}\n{}", issuer(""), issuer("")), "is there twice"),
            ("[[auth.issuer]]\nissuer = \"me\"\naudience = \"b\"", "no URL"),
            ("[[auth.issuer]]\nissuer = \"http://a\"\naudience = \"b\"", "expected https"),
            ("[auth]\nissuer = \"https://a\"", "expected tables [[auth.issuer]]"),
            ("[[auth.certificate]]\nname = \"a\"\nscopes = [\"score:predict\"]", "expected one of sha256"),
            (
                "[[auth.certificate]]\nname = \"a\"\nscopes = [\"score:predict\"]\ndns = \"a\"\nmodels = \"a b\"",
                "a b",
            ),
            (
                "[[auth.certificate]]\nname = \"a\"\nscopes = [\"everything\"]\ndns = \"a\"",
                "a list of scopes",
            ),
        ] {
            let tls =
                [("SCOREGATE_TLS_CERT", "a"), ("SCOREGATE_TLS_KEY", "b"), ("SCOREGATE_TLS_CLIENT_CA", "c")];
            let mistakes = load(&tls, Some(file)).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{file}\n{mistakes:#?}");
            assert!(mistakes[0].contains(expected), "{file}\n{mistakes:#?}");
        }
        let mistakes = load(&[("SCOREGATE_JWT_AUDIENCE", "b")], None).unwrap_err();
        assert_eq!(mistakes, ["SCOREGATE_JWT_ISSUER is missing"]);
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for (url, safe) in [
            ("https://a.example", true),
            ("http://localhost:1/x", true),
            ("http://127.0.0.1", true),
            ("http://[::1]:80", true),
            ("http://127.0.0.1.example", false),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_safe(&Url::parse(url).unwrap()), safe, "{url}");
        }
    }

    #[test]
    fn tls_needs_a_certificate_and_its_key() {
        assert!(load(&[("SCOREGATE_TLS_CERT", "a")], None).is_err());
        assert!(load(&[("SCOREGATE_TLS_CLIENT_CA", "a")], None).is_err());
        let both = [("SCOREGATE_TLS_CERT", "a"), ("SCOREGATE_TLS_KEY", "b")];
        let settings = load(&both, None).unwrap();
        assert!(settings.tls.as_ref().unwrap().client_auth_required);
        assert_eq!(settings.public_url(), "https://127.0.0.1:8080");
        let everywhere = load(&[("SCOREGATE_ADDR", "0.0.0.0:80")], None).unwrap();
        assert_eq!(everywhere.public_url(), "http://localhost:80", "nobody can go to 0.0.0.0");
        assert!(load(&[("SCOREGATE_TLS_CLIENT_AUTH", "required")], None).is_err());
        let certificate = "[[auth.certificate]]\nname = \"a\"\nscopes = [\"score:predict\"]\ndns = \"a\"";
        assert!(load(&both, Some(certificate)).is_err(), "no certificate would be asked for");
        let issuer = [("SCOREGATE_OAUTH_ISSUER", "https://scores.example/")];
        let settings = load(&issuer, None).unwrap();
        assert_eq!(settings.public_url(), "https://scores.example");
        let oauth = settings.oauth.unwrap();
        assert_eq!(
            (oauth.audience.as_str(), oauth.keys_file),
            ("https://scores.example", "state/issuer_keys.json".into())
        );
        for (name, wrong) in [
            ("SCOREGATE_OAUTH_ISSUER", "scores.example"),
            ("SCOREGATE_OAUTH_ISSUER", "https://a/?b"),
            ("SCOREGATE_OAUTH_ISSUER", "http://scores.example"),
            ("SCOREGATE_PUBLIC_URL", "https://:secret@a"),
            ("SCOREGATE_PUBLIC_URL", "ftp://a"),
            ("SCOREGATE_CORS_ORIGINS", "https://a/"),
            ("SCOREGATE_CORS_ORIGINS", "a"),
            ("SCOREGATE_OAUTH_TOKEN_TTL", "0s"),
            ("SCOREGATE_OAUTH_ONLY", "true"),
        ] {
            assert_eq!(load(&[(name, wrong)], None).unwrap_err().len(), 1, "{name} {wrong}");
        }
        let private =
            [("SCOREGATE_OAUTH_ISSUER", "http://gateway:8080"), ("SCOREGATE_OAUTH_ALLOW_HTTP", "true")];
        assert_eq!(load(&private, None).unwrap().oauth.unwrap().issuer, "http://gateway:8080");
        let twice = [
            ("SCOREGATE_OAUTH_ISSUER", "https://a"),
            ("SCOREGATE_JWT_ISSUER", "https://a"),
            ("SCOREGATE_JWT_AUDIENCE", "b"),
        ];
        assert!(load(&twice, None).unwrap_err()[0].contains("built in"));
        let origins = load(&[("SCOREGATE_CORS_ORIGINS", "https://a.example, http://b:8080")], None).unwrap();
        assert_eq!(origins.server.cors_origins, ["https://a.example", "http://b:8080"]);
    }
}

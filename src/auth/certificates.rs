//! Client certificates: what is read of one when its connection is made, and which of them are identities.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Caller, Grant, Identity};
use crate::config::CertificateSettings;

/// What is known of the certificate that the peer of a connection has shown and TLS has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// SHA-256 of its DER: what tokens are bound to (`cnf` with `x5t#S256`, RFC 8705).
    pub sha256: [u8; 32],
    /// The DNS names among its alternative names.
    pub dns: Vec<String>,
    /// The URIs among its alternative names.
    pub uris: Vec<String>,
    /// Its subject's common name.
    pub common_name: Option<String>,
}

impl ClientCertificate {
    /// Reads a certificate that TLS has verified. What cannot be read of it is not there: no name is guessed.
    pub fn from_verified_der(der: &[u8]) -> Self {
        let sha256 = Sha256::digest(der).into();
        let mut read = Self { sha256, dns: Vec::new(), uris: Vec::new(), common_name: None };
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return read };
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => read.dns.push((*name).to_owned()),
                GeneralName::URI(uri) => read.uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        let mut common_names = certificate.subject().iter_common_name();
        // Of several nobody could say which one its issuer has checked.
        if let (Some(name), None) = (common_names.next(), common_names.next()) {
            read.common_name = name.as_str().ok().map(ToOwned::to_owned);
        }
        read
    }
}

/// The certificates that are identities.
#[derive(Debug, Default)]
pub struct Certificates(Vec<Known>);

/// What a certificate has to hold to be a caller's.
#[derive(Debug)]
struct Known {
    sha256: Option<[u8; 32]>,
    dns: Option<String>,
    uri: Option<String>,
    common_name: Option<String>,
    caller: Caller,
}

impl Certificates {
    /// Those that the settings map to a name.
    pub fn new(settings: &[CertificateSettings]) -> Self {
        let known = settings.iter().map(|settings| Known {
            sha256: settings.sha256.as_deref().map(digest),
            dns: settings.dns.clone(),
            uri: settings.uri.clone(),
            common_name: settings.common_name.clone(),
            caller: Caller::new(Identity {
                id: format!("certificate:{}", settings.name),
                tenant: settings.tenant.clone(),
                plan: settings.plan.clone(),
                grant: Grant::new(&settings.scopes, &settings.models),
            }),
        });
        Self(known.collect())
    }

    /// The caller that `shown` is, if the operator has said so: the first one of which it holds all that is asked for.
    pub fn caller(&self, shown: &ClientCertificate) -> Option<Caller> {
        self.0.iter().find(|known| known.is(shown)).map(|known| known.caller.clone())
    }
}

impl Known {
    fn is(&self, shown: &ClientCertificate) -> bool {
        let asked = [
            self.sha256.map(|sha256| bool::from(sha256.ct_eq(&shown.sha256))),
            self.dns.as_ref().map(|dns| shown.dns.iter().any(|name| name.eq_ignore_ascii_case(dns))),
            self.uri.as_ref().map(|uri| shown.uris.contains(uri)),
            self.common_name.as_ref().map(|name| shown.common_name.as_ref() == Some(name)),
        ];
        // A table that asks for nothing, which the settings refuse, would let everybody in.
        asked.iter().any(Option::is_some) && asked.into_iter().flatten().all(|holds| holds)
    }
}

/// The bytes of 64 hexadecimal digits, which is what the settings take.
fn digest(hexadecimal: &str) -> [u8; 32] {
    let byte = |at: usize| hexadecimal.get(2 * at..2 * at + 2).map(|digits| u8::from_str_radix(digits, 16));
    std::array::from_fn(|at| byte(at).and_then(Result::ok).expect("the settings hold 64 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;
    use crate::auth::Scope;

    /// A certificate with these common names and alternative names, as DER.
    fn certificate(common_names: &[&str], dns: &[&str], uris: &[&str]) -> Vec<u8> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        for name in common_names {
            parameters.distinguished_name.push(DnType::CommonName, *name);
        }
        let dns = dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        parameters.subject_alt_names = dns.chain(uris).collect();
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn settings(name: &str) -> CertificateSettings {
        CertificateSettings {
            name: name.into(),
            scopes: vec![Scope::ScorePredict],
            models: vec!["churn".into()],
            ..CertificateSettings::default()
        }
    }

    #[test]
    fn what_a_certificate_says_is_read() {
        let der = certificate(&["scorer"], &["a.example", "B.example"], &["spiffe://example/scorer"]);
        let read = ClientCertificate::from_verified_der(&der);
        assert_eq!(read.sha256, <[u8; 32]>::from(Sha256::digest(&der)));
        assert_eq!(read.dns, ["a.example", "B.example"]);
        assert_eq!(read.uris, ["spiffe://example/scorer"]);
        assert_eq!(read.common_name.as_deref(), Some("scorer"));

        let bare = ClientCertificate::from_verified_der(&certificate(&[], &[], &[]));
        assert_eq!((bare.dns.len(), bare.uris.len(), bare.common_name), (0, 0, None));
        let broken = ClientCertificate::from_verified_der(&der[..der.len() / 2]);
        assert_eq!((broken.dns.len(), broken.uris.len(), broken.common_name), (0, 0, None));
    }

    #[test]
    fn a_certificate_is_the_first_caller_of_whom_all_holds() {
        let shown = ClientCertificate {
            sha256: [0xab; 32],
            dns: vec!["a.example".into(), "b.example".into()],
            uris: vec!["spiffe://example/scorer".into()],
            common_name: Some("scorer".into()),
        };
        let some = |text: &str| Some(text.to_owned());
        let check = |change: fn(&mut CertificateSettings), expected: bool| {
            let mut settings = settings("web");
            change(&mut settings);
            let found = Certificates::new(std::slice::from_ref(&settings)).caller(&shown);
            assert_eq!(found.is_some(), expected, "{settings:?}");
        };
        check(|settings| settings.sha256 = Some("ab".repeat(32)), true);
        check(|settings| settings.sha256 = Some("ab".repeat(31) + "aa"), false);
        check(|settings| settings.dns = Some("b.example".into()), true);
        check(|settings| settings.dns = Some("B.Example".into()), true);
        check(|settings| settings.dns = Some("*.example".into()), false);
        check(|settings| settings.dns = Some("example".into()), false);
        check(|settings| settings.uri = Some("spiffe://example/scorer".into()), true);
        check(|settings| settings.uri = Some("spiffe://example/Scorer".into()), false);
        check(|settings| settings.uri = Some("spiffe://example/score".into()), false);
        check(|settings| settings.common_name = Some("scorer".into()), true);
        check(|settings| settings.common_name = Some("Scorer".into()), false);
        check(|_| {}, false);
        check(
            |settings| {
                settings.sha256 = Some("ab".repeat(32));
                settings.dns = Some("a.example".into());
                settings.uri = Some("spiffe://example/scorer".into());
                settings.common_name = Some("scorer".into());
            },
            true,
        );
        check(
            |settings| {
                settings.dns = Some("a.example".into());
                settings.common_name = Some("another".into());
            },
            false,
        );

        let first = CertificateSettings { dns: some("nobody.example"), ..settings("first") };
        let second = CertificateSettings {
            dns: some("a.example"),
            tenant: some("shop"),
            plan: some("free"),
            ..settings("second")
        };
        let third = CertificateSettings { dns: some("b.example"), ..settings("third") };
        let caller = Certificates::new(&[first, second, third]).caller(&shown).unwrap();
        assert_eq!((caller.id(), caller.tenant()), ("certificate:second", Some("shop")));
        assert_eq!(caller.plan(), Some("free"));
        assert!(caller.may(Scope::ScorePredict) && !caller.may(Scope::ModelsRead));
        assert!(caller.may_use("churn") && !caller.may_use("another"));
        assert!(Certificates::default().caller(&shown).is_none());
    }
}

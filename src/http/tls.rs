//! TLS: certificate, key, client CA and its revocations, read from files that are followed; the handshake, and the peer's
//! certificate.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, InconsistentKeys, RootCertStore,
    ServerConfig, SignatureScheme, StreamOwned,
};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::serve::Side;
use crate::auth::certificates::ClientCertificate;
use crate::config::TlsSettings;
use crate::follow::{self, Followed};

/// The one protocol that is spoken.
const HTTP_1_1: &[u8] = b"http/1.1";

/// How long a peer whose handshake failed is given to read why.
const LINGER: Duration = Duration::from_secs(1);

/// What messages call the file of revocations.
const REVOKED: &str = "the list of revoked certificates";

/// What connections begin with, as the files last said.
#[derive(Debug)]
pub struct Tls(Followed<Configs>);

/// One for each listener: sessions of the one cannot be resumed on the other, which may ask for more.
struct Configs {
    public: Arc<ServerConfig>,
    admin: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// [`follow::Error`] if they are not a certificate chain, its private key and, where there are any, a client CA and lists
    /// of revoked certificates.
    pub fn open(settings: &TlsSettings) -> Result<Self, follow::Error> {
        let files = settings.clone();
        let mut paths = vec![settings.cert.clone(), settings.key.clone()];
        paths.extend(settings.client_ca.clone());
        paths.extend(settings.client_crl.clone());
        Followed::open("TLS certificate", paths, move |texts| Configs::read(&files, texts)).map(Self)
    }

    /// Follows the files for as long as the process runs. Open connections go on as they began.
    pub async fn follow(&self) {
        self.0.follow(|_| ()).await;
    }

    /// What a connection to the listener of this `side` that is made now begins with. The public one asks for client
    /// certificates as the operator has said; the admin one takes them, but requires none: who asks for health or metrics has
    /// none.
    pub(super) fn acceptor(&self, side: Side) -> TlsAcceptor {
        let configs = self.0.get();
        let config = match side {
            Side::Public => &configs.public,
            Side::Admin => &configs.admin,
        };
        TlsAcceptor::from(Arc::clone(config))
    }
}

impl Configs {
    /// Reads certificate chain, key and, where there are any, client CA and revocations, in this order.
    fn read(files: &TlsSettings, texts: &[Vec<u8>]) -> Result<Self, String> {
        let provider = Arc::new(default_provider());
        let [chain, key, others @ ..] = texts else {
            return Err("expected a certificate and its key".into());
        };
        let resolver = Arc::new(SingleCertAndKey::from(certified(chain, key, &files.key, &provider)?));
        let ca = match (others.first(), &files.client_ca) {
            (Some(text), Some(path)) => Some(roots(text, path)?),
            _ => None,
        };
        // Without a CA there are none.
        let crls = match (others.get(1), &files.client_crl) {
            (Some(text), Some(path)) => revocations(text, path)?,
            _ => Vec::new(),
        };
        let unusable = |error: VerifierBuilderError| match &files.client_crl {
            Some(path) => format!("{REVOKED} {}: {error}", path.display()),
            None => error.to_string(),
        };
        let config = |required: bool| -> Result<Arc<ServerConfig>, String> {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(in_words)?;
            let builder = match &ca {
                Some(roots) => {
                    let verifier = client_verifier(roots, &crls, required, &provider).map_err(unusable)?;
                    builder.with_client_cert_verifier(verifier)
                }
                None => builder.with_no_client_auth(),
            };
            let mut config = builder.with_cert_resolver(Arc::clone(&resolver) as _);
            config.alpn_protocols = vec![HTTP_1_1.to_vec()];
            if ca.is_none() {
                config.ticketer = Ticketer::new().map_err(in_words)?;
            } else {
                // A session that is resumed takes the client's certificate as verified: for hours after it has expired.
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
            Ok(Arc::new(config))
        };
        Ok(Self { public: config(files.client_auth_required)?, admin: config(false)? })
    }
}

/// A certificate chain and the key that belongs to its first certificate. Messages follow the certificate's path.
fn certified(
    chain: &[u8],
    key: &[u8],
    path: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, String> {
    let chain = certificates(chain)?;
    let key = private_key(key).map_err(|message| format!("its key {}: {message}", path.display()))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
            "found a certificate of another key than {}, expected the two to belong together, the gateway's own certificate \
             first in its file",
            path.display()
        ),
        Error::InvalidCertificate(_) => format!("found no X.509 certificate in it: {error}"),
        error => format!("its key {}: found none that can be used: {error}", path.display()),
    })
}

/// Every certificate of a PEM file, of which there has to be one.
fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let expected = "expected certificates as PEM (-----BEGIN CERTIFICATE-----)";
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(format!("found no certificate, {expected}")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("found broken PEM ({error}), {expected}")),
    }
}

/// The private key of a PEM file. What is wrong is said without a byte of it.
fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    const ENCRYPTED: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    let expected = "expected one as PEM without a passphrase (-----BEGIN PRIVATE KEY-----)";
    if ENCRYPTED.iter().any(|mark| memchr::memmem::find(text, mark).is_some()) {
        return Err(format!("found a private key with a passphrase, {expected}"));
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => format!("found no private key, {expected}"),
        _ => format!("found broken PEM, {expected}"),
    })
}

/// Whose client certificates are taken.
fn roots(text: &[u8], path: &Path) -> Result<Arc<RootCertStore>, String> {
    let named = |message: String| format!("the client CA {}: {message}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(text).map_err(named)? {
        roots
            .add(certificate)
            .map_err(|error| named(format!("found a certificate that cannot be used: {error}")))?;
    }
    Ok(Arc::new(roots))
}

/// Which of their certificates are not taken any more: every list of a PEM file, of which there has to be one.
fn revocations(text: &[u8], path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let named = |message: String| format!("{REVOKED} {}: {message}", path.display());
    let expected = "expected lists as PEM (-----BEGIN X509 CRL-----)";
    let lists: Result<Vec<_>, pem::Error> = CertificateRevocationListDer::pem_slice_iter(text).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err(named(format!("found none, {expected}"))),
        Ok(lists) => Ok(lists),
        Err(error) => Err(named(format!("found broken PEM ({error}), {expected}"))),
    }
}

/// What looks at client certificates. One that a list names is refused, and so is one below an authority that is named. An
/// authority without a list is taken to have revoked nothing, so that of several CAs some may have none; and a list whose next
/// update is overdue still holds: one missed update must not lock everybody out, and what it names stays revoked.
fn client_verifier(
    roots: &Arc<RootCertStore>,
    crls: &[CertificateRevocationListDer<'static>],
    required: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .with_crls(crls.iter().cloned())
        .allow_unknown_revocation_status();
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build()
}

fn in_words(error: Error) -> String {
    error.to_string()
}

/// Makes TLS of a new connection within `limit`.
///
/// # Errors
/// What the peer did not do as it should. It has been told by an alert.
pub(super) async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
) -> io::Result<TlsStream<TcpStream>> {
    match tokio::time::timeout(limit, acceptor.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, stream))) => {
            let _ = tokio::time::timeout(LINGER, let_go(stream)).await;
            Err(error)
        }
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Closes a connection whose peer may still be sending: the reset that follows otherwise could destroy the alert before the
/// peer reads it.
async fn let_go(mut stream: TcpStream) -> io::Result<()> {
    poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await?;
    let mut discarded = [0; 4096];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut discarded) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
}

/// The certificate that the peer has shown, if it has: verified by the handshake.
pub(super) fn client_certificate(stream: &TlsStream<TcpStream>) -> Option<Arc<ClientCertificate>> {
    let shown = stream.get_ref().1.peer_certificates()?.first()?;
    Some(Arc::new(ClientCertificate::from_verified_der(shown)))
}

/// Makes TLS of a connection to a gateway of this machine, whatever certificate it shows: the one in the file may be newer than
/// the one that is served with, or broken. Nothing secret may be sent.
pub(super) fn connect_to_own(stream: std::net::TcpStream) -> Result<impl Read + Write, Error> {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    let name = ServerName::from(std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
    Ok(StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, stream))
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

//! Certificates made for a test, the settings that use them, and a client that speaks TLS.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion,
};

use super::{Client, PATIENCE, Settings};

/// An authority that issues certificates.
#[derive(Debug)]
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

/// What a client certificate says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Names<'n> {
    pub(crate) common_name: &'n str,
    pub(crate) dns: &'n [&'n str],
    pub(crate) uris: &'n [&'n str],
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = distinguished(name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a gateway on this machine.
    pub(crate) fn server(&self) -> Pair {
        self.server_of(&["localhost", "127.0.0.1"])
    }

    /// A certificate for a server of these names.
    pub(crate) fn server_of(&self, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name = distinguished("gateway");
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&parameters)
    }

    /// A client's certificate.
    pub(crate) fn client(&self, names: Names<'_>) -> Pair {
        self.issue(&client(names))
    }

    /// A client's certificate whose time is over.
    pub(crate) fn expired_client(&self) -> Pair {
        let mut parameters = client(Names { common_name: "late", ..Names::default() });
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(2020, 12, 31);
        self.issue(&parameters)
    }

    /// A list of certificates of this authority that are revoked, whose next update is long overdue.
    pub(crate) fn revoking(&self, revoked: &[&Pair]) -> String {
        let begun = date_time_ymd(2020, 1, 1);
        let revoked = revoked.iter().map(|pair| {
            let (_, certificate) = x509_parser::parse_x509_certificate(&pair.der).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.raw_serial()),
                revocation_time: begun,
                reason_code: None,
                invalidity_date: None,
            }
        });
        let parameters = CertificateRevocationListParams {
            this_update: begun,
            next_update: date_time_ymd(2020, 2, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        parameters.signed_by(&self.0).unwrap().pem().unwrap()
    }

    fn issue(&self, parameters: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Pair {
            cert: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// How a client connects that trusts this authority, with the certificate `shown` if there is one.
    pub(crate) fn trusted(&self, shown: Option<&Pair>) -> Arc<ClientConfig> {
        self.trusted_by(shown, rustls::ALL_VERSIONS)
    }

    /// The same for these versions of TLS.
    pub(crate) fn trusted_by(
        &self,
        shown: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.key_der.clone()));
                builder.with_client_auth_cert(vec![pair.der.clone()], key).unwrap()
            }
        };
        Arc::new(config)
    }
}

impl Pair {
    /// How a server takes connections that shows this certificate.
    pub(crate) fn shown(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        Arc::new(
            builder.unwrap().with_no_client_auth().with_single_cert(vec![self.der.clone()], key).unwrap(),
        )
    }
}

fn client(names: Names<'_>) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = distinguished(names.common_name);
    let dns = names.dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
    let uris = names.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
    parameters.subject_alt_names = dns.chain(uris).collect();
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    parameters
}

fn distinguished(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

impl Settings {
    /// TLS with this certificate, in files of the working directory.
    pub(crate) fn tls(self, pair: &Pair) -> Self {
        let (cert, key) = write_pair(self.directory(), "server", pair);
        self.set("SCOREGATE_TLS_CERT", cert.to_str().unwrap()).set("SCOREGATE_TLS_KEY", key.to_str().unwrap())
    }

    /// Client certificates of this authority, required by the public listener.
    pub(crate) fn client_ca(self, authority: &Authority) -> Self {
        let path = self.directory().join("client_ca.pem");
        std::fs::write(&path, authority.pem()).unwrap();
        self.set("SCOREGATE_TLS_CLIENT_CA", path.to_str().unwrap())
    }
}

/// Writes `NAME.pem` and `NAME.key`.
pub(crate) fn write_pair(directory: &Path, name: &str, pair: &Pair) -> (PathBuf, PathBuf) {
    let (cert, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    std::fs::write(&cert, &pair.cert).unwrap();
    std::fs::write(&key, &pair.key).unwrap();
    (cert, key)
}

/// A connection that is still to make TLS: it does so with what is first sent or read.
fn begin(socket: TcpStream, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), socket)
}

/// A client that speaks TLS. Its peer has to part with a `close_notify`.
pub(crate) fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    Client::over(addr, |socket| begin(socket, config))
}

/// A connection on which TLS has been made.
///
/// # Errors
/// What went wrong with it, which may be an alert of the peer.
pub(crate) fn handshake(
    addr: SocketAddr,
    config: &Arc<ClientConfig>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = begin(socket, config);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

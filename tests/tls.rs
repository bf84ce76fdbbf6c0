//! TLS on real listeners: handshakes, client certificates and who they are, certificates that change, peers that misbehave.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{AlertDescription, ClientConfig, HandshakeKind};

use crate::support::tls::{Authority, Names, Pair, connect, handshake, write_pair};
use crate::support::{Gateway, REFERENCE, Request, Settings, is_full, wait_for, wait_within};

const PREDICT: &str = "/v1/predict";

/// How soon changed files must count.
const SOON: Duration = Duration::from_secs(5);

/// The files of the working directory, for commands that see the settings file alone.
const TLS_TABLE: &str = "[tls]\ncert = \"server.pem\"\nkey = \"server.key\"\nclient_ca = \"client_ca.pem\"\n";

fn post() -> Request {
    Request::post(PREDICT, REFERENCE)
}

/// The certificate that a gateway shows to a new connection.
fn shown(addr: SocketAddr, config: &Arc<ClientConfig>) -> Vec<u8> {
    let stream = handshake(addr, config).unwrap();
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

/// Asks once, over a connection of its own, and says how TLS was made.
fn kind_of_handshake(addr: SocketAddr, config: &Arc<ClientConfig>) -> HandshakeKind {
    let mut stream = handshake(addr, config).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stream.conn.handshake_kind().unwrap()
}

/// The alert that a client gets in place of HTTP.
fn alert(addr: SocketAddr, config: &Arc<ClientConfig>) -> AlertDescription {
    let mut bytes = Vec::new();
    // TLS 1.3 ends for the client before the gateway has looked at its certificate.
    let error = match handshake(addr, config) {
        Err(error) => error,
        Ok(mut stream) => {
            let _ = stream.write_all(&Request::get("/health").bytes());
            stream.read_to_end(&mut bytes).expect_err("the connection ends without an alert")
        }
    };
    assert!(bytes.is_empty(), "HTTP before the alert: {}", String::from_utf8_lossy(&bytes));
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error}"),
    }
}

#[test]
fn both_listeners_speak_tls_1_2_and_1_3_and_http_1_1_alone() {
    let authority = Authority::new("servers");
    let gateway = Settings::new().tls(&authority.server()).start();
    for addr in [gateway.addr, gateway.admin_addr] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config = authority.trusted_by(None, &[version]);
            let mut client = connect(addr, &config);
            for _ in 0..3 {
                assert_eq!(client.ask(&gateway.with_key(post())).status, 200, "{version:?}");
            }
            let refused = client.ask(&post());
            assert_eq!((refused.status, refused.code().as_str()), (401, "missing_credentials"));
            let last = client.ask(&Request::get("/health").header("Connection", "close"));
            assert_eq!(last.status, 200);
            // Parted with a close_notify, or this would fail.
            assert!(client.answer().is_none());
            assert_eq!(kind_of_handshake(addr, &config), HandshakeKind::Resumed, "{version:?}");
        }
        let offering = |protocols: &[&str]| {
            let mut config = ClientConfig::clone(&authority.trusted(None));
            config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            Arc::new(config)
        };
        let stream = handshake(addr, &offering(&["h2", "http/1.1"])).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(alert(addr, &offering(&["h2"])), AlertDescription::NoApplicationProtocol);
    }
    // Who does not know the authority does not connect.
    let stranger = Authority::new("another").trusted(None);
    assert!(handshake(gateway.addr, &stranger).is_err());
    let batch = format!("[{}]", vec![REFERENCE; 5_000].join(","));
    let answer = connect(gateway.addr, &authority.trusted(None))
        .ask(&gateway.with_key(Request::post("/v1/predict/batch", batch)));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["predictions"].as_array().unwrap().len(), 5_000, "an answer of many records");
}

#[test]
fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let authority = Authority::new("servers");
    let (first, second) = (authority.server(), authority.server());
    let mut gateway = Settings::new().tls(&first).start();
    let config = authority.trusted(None);
    let directory = gateway.settings.directory().to_owned();
    assert_eq!(shown(gateway.addr, &config), first.der.to_vec());
    let mut old = connect(gateway.addr, &config);
    assert_eq!(old.ask(&gateway.with_key(post())).status, 200);

    write_pair(&directory, "server", &second);
    for addr in [gateway.addr, gateway.admin_addr] {
        let taken_up = wait_within(SOON, || {
            (shown(addr, &authority.trusted(None)) == second.der.to_vec()).then_some(())
        });
        assert!(taken_up.is_some(), "the new certificate is not shown");
    }
    assert_eq!(old.ask(&gateway.with_key(post())).status, 200, "open connections go on");
    assert_eq!(
        kind_of_handshake(gateway.addr, &config),
        HandshakeKind::Full,
        "sessions end with the certificate they began with"
    );

    let still_second = |gateway: &Gateway| {
        assert_eq!(shown(gateway.addr, &authority.trusted(None)), second.der.to_vec());
        assert_eq!(connect(gateway.addr, &config).ask(&gateway.with_key(post())).status, 200);
    };
    let complaint = |gateway: &Gateway, part: &str| {
        wait_for(part, || gateway.log().iter().find(|line| line.contains(part)).cloned())
    };
    std::fs::write(directory.join("server.pem"), "no certificate").unwrap();
    gateway.wait_for_line("TLS certificate not changed: the file cannot be used");
    let line = complaint(&gateway, "found no certificate, expected certificates as PEM");
    assert!(line.contains("server.pem"), "{line}");
    still_second(&gateway);
    std::fs::write(directory.join("server.pem"), &first.cert).unwrap();
    let line = complaint(&gateway, "found a certificate of another key");
    assert!(line.contains("server.pem") && line.contains("server.key"), "{line}");
    still_second(&gateway);
    std::fs::remove_file(directory.join("server.key")).unwrap();
    complaint(&gateway, "cannot read ");
    still_second(&gateway);
    write_pair(&directory, "server", &first);
    let back = wait_within(SOON, || {
        (shown(gateway.addr, &authority.trusted(None)) == first.der.to_vec()).then_some(())
    });
    assert!(back.is_some(), "files that can be used again are used");
    let log = gateway.log().join("\n");
    for pair in [&first, &second] {
        let secret = pair.key.lines().nth(1).unwrap();
        assert!(!log.contains(secret), "a private key is in the log");
    }
}

#[test]
fn files_that_cannot_be_used_at_the_start_are_named() {
    let authority = Authority::new("servers");
    let (pair, another) = (authority.server(), authority.server());
    let encrypted = pair.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let cut = &pair.cert[..pair.cert.len() / 2];
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_list = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for (file, content, expected) in [
        ("server.pem", "", "found no certificate, expected certificates as PEM"),
        ("server.pem", cut, "found broken PEM"),
        ("server.pem", no_der, "found no X.509 certificate"),
        ("server.pem", pair.key.as_str(), "found no certificate"),
        ("server.key", "", "found no private key, expected one as PEM"),
        ("server.key", pair.cert.as_str(), "found no private key, expected one as PEM"),
        ("server.key", encrypted.as_str(), "found a private key with a passphrase"),
        ("server.key", another.key.as_str(), "found a certificate of another key"),
        ("client_ca.pem", "", "found no certificate, expected certificates as PEM"),
        ("client_ca.pem", no_der, "found a certificate that cannot be used"),
        ("client_crl.pem", "", "found none, expected lists as PEM"),
        ("client_crl.pem", pair.cert.as_str(), "found none, expected lists as PEM"),
        ("client_crl.pem", no_list, "CRL could not be parsed"),
    ] {
        let settings = Settings::new().tls(&pair).client_ca(&authority);
        let crl = settings.directory().join("client_crl.pem");
        let settings = settings.set("SCOREGATE_TLS_CLIENT_CRL", crl.to_str().unwrap());
        std::fs::write(crl, authority.revoking(&[])).unwrap();
        settings.key();
        std::fs::write(settings.directory().join(file), content).unwrap();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1), "{file}: {}", exit.log);
        assert!(exit.log.contains(file) && exit.log.contains(expected), "{file}, {expected}: {}", exit.log);
    }
    let settings = Settings::new().tls(&pair);
    std::fs::remove_file(settings.directory().join("server.key")).unwrap();
    let exit = settings.spawn().exit();
    assert!(exit.code == Some(1) && exit.log.contains("server.key"), "{}", exit.log);
}

#[test]
fn without_a_valid_client_certificate_there_is_an_alert_and_no_http() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let stranger = Authority::new("strangers").client(Names::default());
    // Its issuer has the name of the one that is trusted, and another key.
    let impostor = Authority::new("clients").client(Names::default());
    let good = clients.client(Names::default());
    let expired = clients.expired_client();
    // A certificate for servers is none for clients.
    let server = clients.server();
    let gateway = Settings::new().tls(&servers.server()).client_ca(&clients).start();
    let cases: [(&str, Option<&Pair>, AlertDescription); 5] = [
        ("90 absent", None, AlertDescription::CertificateRequired),
        ("90 expired", Some(&expired), AlertDescription::CertificateExpired),
        ("90 wrong CA", Some(&stranger), AlertDescription::UnknownCA),
        ("90 wrong CA of the same name", Some(&impostor), AlertDescription::DecryptError),
        ("90 for servers", Some(&server), AlertDescription::UnsupportedCertificate),
    ];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (name, certificate, expected) in &cases {
            let alert = alert(gateway.addr, &servers.trusted_by(*certificate, &[version]));
            assert_eq!(alert, *expected, "{name} with {version:?}");
        }
        let config = servers.trusted_by(Some(&good), &[version]);
        for _ in 0..2 {
            assert_eq!(connect(gateway.addr, &config).ask(&gateway.with_key(post())).status, 200);
            // What is resumed is not verified again: an expired certificate would be good for hours.
            assert_eq!(kind_of_handshake(gateway.addr, &config), HandshakeKind::Full, "{version:?}");
        }
    }
    // The admin listener takes those without a certificate, but no bad one.
    let anonymous = servers.trusted(None);
    let health = connect(gateway.admin_addr, &anonymous).ask(&Request::get("/health/ready"));
    assert_eq!(health.status, 200);
    assert_eq!(connect(gateway.admin_addr, &anonymous).ask(&post()).status, 401);
    let alert = alert(gateway.admin_addr, &servers.trusted(Some(&stranger)));
    assert_eq!(alert, AlertDescription::UnknownCA);
    // A session of the admin listener opens nothing on the public one.
    kind_of_handshake(gateway.admin_addr, &anonymous);
    assert_eq!(self::alert(gateway.addr, &anonymous), AlertDescription::CertificateRequired);
}

#[test]
fn another_client_ca_is_taken_up() {
    let (servers, old, new) = (Authority::new("servers"), Authority::new("old"), Authority::new("new"));
    let (of_old, of_new) = (old.client(Names::default()), new.client(Names::default()));
    let gateway = Settings::new().tls(&servers.server()).client_ca(&old).start();
    let (with_old, with_new) = (servers.trusted(Some(&of_old)), servers.trusted(Some(&of_new)));
    assert_eq!(kind_of_handshake(gateway.addr, &with_old), HandshakeKind::Full);
    assert_eq!(alert(gateway.addr, &with_new), AlertDescription::UnknownCA);
    std::fs::write(gateway.settings.directory().join("client_ca.pem"), new.pem()).unwrap();
    let health = Request::get("/health").bytes();
    let taken_up = wait_within(SOON, || {
        let mut stream = handshake(gateway.addr, &with_new).ok()?;
        stream.write_all(&health).ok()?;
        stream.read_exact(&mut [0; 12]).ok()
    });
    assert!(taken_up.is_some(), "the new client CA is not taken up");
    assert_eq!(alert(gateway.addr, &with_old), AlertDescription::UnknownCA, "the old one is still trusted");
}

#[test]
fn a_revoked_certificate_is_refused_with_an_alert() {
    let (servers, clients, others) =
        (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
    let [revoked, later, good] = [(); 3].map(|()| clients.client(Names::default()));
    // Its authority has no list.
    let other = others.client(Names::default());
    let settings = Settings::new().tls(&servers.server()).client_ca(&clients);
    let directory = settings.directory().to_owned();
    std::fs::write(directory.join("client_ca.pem"), clients.pem() + &others.pem()).unwrap();
    let crl = directory.join("client_crl.pem");
    std::fs::write(&crl, clients.revoking(&[&revoked])).unwrap();
    let gateway = settings.set("SCOREGATE_TLS_CLIENT_CRL", crl.to_str().unwrap()).start();
    let is_refused = |pair: &Pair| {
        let with = servers.trusted(Some(pair));
        let mut stream = handshake(gateway.addr, &with).unwrap();
        let _ = stream.write_all(&Request::get("/health").bytes());
        stream.read_exact(&mut [0; 12]).is_err()
    };
    for addr in [gateway.addr, gateway.admin_addr] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config = |pair| servers.trusted_by(Some(pair), &[version]);
            assert_eq!(alert(addr, &config(&revoked)), AlertDescription::CertificateRevoked, "{version:?}");
            for pair in [&later, &good, &other] {
                assert_eq!(connect(addr, &config(pair)).ask(&gateway.with_key(post())).status, 200);
            }
        }
    }
    std::fs::write(&crl, clients.revoking(&[&revoked, &later])).unwrap();
    let taken_up = wait_within(SOON, || is_refused(&later).then_some(()));
    assert!(taken_up.is_some(), "a certificate that was revoked is still taken");
    assert!(is_refused(&revoked) && !is_refused(&good) && !is_refused(&other));
    // A list that is lost revokes on.
    std::fs::remove_file(&crl).unwrap();
    wait_for("the complaint", || {
        gateway.log().iter().any(|line| line.contains("TLS certificate not changed")).then_some(())
    });
    assert!(is_refused(&revoked) && is_refused(&later) && !is_refused(&good));
}

#[test]
fn a_certificate_is_whom_the_operator_says_and_may_do_what_he_says() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let scorer =
        clients.client(Names { common_name: "scorer", dns: &["scorer.example"], ..Names::default() });
    let reader = clients.client(Names { uris: &["spiffe://example/reader"], ..Names::default() });
    let pinned = clients.client(Names { common_name: "pinned", ..Names::default() });
    let nobody = clients.client(Names { common_name: "nobody", ..Names::default() });
    let digest: String = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &pinned.der)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}:"))
        .collect();
    let settings = Settings::new()
        .tls(&servers.server())
        .client_ca(&clients)
        .set("SCOREGATE_TLS_CLIENT_AUTH", "optional");
    let tables = format!(
        r#"
        [[auth.certificate]]
        name = "scorer"
        dns = "Scorer.example"
        common_name = "scorer"
        scopes = ["score:predict"]
        models = ["churn"]

        [[auth.certificate]]
        name = "reader"
        uri = "spiffe://example/reader"
        scopes = ["models:read"]

        [[auth.certificate]]
        name = "pinned"
        sha256 = "{}"
        scopes = ["score:predict", "models:read"]
        {TLS_TABLE}"#,
        digest.trim_end_matches(':')
    );
    std::fs::write(settings.directory().join("scoregate.toml"), tables).unwrap();
    let gateway = settings.start();
    let metadata = Request::get("/v1/metadata");
    let other_model = Request::post("/v1/models/saas_churn/predict", "{}");
    let cases = [
        ("scorer", Some(&scorer), [(200, ""), (403, "insufficient_scope"), (403, "model_not_allowed")]),
        ("reader", Some(&reader), [(403, "insufficient_scope"), (200, ""), (403, "insufficient_scope")]),
        ("pinned", Some(&pinned), [(200, ""), (200, ""), (422, "invalid_row")]),
        ("unknown", Some(&nobody), [(401, "missing_credentials"); 3]),
        ("none", None, [(401, "missing_credentials"); 3]),
    ];
    for (name, certificate, expected) in cases {
        let config = servers.trusted(certificate);
        for addr in [gateway.addr, gateway.admin_addr] {
            let mut client = connect(addr, &config);
            for (request, (status, code)) in [&post(), &metadata, &other_model].into_iter().zip(expected) {
                let answer = client.ask(request);
                assert_eq!(answer.status, status, "{name}: {}", answer.text());
                assert!(status == 200 || answer.code() == code, "{name}: {}", answer.text());
            }
            // Another credential counts in its place: it neither adds to it nor is it saved by it.
            assert_eq!(client.ask(&gateway.with_key(post())).status, 200, "{name} with a key");
            let bad = client.ask(&post().header("X-Api-Key", "sg_wrong"));
            assert_eq!((bad.status, bad.code().as_str()), (401, "invalid_key"), "{name}");
        }
    }
    let anonymous = servers.trusted(None);
    let counted = connect(gateway.admin_addr, &anonymous).ask(&Request::get("/metrics")).text();
    for (labels, count) in [
        // Of three that are known and one that is not, on two listeners, three requests each.
        ("kind=\"certificate\",outcome=\"accepted\"", 10),
        ("kind=\"certificate\",outcome=\"scope\"", 6),
        ("kind=\"certificate\",outcome=\"model\"", 2),
        ("kind=\"certificate\",outcome=\"missing\"", 6),
        ("kind=\"none\",outcome=\"accepted\"", 0),
        ("kind=\"none\",outcome=\"missing\"", 6),
    ] {
        let line = format!("scoregate_credentials_total{{{labels}}} {count}");
        assert!(counted.lines().any(|found| found == line), "{line}\n{counted}");
    }
    // Only what TLS has verified counts.
    for header in ["X-Client-Cert", "X-Forwarded-Client-Cert", "Client-Cert", "X-SSL-Client-S-DN"] {
        let spoofed = post().header(header, scorer.cert.replace('\n', " "));
        assert_eq!(connect(gateway.addr, &anonymous).ask(&spoofed).status, 401, "{header}");
    }
}

#[test]
fn curl_scores_with_a_certificate() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let settings = Settings::new().tls(&servers.server()).client_ca(&clients);
    let directory = settings.directory().to_owned();
    let pair = clients.client(Names { common_name: "scorer", ..Names::default() });
    let (cert, key) = write_pair(&directory, "client", &pair);
    std::fs::write(directory.join("ca.pem"), servers.pem()).unwrap();
    let table =
        "[[auth.certificate]]\nname = \"scorer\"\ncommon_name = \"scorer\"\nscopes = [\"score:predict\"]\n";
    std::fs::write(directory.join("scoregate.toml"), format!("{table}{TLS_TABLE}")).unwrap();
    let gateway = settings.start();
    let curl = |arguments: &[&str]| {
        let url = format!("https://127.0.0.1:{}{PREDICT}", gateway.addr.port());
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--cacert"]).arg(directory.join("ca.pem"));
        command.args(["-H", "content-type: application/json", "-d", REFERENCE]).args(arguments);
        let output = command.arg(url).output().expect("curl has to be installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let certificate = ["--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    for version in ["--tlsv1.3", "--tls-max=1.2"] {
        let version: Vec<&str> = version.split('=').collect();
        let (scored, answer, error) = curl(&[&certificate[..], &version].concat());
        assert!(scored && answer.contains("churn_probability"), "{answer}{error}");
    }
    let (scored, answer, error) = curl(&[]);
    assert!(!scored && answer.is_empty() && error.contains("alert"), "{answer}{error}");
}

#[test]
fn healthcheck_asks_over_tls_whatever_the_certificate_and_its_file() {
    let authority = Authority::new("servers");
    let pair = authority.server();
    let clients = Authority::new("clients");
    let mut gateway = Settings::new().tls(&pair).client_ca(&clients).start();
    let directory = gateway.settings.directory().to_owned();
    let admin_addr = gateway.admin_addr.to_string();
    let check = |settings: Settings| {
        let output = settings.set("SCOREGATE_ADMIN_ADDR", &admin_addr).run(&["healthcheck"]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let own = || {
        let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        let (cert, key) = (path("server.pem"), path("server.key"));
        Settings::bare().set("SCOREGATE_TLS_CERT", &cert).set("SCOREGATE_TLS_KEY", &key)
    };
    assert_eq!(check(own()), (Some(0), String::new()));
    // The gateway serves on with the pair before, and that is what counts.
    std::fs::write(directory.join("server.pem"), &authority.server().cert).unwrap();
    gateway.wait_for_line("TLS certificate not changed: the file cannot be used");
    assert_eq!(check(own()), (Some(0), String::new()), "a certificate of another key");
    std::fs::remove_file(directory.join("server.pem")).unwrap();
    assert_eq!(check(own()), (Some(0), String::new()), "no certificate");
    assert_eq!(check(Settings::bare()).0, Some(1), "without TLS");
    // A gateway without TLS, asked with it.
    let plain = Gateway::start();
    let settings = Settings::bare().tls(&pair).set("SCOREGATE_ADMIN_ADDR", &plain.admin_addr.to_string());
    assert_eq!(settings.run(&["healthcheck"]).status.code(), Some(1));
}

#[test]
fn framing_is_as_strict_under_tls() {
    let authority = Authority::new("servers");
    let gateway = Settings::new().tls(&authority.server()).start();
    let config = authority.trusted(None);
    let hidden = "GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n";
    let predict = "POST /v1/predict HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n";
    let key = &gateway.key;
    for (name, bytes) in [
        (
            "17 length and chunked",
            format!(
                "{predict}X-Api-Key: {key}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
            ),
        ),
        (
            "18 differing lengths",
            format!(
                "{predict}X-Api-Key: {key}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n{{}}  {hidden}"
            ),
        ),
        (
            "24 bad chunk size",
            format!(
                "{predict}X-Api-Key: {key}\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{{}}\r\n0\r\n\r\n{hidden}"
            ),
        ),
        ("28 bare LF", format!("GET /health HTTP/1.1\nHost: gateway\r\n\r\n{hidden}")),
        ("29 no Host", format!("GET /health HTTP/1.1\r\nX: y\r\n\r\n{hidden}")),
        ("30 two Hosts", format!("GET /health HTTP/1.1\r\nHost: gateway\r\nHost: other\r\n\r\n{hidden}")),
        ("31 NUL in a header", format!("GET /health HTTP/1.1\r\nHost: gateway\r\nX: a\0b\r\n\r\n{hidden}")),
    ] {
        let mut client = connect(gateway.addr, &config);
        client.send(&bytes);
        let statuses: Vec<u16> = client.answers_until_close().iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [400], "{name}");
    }
    let request = gateway.with_key(post());
    let mut client = connect(gateway.addr, &config);
    for byte in request.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.answer().unwrap().status, 200, "a record for every byte");
}

#[test]
fn what_is_no_tls_is_closed_and_harms_nobody() {
    let authority = Authority::new("servers");
    let mut gateway = Settings::new().tls(&authority.server()).start();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let http = gateway.with_key(post()).bytes();
    let long = vec![b'x'; 200_000];
    let huge_record = [&b"\x16\x03\x01\xff\xff"[..], &[0; 70_000]].concat();
    for bytes in [&http[..], &b"\0"[..], &long, &huge_record, &[&hello[..], &[0xff; 600]].concat()] {
        let mut socket = TcpStream::connect(gateway.addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The gateway may have closed it before all is sent.
        let _ = socket.write_all(bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
        // An alert of seven bytes, or nothing.
        assert!(answer.is_empty() || (answer.len() == 7 && answer[0] == 21), "{answer:?}");
    }
    let client = &mut connect(gateway.addr, &authority.trusted(None));
    assert_eq!(client.ask(&gateway.with_key(post())).status, 200);
    assert!(gateway.is_running());
    assert!(!gateway.log().join("\n").contains("panicked"));
}

#[test]
fn stalled_handshakes_are_closed_while_others_are_served() {
    let authority = Authority::new("servers");
    let (count, timeout) = if is_full() { (1_000, 15) } else { (200, 3) };
    let gateway = Settings::new()
        .tls(&authority.server())
        .set("SCOREGATE_BODY_TIMEOUT", &format!("{timeout}s"))
        .start();
    let config = authority.trusted(None);
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let begun = Instant::now();
    let mut stalled: Vec<TcpStream> = (0..count)
        .map(|at| {
            let mut socket = TcpStream::connect(gateway.addr).unwrap();
            socket.write_all(&hello[..at % hello.len()]).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    let mut open = count;
    while open > 0 {
        assert_eq!(connect(gateway.addr, &config).ask(&gateway.with_key(post())).status, 200);
        stalled.retain_mut(
            |socket| matches!(socket.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock),
        );
        if stalled.len() < open {
            assert!(begun.elapsed() > Duration::from_secs(timeout - 1), "closed before their time");
        }
        open = stalled.len();
        assert!(begun.elapsed() < Duration::from_secs(timeout + 5), "{open} handshakes are still open");
    }
    // Byte by byte: no time is won by it.
    let mut slow = TcpStream::connect(gateway.addr).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut bytes = hello.iter().chain(std::iter::repeat(&0));
    let begun = Instant::now();
    let closed = wait_within(Duration::from_secs(timeout + 10), || {
        let _ = slow.write_all(&[*bytes.next().unwrap()]);
        let read = slow.read(&mut [0; 64]);
        (!matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)).then_some(())
    });
    assert!(closed.is_some(), "still open after {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_secs(timeout - 1), "refused for another reason");
}

#[test]
fn an_answer_that_nobody_reads_does_not_hold_its_connection_for_ever() {
    let authority = Authority::new("servers");
    let gateway = Settings::new()
        .tls(&authority.server())
        .set("SCOREGATE_IDLE_TIMEOUT", "2s")
        .set("SCOREGATE_ANSWER_TIMEOUT", "60s")
        .start();
    let batch = format!("[{}]", vec![REFERENCE; 60_000].join(","));
    let request = gateway.with_key(Request::post("/v1/predict/batch", batch));
    let connections = || std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    for request in [request.clone(), request.header("Connection", "close")] {
        let mut stream = handshake(gateway.addr, &authority.trusted(None)).unwrap();
        stream.write_all(&request.bytes()).unwrap();
        stream.flush().unwrap();
        // The answer is larger than what the sockets hold.
        // Tickets come before it, and are smaller.
        wait_for("the answer to begin", || (stream.sock.peek(&mut [0; 4096]).unwrap() == 4096).then_some(()));
        let held = connections();
        let given_up = wait_within(Duration::from_secs(15), || (connections() < held).then_some(()));
        assert!(given_up.is_some(), "the connection is still held");
    }
}

#[test]
fn handshakes_count_as_connections_and_do_not_hold_up_a_stop() {
    let authority = Authority::new("servers");
    let gateway = Settings::new()
        .tls(&authority.server())
        .set("SCOREGATE_MAX_CONNECTIONS", "4")
        .set("SCOREGATE_BODY_TIMEOUT", "3s")
        .set("SCOREGATE_DRAIN_DELAY", "0s")
        .start();
    let config = authority.trusted(None);
    let stalled: Vec<_> = (0..4).map(|_| TcpStream::connect(gateway.addr).unwrap()).collect();
    let asked = Instant::now();
    assert_eq!(connect(gateway.addr, &config).ask(&gateway.with_key(post())).status, 200);
    assert!(
        asked.elapsed() > Duration::from_secs(1),
        "a fifth connection was served beside four stalled ones"
    );
    drop(stalled);

    let gateway = Settings::new().tls(&authority.server()).set("SCOREGATE_DRAIN_DELAY", "0s").start();
    let _stalled = TcpStream::connect(gateway.addr).unwrap();
    let mut idle = connect(gateway.addr, &config);
    assert_eq!(idle.ask(&gateway.with_key(post())).status, 200);
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    let told = Instant::now();
    assert!(idle.answer().is_none());
    assert_eq!(gateway.exit().code, Some(0));
    assert!(told.elapsed() < Duration::from_secs(10), "stopped after {:?}", told.elapsed());
}

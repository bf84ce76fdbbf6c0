//! The only part that asks other servers: documents over HTTP, bounded in size and time.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::time::timeout;
use url::{Url, form_urlencoded};

use crate::config::is_safe;

/// The time for one document, redirects included.
const DEADLINE: Duration = Duration::from_secs(5);
/// The time for an answer to a question that a request waits for.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// The time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest document.
const MAX_BYTES: usize = 1 << 20;
/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it would bring may come from anybody.
    #[error("{url} is neither https nor on this machine, or holds a password")]
    Unsafe {
        /// Where it was to be fetched.
        url: Url,
    },
    /// There is no connection, or it broke.
    #[error("no answer from {url}")]
    Connection {
        /// Where it was to be fetched.
        url: Url,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// It took too long.
    #[error("no whole answer from {url} within {} s", .after.as_secs())]
    Timeout {
        /// Where it was to be fetched.
        url: Url,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server has another answer.
    #[error("found status {status} at {url}, expected 200")]
    Status {
        /// Where it was to be fetched.
        url: Url,
        /// What it answered.
        status: u16,
    },
    /// The server sends somewhere else, or in circles.
    #[error("found a redirect from {url} {to}, expected at most {MAX_REDIRECTS} on the same host")]
    Redirect {
        /// What sends away.
        url: Url,
        /// Where to.
        to: &'static str,
    },
    /// It is too large.
    #[error("found more than {MAX_BYTES} bytes at {url}, expected fewer")]
    TooLarge {
        /// Where it was fetched.
        url: Url,
    },
}

impl Error {
    /// Whether a server has answered, although not with the document.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Status { .. } | Self::Redirect { .. } | Self::TooLarge { .. })
    }
}

/// Asks other servers. Knows no proxy, keeps no cookies, and forgets redirects.
#[derive(Debug, Clone)]
pub struct Client(reqwest::Client);

impl Client {
    /// A client that believes the machine's certificate authorities. Where there are none, it still speaks plain HTTP.
    ///
    /// # Errors
    /// [`reqwest::Error`] if TLS cannot be set up at all.
    pub fn new() -> Result<Self, reqwest::Error> {
        let builder = || {
            reqwest::Client::builder()
                .no_proxy()
                .http1_only()
                .redirect(Policy::none())
                .referer(false)
                .connect_timeout(CONNECT_TIMEOUT)
                .user_agent(concat!("scoregate/", env!("CARGO_PKG_VERSION")))
        };
        let client = builder().build().or_else(|error| {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(
                error,
                "no certificate authorities on this machine: nothing can be fetched by https"
            );
            builder().tls_certs_only([]).build()
        });
        client.map(Self)
    }

    /// The document at `url`. Plain HTTP is for this machine only, unless it is allowed.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&self, url: &Url, allow_http: bool) -> Result<Vec<u8>, Error> {
        let follow = async {
            let mut at = url.clone();
            for _ in 0..=MAX_REDIRECTS {
                check(&at, allow_http)?;
                let response = self.send(self.0.get(at.clone()), &at).await?;
                match redirected(&response, &at)? {
                    Some(next) => at = next,
                    None => return read(response, &at).await,
                }
            }
            Err(Error::Redirect { url: url.clone(), to: "to another redirect" })
        };
        let late = |_| Error::Timeout { url: url.clone(), after: DEADLINE };
        timeout(DEADLINE, follow).await.map_err(late)?
    }

    /// The answer to `form`, asked as the client `id` with its `secret` (RFC 6749, 2.3.1).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ask(
        &self,
        url: &Url,
        allow_http: bool,
        form: &[(&str, &str)],
        (id, secret): (&str, &str),
    ) -> Result<Vec<u8>, Error> {
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = self
            .0
            .post(url.clone())
            .basic_auth(encoded(id), Some(encoded(secret)))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
        let ask = async {
            check(url, allow_http)?;
            // Whoever answers with a redirect gets neither secret nor token a second time.
            read(self.send(request, url).await?, url).await
        };
        let late = |_| Error::Timeout { url: url.clone(), after: ANSWER_DEADLINE };
        timeout(ANSWER_DEADLINE, ask).await.map_err(late)?
    }

    async fn send(&self, request: RequestBuilder, url: &Url) -> Result<Response, Error> {
        let sent = request.header(ACCEPT, "application/json").send().await;
        sent.map_err(|source| Error::Connection { url: url.clone(), source: source.without_url() })
    }
}

fn check(url: &Url, allow_http: bool) -> Result<(), Error> {
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    let is_open = url.username().is_empty() && url.password().is_none();
    if is_http && is_open && (allow_http || is_safe(url)) {
        Ok(())
    } else {
        let mut url = url.clone();
        // Errors are logged.
        let _ = url.set_password(None);
        Err(Error::Unsafe { url })
    }
}

/// Where `response` sends, if it does.
fn redirected(response: &Response, at: &Url) -> Result<Option<Url>, Error> {
    let is_redirect = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    if !is_redirect {
        return Ok(None);
    }
    let refused = |to| Err(Error::Redirect { url: at.clone(), to });
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    match location.and_then(|location| at.join(location).ok()) {
        Some(next) if next.origin() == at.origin() => Ok(Some(next)),
        Some(_) => refused("to another host"),
        None => refused("to nowhere"),
    }
}

async fn read(mut response: Response, url: &Url) -> Result<Vec<u8>, Error> {
    if response.status() != StatusCode::OK {
        return Err(Error::Status { url: url.clone(), status: response.status().as_u16() });
    }
    let mut document = Vec::new();
    let broken =
        |source: reqwest::Error| Error::Connection { url: url.clone(), source: source.without_url() };
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if document.len() + chunk.len() > MAX_BYTES {
            return Err(Error::TooLarge { url: url.clone() });
        }
        document.extend_from_slice(&chunk);
    }
    Ok(document)
}

/// A server that answers as a test tells it to.
#[cfg(test)]
pub(in crate::auth) mod stub {
    use std::future::Future;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use url::Url;

    /// Listens on this machine for as long as the runtime lives.
    #[derive(Debug)]
    pub(in crate::auth) struct Stub {
        pub(in crate::auth) url: Url,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Stub {
        /// Answers each request, head and body, with what `answer` says, to the byte.
        pub(in crate::auth) async fn start<F: Future<Output = String> + Send>(
            answer: impl Fn(String) -> F + Send + Sync + 'static,
        ) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
            let requests = Arc::new(Mutex::new(Vec::new()));
            let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                    tokio::spawn(async move {
                        let request = read(&mut stream).await;
                        seen.lock().unwrap().push(request.clone());
                        let _ = stream.write_all(answer(request).await.as_bytes()).await;
                        let _ = stream.shutdown().await;
                    });
                }
            });
            Self { url, requests }
        }

        /// The requests so far.
        pub(in crate::auth) fn requests(&self) -> Vec<String> {
            self.requests.lock().unwrap().clone()
        }

        /// The URL of a path.
        pub(in crate::auth) fn at(&self, path: &str) -> Url {
            self.url.join(path).unwrap()
        }
    }

    async fn read(stream: &mut TcpStream) -> String {
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&request).to_lowercase();
            let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.len() >= length) {
                return String::from_utf8(request).unwrap();
            }
            let read = stream.read(&mut chunk).await.unwrap();
            assert_ne!(read, 0, "half a request: {text}");
            request.extend_from_slice(&chunk[..read]);
        }
    }

    /// An answer with a document.
    pub(in crate::auth) fn ok(document: &str) -> String {
        answer("200 OK", "content-type: application/json\r\n", document)
    }

    /// Any answer.
    pub(in crate::auth) fn answer(status: &str, headers: &str, document: &str) -> String {
        let length = document.len();
        format!(
            "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{document}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::stub::{Stub, answer, ok};
    use super::*;

    /// A server with everything that can be wrong.
    async fn server() -> Stub {
        Stub::start(|request| async move {
            let to = |location: &str| answer("302 Found", &format!("location: {location}\r\n"), "");
            match request.split(' ').nth(1).unwrap() {
                "/good" => ok("{}"),
                "/moved" => to("/good"),
                "/moved/thrice" => to("/moved/twice"),
                "/moved/twice" => to("/moved"),
                "/circle" => to("/circle"),
                "/away" => to("http://localhost:1/"),
                "/password" => to("//user:password@127.0.0.1:1/"),
                "/scheme" => to("file:///etc/passwd"),
                "/nowhere" => answer("301 Moved Permanently", "", ""),
                "/full" => ok(&" ".repeat(MAX_BYTES)),
                "/large" => ok(&" ".repeat(MAX_BYTES + 1)),
                "/endless" => "HTTP/1.1 200 OK\r\n\r\n".to_owned() + &" ".repeat(3 * MAX_BYTES),
                "/broken" => "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".into(),
                "/other" => "SSH-2.0-OpenSSH_9.2\r\n".into(),
                "/created" => answer("201 Created", "", "{}"),
                "/hanging" => std::future::pending().await,
                _ => answer("404 Not Found", "", "{}"),
            }
        })
        .await
    }

    #[tokio::test]
    async fn documents_come_whole_from_where_they_are_or_not_at_all() {
        let server = server().await;
        let client = Client::new().unwrap();
        for (path, expected) in [
            ("good", Ok(2)),
            ("moved", Ok(2)),
            ("moved/thrice", Ok(2)),
            ("full", Ok(MAX_BYTES)),
            ("circle", Err("found a redirect from …circle to another redirect, expected")),
            ("away", Err("found a redirect from …away to another host, expected")),
            ("password", Err("found a redirect from …password to another host, expected")),
            ("scheme", Err("found a redirect from …scheme to another host, expected")),
            ("nowhere", Err("found a redirect from …nowhere to nowhere, expected")),
            ("large", Err("found more than 1048576 bytes at …large, expected fewer")),
            ("endless", Err("found more than 1048576 bytes at …endless, expected fewer")),
            ("broken", Err("no answer from …broken")),
            ("other", Err("no answer from …other")),
            ("created", Err("found status 201 at …created, expected 200")),
            ("missing", Err("found status 404 at …missing, expected 200")),
        ] {
            let url = server.at(path);
            let found = client.get(&url, false).await.map(|document| document.len());
            let found = found.map_err(|error| error.to_string().replace(server.url.as_str(), "…"));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{path}"),
                (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{path}: {found}"),
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
        let requests = server.requests();
        assert!(requests[0].contains(concat!("user-agent: scoregate/", env!("CARGO_PKG_VERSION"))));
        assert!(!requests.iter().any(|request| request.contains("accept-encoding")), "{:?}", requests[0]);
    }

    #[tokio::test]
    async fn whoever_does_not_answer_is_not_waited_for() {
        let server = server().await;
        let client = Client::new().unwrap();
        let begun = std::time::Instant::now();
        let url = server.at("hanging");
        let asked = client.ask(&url, false, &[("token", "t")], ("id", "secret")).await;
        assert!(matches!(asked, Err(Error::Timeout { after: ANSWER_DEADLINE, .. })), "{asked:?}");
        assert!(begun.elapsed() < ANSWER_DEADLINE + Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn nothing_is_fetched_over_what_anybody_may_change() {
        let client = Client::new().unwrap();
        for url in ["http://192.0.2.1/", "ftp://127.0.0.1/", "http://user@127.0.0.1/", "http://:p@127.0.0.1/"]
        {
            let found = client.get(&url.parse().unwrap(), false).await;
            assert!(matches!(found, Err(Error::Unsafe { .. })), "{url}: {found:?}");
            assert!(!format!("{found:?}").contains(":p@"), "{found:?}");
        }
    }

    #[tokio::test]
    async fn questions_carry_the_clients_name_and_secret_and_go_to_one_place() {
        let server = Stub::start(|request| async move {
            if request.starts_with("POST /away") {
                answer("307 Temporary Redirect", "location: /\r\n", "")
            } else {
                ok("{}")
            }
        })
        .await;
        let client = Client::new().unwrap();
        let ask =
            async |path| client.ask(&server.at(path), false, &[("token", "a&b")], ("my id", "s:é")).await;
        assert_eq!(ask("").await.unwrap(), b"{}");
        let requests = server.requests();
        // RFC 6749 (2.3.1): both are form-encoded before they are put together. "my+id:s%3A%C3%A9"
        assert!(requests[0].contains("authorization: Basic bXkraWQ6cyUzQSVDMyVBOQ==\r\n"), "{requests:?}");
        assert!(requests[0].contains("content-type: application/x-www-form-urlencoded\r\n"), "{requests:?}");
        assert!(requests[0].ends_with("\r\n\r\ntoken=a%26b"), "{requests:?}");
        let found = ask("away").await;
        assert!(matches!(found, Err(Error::Status { status: 307, .. })), "{found:?}");
        assert_eq!(server.requests().len(), 2);
    }
}

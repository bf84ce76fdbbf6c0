//! [`Client`]: what is asked of an S3-compatible store, each question within a time of its own.
//!
//! With [`bucket`](super::bucket), [`follow`](super::follow) and [`fetch`](super::fetch) the only module that knows of objects, and the
//! only one that names `object_store`.

use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential};
use object_store::client::{HttpClient, HttpConnector};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, CredentialProvider, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig, UpdateVersion,
};
use reqwest::Certificate;
use reqwest::redirect::Policy;
use scoregate_model::package;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout, timeout_at};

use super::OpenError;
use crate::config::{BucketCredentials, BucketSettings};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long the store may take until it begins to answer, or goes on answering; a part that is uploaded has this time, too.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a question about a small thing may take, however often it is tried.
const SHORT: Duration = Duration::from_secs(10);
/// How long a list may take.
const LIST: Duration = Duration::from_secs(30);
/// How long one file may take, either way.
const LONG: Duration = Duration::from_secs(900);
/// A file is uploaded in parts if it is larger than one.
const PART_BYTES: usize = 8 << 20;
/// The most objects that are looked at: more than any repository has.
const MAX_OBJECTS: usize = 100_000;
/// The longest text of the store's that is repeated.
const MAX_TEXT: usize = 400;

/// An object, as a list or an answer describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    /// What tells one content from another.
    pub(super) mark: String,
    /// How the store tells that.
    pub(super) e_tag: Option<String>,
    pub(super) bytes: u64,
}

impl Object {
    fn of(meta: &ObjectMeta) -> Self {
        // Some stores put the tag in quotation marks in answers alone.
        let mark = match &meta.e_tag {
            Some(tag) => tag.trim_matches('"').to_owned(),
            None => format!("{} {}", meta.size, meta.last_modified.timestamp_micros()),
        };
        Self { mark, e_tag: meta.e_tag.clone(), bytes: meta.size }
    }
}

/// What became of something that was to be written only if nobody else had written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Done,
    /// Somebody else had.
    Conflict,
}

/// A bucket of a store.
#[derive(Debug)]
pub(super) struct Client {
    store: AmazonS3,
    /// The same, that tries everything once: of a conditional write which was tried again because the first answer was lost nobody could
    /// say whether it is in its own way.
    once: AmazonS3,
    prefix: Path,
    name: String,
}

impl Client {
    pub(super) fn new(settings: &BucketSettings) -> Result<Self, OpenError> {
        let http = http_client(settings.ca.as_deref().map(authorities).transpose()?)
            .map_err(|error| OpenError::Settings(error.into()))?;
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(1),
                base: 2.0,
            },
            max_retries: 2,
            retry_timeout: SHORT,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_virtual_hosted_style_request(!settings.path_style)
            .with_http_connector(Connector(http))
            .with_retry(retry.clone());
        if let Some(endpoint) = &settings.endpoint {
            let mut endpoint = endpoint.clone();
            if !settings.path_style {
                let host = format!("{}.{}", settings.bucket, endpoint.host_str().unwrap_or_default());
                endpoint.set_host(Some(&host)).map_err(|error| OpenError::Settings(error.into()))?;
            }
            builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
        }
        match &settings.credentials {
            BucketCredentials::Files { key_id, secret, token } => {
                let files = Files { key_id: key_id.clone(), secret: secret.clone(), token: token.clone() };
                files.read()?;
                builder = builder.with_credentials(Arc::new(files));
            }
            BucketCredentials::Customary(found) => {
                for (name, value) in found {
                    let name = name.parse().map_err(|error| OpenError::Settings(Box::new(error)))?;
                    builder = builder.with_config(name, value.expose_secret());
                }
            }
        }
        let build =
            |builder: AmazonS3Builder| builder.build().map_err(|error| OpenError::Settings(Box::new(error)));
        let once = build(builder.clone().with_retry(RetryConfig { max_retries: 0, ..retry }))?;
        let store = build(builder)?;
        Ok(Self { store, once, prefix: Path::from(settings.prefix.as_str()), name: settings.name() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where the object called `key` is, as people read it.
    pub(super) fn place(&self, key: &str) -> PathBuf {
        format!("{}/{key}", self.name).into()
    }

    fn path(&self, key: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(key).parts()))
    }

    /// Every object whose name begins with `prefix` and a slash, or all, by its name below the repository.
    pub(super) async fn list(&self, prefix: Option<&str>) -> Result<Vec<(String, Object)>, package::Error> {
        let path = self.path(prefix.unwrap_or_default());
        let error = |source| self.error("list", prefix.unwrap_or_default(), source);
        let list = async {
            let mut objects = Vec::new();
            let mut listed = self.store.list(Some(&path));
            while let Some(object) = listed.next().await {
                let object = object.map_err(|failure| error(io(failure)))?;
                if objects.len() == MAX_OBJECTS {
                    let text =
                        format!("found more than {MAX_OBJECTS} objects, expected a repository of models");
                    return Err(error(io::Error::other(text)));
                }
                let Some(parts) = object.location.prefix_match(&self.prefix) else { continue };
                let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
                objects.push((name, Object::of(&object)));
            }
            Ok(objects)
        };
        timeout(LIST, list).await.unwrap_or_else(|_| Err(error(late(LIST))))
    }

    /// The content of `key`, if there is such an object; no more than `limit` bytes are read.
    pub(super) async fn read(
        &self,
        key: &str,
        limit: usize,
    ) -> Result<Option<(Vec<u8>, Object)>, package::Error> {
        let mut bytes = Vec::new();
        let read = self.copy(key, limit, &mut bytes);
        let found = timeout(SHORT, read).await;
        let found = found.unwrap_or_else(|_| Err(self.error("read", key, late(SHORT))))?;
        Ok(found.map(|(object, _)| (bytes, object)))
    }

    /// Writes the content of `key` to `file`, if there is such an object, and says its digest as manifests do.
    pub(super) async fn download(
        &self,
        key: &str,
        limit: usize,
        file: &mut File,
    ) -> Result<Option<(Object, String)>, package::Error> {
        let copied = timeout(LONG, self.copy(key, limit, file)).await;
        copied.unwrap_or_else(|_| Err(self.error("read", key, late(LONG))))
    }

    async fn copy(
        &self,
        key: &str,
        limit: usize,
        into: &mut impl Write,
    ) -> Result<Option<(Object, String)>, package::Error> {
        let error = |source| self.error("read", key, source);
        let too_large = |found| package::Error::TooLarge { path: self.place(key), found, limit };
        let found = match self.store.get(&self.path(key)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(failure) => return Err(error(io(failure))),
        };
        let object = Object::of(&found.meta);
        if object.bytes > limit as u64 {
            return Err(too_large(object.bytes));
        }
        let (mut digest, mut read) = (Sha256::new(), 0_u64);
        let mut content = found.into_stream();
        while let Some(piece) = timeout(SILENCE, content.next()).await.map_err(|_| error(late(SILENCE)))? {
            let piece = piece.map_err(|failure| error(io(failure)))?;
            read += piece.len() as u64;
            if read > limit as u64 {
                return Err(too_large(read));
            }
            digest.update(&piece);
            into.write_all(&piece).map_err(error)?;
        }
        let digest = digest.finalize();
        let digest = digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        Ok(Some((object, digest)))
    }

    /// Writes `bytes` as `key` only where nothing was, or only in place of what had a certain tag, as `mode` says.
    pub(super) async fn write(
        &self,
        key: &str,
        bytes: Vec<u8>,
        mode: PutMode,
    ) -> Result<(Put, Option<Object>), package::Error> {
        let error = |source| self.error("write", key, source);
        let options = PutOptions { mode, ..PutOptions::default() };
        let size = bytes.len() as u64;
        let path = self.path(key);
        let write = self.once.put_opts(&path, PutPayload::from(bytes), options);
        match timeout(SHORT, write).await {
            Ok(Ok(written)) => {
                let e_tag = written.e_tag;
                let object = e_tag.as_ref().map(|tag| tag.trim_matches('"').to_owned());
                Ok((Put::Done, object.map(|mark| Object { mark, e_tag, bytes: size })))
            }
            Ok(Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })) => {
                Ok((Put::Conflict, None))
            }
            Ok(Err(failure)) => Err(error(io(failure))),
            Err(_) => Err(error(late(SHORT))),
        }
    }

    /// Writes `bytes` as `key`, whatever was there, in parts where that is much.
    pub(super) async fn upload(&self, key: &str, bytes: &[u8]) -> Result<(), package::Error> {
        let error = |source| self.error("write", key, source);
        let by = Instant::now() + LONG;
        let path = self.path(key);
        let in_time = async {
            if bytes.len() <= PART_BYTES {
                return self.store.put(&path, PutPayload::from(bytes.to_vec())).await.map(drop);
            }
            let mut upload = self.store.put_multipart(&path).await?;
            let parts = async {
                for part in bytes.chunks(PART_BYTES) {
                    upload.put_part(PutPayload::from(part.to_vec())).await?;
                }
                upload.complete().await
            };
            let done = parts.await;
            if done.is_err() {
                // What is not taken back costs room there, and is never seen.
                let _ = upload.abort().await;
            }
            done.map(drop)
        };
        match timeout_at(by, in_time).await {
            Ok(done) => done.map_err(|failure| error(io(failure))),
            Err(_) => Err(error(late(LONG))),
        }
    }

    fn error(&self, action: &'static str, key: &str, source: io::Error) -> package::Error {
        package::Error::Io { action, path: self.place(key), source }
    }
}

/// Only in place of what the store calls by this tag.
pub(super) fn in_place_of(object: &Object) -> PutMode {
    PutMode::Update(UpdateVersion { e_tag: object.e_tag.clone(), version: None })
}

fn late(after: Duration) -> io::Error {
    let text = format!("the store took longer than {} s", after.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// A failure in words, on one line. The kind says nothing of files here.
fn io(failure: object_store::Error) -> io::Error {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(&failure);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let text = without_tries(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let short = text.char_indices().nth(MAX_TEXT).map_or(text.as_str(), |(at, _)| &text[..at]);
    io::Error::other(short.to_owned())
}

/// A failure without how long it took and how often it was tried, which differ each time: what was told once is known again.
fn without_tries(text: &str) -> String {
    let parts = text.split_once(" - ").and_then(|(tried, why)| Some((tried.rsplit_once(" in ")?, why)));
    match parts {
        Some(((what, took), why)) if took.starts_with(|first: char| first.is_ascii_digit()) => {
            format!("{what}: {why}")
        }
        _ => text.to_owned(),
    }
}

/// A client that knows no proxy, follows no redirects, and believes the authorities that it is given alone, or the machine's.
fn http_client(ca: Option<Vec<Certificate>>) -> Result<reqwest::Client, reqwest::Error> {
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .http1_only()
        .redirect(Policy::none())
        .referer(false)
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .user_agent(concat!("scoregate/", env!("CARGO_PKG_VERSION")));
    if let Some(ca) = ca {
        builder = builder.tls_certs_only(ca);
    }
    builder.build()
}

/// The authorities of a file, of which there has to be one.
fn authorities(path: &std::path::Path) -> Result<Vec<Certificate>, OpenError> {
    let text = std::fs::read(path).map_err(|source| OpenError::Read { path: path.into(), source })?;
    let found = Certificate::from_pem_bundle(&text).map_err(|error| OpenError::Settings(error.into()))?;
    if found.is_empty() {
        let expected = "expected certificates as PEM (-----BEGIN CERTIFICATE-----)";
        let error = format!("found no certificate in {}, {expected}", path.display());
        return Err(OpenError::Settings(error.into()));
    }
    Ok(found)
}

/// Gives `object_store` our own client: its would ask the environment for proxies.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// A key whose secret is read again for each request, so that it can be changed while the gateway runs.
#[derive(Debug)]
struct Files {
    key_id: String,
    secret: PathBuf,
    token: Option<PathBuf>,
}

impl Files {
    fn read(&self) -> Result<AwsCredential, OpenError> {
        let read = |path: &PathBuf| {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| OpenError::Read { path: path.clone(), source })?;
            Ok(text.trim().to_owned())
        };
        let token = self.token.as_ref().map(read).transpose()?;
        Ok(AwsCredential { key_id: self.key_id.clone(), secret_key: read(&self.secret)?, token })
    }
}

impl CredentialProvider for Files {
    type Credential = AwsCredential;

    fn get_credential<'s, 'f>(
        &'s self,
    ) -> Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        let read = self.read().map(Arc::new);
        let read =
            read.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) });
        Box::pin(std::future::ready(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_without_how_often_it_was_tried() {
        for (found, expected) in [
            (
                "S3 error: GET https://a/b in 526.7ms, after 2 retries - Connect: refused",
                "S3 error: GET https://a/b: Connect: refused",
            ),
            (
                "PUT https://a/b in 3ms - Server says - in 2 words",
                "PUT https://a/b: Server says - in 2 words",
            ),
            ("found in vain - not at all", "found in vain - not at all"),
            ("no - at all", "no - at all"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(without_tries(found), expected);
        }
    }
}

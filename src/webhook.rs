//! Tells somebody else what has become of a rollout: signed events, as [Standard Webhooks](https://www.standardwebhooks.com) has them,
//! sent by a thread of its own.
//!
//! Events go out one after another in the order in which things were done, each again and again until it is taken or has become
//! old. Nothing ever waits for them, but the end of the gateway or of a command, a moment. No event holds anything of a row.

use std::path::Path;
use std::pin::pin;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prometheus_client::metrics::counter::Counter;
use reqwest::header::CONTENT_TYPE;
use scoregate_model::package::{self, read_named};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;
use url::Url;

use crate::audit::Actor;
use crate::config::WebhookSettings;
use crate::rollout::change::Changed;

/// How many events may wait.
const MAX_WAITING: usize = 256;
/// The time that telling one may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How many seconds are waited after each time that an event is not taken; after the last one it is given up.
const PAUSES_S: [u64; 7] = [1, 5, 20, 60, 180, 300, 600];
/// How many of these pauses are made if the event itself is refused, so that it does not hold up those behind it.
const PAUSES_OF_REFUSED: usize = 3;
/// The largest file of a secret.
const MAX_SECRET: usize = 4 * 1024;
/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// Why nobody can be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret cannot be read.
    #[error("the secret of webhooks cannot be read (SCOREGATE_WEBHOOK_SECRET_FILE)")]
    Read(#[from] package::Error),
    /// It is no secret.
    #[error(
        "found no secret in {file}, expected {PREFIX} and 24 to 64 bytes in base64; make one with `echo \"{PREFIX}$(openssl rand \
         -base64 32)\"`"
    )]
    Secret {
        /// The file.
        file: String,
    },
    /// There is no client for HTTP, or no thread.
    #[error("cannot start what sends webhooks")]
    Start(#[source] std::io::Error),
}

/// What is counted of events.
#[derive(Debug, Clone, Default)]
pub struct WebhookCounts {
    /// They were taken.
    pub sent: Counter,
    /// There was no place for them.
    pub dropped: Counter,
    /// They were not taken in all this time, or by the end of the gateway.
    pub failed: Counter,
}

/// Tells somebody else what is done here; or nobody, where nobody wants to know.
#[derive(Debug)]
pub struct Webhooks {
    waiting: Option<Sender<Event>>,
    /// Takes when everything has to be told, and whoever waits for that.
    last: Option<Sender<Last>>,
    counts: WebhookCounts,
}

/// The gateway ends.
#[derive(Debug)]
struct Last {
    end: Instant,
    done: mpsc::Sender<()>,
}

/// What is told.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    /// The same however often it is sent.
    id: String,
    body: String,
}

impl Webhooks {
    /// Starts the thread that sends, where there is somebody to tell.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start(settings: Option<&WebhookSettings>, counts: WebhookCounts) -> Result<Self, Error> {
        let Some(settings) = settings else { return Ok(Self { waiting: None, last: None, counts }) };
        let key = read_secret(&settings.secret_file)?;
        let (waiting, taken) = channel(MAX_WAITING);
        let (last, ends) = channel(1);
        let sender = Teller {
            client: client().map_err(|error| Error::Start(std::io::Error::other(error)))?,
            url: settings.url.clone(),
            key,
            counts: counts.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::Start)?;
        let thread = std::thread::Builder::new().name("scoregate-webhook".into());
        thread.spawn(move || runtime.block_on(sender.work(taken, ends))).map_err(Error::Start)?;
        Ok(Self { waiting: Some(waiting), last: Some(last), counts })
    }

    /// Sends each event that waits once more, and no longer than `patience`; what is not told by then is counted and given up.
    pub fn flush(&self, patience: Duration) {
        let Some(last) = &self.last else { return };
        let (done, is_done) = mpsc::channel();
        if last.try_send(Last { end: Instant::now() + patience, done }).is_ok() {
            // The thread itself keeps to the time.
            let _ = is_done.recv_timeout(patience + Duration::from_secs(1));
        }
    }

    /// Tells what a change of the rollout of `model` has done, who has done it and why.
    pub fn tell(
        &self,
        model: &str,
        actor: &Actor,
        changed: &Changed,
        facts: &Map<String, Value>,
        now: SystemTime,
    ) {
        let Some(waiting) = &self.waiting else { return };
        for event in events(model, actor, changed, facts, now) {
            let (count, why) = match waiting.try_send(event) {
                Ok(()) => continue,
                Err(TrySendError::Full(_)) => (&self.counts.dropped, "too many wait for the webhook"),
                Err(TrySendError::Closed(_)) => (&self.counts.failed, "the gateway ends"),
            };
            count.inc();
            tracing::warn!(model.name = model, "an event was not told: {why}");
        }
    }
}

/// The events of a change, one for each thing that was done.
fn events<'e>(
    model: &'e str,
    actor: &'e Actor,
    changed: &'e Changed,
    facts: &'e Map<String, Value>,
    now: SystemTime,
) -> impl Iterator<Item = Event> + 'e {
    let at = OffsetDateTime::from(now).format(&Rfc3339).expect("a time of this century can be written");
    changed.deeds.iter().map(move |deed| {
        let mut data = Map::new();
        data.insert("model".into(), model.into());
        data.insert("version".into(), deed.version.as_str().into());
        let more = [
            ("digest", deed.digest.as_deref().map(Value::from)),
            ("percent", deed.percent.map(Value::from)),
            ("guard", deed.guard.map(|guard| guard.as_str().into())),
            ("from", deed.from.as_deref().map(Value::from)),
        ];
        for (name, value) in more {
            data.extend(value.map(|value| (name.to_owned(), value)));
        }
        data.insert("revision".into(), changed.after.revision.into());
        data.insert("actor".into(), serde_json::to_value(actor).unwrap_or_default());
        data.extend(facts.clone());
        let body = json!({"type": deed.action.as_str(), "timestamp": at.as_str(), "data": data}).to_string();
        Event { id: format!("msg_{:032x}", rand::random::<u128>()), body }
    })
}

fn read_secret(file: &Path) -> Result<hmac::Key, Error> {
    let text = read_named(file, MAX_SECRET)?;
    let bytes = str::from_utf8(&text).ok().and_then(|text| text.trim_end().strip_prefix(PREFIX));
    let bytes = bytes.and_then(|text| STANDARD.decode(text).ok());
    let bytes = bytes.filter(|bytes| (24..=64).contains(&bytes.len()));
    let bytes = bytes.ok_or_else(|| Error::Secret { file: file.display().to_string() })?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn client() -> Result<reqwest::Client, reqwest::Error> {
    let builder = || {
        reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .timeout(DEADLINE)
            .user_agent(concat!("scoregate/", env!("CARGO_PKG_VERSION")))
    };
    // A machine without certificate authorities can still tell somebody on itself.
    builder().build().or_else(|_| builder().tls_certs_only([]).build())
}

/// How sending an event has ended.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Taken,
    /// Whoever is asked wants nothing any more.
    Unwanted,
    /// This event is not wanted, as it is.
    Refused(String),
    NotTaken(String),
}

struct Teller {
    client: reqwest::Client,
    url: Url,
    key: hmac::Key,
    counts: WebhookCounts,
}

impl Teller {
    async fn work(self, mut waiting: Receiver<Event>, mut ends: Receiver<Last>) {
        let mut current = None;
        let last = loop {
            tokio::select! {
                biased;
                Some(last) = ends.recv() => break last,
                event = waiting.recv() => match event {
                    Some(event) => current = Some(event),
                    None => return,
                },
            }
            if let Some(last) = self.tell(&mut current, &mut ends).await {
                break last;
            }
        };
        waiting.close();
        let mut left = 0;
        while let Some(event) = current.take().or_else(|| waiting.try_recv().ok()) {
            let told = tokio::time::timeout_at(last.end, self.send(&event, SystemTime::now())).await;
            match told {
                Ok(Told::Taken) => drop(self.counts.sent.inc()),
                _ => left += 1,
            }
        }
        self.counts.failed.inc_by(left);
        if left > 0 {
            tracing::warn!(
                events = left,
                "events were not told: the gateway ends, and the webhook did not take them"
            );
        }
        // Nobody may have waited for so long.
        let _ = last.done.send(());
    }

    /// Tells the `current` event, or says that the gateway ends; then there is none any more if that has come to an end.
    async fn tell(&self, current: &mut Option<Event>, ends: &mut Receiver<Last>) -> Option<Last> {
        let event = current.take()?;
        for (tried, pause) in PAUSES_S.into_iter().map(Some).chain([None]).enumerate() {
            let mut sending = pin!(self.send(&event, SystemTime::now()));
            let told = tokio::select! {
                biased;
                Some(last) = ends.recv() => {
                    // It may be on its way, and nobody should hear of it twice.
                    match tokio::time::timeout_at(last.end, sending).await {
                        Ok(Told::Taken) => drop(self.counts.sent.inc()),
                        Ok(Told::Unwanted) => drop(self.counts.failed.inc()),
                        _ => *current = Some(event.clone()),
                    }
                    return Some(last);
                }
                told = &mut sending => told,
            };
            let (why, pause) = match told {
                Told::Taken => {
                    self.counts.sent.inc();
                    return None;
                }
                Told::Unwanted => {
                    self.counts.failed.inc();
                    tracing::warn!(event.id, "an event was not told: the webhook says 410, it wants none");
                    return None;
                }
                Told::Refused(why) => (why, pause.filter(|_| tried < PAUSES_OF_REFUSED)),
                Told::NotTaken(why) => (why, pause),
            };
            let Some(pause) = pause else {
                self.counts.failed.inc();
                tracing::error!(event.id, error = why, "an event was not told: the webhook does not take it");
                return None;
            };
            // A tenth more or less, so that replicas do not come together.
            let pause = Duration::from_secs(pause).mul_f64(0.9 + 0.2 * rand::random::<f64>());
            tokio::select! {
                Some(last) = ends.recv() => {
                    *current = Some(event.clone());
                    return Some(last);
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
        None
    }

    async fn send(&self, event: &Event, now: SystemTime) -> Told {
        let at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &event.id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature(&self.key, event, at))
            .body(event.body.clone());
        match request.send().await {
            Ok(response) if response.status().is_success() => Told::Taken,
            Ok(response) if response.status() == reqwest::StatusCode::GONE => Told::Unwanted,
            Ok(response) => {
                let status = response.status().as_u16();
                let why = format!("found status {status}");
                match status {
                    // Whoever says these may take it later.
                    408 | 409 | 425 | 429 => Told::NotTaken(why),
                    400..500 => Told::Refused(why),
                    _ => Told::NotTaken(why),
                }
            }
            // Where it was to go may hold a secret.
            Err(error) => Told::NotTaken(format!("{:#}", anyhow::Error::from(error.without_url()))),
        }
    }
}

fn signature(key: &hmac::Key, event: &Event, at: u64) -> String {
    let signed = format!("{}.{at}.{}", event.id, event.body);
    format!("v1,{}", STANDARD.encode(hmac::sign(key, signed.as_bytes())))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use scoregate_schemas::Rollout;

    use super::*;
    use crate::rollout::change::{Action, Deed};

    #[test]
    fn signatures_are_those_of_the_standard() {
        // The example of the specification and of its libraries.
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let key = read_secret(&file).unwrap();
        let event =
            Event { id: "msg_p5jXN8AQM9LWM0D4loKWxJek".into(), body: r#"{"test": 2432232314}"#.into() };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signature(&key, &event, 1_614_265_330), expected);
        for wrong in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!"] {
            std::fs::write(&file, wrong).unwrap();
            let error = read_secret(&file).unwrap_err().to_string();
            assert!(error.contains("expected whsec_ and 24 to 64 bytes"), "{error}");
            assert!(wrong.len() < 10 || !error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn each_thing_that_was_done_is_an_event() {
        let deed = |action, percent| Deed {
            action,
            version: "b".into(),
            digest: Some("sha256:00".into()),
            percent,
            guard: None,
            from: None,
        };
        let after = Rollout { revision: 7, ..Rollout::of("a") };
        let deeds = vec![deed(Action::CanarySet, Some(5.0)), deed(Action::ShadowDropped, None)];
        let changed = Changed { before: None, after, deeds, warnings: Vec::new() };
        let facts = Map::from_iter([("rule".to_owned(), "psi".into())]);
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let events: Vec<Event> = events("m", &Actor::gateway(), &changed, &facts, now).collect();
        let bodies: Vec<Value> =
            events.iter().map(|event| serde_json::from_str(&event.body).unwrap()).collect();
        let expected = json!({"type": "canary.set", "timestamp": "2023-11-14T22:13:20Z", "data": {
            "model": "m", "version": "b", "digest": "sha256:00", "percent": 5.0, "revision": 7,
            "actor": {"kind": "gateway", "id": "scoregate"}, "rule": "psi"}});
        assert_eq!((bodies.len(), &bodies[0]), (2, &expected));
        assert_eq!(
            (&bodies[1]["type"], &bodies[1]["data"]["percent"]),
            (&"shadow.dropped".into(), &Value::Null)
        );
        assert_ne!(events[0].id, events[1].id);
    }

    /// Somebody who answers each request with the next of these statuses, and the last of them from then on; says how many there were.
    fn receiver(statuses: &'static [u16]) -> (Url, mpsc::Receiver<usize>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let (asked, was_asked) = mpsc::channel();
        std::thread::spawn(move || {
            for (at, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                // Requests are small enough to come at once.
                let mut request = [0; 16 * 1024];
                let _ = stream.read(&mut request).unwrap();
                let status = statuses[at.min(statuses.len() - 1)];
                let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
                let _ = asked.send(at + 1);
            }
        });
        (url, was_asked)
    }

    /// Tells two events to somebody who answers so, and how many were sent and failed once the gateway has ended.
    fn ended(statuses: &'static [u16]) -> (u64, u64) {
        let directory = tempfile::tempdir().unwrap();
        let secret_file = directory.path().join("secret");
        std::fs::write(&secret_file, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let (url, was_asked) = receiver(statuses);
        let counts = WebhookCounts::default();
        let webhooks = Webhooks::start(Some(&WebhookSettings { url, secret_file }), counts.clone()).unwrap();
        let deed = |version: &str| Deed {
            action: Action::ShadowSet,
            version: version.into(),
            digest: None,
            percent: None,
            guard: None,
            from: None,
        };
        let deeds = vec![deed("b"), deed("c")];
        let changed = Changed { before: None, after: Rollout::of("a"), deeds, warnings: Vec::new() };
        webhooks.tell("m", &Actor::gateway(), &changed, &Map::new(), SystemTime::now());
        was_asked.recv_timeout(DEADLINE).unwrap();
        webhooks.flush(DEADLINE);
        let ended = (counts.sent.get(), counts.failed.get());
        // Whoever is late finds nobody who could send it.
        webhooks.tell("m", &Actor::gateway(), &changed, &Map::new(), SystemTime::now());
        assert_eq!((counts.failed.get(), counts.dropped.get()), (ended.1 + 2, 0));
        ended
    }

    #[test]
    fn what_waits_at_the_end_is_told_once_more_and_what_is_lost_is_counted() {
        // The first one waits for its second time by then.
        assert_eq!(ended(&[500, 204]), (2, 0));
        assert_eq!(ended(&[500, 204, 500]), (1, 1));
        assert_eq!(ended(&[500]), (0, 2));
    }
}

//! Settings of webhooks: who is told when a rollout changes.

use std::path::PathBuf;

use url::Url;

use super::auth::is_safe;
use super::reader::Reader;
use super::values::optional_path;

/// Who is told when a rollout changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    /// `SCOREGATE_WEBHOOK_URL` (none): where events are posted to.
    pub url: Url,
    /// `SCOREGATE_WEBHOOK_SECRET_FILE`: the secret that they are signed with, `whsec_` and 24 to 64 bytes in base64.
    pub secret_file: PathBuf,
}

impl Reader {
    /// Webhooks, where somebody is to be told.
    pub(super) fn webhook(&mut self) -> Option<WebhookSettings> {
        let before = self.mistakes.len();
        let url = self.take("SCOREGATE_WEBHOOK_URL", "webhook.url", "", |text| match text {
            "" => Ok(None),
            text => {
                let is_plain = |url: &Url| {
                    is_safe(url)
                        && matches!(url.scheme(), "http" | "https")
                        && url.username().is_empty()
                        && url.password().is_none()
                        && url.fragment().is_none()
                };
                let expected =
                    "a URL by https, or on this machine by http, without user, password and fragment";
                let found = Url::parse(text).ok().filter(is_plain);
                found.map(Some).ok_or_else(|| expected.to_string())
            }
        });
        let secret_file =
            self.take("SCOREGATE_WEBHOOK_SECRET_FILE", "webhook.secret_file", "", optional_path);
        match (url, secret_file) {
            (Some(url), Some(secret_file)) => Some(WebhookSettings { url, secret_file }),
            (Some(_), None) => {
                let expected =
                    "expected SCOREGATE_WEBHOOK_SECRET_FILE (webhook.secret_file) too: events are signed";
                self.mistakes.push(format!("SCOREGATE_WEBHOOK_URL: {expected}"));
                None
            }
            // A URL that cannot be one is told already.
            (None, Some(_)) if self.mistakes.len() > before => None,
            (None, Some(_)) => {
                let expected = "expected SCOREGATE_WEBHOOK_URL (webhook.url) too: it says where events go";
                self.mistakes.push(format!("SCOREGATE_WEBHOOK_SECRET_FILE: {expected}"));
                None
            }
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;

    #[test]
    fn events_go_where_nobody_else_hears_them() {
        assert_eq!(load(&[], None).unwrap().webhook, None);
        let with = |url: &str| {
            let secret = ("SCOREGATE_WEBHOOK_SECRET_FILE", "secret");
            load(&[("SCOREGATE_WEBHOOK_URL", url), secret], None).map(|settings| settings.webhook)
        };
        for url in ["https://hooks.example.com/a?b=c", "http://127.0.0.1:1/", "http://localhost/x"] {
            assert_eq!(with(url).unwrap().unwrap().url.as_str(), url);
        }
        for url in
            ["http://hooks.example.com/", "https://a:b@hooks.example.com/", "ftp://localhost/", "hooks"]
        {
            let mistakes = with(url).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].contains("a URL by https"), "{url}: {mistakes:?}");
        }
        let unsigned = load(&[("SCOREGATE_WEBHOOK_URL", "https://a")], None).unwrap_err();
        let nowhere = load(&[("SCOREGATE_WEBHOOK_SECRET_FILE", "secret")], None).unwrap_err();
        assert!(nowhere.len() == 1 && nowhere[0].contains("expected SCOREGATE_WEBHOOK_URL"), "{nowhere:?}");
        assert!(unsigned.len() == 1 && unsigned[0].contains("SCOREGATE_WEBHOOK_SECRET_FILE"), "{unsigned:?}");
    }
}

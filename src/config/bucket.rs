//! A model repository in a bucket of an S3-compatible store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

use super::auth::is_safe;
use super::reader::Reader;
use super::values::{base_url, optional_path, switch, text};

/// What `SCOREGATE_MODELS_DIR` begins with where it names a bucket.
const SCHEME: &str = "s3://";

/// What other programs are told of credentials by, and where they run on machines that belong to a cloud. Looked at only where models
/// are in a bucket.
pub(super) const CUSTOMARY: [&str; 13] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// A bucket of an S3-compatible store, and how it is reached.
#[derive(Debug, Clone)]
pub struct BucketSettings {
    /// The bucket of `SCOREGATE_MODELS_DIR=s3://BUCKET/PREFIX`.
    pub bucket: String,
    /// What the names of its objects begin with, without a slash at either end; may be empty.
    pub prefix: String,
    /// `SCOREGATE_S3_ENDPOINT` (that of AWS): the store.
    pub endpoint: Option<Url>,
    /// `SCOREGATE_S3_REGION` (`us-east-1`).
    pub region: String,
    /// `SCOREGATE_S3_PATH_STYLE` (true): whether the bucket is part of the path; else it is in front of the host.
    pub path_style: bool,
    /// `SCOREGATE_S3_CA` (the system's): whose certificates the store has to have, PEM.
    pub ca: Option<PathBuf>,
    /// Who the gateway is there.
    pub credentials: BucketCredentials,
}

/// Who the gateway is at the store.
#[derive(Debug, Clone)]
pub enum BucketCredentials {
    /// The key of `SCOREGATE_S3_ACCESS_KEY_ID` with files that are read again for each request, so that secrets can be changed.
    Files {
        /// `SCOREGATE_S3_ACCESS_KEY_ID`.
        key_id: String,
        /// `SCOREGATE_S3_SECRET_KEY_FILE`: the secret of that key.
        secret: PathBuf,
        /// `SCOREGATE_S3_SESSION_TOKEN_FILE` (none): the token of a session, with keys that are given for a time.
        token: Option<PathBuf>,
    },
    /// What the customary variables say, by the names of these in small letters; where they say nothing, the machine's own role.
    Customary(BTreeMap<String, SecretString>),
}

impl BucketSettings {
    /// What the bucket is called, as the operator writes it.
    pub fn name(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{SCHEME}{}{slash}{}", self.bucket, self.prefix)
    }

    /// What the directory of its mirror is called: no other bucket's is called so.
    pub(super) fn directory(&self) -> String {
        let endpoint = self.endpoint.as_ref().map_or("", Url::as_str);
        let digest = blake3::hash(format!("{endpoint} {}", self.name()).as_bytes()).to_hex();
        format!("{}-{}", self.bucket, &digest[..16])
    }
}

impl Reader {
    /// The bucket, where the setting of the repository names one.
    pub(super) fn bucket(&mut self, repository: &str) -> Option<BucketSettings> {
        let mut customary: BTreeMap<String, String> = CUSTOMARY
            .iter()
            .filter_map(|name| Some((name.to_lowercase(), self.environment.remove(*name)?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let endpoint = self.take("SCOREGATE_S3_ENDPOINT", "s3.endpoint", "", |text| match text {
            "" => Ok(None),
            text => base_url(text).map(Some),
        });
        let region = self.take("SCOREGATE_S3_REGION", "s3.region", "", text);
        let path_style = self.take("SCOREGATE_S3_PATH_STYLE", "s3.path_style", "true", switch);
        let allow_http = self.take("SCOREGATE_S3_ALLOW_HTTP", "s3.allow_http", "false", switch);
        let ca = self.take("SCOREGATE_S3_CA", "s3.ca", "", optional_path);
        let key_id = self.take("SCOREGATE_S3_ACCESS_KEY_ID", "s3.access_key_id", "", text);
        let secret = self.take("SCOREGATE_S3_SECRET_KEY_FILE", "s3.secret_key_file", "", optional_path);
        let token = self.take("SCOREGATE_S3_SESSION_TOKEN_FILE", "s3.session_token_file", "", optional_path);
        let Some(place) = repository.strip_prefix(SCHEME) else {
            let is_told = endpoint.is_some() || ca.is_some() || !key_id.is_empty() || secret.is_some();
            if is_told || token.is_some() || !region.is_empty() {
                self.mistakes.push(format!(
                    "SCOREGATE_S3_* (s3.*) are for models in a bucket: expected SCOREGATE_MODELS_DIR={SCHEME}BUCKET/PREFIX"
                ));
            }
            return None;
        };
        let Some((bucket, prefix)) = place_of(place) else {
            self.mistakes.push(format!(
                "SCOREGATE_MODELS_DIR (models.dir): found {repository}, expected {SCHEME}BUCKET or {SCHEME}BUCKET/PREFIX, a \
                 bucket of 3 to 63 small letters, digits, '.' or '-', and a prefix of letters, digits, '.', '_', '-' and '/'"
            ));
            return None;
        };
        let mut told = |name: &str| customary.remove(name);
        let (s3, any) = (told("aws_endpoint_url_s3"), told("aws_endpoint_url"));
        let endpoint = endpoint.or(s3).or(any).and_then(|text| match Url::parse(&text) {
            Ok(url) if url.has_host() => Some(url),
            _ => {
                self.mistakes.push(format!("AWS_ENDPOINT_URL: found {text}, expected a URL"));
                None
            }
        });
        if let Some(url) = endpoint.as_ref().filter(|url| !allow_http && !is_safe(url)) {
            self.mistakes.push(format!(
                "SCOREGATE_S3_ENDPOINT: found {url}, expected https: models would go over the network for anybody to replace; on \
                 a private network set SCOREGATE_S3_ALLOW_HTTP=true"
            ));
        }
        let (usual, default) = (told("aws_region"), told("aws_default_region"));
        let region = if region.is_empty() { usual.or(default).unwrap_or_default() } else { region };
        let region = if region.is_empty() { "us-east-1".to_owned() } else { region };
        let credentials = match (key_id.is_empty(), secret) {
            (false, Some(secret)) => BucketCredentials::Files { key_id, secret, token },
            (true, None) if token.is_none() => BucketCredentials::Customary(
                customary.into_iter().map(|(name, value)| (name, value.into())).collect(),
            ),
            _ => {
                self.mistakes.push(
                    "SCOREGATE_S3_ACCESS_KEY_ID and SCOREGATE_S3_SECRET_KEY_FILE (s3.access_key_id, s3.secret_key_file): expected \
                     both, or neither and no SCOREGATE_S3_SESSION_TOKEN_FILE"
                        .into(),
                );
                return None;
            }
        };
        Some(BucketSettings { bucket, prefix, endpoint, region, path_style, ca, credentials })
    }
}

/// Bucket and prefix.
fn place_of(text: &str) -> Option<(String, String)> {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let is_of_bucket =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    let is_bucket = (3..=63).contains(&bucket.len()) && bucket.bytes().all(is_of_bucket);
    let is_part = |part: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_plain)
    };
    let is_prefix = prefix.is_empty() || prefix.split('/').all(is_part);
    (is_bucket && is_prefix).then(|| (bucket.into(), prefix.into()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use secrecy::ExposeSecret;

    use super::super::tests::load;
    use super::*;

    const PLACE: (&str, &str) = ("SCOREGATE_MODELS_DIR", "s3://models/production/eu");

    #[test]
    fn a_bucket_is_named_in_place_of_a_directory() {
        assert!(load(&[], None).unwrap().models.bucket.is_none());
        let models = load(&[PLACE], None).unwrap().models;
        let bucket = models.bucket.unwrap();
        assert_eq!((bucket.bucket.as_str(), bucket.prefix.as_str()), ("models", "production/eu"));
        assert_eq!((bucket.region.as_str(), bucket.path_style), ("us-east-1", true));
        assert_eq!(bucket.name(), "s3://models/production/eu");
        assert!(models.dir.starts_with("state/buckets"), "{}", models.dir.display());
        let other = load(&[("SCOREGATE_MODELS_DIR", "s3://models/production/us")], None).unwrap().models;
        assert_ne!(models.dir, other.dir, "mirrors of two buckets must not meet");
        let file = "[models]\ndir = \"s3://models\"\n[s3]\nendpoint = \"https://store.example\"\nregion = \"eu\"\n\
                    path_style = false\nca = \"ca.pem\"\naccess_key_id = \"gate\"\nsecret_key_file = \"secret\"\n";
        let bucket = load(&[], Some(file)).unwrap().models.bucket.unwrap();
        assert_eq!(bucket.endpoint.unwrap().as_str(), "https://store.example/");
        assert_eq!((bucket.region.as_str(), bucket.prefix.as_str(), bucket.path_style), ("eu", "", false));
        let BucketCredentials::Files { key_id, secret, token } = bucket.credentials else { panic!() };
        assert_eq!((key_id.as_str(), secret.as_path(), token), ("gate", Path::new("secret"), None));
    }

    #[test]
    fn the_customary_variables_are_believed_and_never_shown() {
        let environment = [
            PLACE,
            ("AWS_ACCESS_KEY_ID", "gate"),
            ("AWS_SECRET_ACCESS_KEY", "top-secret"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
        ];
        let settings = load(&environment, None).unwrap();
        assert!(!format!("{settings:?}").contains("top-secret"));
        let bucket = settings.models.bucket.unwrap();
        assert_eq!(bucket.region, "eu-central-1");
        assert_eq!(bucket.endpoint.unwrap().as_str(), "http://127.0.0.1:9000/");
        let BucketCredentials::Customary(found) = bucket.credentials else { panic!() };
        assert_eq!(found["aws_secret_access_key"].expose_secret(), "top-secret");
        assert_eq!(found.len(), 2);
        // On a machine that has them for others, they are no mistakes.
        assert!(load(&environment[1..], None).unwrap().models.bucket.is_none());
    }

    #[test]
    fn mistakes_say_what_was_expected() {
        for (environment, expected) in [
            (vec![("SCOREGATE_MODELS_DIR", "s3://Models")], "expected s3://BUCKET"),
            (vec![("SCOREGATE_MODELS_DIR", "s3://models/a//b")], "expected s3://BUCKET"),
            (vec![("SCOREGATE_MODELS_DIR", "s3://models/../b")], "expected s3://BUCKET"),
            (vec![("SCOREGATE_S3_REGION", "eu")], "for models in a bucket"),
            (vec![PLACE, ("SCOREGATE_S3_ENDPOINT", "http://store.example")], "expected https"),
            (vec![PLACE, ("SCOREGATE_S3_ACCESS_KEY_ID", "gate")], "expected both"),
            (vec![PLACE, ("SCOREGATE_S3_SESSION_TOKEN_FILE", "t")], "expected both"),
        ] {
            let mistakes = load(&environment, None).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
            assert!(mistakes[0].contains(expected), "{mistakes:#?}");
        }
        let private =
            [PLACE, ("SCOREGATE_S3_ENDPOINT", "http://store.example"), ("SCOREGATE_S3_ALLOW_HTTP", "true")];
        assert!(load(&private, None).is_ok());
    }
}

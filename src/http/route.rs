//! The route that a path belongs to, as a template: what requests are counted, traced and logged by, whatever clients ask for.

use crate::telemetry::requests::UNMATCHED;

/// The templates of a listener.
#[derive(Debug)]
pub(super) struct Templates(Vec<&'static str>);

impl Templates {
    pub(super) fn new(paths: impl Iterator<Item = &'static str>) -> Self {
        let mut templates: Vec<&'static str> = paths.collect();
        // Of two that fit, the one that says more is meant.
        templates.sort_by_key(|template| template.matches('{').count());
        templates.dedup();
        Self(templates)
    }

    /// The template that `path` fits.
    pub(super) fn of(&self, path: &str) -> &'static str {
        self.0.iter().copied().find(|template| fits(template, path)).unwrap_or(UNMATCHED)
    }
}

fn fits(template: &str, path: &str) -> bool {
    if !template.contains('{') {
        return template == path;
    }
    let mut parts = path.split('/');
    for expected in template.split('/') {
        let Some(found) = parts.next() else { return false };
        if expected.starts_with("{*") {
            return !found.is_empty() || parts.next().is_some();
        }
        let fits = if expected.starts_with('{') { !found.is_empty() } else { expected == found };
        if !fits {
            return false;
        }
    }
    parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fit_as_the_router_has_it() {
        let paths = [
            "/v1/models/{model}",
            "/v1/models/{model}/predict",
            "/v1/models",
            "/v1/models/first",
            "/w/{*path}",
        ];
        let templates = Templates::new(paths.into_iter());
        for (path, expected) in [
            ("/v1/models", "/v1/models"),
            ("/v1/models/", UNMATCHED),
            ("/v1/models/churn", "/v1/models/{model}"),
            ("/v1/models/first", "/v1/models/first"),
            ("/v1/models/%20a/predict", "/v1/models/{model}/predict"),
            ("/v1/models/churn/predict/", UNMATCHED),
            ("/v1/models/churn/other", UNMATCHED),
            ("/w", UNMATCHED),
            ("/w/a/b", "/w/{*path}"),
            ("/v1", UNMATCHED),
            ("*", UNMATCHED),
        ] {
            assert_eq!(templates.of(path), expected, "{path}");
        }
    }
}

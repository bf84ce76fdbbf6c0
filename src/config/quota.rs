//! Settings of quotas: the default, plans, and what clients are told.

use std::collections::BTreeMap;

use scoregate_model::package::check_name;

use super::reader::{Reader, TableReader, named_tables};
use super::values::switch;
use crate::limiter::Quota;

/// Quotas.
#[derive(Debug, Clone)]
pub struct QuotaSettings {
    /// `SCOREGATE_QUOTA` (`60000/min`): the rows of a caller without a plan; none (`off`) is no limit.
    pub default: Option<Quota>,
    /// `SCOREGATE_QUOTA_LEASE` (`2%`): the share of a quota that a replica takes from Redis at a time; none (`off`) asks Redis
    /// for every request.
    pub lease: Option<f64>,
    /// `SCOREGATE_QUOTA_LEGACY_HEADERS` (`false`): whether answers carry `X-RateLimit-*` too.
    pub legacy_headers: bool,
}

/// The quotas of those who are on one plan: a table `[plan.NAME]` of the settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanSettings {
    /// `quota` (the default quota): of all rows together; none (`off`) is no limit.
    pub quota: Option<Quota>,
    /// `[plan.NAME.models]` (none): of the rows of single models, which count for `quota` as well.
    pub models: BTreeMap<String, Quota>,
}

impl Reader {
    pub(super) fn quota(&mut self) -> QuotaSettings {
        QuotaSettings {
            default: self.take("SCOREGATE_QUOTA", "quota.default", "60000/min", limit),
            lease: self.take("SCOREGATE_QUOTA_LEASE", "quota.lease", "2%", share),
            legacy_headers: self.take(
                "SCOREGATE_QUOTA_LEGACY_HEADERS",
                "quota.legacy_headers",
                "false",
                switch,
            ),
        }
    }

    /// The tables `[plan.NAME]`.
    pub(super) fn plans(&mut self, default: Option<Quota>) -> BTreeMap<String, PlanSettings> {
        read(std::mem::take(&mut self.plan), default, &mut self.mistakes)
    }
}

/// The plans of a settings file, for which the rest of it need not be right.
///
/// # Errors
/// Every mistake in them.
pub fn plans(text: &[u8], default: Option<Quota>) -> Result<BTreeMap<String, PlanSettings>, String> {
    let text = str::from_utf8(text).map_err(|_| "found bytes that are no UTF-8, expected TOML")?;
    let mut table: toml::Table = text.parse().map_err(|error| format!("expected TOML: {error}"))?;
    let mut mistakes = Vec::new();
    let plans = named_tables(&mut table, "plan", &mut mistakes);
    let plans = read(plans, default, &mut mistakes);
    if mistakes.is_empty() { Ok(plans) } else { Err(mistakes.join("; ")) }
}

fn read(
    tables: toml::Table,
    default: Option<Quota>,
    mistakes: &mut Vec<String>,
) -> BTreeMap<String, PlanSettings> {
    let mut plans = BTreeMap::new();
    for (plan, table) in tables {
        let name = format!("plan.{plan}");
        let toml::Value::Table(mut table) = table else {
            mistakes.push(format!("{name} of the settings file: expected a table"));
            continue;
        };
        let mut reader = TableReader { name, table: &mut table, known: Vec::new(), mistakes };
        let expected = "1000/min (or s, hour, day), or off";
        let quota = reader.take("quota", expected, |value| limit(value.as_str()?).ok()).unwrap_or(default);
        let expected = "a table of models, each with a quota such as \"100/min\"";
        let models = reader.take("models", expected, models).unwrap_or_default();
        reader.finish();
        plans.insert(plan, PlanSettings { quota, models });
    }
    plans
}

fn models(value: &toml::Value) -> Option<BTreeMap<String, Quota>> {
    let quota = |(model, quota): (&String, &toml::Value)| {
        check_name("model", model).ok()?;
        Some((model.clone(), quota.as_str()?.parse().ok()?))
    };
    value.as_table()?.iter().map(quota).collect()
}

fn limit(text: &str) -> Result<Option<Quota>, String> {
    match text {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|expected: String| format!("off, or {expected}")),
    }
}

/// A share of a quota.
fn share(text: &str) -> Result<Option<f64>, String> {
    let percent = || text.strip_suffix('%')?.parse().ok().filter(|percent| (0.1..=100.0).contains(percent));
    match text {
        "off" => Ok(None),
        _ => percent().map(|percent: f64| Some(percent / 100.0)).ok_or("off, or from 0.1% to 100%".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    fn quota(text: &str) -> Option<Quota> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn plans_take_what_they_do_not_say_from_the_default() {
        let settings = load(&[], None).unwrap();
        assert_eq!(settings.quota.default, quota("60000/min"));
        assert_eq!((settings.quota.lease, settings.quota.legacy_headers), (Some(0.02), false));
        assert!(settings.plan.is_empty());
        let file = "[quota]\ndefault = \"5/s\"\nlease = \"off\"\nlegacy_headers = true\n\
                    [plan.free]\nquota = \"100/day\"\n[plan.free.models]\nchurn = \"10/hour\"\n\"a.b\" = \"1/s\"\n\
                    [plan.open]\nquota = \"off\"\n[plan.usual]\n";
        let settings = load(&[], Some(file)).unwrap();
        assert_eq!(settings.quota.default, quota("5/s"));
        assert_eq!((settings.quota.lease, settings.quota.legacy_headers), (None, true));
        let plan = |name: &str| &settings.plan[name];
        assert_eq!(plan("free").quota, quota("100/day"));
        assert_eq!(plan("free").models["churn"], quota("10/hour").unwrap());
        assert_eq!(plan("free").models.len(), 2);
        assert_eq!((plan("open").quota, plan("usual").quota), (None, quota("5/s")));
        assert_eq!(plans(file.as_bytes(), quota("5/s")), Ok(settings.plan));
        let off = load(&[("SCOREGATE_QUOTA", "off")], Some(file)).unwrap();
        assert_eq!((off.quota.default, off.plan["usual"].quota), (None, None));
    }

    #[test]
    fn mistakes_name_the_setting() {
        for (name, wrong) in [
            ("SCOREGATE_QUOTA", "1000"),
            ("SCOREGATE_QUOTA", "0/min"),
            ("SCOREGATE_QUOTA_LEASE", "2"),
            ("SCOREGATE_QUOTA_LEASE", "0%"),
            ("SCOREGATE_QUOTA_LEASE", "101%"),
            ("SCOREGATE_QUOTA_LEASE", "NaN%"),
            ("SCOREGATE_QUOTA_LEGACY_HEADERS", "yes"),
        ] {
            let mistakes = load(&[(name, wrong)], None).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(name), "{mistakes:?}");
        }
        for (file, expected) in [
            ("plan = 1", "expected tables [plan.NAME]"),
            ("[plan]\nfree = 1", "plan.free of the settings file: expected a table"),
            ("[plan.free]\nquota = 5", "plan.free.quota of the settings file: found 5"),
            ("[plan.free]\nquotas = \"5/s\"", "did you mean quota?"),
            ("[plan.free]\nmodels = \"5/s\"", "plan.free.models of the settings file"),
            ("[plan.free.models]\nchurn = \"off\"", "each with a quota"),
            ("[plan.free.models]\n\"a\\\"b\" = \"5/s\"", "each with a quota"),
        ] {
            let mistakes = load(&[], Some(file)).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].contains(expected), "{file}\n{mistakes:?}");
            assert_eq!(plans(file.as_bytes(), None), Err(mistakes[0].clone()));
        }
        assert!(plans(b"[plan.free", None).unwrap_err().starts_with("expected TOML"));
        assert!(plans(b"\xff", None).is_err());
    }
}

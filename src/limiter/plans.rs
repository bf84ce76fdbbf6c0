//! Which policies hold for which caller: the default quota, and the plans of the settings file, followed as it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use super::quota::Quota;
use super::{MAX_POLICIES, Verdicts};
use crate::config::PlanSettings;
use crate::telemetry::metrics::QuotaRows;

/// The most names of unknown plans that are warned about: who writes them is not the operator.
const MAX_WARNINGS: usize = 100;

/// One limit.
#[derive(Debug)]
pub struct Policy {
    /// `rows` for all that a caller sends, `rows-MODEL` for what it sends to one model.
    pub name: Arc<str>,
    /// How many.
    pub quota: Quota,
    pub(super) admitted: Counter,
    pub(super) refused: Counter,
}

impl Policy {
    fn new(name: &str, quota: Quota, counts: &QuotaRows) -> Self {
        let [admitted, refused] = counts.of(name);
        Self { name: name.into(), quota, admitted, refused }
    }
}

/// The policies that hold for one request, all of which have to let it through.
#[derive(Debug)]
pub struct Limits {
    plan: Option<Arc<str>>,
    policies: Vec<Policy>,
    /// Their description (`RateLimit-Policy`), which is the same for every answer.
    description: String,
}

impl Limits {
    fn new(plan: Option<&Arc<str>>, policies: Vec<Policy>) -> Option<Arc<Self>> {
        debug_assert!(policies.len() <= MAX_POLICIES, "there is room for that many verdicts");
        let mut description = String::new();
        for Policy { name, quota, .. } in &policies {
            let comma = if description.is_empty() { "" } else { ", " };
            let (rows, seconds) = (quota.rows, quota.per.as_secs());
            let written = write!(description, "{comma}\"{name}\";q={rows};w={seconds};scorer-unit=\"rows\"");
            written.expect("a text can always be appended to");
        }
        let is_limited = !policies.is_empty();
        is_limited.then(|| Arc::new(Self { plan: plan.cloned(), policies, description }))
    }

    /// The caller's plan; none is the default.
    pub fn plan(&self) -> Option<&Arc<str>> {
        self.plan.as_ref()
    }

    /// The policies: one or two.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Whether each of the policies lets the request through.
    pub fn all_admit(&self, verdicts: &Verdicts) -> bool {
        verdicts.iter().take(self.policies.len()).all(|verdict| verdict.admitted)
    }

    pub(super) fn description(&self) -> &str {
        &self.description
    }
}

/// The limits of one plan.
#[derive(Debug)]
struct Plan {
    /// For models that have none of their own; nothing if there is no limit.
    whole: Option<Arc<Limits>>,
    models: BTreeMap<String, Arc<Limits>>,
}

impl Plan {
    fn new(name: Option<&str>, settings: &PlanSettings, counts: &QuotaRows) -> Self {
        let name: Option<Arc<str>> = name.map(Into::into);
        let whole = || settings.quota.map(|quota| Policy::new("rows", quota, counts));
        let of_model = |(model, quota): (&String, &Quota)| {
            let own = Policy::new(&format!("rows-{model}"), *quota, counts);
            Some((model.clone(), Limits::new(name.as_ref(), whole().into_iter().chain([own]).collect())?))
        };
        Self {
            whole: Limits::new(name.as_ref(), whole().into_iter().collect()),
            models: settings.models.iter().filter_map(of_model).collect(),
        }
    }

    fn limits(&self, model: Option<&str>) -> Option<&Arc<Limits>> {
        model.and_then(|model| self.models.get(model)).or(self.whole.as_ref())
    }
}

/// A plan in words, as operators write quotas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanDescription {
    /// Its name; none is for whoever has no plan.
    pub plan: Option<String>,
    /// How many rows in which time; none is no limit.
    pub quota: Option<String>,
    /// The same for single models.
    pub models: BTreeMap<String, String>,
}

/// Every plan.
#[derive(Debug)]
pub(super) struct Plans {
    default: Plan,
    plans: BTreeMap<String, Plan>,
    /// Names of plans that callers came with and that do not exist.
    unknown: Mutex<BTreeSet<String>>,
}

impl Plans {
    /// The plans of `settings`, and `default` for whoever has none.
    pub(super) fn new(
        default: Option<Quota>,
        settings: &BTreeMap<String, PlanSettings>,
        counts: &QuotaRows,
    ) -> Self {
        let plans = settings.iter();
        let plans = plans.map(|(name, settings)| (name.clone(), Plan::new(Some(name), settings, counts)));
        let default = PlanSettings { quota: default, models: BTreeMap::new() };
        Self { default: Plan::new(None, &default, counts), plans: plans.collect(), unknown: Mutex::default() }
    }

    /// What holds for a caller of this `plan`, scoring with `model`; nothing if there is no limit.
    pub(super) fn limits(&self, plan: Option<&str>, model: Option<&str>) -> Option<Arc<Limits>> {
        let Some(name) = plan else { return self.default.limits(model).cloned() };
        let plan = self.plans.get(name).unwrap_or_else(|| {
            self.warn(name);
            &self.default
        });
        plan.limits(model).cloned()
    }

    /// Each plan, the default one first, in words.
    pub(super) fn describe(&self) -> Vec<PlanDescription> {
        let named = self.plans.iter().map(|(name, plan)| (Some(name.clone()), plan));
        let all = std::iter::once((None, &self.default)).chain(named);
        // Of a model's policies its own is the last.
        let last = |limits: &Arc<Limits>| limits.policies().last().map(|policy| policy.quota.to_string());
        let models = |plan: &Plan| {
            plan.models.iter().filter_map(|(model, limits)| Some((model.clone(), last(limits)?))).collect()
        };
        all.map(|(name, plan)| PlanDescription {
            plan: name,
            quota: plan.whole.as_ref().and_then(last),
            models: models(plan),
        })
        .collect()
    }

    #[cfg(test)]
    pub(super) fn unknown(&self) -> usize {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn warn(&self, name: &str) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() < MAX_WARNINGS && unknown.insert(name.to_owned()) {
            tracing::warn!(
                plan = name,
                "a caller's plan is not in the settings file: the default quota holds for it; add a table [plan.NAME], or \
                 give the caller another plan"
            );
        }
    }
}

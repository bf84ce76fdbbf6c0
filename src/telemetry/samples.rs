//! What `/metrics` tells, read back into numbers for whoever takes JSON: so that both always tell the same.

use serde_json::{Map, Number, Value, json};

/// Every metric of a document of OpenMetrics that [`Metrics::encode`](super::metrics::Metrics::encode) made, by the name of its samples;
/// histograms by their own, with the counts between their bounds.
#[derive(Debug, Default)]
pub struct Samples {
    /// The series of each metric: their labels, and `value`, or `counts` and `sum`, and `bounds` where they are others than those
    /// told of the metric.
    pub metrics: Map<String, Value>,
    /// The upper bounds of each histogram that has series; the last count is of what lies above all of them.
    pub bounds: Map<String, Value>,
}

/// A line of a document.
struct Sample<'d> {
    name: &'d str,
    labels: Vec<(&'d str, String)>,
    value: &'d str,
}

impl Samples {
    /// Reads `document`, of which series are left out that have a label, by name and value, which `is_allowed` does not allow.
    pub fn read(document: &str, is_allowed: impl Fn(&str, &str) -> bool) -> Self {
        let mut samples = Self::default();
        let mut histogram = None;
        for line in document.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let suffix = if kind == "counter" { "_total" } else { "" };
                samples.metrics.insert(format!("{name}{suffix}"), json!([]));
                histogram = (kind == "histogram").then_some(name);
            }
            let Some(sample) = Sample::read(line) else { continue };
            if !sample.labels.iter().all(|(name, value)| is_allowed(name, value)) {
                continue;
            }
            match histogram {
                None => samples.add(sample.name, sample.labels, "value", number(sample.value)),
                Some(name) => samples.add_to_histogram(name, sample),
            }
        }
        samples.gather_bounds();
        samples
    }

    /// What most series of a metric have in common is told once.
    fn gather_bounds(&mut self) {
        for (metric, all) in &mut self.metrics {
            for series in all.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                let Some(bounds) = series.remove("bounds") else { continue };
                if *self.bounds.entry(metric).or_insert_with(|| bounds.clone()) != bounds {
                    series.insert("bounds".into(), bounds);
                }
            }
        }
    }

    /// Adds a series to a metric.
    fn add(&mut self, metric: &str, labels: Vec<(&str, String)>, member: &str, value: Value) {
        let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
        let series: Map<String, Value> = labels.chain([(member.to_owned(), value)]).collect();
        if let Some(Value::Array(all)) = self.metrics.get_mut(metric) {
            all.push(series.into());
        }
    }

    /// A histogram tells its sum first, then how many there are at or below each bound.
    fn add_to_histogram(&mut self, metric: &str, sample: Sample<'_>) {
        match sample.name.strip_prefix(metric) {
            Some("_sum") => self.add(metric, sample.labels, "sum", number(sample.value)),
            Some("_bucket") => {
                let bound =
                    sample.labels.iter().find(|(name, _)| *name == "le").map(|(_, bound)| number(bound));
                let Some(Value::Object(series)) =
                    self.metrics[metric].as_array_mut().and_then(|all| all.last_mut())
                else {
                    return;
                };
                // The last has none.
                if let Some(bound) = bound.filter(|bound| !bound.is_null()) {
                    push(series, "bounds", bound);
                }
                let counts = series.get("counts").and_then(Value::as_array).into_iter().flatten();
                let before: u64 = counts.filter_map(Value::as_u64).sum();
                let count = number(sample.value).as_u64().unwrap_or_default().saturating_sub(before);
                push(series, "counts", count.into());
            }
            _ => {}
        }
    }
}

fn push(series: &mut Map<String, Value>, member: &str, value: Value) {
    if let Value::Array(values) = series.entry(member).or_insert_with(|| json!([])) {
        values.push(value);
    }
}

impl<'d> Sample<'d> {
    /// Reads a line; nothing if it is a comment.
    fn read(line: &'d str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
        let mut labels = Vec::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            while !rest.starts_with('}') {
                let (label, quoted) = rest.trim_start_matches(',').split_once("=\"")?;
                let (value, after) = unescape(quoted)?;
                labels.push((label, value));
                rest = after;
            }
            rest = &rest[1..];
        }
        // An exemplar may follow.
        Some(Self { name, labels, value: rest.split_whitespace().next()? })
    }
}

/// The value of a label up to its closing quotation mark, and what follows.
fn unescape(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// Counts as whole numbers; what JSON has no number for is null.
fn number(text: &str) -> Value {
    let whole = text.parse::<i64>().map(Number::from).ok();
    whole.or_else(|| text.parse().ok().and_then(Number::from_f64)).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "# HELP a_b Some text.\n# TYPE a_b counter\na_b_total{x=\"1\",model=\"m\"} 3\n\
        a_b_total{x=\"q\\\"},{ \\\\n\\n\",model=\"\"} 4\na_b_total{x=\"2\",model=\"other\"} 5\n\
        # TYPE none counter\n# TYPE g gauge\ng 0.25\n# TYPE nan gauge\nnan NaN\n\
        # TYPE h_s histogram\n# UNIT h_s s\n\
        h_s_sum{model=\"m\"} 1.5\nh_s_count{model=\"m\"} 5\nh_s_bucket{le=\"0.1\",model=\"m\"} 2 # {trace_id=\"0a\"} 0.05 1.0\n\
        h_s_bucket{le=\"1.0\",model=\"m\"} 2\nh_s_bucket{le=\"+Inf\",model=\"m\"} 5\n\
        h_s_sum{model=\"\"} 0.0\nh_s_count{model=\"\"} 0\nh_s_bucket{le=\"0.1\",model=\"\"} 0\n\
        h_s_bucket{le=\"1.0\",model=\"\"} 0\nh_s_bucket{le=\"+Inf\",model=\"\"} 0\n\
        h_s_sum{model=\"n\"} 7.0\nh_s_count{model=\"n\"} 2\nh_s_bucket{le=\"5.0\",model=\"n\"} 1\n\
        h_s_bucket{le=\"+Inf\",model=\"n\"} 2\n# EOF\n";

    #[test]
    fn numbers_are_read_back() {
        let samples = Samples::read(DOCUMENT, |label, value| (label, value) != ("model", "other"));
        let expected = json!({
            "a_b_total": [
                {"x": "1", "model": "m", "value": 3},
                {"x": "q\"},{ \\n\n", "model": "", "value": 4},
            ],
            "none_total": [],
            "g": [{"value": 0.25}],
            "nan": [{"value": null}],
            "h_s": [
                {"model": "m", "sum": 1.5, "counts": [2, 0, 3]},
                {"model": "", "sum": 0.0, "counts": [0, 0, 0]},
                {"model": "n", "sum": 7.0, "counts": [1, 1], "bounds": [5.0]},
            ],
        });
        assert_eq!(Value::Object(samples.metrics), expected);
        assert_eq!(Value::Object(samples.bounds), json!({"h_s": [0.1, 1.0]}));
    }
}

//! `report.html`: how good a version is, on one page that loads nothing from elsewhere.

use std::fmt::Write;

use scoregate_model::explain::importance::Importance;
use scoregate_model::explain::plot;
use scoregate_model::metrics;
use scoregate_schemas::manifest::{Confusion, Estimate, Evaluation, Manifest};

use crate::pipeline::Effect;
use crate::train::Trained;

/// Side of a plot's drawing area in SVG units.
const SIDE: f64 = 320.0;
/// Room for axes left of and below it.
const MARGIN: f64 = 54.0;
/// Bars of the score distribution.
const BARS: usize = 25;
/// Points of a curve at most: more do not show, and make the file large.
const CURVE_POINTS: usize = 400;

const STYLE: &str = r#"
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d5dae1; --page: #ffffff; --first: #1f6fc4; --second: #c4571f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa5b4; --line: #38414e; --page: #14181e; --first: #6db3f8; --second: #f2a065; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, figcaption { color: var(--soft); margin: 0 0 .5rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1.5rem; }
figure { margin: 0; }
.wide { max-width: 760px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
.axis { stroke: var(--line); fill: none; }
.guide { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.curve { stroke: var(--first); stroke-width: 2; fill: none; }
.range { stroke: var(--first); stroke-width: 1.5; }
.dot { fill: var(--first); }
.negative { fill: var(--first); opacity: .55; }
.positive { fill: var(--second); opacity: .65; }
"#;

/// The metrics of an evaluation with the names that people read.
pub fn metrics(evaluation: &Evaluation) -> [(&'static str, Estimate); 5] {
    [
        ("ROC AUC", evaluation.roc_auc),
        ("PR AUC (average precision)", evaluation.pr_auc),
        ("Brier score", evaluation.brier),
        ("log loss (nats)", evaluation.log_loss),
        ("expected calibration error", evaluation.expected_calibration_error),
    ]
}

/// The counts of a confusion table with the names that people read.
pub fn counts(confusion: &Confusion) -> [(&'static str, Estimate); 4] {
    [
        ("true positives", confusion.true_positives),
        ("false positives", confusion.false_positives),
        ("true negatives", confusion.true_negatives),
        ("false negatives", confusion.false_negatives),
    ]
}

/// The report of a version on the rows that `evaluation` measured: their probabilities and outcomes, which features move its
/// answers most where that is known, and the coefficients where the version was `trained` just now.
///
/// # Errors
/// [`metrics::Error`] if probabilities and outcomes do not fit each other.
pub fn html(
    manifest: &Manifest,
    evaluation: &Evaluation,
    probabilities: &[f64],
    positives: &[bool],
    importance: Option<&Importance>,
    trained: Option<&Trained>,
) -> Result<String, metrics::Error> {
    let title = format!("{} {}", escape(&manifest.name), escape(&manifest.version));
    let [negative, positive] =
        [0, 1].map(|at| manifest.labels.get(at).map_or(String::new(), |label| escape(label)));
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <p>{rows} rows{origin}, {count} of them {positive} ({share:.1} %). Brackets are 95 % bootstrap intervals.</p>\n\
         {metrics}\n<div class=\"plots\">\n{roc}\n{calibration}\n{scores}\n</div>\n{confusion}\n{table}\n{importance}\n{model}\n</body>\n</html>\n",
        rows = evaluation.rows,
        origin = if trained.is_some() { " that training never saw" } else { "" },
        count = evaluation.positives,
        share = 100.0 * evaluation.positives as f64 / evaluation.rows.max(1) as f64,
        metrics = metrics_table(evaluation),
        roc = roc(evaluation, &metrics::roc_curve(probabilities, positives)?),
        calibration = calibration(evaluation),
        scores = scores(probabilities, positives, manifest.threshold, &negative, &positive),
        confusion = confusion(&evaluation.confusion, &negative, &positive),
        table = calibration_table(evaluation),
        importance = importance.map(|importance| features(manifest, importance)).unwrap_or_default(),
        model = trained.map(coefficients).unwrap_or_default(),
    );
    Ok(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

fn interval(Estimate { lower, upper, .. }: Estimate, digits: usize) -> String {
    format!("[{lower:.digits$}, {upper:.digits$}]")
}

fn metrics_table(evaluation: &Evaluation) -> String {
    let rows = metrics(evaluation).map(|(name, estimate)| {
        format!("<tr><td>{name}</td><td>{:.4}</td><td>{}</td></tr>", estimate.value, interval(estimate, 4))
    });
    format!(
        "<table>\n<tr><th>metric</th><th>value</th><th>interval</th></tr>\n{}\n</table>\n<h2>Plots</h2>",
        rows.join("\n")
    )
}

/// A plot over [0, 1] × [0, 1]: axes, ticks and `inside`, which is drawn in plot coordinates (y downwards).
fn plot(label: &str, across: &str, up: &str, inside: &str, caption: &str) -> String {
    let full = SIDE + MARGIN + 12.0;
    let mut ticks = String::new();
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let (x, y) = (share * SIDE, SIDE - share * SIDE);
        let _ = write!(
            ticks,
            "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{share}</text><text x=\"-6\" y=\"{}\" text-anchor=\"end\">{share}</text>",
            SIDE + 16.0,
            y + 4.0,
        );
    }
    frame(label, across, up, &format!("{ticks}{inside}"), caption, full)
}

fn frame(label: &str, across: &str, up: &str, inside: &str, caption: &str, full: f64) -> String {
    format!(
        "<figure>\n<svg viewBox=\"0 0 {full} {full}\" role=\"img\" aria-label=\"{label}\">\n<g transform=\"translate({MARGIN} 10)\">\n\
         <rect class=\"axis\" width=\"{SIDE}\" height=\"{SIDE}\"/>\n{inside}\n\
         <text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{across}</text>\n\
         <text transform=\"translate(-42 {middle}) rotate(-90)\" text-anchor=\"middle\">{up}</text>\n</g>\n</svg>\n\
         <figcaption>{caption}</figcaption>\n</figure>",
        middle = SIDE / 2.0,
        below = SIDE + 34.0,
    )
}

fn diagonal() -> String {
    format!("<path class=\"guide\" d=\"M0 {SIDE}L{SIDE} 0\"/>")
}

fn roc(evaluation: &Evaluation, points: &[(f64, f64)]) -> String {
    let every = points.len().div_ceil(CURVE_POINTS).max(1);
    let kept = points.iter().enumerate().filter(|(at, _)| at % every == 0 || at + 1 == points.len());
    let path: Vec<String> =
        kept.map(|(_, (across, up))| format!("{:.1} {:.1}", across * SIDE, SIDE - up * SIDE)).collect();
    let inside = format!("{}<path class=\"curve\" d=\"M{}\"/>", diagonal(), path.join("L"));
    let caption =
        format!("ROC curve. Area {:.4} {}.", evaluation.roc_auc.value, interval(evaluation.roc_auc, 4));
    plot("ROC curve", "false positive rate", "true positive rate", &inside, &caption)
}

fn calibration(evaluation: &Evaluation) -> String {
    let mut inside = diagonal();
    for bin in &evaluation.calibration {
        let (x, y) = (bin.predicted * SIDE, SIDE - bin.observed.value * SIDE);
        let _ = write!(
            inside,
            "<path class=\"range\" d=\"M{x:.1} {:.1}V{:.1}\"/><circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\">\
             <title>{} rows: predicted {:.3}, observed {:.3}</title></circle>",
            SIDE - bin.observed.lower * SIDE,
            SIDE - bin.observed.upper * SIDE,
            bin.rows,
            bin.predicted,
            bin.observed.value,
        );
    }
    let caption = format!(
        "Calibration in {} bins of equal width, with intervals. On the diagonal, 18 % means 18 %.",
        metrics::BINS
    );
    plot("Calibration", "mean predicted probability", "observed share", &inside, &caption)
}

fn scores(
    probabilities: &[f64],
    positives: &[bool],
    threshold: f64,
    negative: &str,
    positive: &str,
) -> String {
    let mut bars = [[0_usize; BARS]; 2];
    for (probability, &class) in std::iter::zip(probabilities, positives) {
        bars[usize::from(class)][((probability * BARS as f64) as usize).min(BARS - 1)] += 1;
    }
    let rows = bars.map(|class| class.iter().sum::<usize>().max(1) as f64);
    let share = |class: usize, at: usize| bars[class][at] as f64 / rows[class];
    let highest =
        (0..2).flat_map(|class| (0..BARS).map(move |at| (class, at))).map(|(class, at)| share(class, at));
    let highest = highest.fold(f64::MIN_POSITIVE, f64::max);
    let width = SIDE / BARS as f64;
    let mut inside = String::new();
    for (class, name) in ["negative", "positive"].into_iter().enumerate() {
        for at in 0..BARS {
            let height = share(class, at) / highest * SIDE * 0.97;
            if height > 0.0 {
                let _ = write!(
                    inside,
                    "<rect class=\"{name}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                    at as f64 * width,
                    SIDE - height,
                    width - 1.0,
                );
            }
        }
    }
    let place = threshold * SIDE;
    let _ = write!(inside, "<path class=\"guide\" d=\"M{place:.1} 0V{SIDE}\"/>");
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let _ = write!(
            inside,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{share}</text>",
            share * SIDE,
            SIDE + 16.0
        );
    }
    let caption = format!(
        "Scores by outcome, each class scaled to its own rows: <span style=\"color:var(--first)\">{negative}</span> and \
         <span style=\"color:var(--second)\">{positive}</span>. The dashed line is the threshold."
    );
    frame(
        "Score distribution",
        "predicted probability",
        "share of the class",
        &inside,
        &caption,
        SIDE + MARGIN + 12.0,
    )
}

fn confusion(confusion: &Confusion, negative: &str, positive: &str) -> String {
    let cell = |estimate: Estimate| format!("<td>{:.0} {}</td>", estimate.value, interval(estimate, 0));
    format!(
        "<h2>Decisions at the threshold of {}</h2>\n<div class=\"scroll\"><table>\n\
         <tr><th>was</th><th>labelled {negative}</th><th>labelled {positive}</th></tr>\n\
         <tr><td>{negative}</td>{}{}</tr>\n<tr><td>{positive}</td>{}{}</tr>\n</table></div>",
        confusion.threshold,
        cell(confusion.true_negatives),
        cell(confusion.false_positives),
        cell(confusion.false_negatives),
        cell(confusion.true_positives),
    )
}

fn calibration_table(evaluation: &Evaluation) -> String {
    let rows = evaluation.calibration.iter().map(|bin| {
        format!(
            "<tr><td>{:.1} to {:.1}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{}</td></tr>",
            bin.from,
            bin.to,
            bin.rows,
            bin.predicted,
            bin.observed.value,
            interval(bin.observed, 4)
        )
    });
    format!(
        "<h2>Calibration table</h2>\n<div class=\"scroll\"><table>\n<tr><th>predicted</th><th>rows</th><th>mean predicted</th>\
         <th>observed</th><th>interval</th></tr>\n{}\n</table></div>",
        rows.collect::<Vec<_>>().join("\n")
    )
}

fn features(manifest: &Manifest, importance: &Importance) -> String {
    let title = format!("{} {}", manifest.name, manifest.version);
    format!(
        "<h2>Features</h2>\n<figure class=\"wide\">\n{}\
         <figcaption>How far each feature moves the answer from the base value, up or down, on average.</figcaption>\n</figure>",
        plot::importance_svg(&title, importance)
    )
}

fn coefficients(trained: &Trained) -> String {
    let mut rows = String::new();
    for term in &trained.pipeline.terms {
        let feature = escape(&term.feature);
        match &term.effect {
            Effect::Linear { mean, scale, coefficient } => {
                let _ = writeln!(
                    rows,
                    "<tr><td>{feature}</td><td>{coefficient:.4}</td><td>per {scale:.4} around {mean:.4}</td></tr>"
                );
            }
            Effect::Categorical { categories, coefficients } => {
                for (category, coefficient) in std::iter::zip(categories, coefficients) {
                    let category = escape(category);
                    let _ = writeln!(
                        rows,
                        "<tr><td>{feature}={category}</td><td>{coefficient:.4}</td><td></td></tr>"
                    );
                }
            }
        }
    }
    let facts = trained
        .training
        .parameters
        .iter()
        .map(|(name, value)| format!("{name} {}", escape(&value.to_string())));
    let folds = trained.training.folds;
    format!(
        "<h2>Model</h2>\n<p>{trainer}: {}. {} training, {} calibration, {} test rows; seed {}.</p>\n\
         <div class=\"scroll\"><table>\n<tr><th>column</th><th>log-odds</th><th>unit</th></tr>\n\
         <tr><td>intercept</td><td>{:.4}</td><td></td></tr>\n{rows}</table></div>",
        facts.collect::<Vec<_>>().join(", "),
        folds[0],
        folds[1],
        folds[2],
        trained.training.seed,
        trained.pipeline.intercept,
        trainer = escape(&trained.training.trainer),
    )
}

//! Global importance as horizontal bars, the longest first.

use super::number::{self, Axis};
use super::page::{Anchor, BAR, EDGE, GAP, Page, ROW, TEXT, column, cut, px, said, width};
use super::{drawing, features, name};
use crate::explain::Method;
use crate::explain::importance::Importance;

/// Features that have a bar of their own.
const MOST: usize = 20;

/// Draws which features move a model's answers most, under a title of the caller's.
pub fn importance_svg(title: &str, importance: &Importance) -> String {
    let space = name(importance.space);
    let by = match importance.method {
        Method::Linear => "linear closed form",
        Method::TreeInterventional => "interventional TreeSHAP",
        Method::TreePathDependent => "path-dependent TreeSHAP",
        Method::Exact => "all coalitions",
        Method::PermutationSampling => "sampled permutations",
    };
    let rows = number::count(importance.rows);
    let rows = if importance.rows == 1 { "1 row".into() } else { format!("{rows} rows") };
    let ranked = importance.ranked();
    let (shown, others) = ranked.split_at(ranked.len().min(MOST));
    let mut bars: Vec<(String, f64, &str)> =
        shown.iter().map(|feature| (feature.name.clone(), feature.mean_absolute, "down")).collect();
    if !others.is_empty() {
        let sum = others.iter().map(|feature| feature.mean_absolute).sum();
        bars.push((format!("{} together", features(others.len())), sum, "rest"));
    }

    let mut page = Page::new(title, &format!("mean absolute Shapley value over {rows}, by {by}"));
    let labels = column(bars.iter().map(|(label, ..)| label.as_str()));
    let numbers = bars.iter().map(|(_, value, _)| width(&number::compact(*value), TEXT));
    let (left, room) = drawing(labels, 0.0, numbers.fold(0.0, f64::max) + GAP);
    let axis = Axis::from_zero(bars.iter().map(|(_, value, _)| *value), left, room);
    let end = page.axis(&axis, bars.len(), &format!("mean absolute value, {space}"));
    let mut words = Vec::new();
    for (label, value, class) in &bars {
        let (middle, length) = (page.y + ROW / 2.0, axis.x(*value) - left);
        let compact = number::compact(*value);
        page.draw_row(&format!("{label}: {compact}"), |page| {
            page.text(EDGE + labels, middle + TEXT / 3.0, Anchor::End, "", &cut(label, labels, TEXT));
            let (x, y, length) = (px(left), px(middle - BAR / 2.0), px(length));
            page.draw(format_args!(
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{length}\" height=\"{BAR}\"/>"
            ));
            page.text(axis.x(*value) + GAP, middle + TEXT / 3.0, Anchor::Start, "", &compact);
        });
        words.push(format!("{} {compact}", said(label)));
        page.y += ROW;
    }
    page.y = end;
    page.finish(&format!("Mean absolute Shapley values in {space} over {rows}: {}.", words.join("; ")))
}

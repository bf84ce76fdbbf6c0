//! One prediction as a waterfall: from the base value at the bottom, feature by feature, to the model's output at the top.

use super::number::{self, Axis};
use super::page::{Anchor, BAR, EDGE, GAP, Page, ROW, TEXT, column, cut, px, said, width};
use super::{drawing, features, name};
use crate::explain::Explanation;

/// Length of an arrow's head.
const HEAD: f64 = 7.0;

/// One step of the waterfall.
struct Step {
    label: String,
    value: f64,
    number: String,
    /// Where it leads from and to.
    from: f64,
    to: f64,
}

/// Draws how one answer came about: at most `most` features by themselves, those that move it most at the top, all others together.
///
/// `labels` says what the row says of each feature, as `plan_tier = pro`, in the schema's order. A subtitle that is empty is left
/// out.
pub fn waterfall_svg(
    title: &str,
    subtitle: &str,
    explanation: &Explanation,
    labels: &[String],
    most: usize,
) -> String {
    let steps = steps(explanation, labels, most);
    let ends = [
        ("f(x)", "model output f(x)", explanation.value),
        ("E[f(x)]", "base value E[f(x)]", explanation.base_value),
    ];
    let ends =
        ends.map(|(symbol, label, value)| (label, value, format!("{symbol} = {}", number::compact(value))));

    let mut page = Page::new(title, subtitle);
    let of_ends = ends.iter().map(|(label, ..)| *label);
    let column = column(steps.iter().map(|step| step.label.as_str()).chain(of_ends));
    // What moves to the left has its number there.
    let is_left = |step: &&Step| step.value < 0.0;
    let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(0.0, f64::max) + GAP;
    let left = widest(&mut steps.iter().filter(is_left).map(|step| width(&step.number, TEXT)));
    let right_steps = steps.iter().filter(|step| !is_left(step)).map(|step| width(&step.number, TEXT));
    let right = widest(&mut right_steps.chain(ends.iter().map(|(.., number)| width(number, TEXT) + GAP)));
    let (start, room) = drawing(column, left, right);
    let reached = steps.iter().flat_map(|step| [step.from, step.to]);
    let axis = Axis::over(reached.chain([explanation.value, explanation.base_value]), start, room);

    let bottom = page.axis(&axis, steps.len() + 2, name(explanation.space));
    page.end(&ends[0], column, &axis);
    for step in steps.iter().rev() {
        page.step(step, column, &axis);
    }
    let base = axis.x(explanation.base_value);
    page.link(base);
    page.end(&ends[1], column, &axis);
    page.y = bottom;
    page.finish(&words(explanation, &steps))
}

/// The steps from the bottom up.
fn steps(explanation: &Explanation, labels: &[String], most: usize) -> Vec<Step> {
    let values = &explanation.values;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    let (shown, others) = order.split_at(order.len().min(most));
    let mut steps = Vec::new();
    let mut reached = explanation.base_value;
    let mut step = |label: String, value: f64, number: String| {
        let from = reached;
        reached += value;
        steps.push(Step { label, value, number, from, to: reached });
    };
    if !others.is_empty() {
        let value = others.iter().map(|at| values[*at]).sum();
        step(features(others.len()), value, number::signed(value));
    }
    for at in shown.iter().rev() {
        let label = labels.get(*at).cloned().unwrap_or_else(|| format!("feature {}", at + 1));
        let error = explanation.standard_errors.as_ref().and_then(|errors| errors.get(*at));
        let error = error.map_or(String::new(), |error| format!(" ±{}", number::compact(*error)));
        step(label, values[*at], number::signed(values[*at]) + &error);
    }
    steps
}

/// What the picture shows, from the top down.
fn words(explanation: &Explanation, steps: &[Step]) -> String {
    let Explanation { base_value, value, space, .. } = explanation;
    let moves = steps.iter().rev().map(|step| {
        let (label, by) = (said(&step.label), number::compact(step.value.abs()));
        match step.value {
            value if value > 0.0 => format!("{label}: up by {by}"),
            value if value < 0.0 => format!("{label}: down by {by}"),
            _ => format!("{label}: no change"),
        }
    });
    format!(
        "The model's output is {} in {}; the base value is {}. What moves it from there: {}.",
        number::compact(*value),
        name(*space),
        number::compact(*base_value),
        moves.collect::<Vec<_>>().join("; ")
    )
}

impl Page {
    /// Draws where the waterfall begins or ends.
    fn end(&mut self, (label, value, number): &(&str, f64, String), column: f64, axis: &Axis) {
        let (x, y) = (axis.x(*value), self.y + ROW / 2.0);
        self.text(EDGE + column, y + TEXT / 3.0, Anchor::End, "soft", label);
        self.draw(format_args!("<circle class=\"mark\" cx=\"{}\" cy=\"{}\" r=\"4\"/>", px(x), px(y)));
        self.text(x + 2.0 * GAP, y + TEXT / 3.0, Anchor::Start, "", number);
        self.y += ROW;
    }

    /// Draws an arrow that points to where the step leads, and links it with what is above.
    fn step(&mut self, step: &Step, column: f64, axis: &Axis) {
        let (from, to) = (axis.x(step.from), axis.x(step.to));
        self.link(to);
        let middle = self.y + ROW / 2.0;
        self.draw_row(&format!("{}: {}", step.label, step.number), |page| {
            page.text(EDGE + column, middle + TEXT / 3.0, Anchor::End, "", &cut(&step.label, column, TEXT));
            let class = match step.value {
                value if value > 0.0 => "up",
                value if value < 0.0 => "down",
                _ => "rest",
            };
            let neck = if to < from { (to + HEAD).min(from) } else { (to - HEAD).max(from) };
            let (top, low) = (middle - BAR / 2.0, middle + BAR / 2.0);
            let [from, neck, tip] = [from, neck, to].map(px);
            let [top, middle_y, low] = [top, middle, low].map(px);
            page.draw(format_args!(
                "<path class=\"{class}\" d=\"M{from} {top}H{neck}L{tip} {middle_y}L{neck} {low}H{from}Z\"/>"
            ));
            let (x, anchor) =
                if step.value < 0.0 { (to - GAP, Anchor::End) } else { (to + GAP, Anchor::Start) };
            page.text(x, middle + TEXT / 3.0, anchor, "", &step.number);
        });
        self.y += ROW;
    }

    /// Links what the row above ends with and the one from here on begins with.
    fn link(&mut self, x: f64) {
        let (top, low) = (self.y - ROW / 2.0 + BAR / 2.0, self.y + ROW / 2.0 - BAR / 2.0);
        self.draw(format_args!("<path class=\"link\" d=\"M{} {}V{}\"/>", px(x), px(top), px(low)));
    }
}

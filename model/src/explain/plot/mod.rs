//! Pictures of explanations: SVG files that load nothing, follow the reader's light or dark theme, and say in words what they show.
//!
//! Their text may come from clients: all of it is escaped. The same input gives the same bytes.

mod bars;
mod number;
mod page;
mod waterfall;

pub use bars::importance_svg;
pub use waterfall::waterfall_svg;

use super::explanation::Space;
use number::Axis;
use page::{Anchor, GAP, Page, ROW, WIDTH, px, width};

/// The name of a space as people write it.
fn name(space: Space) -> &'static str {
    match space {
        Space::LogOdds => "log-odds",
        Space::Margin => "margin",
        Space::Probability => "probability",
        Space::Target => "target",
    }
}

fn features(count: usize) -> String {
    if count == 1 { "1 other feature".into() } else { format!("{count} other features") }
}

impl Page {
    /// Draws the lines and numbers of an axis under `rows` rows from here on; returns where it ends.
    fn axis(&mut self, axis: &Axis, rows: usize, name: &str) -> f64 {
        let (top, bottom) = (self.y, self.y + rows as f64 * ROW + GAP);
        // Of long numbers there is room for few.
        let fits = |ticks: &Vec<number::Tick>| {
            let half = |tick: &number::Tick| width(&tick.label, page::TEXT) / 2.0;
            ticks.windows(2).all(|pair| pair[1].x - pair[0].x > half(&pair[0]) + half(&pair[1]) + 2.0 * GAP)
        };
        let ticks = (1..=6).rev().map(|most| axis.ticks(most)).find(fits).unwrap_or_default();
        for tick in &ticks {
            let x = px(tick.x);
            self.draw(format_args!("<path class=\"line\" d=\"M{x} {}V{}\"/>", px(top), px(bottom)));
            self.text(tick.x, bottom + 17.0, Anchor::Middle, "soft", &tick.label);
        }
        let (left, right) = axis.ends();
        self.draw(format_args!("<path class=\"line\" d=\"M{} {}H{}\"/>", px(left), px(bottom), px(right)));
        self.text((left + right) / 2.0, bottom + 38.0, Anchor::Middle, "soft", name);
        bottom + 38.0
    }
}

/// Where what is drawn of numbers begins and ends: beside labels, with room at either side for numbers.
fn drawing(labels: f64, left: f64, right: f64) -> (f64, f64) {
    let start = page::EDGE + labels + 3.0 * GAP + left;
    (start, (WIDTH - page::EDGE - right - start).max(100.0))
}

#[cfg(test)]
mod tests;

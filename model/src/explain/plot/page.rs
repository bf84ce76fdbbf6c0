//! The page that pictures are drawn on: text that fits and is safe, and a file that needs nothing else.

use std::borrow::Cow;
use std::fmt::{Display, Write};

/// Width of every picture, in its own units.
pub(super) const WIDTH: f64 = 760.0;
/// Room at the edges.
pub(super) const EDGE: f64 = 16.0;
/// Height of a row.
pub(super) const ROW: f64 = 28.0;
/// Height of a row's bar.
pub(super) const BAR: f64 = 18.0;
/// Room between what belongs together.
pub(super) const GAP: f64 = 6.0;
/// Size of most text, as in [`STYLE`].
pub(super) const TEXT: f64 = 13.0;
/// Size of titles, as in [`STYLE`].
const TITLE: f64 = 16.0;
/// The column of labels takes no more.
const LABELS: f64 = 260.0;
/// Characters of a label that is said in full; what a client sent may have millions.
const SAID: usize = 200;

/// Every selector begins with the class of the picture, so that a page around it keeps its own style.
const STYLE: &str = "
.shapley{color-scheme:light dark}
.shapley text{font:13px system-ui,sans-serif;fill:#1c2430}
.shapley .title{font-size:16px;font-weight:600}
.shapley .soft{fill:#5b6675}
.shapley .page{fill:#ffffff}
.shapley .line{stroke:#d5dae1;fill:none}
.shapley .link{stroke:#5b6675;stroke-dasharray:3 3;fill:none}
.shapley .mark{fill:#1c2430;stroke:#1c2430}
.shapley .up{fill:#c4571f;stroke:#c4571f}
.shapley .down{fill:#1f6fc4;stroke:#1f6fc4}
.shapley .rest{fill:#5b6675;stroke:#5b6675}
@media (prefers-color-scheme:dark){
.shapley text{fill:#e6eaf0}
.shapley .soft{fill:#9aa5b4}
.shapley .page{fill:#14181e}
.shapley .line{stroke:#38414e}
.shapley .link{stroke:#9aa5b4}
.shapley .mark{fill:#e6eaf0;stroke:#e6eaf0}
.shapley .up{fill:#f2a065;stroke:#f2a065}
.shapley .down{fill:#6db3f8;stroke:#6db3f8}
.shapley .rest{fill:#9aa5b4;stroke:#9aa5b4}
}
";

/// A picture that is being drawn, from top to bottom.
#[derive(Debug)]
pub(super) struct Page {
    title: String,
    body: String,
    /// Where the next thing goes.
    pub(super) y: f64,
}

/// Which end of a text its place is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Page {
    /// A page with its heading. A second line that is empty is left out.
    pub(super) fn new(title: &str, subtitle: &str) -> Self {
        let mut page = Self { title: said(title), body: String::new(), y: EDGE + TITLE };
        let room = WIDTH - 2.0 * EDGE;
        page.text(EDGE, page.y, Anchor::Start, "title", &cut(title, room, TITLE * 1.08));
        if !subtitle.is_empty() {
            page.y += 21.0;
            page.text(EDGE, page.y, Anchor::Start, "soft", &cut(subtitle, room, TEXT));
        }
        page.y += 12.0;
        page
    }

    /// Draws what is SVG already.
    pub(super) fn draw(&mut self, svg: std::fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(svg);
        self.body.push('\n');
    }

    /// Writes text, whatever it says.
    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.draw(format_args!(
            "<text{class} x=\"{}\" y=\"{}\"{anchor}>{}</text>",
            px(x),
            px(y),
            escape(text)
        ));
    }

    /// Draws a row, which says what it is where a pointer rests on it.
    pub(super) fn draw_row(&mut self, says: &str, draw: impl FnOnce(&mut Self)) {
        self.draw(format_args!("<g><title>{}</title>", escape(&said(says))));
        draw(self);
        self.draw(format_args!("</g>"));
    }

    /// The SVG file; `description` says in words what it shows.
    pub(super) fn finish(self, description: &str) -> String {
        let (width, height) = (px(WIDTH), px(self.y + EDGE));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" version=\"1.1\" class=\"shapley\" role=\"img\" \
             width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
             <title>{}</title>\n<desc>{}</desc>\n<style>{STYLE}</style>\n\
             <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
            escape(&self.title),
            escape(description),
            self.body,
        )
    }
}

/// How wide the column of these labels has to be.
pub(super) fn column<'l>(labels: impl IntoIterator<Item = &'l str>) -> f64 {
    let widths = labels.into_iter().map(|label| width(label, TEXT).min(LABELS));
    widths.fold(60.0, f64::max)
}

/// A coordinate, to a tenth.
pub(super) fn px(number: f64) -> impl Display {
    // Adding zero takes the sign from what rounds to -0.
    (number * 10.0).round() / 10.0 + 0.0
}

/// Text as it stands between tags and in quotes. What XML cannot say, and what would turn the direction of text, is replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\u{fffe}'
            | '\u{ffff}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                escaped.push(char::REPLACEMENT_CHARACTER);
            }
            _ if character.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// About how wide text of some size is, more rather than less: fonts differ.
pub(super) fn width(text: &str, size: f64) -> f64 {
    text.chars().map(em).sum::<f64>() * size
}

fn em(character: char) -> f64 {
    match character {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' => 0.32,
        ' ' | 'f' | 'r' | 't' | '(' | ')' | '[' | ']' | '-' | '/' => 0.42,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '…' => 1.0,
        '=' | '+' | '−' | '±' | '<' | '>' | '~' => 0.8,
        'A'..='Z' | '&' | '#' => 0.75,
        _ if character < '\u{1100}' => 0.63,
        // Ideographs, syllables and pictures.
        _ => 1.05,
    }
}

/// As much of a text as there is room for, two thirds of its beginning and one of its end, with an ellipsis between them: long
/// names often differ at their ends.
pub(super) fn cut(text: &str, room: f64, size: f64) -> Cow<'_, str> {
    // What has no room is not measured to its end.
    let mut used = 0.0;
    if text.chars().all(|character| {
        used += em(character) * size;
        used <= room
    }) {
        return Cow::Borrowed(text);
    }
    let room = room - em('…') * size;
    let fitting = |characters: &mut dyn Iterator<Item = char>, room: f64| -> usize {
        let mut used = 0.0;
        let fits = |character: &char| {
            used += em(*character) * size;
            used <= room
        };
        characters.take_while(fits).map(char::len_utf8).sum()
    };
    let start = &text[..fitting(&mut text.chars(), room * 2.0 / 3.0)];
    let end = &text[text.len() - fitting(&mut text.chars().rev(), room / 3.0)..];
    Cow::Owned(format!("{}…{}", start.trim_end(), end.trim_start()))
}

/// A label where it is said, not drawn.
pub(super) fn said(label: &str) -> String {
    match label.char_indices().nth(SAID) {
        Some((end, _)) => format!("{}…", &label[..end]),
        None => label.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(escape("<a href='x'>&\"</a>"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;&lt;/a&gt;");
        assert_eq!(escape("a\0b\u{1b}c\u{202e}d\u{ffff}e\nf"), "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e f");
    }

    #[test]
    fn what_is_cut_fits() {
        for text in [
            "plan_tier = pro",
            "WWWWWWWWWWWWWWWWWW",
            "漢字漢字漢字漢字漢字漢字",
            "iiiiiiiiiiiiiiiiiiiiiiiiiiii",
        ] {
            for room in [0.0, 10.0, 60.0, 100.0, 1_000.0] {
                let cut = cut(text, room, TEXT);
                assert!(width(&cut, TEXT) <= room.max(TEXT), "{cut} in {room}");
                assert_eq!(cut == text, width(text, TEXT) <= room, "{cut} in {room}");
                if let Some((start, end)) = cut.split_once('…') {
                    assert!(text.starts_with(start) && text.ends_with(end), "{cut} is of {text}");
                }
            }
        }
        assert_eq!(said(&"x".repeat(200)).chars().count(), 200);
        assert_eq!(said(&"é".repeat(1_000)).chars().count(), 201);
    }

    #[test]
    fn coordinates_have_no_negative_zero() {
        assert_eq!([-0.04, 0.04, 1.25, -3.0].map(|number| px(number).to_string()), ["0", "0", "1.3", "-3"]);
    }
}

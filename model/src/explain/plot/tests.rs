//! The files are well-formed, say what they show, and are safe whatever clients send.

use super::*;
use crate::explain::importance::{FeatureImportance, Importance};
use crate::explain::{Explanation, Method};

/// One element of a picture.
#[derive(Debug)]
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    /// What stands directly in it.
    text: String,
}

impl Element {
    fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    fn number(&self, name: &str) -> f64 {
        self.attribute(name).parse().unwrap()
    }
}

/// Reads the part of XML that pictures are written in, and takes nothing else: elements, quoted attributes, text, the five
/// entities that need no declaration.
fn parse(svg: &str) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut rest = svg;
    while !rest.is_empty() {
        let (text, tag) = rest.split_once('<').unwrap_or((rest, ""));
        match open.last() {
            Some(at) => elements[*at].text.push_str(&unescape(text)),
            None => assert!(text.trim().is_empty(), "text outside: {text:?}"),
        }
        if tag.is_empty() {
            break;
        }
        let (tag, after) = tag.split_once('>').unwrap();
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            let at = open.pop().unwrap();
            assert_eq!(elements[at].name, name, "the element that is open is closed");
            continue;
        }
        let is_empty = tag.ends_with('/');
        let tag = tag.strip_suffix('/').unwrap_or(tag);
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase()), "the element {name:?}");
        let mut read = Vec::new();
        while !attributes.is_empty() {
            let (key, quoted) = attributes.split_once("=\"").unwrap();
            let (value, after) = quoted.split_once('"').unwrap();
            assert!(
                key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
                "the attribute {key:?}"
            );
            assert!(read.iter().all(|(found, _)| found != key), "the attribute {key} comes once");
            read.push((key.to_owned(), unescape(value)));
            attributes = after.strip_prefix(' ').unwrap_or(after);
            assert!(attributes.len() < after.len() || after.is_empty(), "a space between attributes");
        }
        assert!(!open.is_empty() || elements.is_empty(), "one element around all");
        elements.push(Element { name: name.into(), attributes: read, text: String::new() });
        if !is_empty {
            open.push(elements.len() - 1);
        }
    }
    assert!(open.is_empty(), "all elements are closed");
    elements
}

fn unescape(text: &str) -> String {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (entity, after) = part.split_once(';').unwrap();
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "#39" => '\'',
            _ => panic!("the entity {entity:?}"),
        });
        plain.push_str(after);
    }
    assert!(plain.chars().all(|character| character == '\n' || !character.is_control()), "{plain:?}");
    plain
}

/// Reads a picture, and checks what holds for all of them.
fn picture(svg: &str) -> Vec<Element> {
    let elements = parse(svg);
    let root = &elements[0];
    assert_eq!((root.name.as_str(), root.attribute("role")), ("svg", "img"));
    let [title, description] = [&elements[1], &elements[2]];
    assert_eq!((title.name.as_str(), description.name.as_str()), ("title", "desc"));
    assert_eq!(
        root.attribute("viewBox"),
        format!("0 0 {} {}", root.attribute("width"), root.attribute("height"))
    );
    let (width, height) = (root.number("width"), root.number("height"));
    let known = ["svg", "title", "desc", "style", "rect", "g", "text", "path", "circle"];
    for element in &elements {
        assert!(known.contains(&element.name.as_str()), "{element:?}");
        for (name, value) in &element.attributes {
            assert!(!name.starts_with("on") && !name.contains("href"), "{element:?}");
            assert!(!value.contains("NaN") && !value.contains("inf") && !value.contains('−'), "{element:?}");
            if ["x", "y", "cx", "cy"].contains(&name.as_str()) {
                let (place, most) = (element.number(name), if name.ends_with('x') { width } else { height });
                assert!((0.0..=most).contains(&place), "{element:?}");
            }
        }
        if element.name == "text" {
            let (x, size) =
                (element.number("x"), if element.attribute("class") == "title" { 17.28 } else { 13.0 });
            let drawn = page::width(&element.text, size);
            let (from, to) = match element.attribute("text-anchor") {
                "end" => (x - drawn, x),
                "middle" => (x - drawn / 2.0, x + drawn / 2.0),
                _ => (x, x + drawn),
            };
            assert!(from >= 0.0 && to <= width, "{element:?} is drawn from {from} to {to}");
        }
    }
    for outside in ["http:", "https:", "url(", "@import", "<script", "data:", "javascript:"] {
        let svg = svg.replacen("http://www.w3.org/2000/svg", "", 1);
        assert!(!svg.contains(outside), "it loads nothing: {outside}");
    }
    elements
}

fn texts(elements: &[Element]) -> Vec<&str> {
    elements.iter().filter(|element| element.name == "text").map(|element| element.text.as_str()).collect()
}

fn explanation(base_value: f64, values: &[f64]) -> Explanation {
    Explanation {
        method: Method::Linear,
        stepped_down_from: None,
        space: Space::LogOdds,
        class: Some(1),
        base_value,
        value: base_value + values.iter().sum::<f64>(),
        values: values.to_vec(),
        standard_errors: None,
        background_rows: 100,
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("feature_{at} = {at}")).collect()
}

fn importance(means: &[f64]) -> Importance {
    let features = means.iter().enumerate();
    Importance {
        space: Space::LogOdds,
        method: Method::TreeInterventional,
        rows: 14_000,
        base_value: Some(-1.32),
        features: features
            .map(|(at, mean)| FeatureImportance { name: format!("feature_{at}"), mean_absolute: *mean })
            .collect(),
    }
}

#[test]
fn a_waterfall_leads_from_the_base_to_the_output() {
    let values = [-0.5, 0.25, 0.125, 1.0, 0.0, -0.0625];
    let explanation = explanation(-1.5, &values);
    let svg = waterfall_svg("churn", "2026-05-17_01", &explanation, &names(6), 4);
    let elements = picture(&svg);
    let texts = texts(&elements);
    let order: Vec<&str> =
        texts.iter().copied().filter(|text| text.contains('=') || text.contains("other")).collect();
    assert_eq!(
        order,
        [
            "f(x) = −0.688",
            "feature_3 = 3",
            "feature_0 = 0",
            "feature_1 = 1",
            "feature_2 = 2",
            "2 other features",
            "E[f(x)] = −1.5"
        ]
    );
    let numbers: Vec<&str> = texts.iter().copied().filter(|text| text.starts_with('+')).collect();
    assert_eq!(numbers, ["+1", "+0.25", "+0.125"]);
    assert!(texts.contains(&"−0.5") && texts.contains(&"−0.0625") && texts.contains(&"log-odds"));
    // Arrows point to where they lead, and begin where the one below ends.
    let arrows: Vec<(f64, f64)> = elements
        .iter()
        .filter(|element| ["up", "down"].contains(&element.attribute("class")))
        .map(|element| {
            let path = element.attribute("d");
            let from = path[1..].split(' ').next().unwrap().parse().unwrap();
            let tip: f64 = path.split_once('L').unwrap().1.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(tip > from, element.attribute("class") == "up");
            (from, tip)
        })
        .collect();
    assert_eq!(arrows.len(), 5);
    assert!(arrows.windows(2).all(|pair| pair[0].0 == pair[1].1), "{arrows:?}");
    let marks: Vec<f64> = elements
        .iter()
        .filter(|element| element.name == "circle")
        .map(|element| element.number("cx"))
        .collect();
    assert_eq!(marks, [arrows[0].1, arrows[4].0]);
    assert_eq!(
        elements[2].text,
        "The model's output is −0.688 in log-odds; the base value is −1.5. What moves it from there: feature_3 = 3: up by 1; \
         feature_0 = 0: down by 0.5; feature_1 = 1: up by 0.25; feature_2 = 2: up by 0.125; 2 other features: down by 0.0625."
    );
    assert_eq!(svg, waterfall_svg("churn", "2026-05-17_01", &explanation, &names(6), 4), "the same bytes");
}

#[test]
fn what_clients_send_stays_text() {
    let hostile = "plan = <script>alert(1)</script>\"'&amp;\0\u{202e}]]><!--";
    let labels = [hostile.to_owned(), "x".repeat(1_000_000)];
    let svg = waterfall_svg(hostile, hostile, &explanation(0.0, &[1.0, -1.0]), &labels, 10);
    assert!(svg.len() < 20_000, "{} bytes", svg.len());
    let elements = picture(&svg);
    assert!(elements[1].text.starts_with("plan = <script>alert(1)</script>\"'&amp;\u{fffd}"));
    assert!(texts(&elements).iter().any(|text| text.starts_with("xxx") && text.contains("x…x")));

    let mut importance = importance(&[1.0]);
    importance.features[0].name = hostile.into();
    let elements = picture(&importance_svg(hostile, &importance));
    assert!(elements.iter().any(|element| element.name == "title" && element.text.ends_with("<!--: 1")));
}

#[test]
fn bars_are_sorted_and_the_rest_is_one() {
    let means: Vec<f64> = (0..40).map(|at| f64::from((at * 7) % 40)).collect();
    let svg = importance_svg("churn 2026-05-17_01", &importance(&means));
    let elements = picture(&svg);
    let bars: Vec<&Element> =
        elements.iter().filter(|element| ["down", "rest"].contains(&element.attribute("class"))).collect();
    assert_eq!((bars.len(), bars[20].attribute("class")), (21, "rest"));
    assert!(bars[..20].windows(2).all(|pair| pair[0].number("width") > pair[1].number("width")));
    // Bars are as long as their numbers say, from one zero.
    let unit = bars[0].number("width") / 39.0;
    for (at, bar) in bars[..20].iter().enumerate() {
        assert!((bar.number("width") - (39 - at) as f64 * unit).abs() < 0.2, "bar {at}");
        assert_eq!(bar.attribute("x"), bars[0].attribute("x"));
    }
    let texts = texts(&elements);
    assert!(texts.contains(&"mean absolute Shapley value over 14,000 rows, by interventional TreeSHAP"));
    // 0 + 1 + … + 19.
    let others = texts.iter().position(|text| *text == "20 other features together").unwrap();
    assert_eq!(texts[others + 1], "190");
    assert!(
        elements[2]
            .text
            .starts_with("Mean absolute Shapley values in log-odds over 14,000 rows: feature_17 39; ")
    );
    assert!(elements[2].text.ends_with("20 other features together 190."));
    assert_eq!(svg, importance_svg("churn 2026-05-17_01", &importance(&means)), "the same bytes");
}

#[test]
fn no_number_breaks_a_picture() {
    let odd = [
        0.0,
        -0.0,
        1e-9,
        -1e-9,
        1e9,
        -1e9,
        1e300,
        -1e300,
        f64::MAX,
        f64::MIN,
        5e-324,
        f64::NAN,
        f64::INFINITY,
    ];
    for base in odd {
        for value in odd {
            let mut explanation = explanation(base, &[value, -value, base]);
            let svg = waterfall_svg("t", "", &explanation, &names(2), 2);
            assert!(texts(&picture(&svg)).contains(&"1 other feature"));
            explanation.standard_errors = Some(vec![value.abs(); 3]);
            explanation.space = Space::Target;
            picture(&waterfall_svg("t", "s", &explanation, &[], 0));
            picture(&waterfall_svg("t", "s", &explanation, &[], 10));
            picture(&importance_svg("t", &importance(&[base.abs(), value.abs()])));
        }
    }
    for count in [0, 1, 2, 11, 40] {
        picture(&waterfall_svg("t", "s", &explanation(1e9, &vec![-1e-3; count]), &names(count), 10));
        picture(&importance_svg("t", &importance(&vec![0.0; count])));
    }
}

#[test]
fn sampled_values_say_how_sure_they_are() {
    let mut sampled = explanation(0.5, &[0.25, -0.125]);
    sampled.standard_errors = Some(vec![0.01, 0.002]);
    let svg = waterfall_svg("t", "", &sampled, &names(2), 10);
    let elements = picture(&svg);
    assert!(texts(&elements).contains(&"+0.25 ±0.01") && texts(&elements).contains(&"−0.125 ±0.002"));
}

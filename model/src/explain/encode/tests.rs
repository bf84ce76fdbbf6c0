//! Categories of many values.

use super::*;
use crate::explain::linear::{Linear, LinearForm};

/// A category of so many values, one column of 0 and 1 for each.
fn one_hot(values: u32) -> Encoder {
    let fill = Fill::OneHot { columns: values as usize };
    let part = Part { feature: 0, element: Element::Float32, fill, is_optional: false };
    let mut steps = Steps { parts: vec![part], all: Vec::new() };
    let columns: Vec<Id> =
        (0..values).map(|at| steps.push(Step::Feature { part: 0, at }, Element::Float32).unwrap()).collect();
    Encoder::new(&steps, &columns)
}

fn rows(codes: &[u32]) -> FeatureRows {
    let column = CategoryColumn { codes: codes.to_vec(), others: vec!["stranger".into()] };
    let mut rows = FeatureRows::default();
    (rows.columns, rows.indices) = (vec![Column::Category(column)], (0..codes.len() as u32).collect());
    rows
}

#[test]
fn many_values_take_memory_for_each_of_them_once() {
    for values in [1_000, 20_000] {
        let encoder = one_hot(values).with_listed();
        let codes = [0, 7, values - 1, values];
        let encoded = encoder.encode_all(&rows(&codes));
        for (code, line) in codes.iter().zip(encoded.chunks_exact(values as usize)) {
            let hot: Vec<usize> = (0..line.len()).filter(|at| line[*at] != 0.0).collect();
            let expected: Vec<usize> = (*code < values).then_some(*code as usize).into_iter().collect();
            assert_eq!(hot, expected);
            assert!(hot.iter().all(|at| line[*at] == 1.0));
        }
        let bytes = encoder.bytes();
        let (least, most) = (values as usize * size_of::<Step>(), values as usize * 200);
        assert!((least..most).contains(&bytes), "{values} values take {bytes} bytes");
    }
}

#[test]
fn linear_margins_over_many_values_are_explained() {
    for values in [1_000, 20_000] {
        let coefficients = (0..2 * values).map(f64::from).collect();
        let form = LinearForm { encoder: one_hot(values), coefficients, intercepts: vec![1.0, 2.0] };
        let linear = Linear::new(form, 1, &rows(&[1, 3]));
        for (code, part) in [(0, 0.0), (9, 9.0), (values - 1, f64::from(values - 1)), (values, 0.0)] {
            let mut value = [0.0];
            assert_eq!(linear.explain(&rows(&[code]), 0, 0, &mut value), (3.0, 1.0 + part));
            assert_eq!(value, [part - 2.0]);
            let (first, second) = (f64::from(values), if code < values { part } else { -f64::from(values) });
            let (base, margin) = linear.explain(&rows(&[code]), 0, 1, &mut value);
            assert_eq!((base, margin, value), (4.0 + first, 2.0 + first + second, [second - 2.0]));
        }
        let bytes = linear.bytes();
        // Two coefficients each, at least, and what comes before them.
        let (least, most) = (values as usize * 16, values as usize * 200);
        assert!((least..most).contains(&bytes), "{values} values take {bytes} bytes");
    }
}

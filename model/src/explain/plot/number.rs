//! Numbers as people read them, and axes with round ones.

/// Beyond these, numbers are not drawn, so that differences and quotients of them are finite.
const GREATEST: f64 = 1e300;
const LEAST_SPAN: f64 = 1e-290;

/// A number with three significant digits, or with all of those before the point if it has up to six; "−" stands for minus.
pub(super) fn compact(number: f64) -> String {
    let exponent = exponent(number);
    let text = if !number.is_finite() || number == 0.0 {
        match number {
            f64::INFINITY => "∞".into(),
            f64::NEG_INFINITY => "-∞".into(),
            _ if number.is_nan() => "NaN".into(),
            _ => "0".into(),
        }
    } else if (-3..=5).contains(&exponent) {
        fixed(number, 2 - exponent)
    } else {
        scientific(number, 2)
    };
    text.replace('-', "−")
}

/// As [`compact`], with a plus before what is above zero.
pub(super) fn signed(number: f64) -> String {
    if number > 0.0 { format!("+{}", compact(number)) } else { compact(number) }
}

/// A count with commas between thousands.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The power of ten of the first digit, after rounding to three digits.
fn exponent(number: f64) -> i32 {
    let text = format!("{number:.2e}");
    text.rsplit_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0)
}

/// Without an exponent, and without zeros at the end of decimals.
fn fixed(number: f64, decimals: i32) -> String {
    let decimals = usize::try_from(decimals).unwrap_or(0);
    trimmed(&format!("{number:.decimals$}")).to_owned()
}

/// With an exponent, and without zeros at the end of decimals.
fn scientific(number: f64, decimals: i32) -> String {
    let decimals = usize::try_from(decimals).unwrap_or(0);
    let text = format!("{number:.decimals$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{exponent}", trimmed(mantissa))
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// A range of numbers drawn from left to right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    /// Where the range begins in a picture, and how wide it is there.
    left: f64,
    width: f64,
}

/// A number that an axis names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) x: f64,
    pub(super) label: String,
}

impl Axis {
    /// From the least to the greatest of `numbers`; some room around where these are the same.
    pub(super) fn over(numbers: impl IntoIterator<Item = f64>, left: f64, width: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for number in numbers.into_iter().map(drawn) {
            (low, high) = (low.min(number), high.max(number));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let greatest = low.abs().max(high.abs());
        // Nearer than this, double precision hardly tells them apart.
        if high - low < (greatest * 1e-12).max(LEAST_SPAN) {
            let room = if greatest * 0.1 < LEAST_SPAN { 1.0 } else { greatest * 0.1 };
            (low, high) = (low - room, high + room);
        }
        Self { low, high, left, width }
    }

    /// From zero to the greatest of `numbers`.
    pub(super) fn from_zero(numbers: impl IntoIterator<Item = f64>, left: f64, width: f64) -> Self {
        let mut axis = Self::over(numbers.into_iter().chain([0.0]), left, width);
        if axis.low < 0.0 {
            (axis.low, axis.high) = (0.0, 1.0);
        }
        axis
    }

    /// Where a number is drawn.
    pub(super) fn x(&self, number: f64) -> f64 {
        let share = (drawn(number) - self.low) / (self.high - self.low);
        self.left + self.width * share.clamp(0.0, 1.0)
    }

    /// Where it begins and ends in a picture.
    pub(super) fn ends(&self) -> (f64, f64) {
        (self.left, self.left + self.width)
    }

    /// At most `most` + 1 round numbers of the range, ascending.
    pub(super) fn ticks(&self, most: usize) -> Vec<Tick> {
        let rough = (self.high - self.low) / most.max(1) as f64;
        let text = format!("{rough:e}");
        let power: i32 = text.rsplit_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
        // Read from text, a power of ten is the nearest number on every machine.
        let times = |digit: u8, power: i32| format!("{digit}e{power}").parse::<f64>().unwrap_or(1.0);
        let steps = [(1, power), (2, power), (5, power), (1, power + 1)];
        let (digit, power) =
            steps.into_iter().find(|(digit, power)| times(*digit, *power) >= rough).unwrap_or(steps[3]);
        let step = times(digit, power);
        // Quotients are rounded: an end that is a round number counts.
        let near = step * 1e-9;
        let first = ((self.low - near) / step).ceil();
        let is_short = power >= -5 && self.low.abs().max(self.high.abs()) < 1e6;
        let numbers =
            (0..=most).map(|at| (first + at as f64) * step).take_while(|number| *number <= self.high + near);
        let tick = |number: f64| {
            let label = if number == 0.0 {
                "0".into()
            } else if is_short {
                fixed(number, -power)
            } else {
                scientific(number, exponent(number) - power)
            };
            Tick { x: self.x(number), label: label.replace('-', "−") }
        };
        numbers.map(tick).collect()
    }
}

/// The number that stands for one in a picture.
fn drawn(number: f64) -> f64 {
    if number.is_nan() { 0.0 } else { number.clamp(-GREATEST, GREATEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right_at_every_scale() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (0.5, "0.5"),
            (-1.324, "−1.32"),
            (9.999, "10"),
            (0.099_96, "0.1"),
            (0.001_234, "0.00123"),
            (0.000_999_6, "0.001"),
            (0.000_999_4, "9.99e−4"),
            (214.0, "214"),
            (12_345.6, "12346"),
            (999_499.0, "999499"),
            (999_999.7, "1e6"),
            (-1_234_567.0, "−1.23e6"),
            (1e9, "1e9"),
            (1e-9, "1e−9"),
            (-2.5e-9, "−2.5e−9"),
            (f64::MAX, "1.8e308"),
            (5e-324, "4.94e−324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "−∞"),
        ];
        for (number, expected) in cases {
            assert_eq!(compact(number), expected, "{number:e}");
        }
        assert_eq!([0.25, -0.25, 0.0, f64::INFINITY].map(signed), ["+0.25", "−0.25", "0", "+∞"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn ticks_are_round_and_within_the_range() {
        let labels = |low: f64, high: f64, most: usize| -> Vec<String> {
            let ticks = Axis::over([low, high], 100.0, 200.0).ticks(most);
            assert!(ticks.iter().all(|tick| (100.0..=300.0).contains(&tick.x)), "{ticks:?}");
            assert!(ticks.windows(2).all(|pair| pair[0].x < pair[1].x), "{ticks:?}");
            assert!(ticks.len() <= most + 1, "{ticks:?}");
            ticks.into_iter().map(|tick| tick.label).collect()
        };
        assert_eq!(labels(0.0, 1.0, 5), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(-1.3, 0.4, 4), ["−1", "−0.5", "0"]);
        assert_eq!(labels(0.0, 3e-9, 3), ["0", "1e−9", "2e−9", "3e−9"]);
        assert_eq!(labels(-2e9, 2e9, 4), ["−2e9", "−1e9", "0", "1e9", "2e9"]);
        assert_eq!(labels(995.0, 1_012.0, 4), ["995", "1000", "1005", "1010"]);
        assert_eq!(labels(1e9, 1e9 + 10.0, 2), ["1e9", "1.000000005e9", "1.00000001e9"]);
        assert_eq!(labels(1e9, 1e9 + 0.01, 2), ["1e9", "1.000000000005e9", "1.00000000001e9"]);
        assert_eq!(labels(3.0, 3.0, 4), ["2.8", "3", "3.2"]);
        assert_eq!(labels(9.5e6, 1.05e7, 2), ["9.5e6", "1e7", "1.05e7"]);
        for (low, high) in [(3.0, 3.0), (0.0, 0.0), (-1e300, 1e300), (f64::MIN, f64::MAX), (0.0, 5e-324)] {
            assert!(!labels(low, high, 4).is_empty(), "{low:e} to {high:e}");
        }
        assert!(!labels(f64::NAN, f64::INFINITY, 4).is_empty());
    }
}

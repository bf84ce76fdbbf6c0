//! Simulated churn customers whose true probability of leaving is known.
//!
//! The truth is linear in log-odds but for one interaction, which a logistic regression on the plain features cannot learn;
//! [`Customer::log_odds`] is that function.

use std::io::{self, Write};

use scoregate_model::random::Random;

/// How many rows to draw, and how.
#[derive(Debug, Clone, Copy)]
pub struct Simulation {
    /// Number of rows.
    pub rows: usize,
    /// Seed of every draw.
    pub seed: u64,
    /// The probability, from 0 to 1, that a feature's cell is empty (each on its own; identifiers and outcomes never are).
    pub missing_rate: f64,
}

/// One simulated customer.
#[derive(Debug, Clone, PartialEq)]
pub struct Customer {
    /// Days since the first subscription, 1 to 3,650.
    pub tenure_days: u32,
    /// Monthly spend in US dollars, two decimals.
    pub monthly_spend: f64,
    /// Support tickets of the last 30 days.
    pub support_tickets: u32,
    /// `basic`, `pro` or `business`.
    pub plan_tier: &'static str,
    /// ISO 3166 code, two letters.
    pub country: &'static str,
    /// Hours since the last login, one decimal, up to 2,160 (90 days).
    pub last_login_hours: f64,
}

/// Plans with their share, the median of monthly spend in US dollars and their part of the log-odds.
const PLANS: [(&str, f64, f64, f64); 3] =
    [("basic", 0.52, 19.0, 0.35), ("pro", 0.33, 49.0, 0.0), ("business", 0.15, 149.0, -0.55)];

/// Countries with their relative frequency (a long tail) and their part of the log-odds.
const COUNTRIES: [(&str, f64, f64); 20] = [
    ("US", 400.0, 0.0),
    ("DE", 120.0, -0.15),
    ("GB", 100.0, 0.05),
    ("FR", 75.0, 0.0),
    ("BR", 60.0, 0.4),
    ("IN", 50.0, 0.3),
    ("CA", 40.0, -0.05),
    ("AU", 30.0, -0.1),
    ("JP", 25.0, -0.4),
    ("MX", 20.0, 0.25),
    ("ES", 18.0, 0.1),
    ("IT", 15.0, 0.1),
    ("NL", 12.0, -0.2),
    ("SE", 10.0, -0.25),
    ("PL", 8.0, 0.0),
    ("ZA", 6.0, 0.2),
    ("NG", 4.0, 0.35),
    ("KR", 3.0, -0.3),
    ("TR", 2.0, 0.3),
    ("AR", 2.0, 0.45),
];

/// Header of the CSV that [`write()`] produces.
pub const COLUMNS: [&str; 8] = [
    "customer_id",
    "tenure_days",
    "monthly_spend",
    "support_tickets_30d",
    "plan_tier",
    "country",
    "last_login_hours",
    "churned",
];

impl Customer {
    fn draw(random: &mut Random) -> Self {
        let (plan_tier, _, median_spend, _) = *pick(random, &PLANS, |plan| plan.1);
        let (country, _, _) = *pick(random, &COUNTRIES, |country| country.1);
        let tenure_days = (1.0 - 420.0 * (1.0 - random.uniform()).ln()).clamp(1.0, 3650.0) as u32;
        let spend = median_spend * (0.35 * random.normal()).exp();
        let busy = (0.6 * random.normal()).exp();
        let hours = (30.0 * (1.3 * random.normal()).exp()).min(2160.0);
        Self {
            tenure_days,
            monthly_spend: (spend * 100.0).round() / 100.0,
            support_tickets: poisson(random, 0.8 * busy),
            plan_tier,
            country,
            last_login_hours: (hours * 10.0).round() / 10.0,
        }
    }

    /// The true log-odds of leaving within 30 days, a known function of the features alone.
    ///
    /// Six terms are additive. The seventh is the interaction: support tickets weigh more in the first half year.
    pub fn log_odds(&self) -> f64 {
        let plan = PLANS.iter().find(|plan| plan.0 == self.plan_tier).map_or(0.0, |plan| plan.3);
        let country =
            COUNTRIES.iter().find(|country| country.0 == self.country).map_or(0.0, |country| country.2);
        let tickets = f64::from(self.support_tickets);
        let new = if self.tenure_days <= 180 { 1.0 } else { 0.0 };
        INTERCEPT - 0.0021 * f64::from(self.tenure_days)
            + 0.004 * self.monthly_spend
            + 0.25 * tickets
            + plan
            + country
            + 0.0045 * self.last_login_hours
            + 0.35 * tickets * new
    }

    /// The true probability of leaving.
    pub fn probability(&self) -> f64 {
        1.0 / (1.0 + (-self.log_odds()).exp())
    }

    /// The cells of the six features, in the order of [`COLUMNS`].
    fn cells(&self) -> [String; 6] {
        [
            self.tenure_days.to_string(),
            self.monthly_spend.to_string(),
            self.support_tickets.to_string(),
            self.plan_tier.to_owned(),
            self.country.to_owned(),
            self.last_login_hours.to_string(),
        ]
    }
}

/// Chosen so that about one customer in five leaves.
const INTERCEPT: f64 = -1.75;

fn pick<'a, T>(random: &mut Random, items: &'a [T], weight: impl Fn(&T) -> f64) -> &'a T {
    let mut left = random.uniform() * items.iter().map(&weight).sum::<f64>();
    for item in items {
        left -= weight(item);
        if left < 0.0 {
            return item;
        }
    }
    &items[items.len() - 1]
}

/// A Poisson number (Knuth 1969): how many uniform factors it takes to fall below e^−mean.
fn poisson(random: &mut Random, mean: f64) -> u32 {
    let limit = (-mean).exp();
    let mut product = random.uniform();
    let mut count = 0;
    while product > limit && count < 100 {
        product *= random.uniform();
        count += 1;
    }
    count
}

/// Draws customers and writes them as CSV, and to `truth`, if given, `customer_id,log_odds,probability` of each.
///
/// The same simulation gives the same bytes. Features, missing cells and outcomes are drawn from separate sequences, so that
/// another missing rate empties cells of the same customers.
///
/// # Errors
/// If writing fails.
pub fn write(
    simulation: Simulation,
    data: &mut dyn Write,
    mut truth: Option<&mut dyn Write>,
) -> io::Result<()> {
    let mut features = Random::new(simulation.seed, "features");
    let mut missing = Random::new(simulation.seed, "missing");
    let mut outcomes = Random::new(simulation.seed, "outcomes");
    writeln!(data, "{}", COLUMNS.join(","))?;
    if let Some(truth) = &mut truth {
        writeln!(truth, "customer_id,log_odds,probability")?;
    }
    for row in 1..=simulation.rows {
        let customer = Customer::draw(&mut features);
        let mut cells = customer.cells();
        for cell in &mut cells {
            if missing.uniform() < simulation.missing_rate {
                cell.clear();
            }
        }
        let churned = u8::from(outcomes.uniform() < customer.probability());
        writeln!(data, "c-{row:07},{},{churned}", cells.join(","))?;
        if let Some(truth) = &mut truth {
            writeln!(truth, "c-{row:07},{},{}", customer.log_odds(), customer.probability())?;
        }
    }
    data.flush()?;
    truth.map_or(Ok(()), |truth| truth.flush())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulated(rows: usize, seed: u64, missing_rate: f64) -> (String, String) {
        let (mut data, mut truth) = (Vec::new(), Vec::new());
        write(Simulation { rows, seed, missing_rate }, &mut data, Some(&mut truth)).unwrap();
        (String::from_utf8(data).unwrap(), String::from_utf8(truth).unwrap())
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        assert_eq!(simulated(500, 42, 0.1), simulated(500, 42, 0.1));
        assert_ne!(simulated(500, 42, 0.1), simulated(500, 43, 0.1));
    }

    #[test]
    fn one_customer_in_five_leaves_as_often_as_the_truth_says() {
        let (data, truth) = simulated(20_000, 42, 0.0);
        let churned = data.lines().filter(|line| line.ends_with(",1")).count() as f64 / 20_000.0;
        let expected: f64 = truth
            .lines()
            .skip(1)
            .map(|line| line.rsplit(',').next().and_then(|cell| cell.parse::<f64>().ok()).unwrap())
            .sum::<f64>()
            / 20_000.0;
        assert!((0.18..0.22).contains(&expected), "{expected}");
        // Three standard errors of a share of 0.2 over 20,000 rows.
        assert!((churned - expected).abs() < 0.0085, "{churned} against {expected}");
    }

    #[test]
    fn missing_cells_leave_the_customers_as_they_were() {
        let (whole, truth) = simulated(2_000, 7, 0.0);
        let (gaps, same_truth) = simulated(2_000, 7, 0.1);
        assert_eq!(truth, same_truth);
        let mut empty = 0;
        for (whole, gaps) in whole.lines().zip(gaps.lines()) {
            for (cell, gap) in whole.split(',').zip(gaps.split(',')) {
                empty += usize::from(gap.is_empty());
                assert!(gap.is_empty() || gap == cell);
            }
        }
        // 12,000 cells at 0.1: three standard errors are 99.
        assert!((1_101..1_299).contains(&empty), "{empty}");
    }

    #[test]
    fn countries_have_a_long_tail() {
        let (data, _) = simulated(20_000, 42, 0.0);
        let count =
            |country: &str| data.lines().filter(|line| line.contains(&format!(",{country},"))).count();
        assert!(count("US") > 7_000 && count("AR") < 120 && count("AR") > 10);
        assert!(COUNTRIES.iter().all(|(country, _, _)| count(country) > 0));
    }
}

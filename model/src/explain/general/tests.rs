//! Against Shapley's definition: every order of features, on rows that are put together as JSON.

use std::collections::HashSet;
use std::time::Duration;

use scoregate_schemas::feature_schema::FeatureSchema;
use scoregate_schemas::manifest::Bindings;
use serde_json::{Map, Value, json};

use super::*;
use crate::runtime::{MAX_ROWS_PER_RUN, OutputFault};

/// How far a value may be from the definition's.
const TOLERANCE: f64 = 1e-12;

/// A model: from what each feature is to a number.
type Game = dyn Fn(&[f64]) -> f64;

/// Rows of a schema, as JSON and as read.
struct Table {
    reader: RowReader,
    json: Vec<Map<String, Value>>,
    rows: FeatureRows,
}

impl Table {
    /// `count` random rows of `features` features of all kinds.
    fn random(random: &mut Random, features: usize, count: usize) -> Self {
        let properties: Map<String, Value> = (0..features)
            .map(|at| {
                let property = match at % 4 {
                    0 => json!({"type": ["number", "null"], "x-scoregate": {"missing": "pass"}}),
                    1 => {
                        json!({"type": "string", "enum": ["a", "b", "c"], "x-scoregate": {"unknown": "pass"}})
                    }
                    2 => json!({"type": "boolean"}),
                    _ => json!({"type": "string", "x-scoregate": {"missing": "pass"}}),
                };
                (format!("f{at}"), property)
            })
            .collect();
        let mut draw = |at: usize| match at % 4 {
            0 => [json!(null), json!(0.0), json!(-0.0), json!(1.5), json!(-2), json!(random.normal())]
                [random.below(6)]
            .clone(),
            1 => json!(["a", "b", "c", "unlisted", "other"][random.below(5)]),
            2 => json!(random.below(2) == 1),
            _ => [json!(null), json!("x"), json!("y"), json!("z")][random.below(4)].clone(),
        };
        let rows = (0..count).map(|_| (0..features).map(|at| (format!("f{at}"), draw(at))).collect());
        Self::new(properties, rows.collect())
    }

    /// `count` rows of numbers that are all different.
    fn numbers(random: &mut Random, features: usize, count: usize) -> Self {
        let properties = (0..features).map(|at| (format!("f{at}"), json!({"type": "number"}))).collect();
        let rows =
            (0..count).map(|_| (0..features).map(|at| (format!("f{at}"), json!(random.normal()))).collect());
        Self::new(properties, rows.collect())
    }

    fn new(properties: Map<String, Value>, json: Vec<Map<String, Value>>) -> Self {
        let schema = FeatureSchema::from_document(json!({"properties": properties})).unwrap();
        let reader = RowReader::new(&schema, &Bindings::columns_of(&schema, str::to_owned));
        let rows = read(&reader, &json);
        Self { reader, json, rows }
    }

    fn features(&self) -> usize {
        self.rows.columns.len()
    }

    /// The last row against the others.
    fn explained(&self, game: &Game) -> (General, f64) {
        let last = self.rows.len() - 1;
        let background = self.rows.select(&(0..last).collect::<Vec<_>>());
        let general = General::new(&background, &self.reader, answers(&background, game)).unwrap();
        (general, answers(&self.rows.single(last), game)[1])
    }

    fn exact(&self, game: &Game) -> Attribution {
        let (general, _) = self.explained(game);
        let last = self.rows.single(self.rows.len() - 1);
        let subject = Subject { rows: &self.rows, row: self.rows.len() - 1, answer: &answers(&last, game) };
        general.exact(subject, &mut |rows| Ok(answers(rows, game)), &|answer| answer[1]).unwrap().unwrap()
    }

    fn sampled(&self, game: &Game, sampling: Sampling) -> Attribution {
        let (general, _) = self.explained(game);
        let last = self.rows.single(self.rows.len() - 1);
        let subject = Subject { rows: &self.rows, row: self.rows.len() - 1, answer: &answers(&last, game) };
        general.sampled(subject, sampling, &mut |rows| Ok(answers(rows, game)), &|answer| answer[1]).unwrap()
    }

    /// The worth of each coalition by definition: the mean over rows that are put together as JSON.
    fn worth(&self, game: &Game) -> Vec<f64> {
        let (own, background) = self.json.split_last().unwrap();
        let worth = |coalition: usize| {
            let mixed = background.iter().map(|other| {
                let names = own.keys().enumerate();
                let pick = |(at, name): (usize, &String)| {
                    let from = if coalition >> at & 1 == 1 { own } else { other };
                    (name.clone(), from[name].clone())
                };
                names.map(pick).collect()
            });
            let mixed = read(&self.reader, &mixed.collect::<Vec<_>>());
            answers(&mixed, game).iter().skip(1).step_by(2).sum::<f64>() / background.len() as f64
        };
        (0..1 << self.features()).map(worth).collect()
    }
}

fn read(reader: &RowReader, rows: &[Map<String, Value>]) -> FeatureRows {
    let read = reader.json_rows(serde_json::to_string(rows).unwrap().as_bytes(), rows.len()).unwrap();
    assert_eq!(read.rows.len(), rows.len(), "{:?}", read.rows.faults);
    read.rows
}

/// Two numbers per row, of which the second is the game's.
fn answers(rows: &FeatureRows, game: &Game) -> Vec<f64> {
    (0..rows.len()).flat_map(|row| [f64::from(u32::MAX), game(&cells(rows, row))]).collect()
}

/// Each feature of a row as a number, different for all values.
fn cells(rows: &FeatureRows, row: usize) -> Vec<f64> {
    let cell = |(feature, column): (usize, &Column)| match column {
        Column::Number(values) if values[row].is_nan() => -7.25,
        Column::Number(values) if values[row] == 0.0 && values[row].is_sign_negative() => 0.375,
        Column::Number(values) => values[row],
        Column::Category(column) => {
            let listed: &[&str] = if feature % 4 == 1 { &["a", "b", "c"] } else { &[] };
            let code = column.codes[row] as usize;
            let text = listed.get(code).copied().unwrap_or_else(|| &column.others[code - listed.len()]);
            text.bytes().fold(0.5, |sum, byte| (sum * 1.7 + f64::from(byte)) % 3.0) - 1.5
        }
    };
    rows.columns.iter().enumerate().map(cell).collect()
}

/// Numbers without any rule, so that all features interact.
fn chaos(seed: u64) -> impl Fn(&[f64]) -> f64 {
    move |cells| {
        let mixed = cells.iter().fold(seed, |hash, cell| {
            (hash ^ cell.to_bits()).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        Random::new(mixed, "chaos").uniform() * 2.0 - 1.0
    }
}

/// A sum of products of two features each, and of features.
fn pairwise(random: &mut Random, features: usize) -> impl Fn(&[f64]) -> f64 + use<> {
    let weights: Vec<Vec<f64>> =
        (0..features).map(|_| (0..features).map(|_| random.normal()).collect()).collect();
    move |cells| {
        let row = |(cell, weights): (&f64, &Vec<f64>)| {
            let products = weights.iter().zip(cells).map(|(weight, other)| weight * other);
            cell * (1.0 + products.sum::<f64>())
        };
        cells.iter().zip(&weights).map(row).sum()
    }
}

/// What is paid by definition: to each feature what its coming changes, as a mean over all orders.
fn by_definition(worth: &[f64], features: usize) -> Vec<f64> {
    let mut values = vec![0.0; features];
    let mut orders = 0;
    let mut left = vec![(Vec::new(), 0_usize)];
    while let Some((order, set)) = left.pop() {
        if order.len() < features {
            let absent = (0..features).filter(|feature| set >> feature & 1 == 0);
            left.extend(absent.map(|feature| ([order.as_slice(), &[feature]].concat(), set | 1 << feature)));
            continue;
        }
        orders += 1;
        let mut set = 0;
        for feature in order {
            values[feature] += worth[set | 1 << feature] - worth[set];
            set |= 1 << feature;
        }
    }
    values.iter().map(|value| value / f64::from(orders)).collect()
}

fn sampling(rows: usize, seed: u64) -> Sampling {
    Sampling { rows, deadline: Instant::now() + Duration::from_secs(600), seed }
}

#[track_caller]
fn check_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let is_close = |(found, expected): (&f64, &f64)| (found - expected).abs() <= tolerance;
    assert!(found.iter().zip(expected).all(is_close), "found {found:?}, expected {expected:?}");
}

#[track_caller]
fn check_additivity(explained: &Attribution) {
    let sum = explained.base + explained.values.iter().sum::<f64>();
    assert!((sum - explained.value).abs() < TOLERANCE, "{sum} is not the value: {explained:?}");
}

#[test]
fn all_coalitions_give_the_values_of_the_definition() {
    let mut random = Random::new(1, "definition");
    for case in 0..150 {
        let (features, count) = (random.below(6), 2 + random.below(9));
        let table = Table::random(&mut random, features, count);
        let game = chaos(case);
        let explained = table.exact(&game);
        let worth = table.worth(&game);
        check_close(&explained.values, &by_definition(&worth, table.features()), TOLERANCE);
        check_close(&[explained.base, explained.value], &[worth[0], worth[worth.len() - 1]], TOLERANCE);
        assert_eq!(explained.background_rows, table.rows.len() - 1);
        assert_eq!(explained.standard_errors, None);
        check_additivity(&explained);
    }
}

#[test]
fn no_row_runs_twice_nor_one_whose_answer_is_known() {
    let mut random = Random::new(2, "once");
    for case in 0..60 {
        let (features, count) = (1 + random.below(7), 2 + random.below(20));
        let table = Table::random(&mut random, features, count);
        let game = chaos(case);
        let (general, value) = table.explained(&game);
        let identity = |rows: &FeatureRows, row| -> Vec<u64> {
            cells(rows, row).into_iter().map(f64::to_bits).collect()
        };
        let known: HashSet<_> = (0..table.rows.len()).map(|row| identity(&table.rows, row)).collect();
        let last = table.rows.len() - 1;
        let subject = Subject { rows: &table.rows, row: last, answer: &[0.0, value] };
        let mut seen = known.clone();
        let mut run = |rows: &FeatureRows| {
            for row in 0..rows.len() {
                assert!(seen.insert(identity(rows, row)), "a row that was known already");
            }
            Ok(answers(rows, &game))
        };
        let explained = general.exact(subject, &mut run, &|answer| answer[1]).unwrap().unwrap();
        assert_eq!(explained.rows, seen.len() - known.len());
        assert_eq!(Some(explained.rows), general.exact_rows(subject));
        assert!(explained.rows <= general.exact_rows_at_most().unwrap());

        // Nor within a round.
        seen.clone_from(&known);
        let mut run = |rows: &FeatureRows| {
            for row in 0..rows.len() {
                assert!(seen.insert(identity(rows, row)), "a row that was known already");
            }
            Ok(answers(rows, &game))
        };
        let differing = Meeting::new(&general, subject).differing().to_vec();
        let round = differing.iter().map(|features| 2 * features.len().saturating_sub(1)).sum();
        let one = sampling(round, 0);
        let explained = general.sampled(subject, one, &mut run, &|answer| answer[1]).unwrap();
        assert_eq!(explained.background_rows, last);
        assert!(explained.rows <= round && round <= general.rows_per_round_at_most());
        assert_eq!(explained.rows, seen.len() - known.len());
    }
}

#[test]
fn a_feature_that_never_differs_gets_exactly_nothing() {
    let mut random = Random::new(3, "dummies");
    for case in 0..40 {
        let mut table = Table::random(&mut random, 6, 12);
        let same = [case % 6, (case * 5 + 1) % 6];
        let (own, background) = table.json.split_last_mut().unwrap();
        for (name, value) in own.iter().enumerate().filter(|(at, _)| same.contains(at)).map(|(_, it)| it) {
            background.iter_mut().for_each(|row| drop(row.insert(name.clone(), value.clone())));
        }
        table.rows = read(&table.reader, &table.json);
        let game = chaos(case as u64);
        for explained in [table.exact(&game), table.sampled(&game, sampling(500, 3))] {
            for at in same {
                assert_eq!(explained.values[at], 0.0);
                assert_eq!(explained.standard_errors.as_ref().map_or(0.0, |errors| errors[at]), 0.0);
            }
            check_additivity(&explained);
        }
    }
}

#[test]
fn a_row_of_the_background_itself_and_a_background_of_one_row_add_up() {
    let mut random = Random::new(4, "small");
    for case in 0..30 {
        let mut table = Table::random(&mut random, 5, 2 + case % 3);
        let game = chaos(case as u64);
        check_additivity(&table.exact(&game));
        check_additivity(&table.sampled(&game, sampling(0, 1)));
        *table.json.last_mut().unwrap() = table.json[0].clone();
        table.rows = read(&table.reader, &table.json);
        let explained = table.exact(&game);
        check_close(&explained.values, &by_definition(&table.worth(&game), 5), TOLERANCE);
        check_additivity(&table.sampled(&game, sampling(1_000, 1)));
    }
}

#[test]
fn the_most_coalitions_run_in_parts() {
    let mut random = Random::new(5, "most");
    let table = Table::numbers(&mut random, MOST_EXACT_FEATURES, BACKGROUND_ROWS + 1);
    let game = |cells: &[f64]| cells[0] * cells[11] + cells[5];
    let (general, value) = table.explained(&game);
    let most = general.exact_rows_at_most().unwrap();
    // A row of the background is like one of its rows, itself.
    assert_eq!(general.exact_rows_expected(), Some(most / BACKGROUND_ROWS * (BACKGROUND_ROWS - 1)));
    assert_eq!(most, ((1 << MOST_EXACT_FEATURES) - 2) * BACKGROUND_ROWS);
    let mut ran = 0;
    let mut run = |rows: &FeatureRows| {
        assert!(rows.len() <= MAX_ROWS_PER_RUN);
        ran += rows.len();
        let [Column::Number(first), Column::Number(sixth), Column::Number(last)] =
            [0, 5, 11].map(|at| rows.columns[at].clone())
        else {
            unreachable!("all are numbers")
        };
        let numbers = first.iter().zip(&sixth).zip(&last).map(|((a, b), c)| [0.0, a * c + b]);
        Ok(numbers.flatten().collect())
    };
    let subject = Subject { rows: &table.rows, row: BACKGROUND_ROWS, answer: &[0.0, value] };
    let explained = general.exact(subject, &mut run, &|answer| answer[1]).unwrap().unwrap();
    check_additivity(&explained);
    assert_eq!((ran, explained.rows), (most, most));
    // The product of two features is shared between them, and by nobody else.
    let own = cells(&table.rows, BACKGROUND_ROWS);
    let background: Vec<_> = (0..BACKGROUND_ROWS).map(|row| cells(&table.rows, row)).collect();
    let mean = |part: &dyn Fn(&[f64]) -> f64| {
        background.iter().map(|row| part(row)).sum::<f64>() / BACKGROUND_ROWS as f64
    };
    let mut expected = vec![0.0; MOST_EXACT_FEATURES];
    expected[0] = mean(&|row| (own[0] - row[0]) * (own[11] + row[11]) / 2.0);
    expected[11] = mean(&|row| (own[11] - row[11]) * (own[0] + row[0]) / 2.0);
    expected[5] = mean(&|row| own[5] - row[5]);
    check_close(&explained.values, &expected, TOLERANCE);
}

#[test]
fn one_feature_more_is_sampled() {
    let table = Table::random(&mut Random::new(6, "more"), MOST_EXACT_FEATURES + 1, 5);
    let game = chaos(0);
    let (general, value) = table.explained(&game);
    assert_eq!(general.exact_rows_at_most(), None);
    assert_eq!(general.exact_rows_expected(), None);
    let subject = Subject { rows: &table.rows, row: 4, answer: &[0.0, value] };
    let mut run = |_: &FeatureRows| -> Result<Vec<f64>, runtime::Error> { panic!("nothing is to be run") };
    assert_eq!(general.exact(subject, &mut run, &|answer| answer[1]).unwrap(), None);
    check_additivity(&table.sampled(&game, sampling(1_000, 0)));
}

#[test]
fn sampling_adds_up_whatever_it_may_cost() {
    let mut random = Random::new(7, "additivity");
    for case in 0..200 {
        let (features, count) = (random.below(30), 2 + random.below(12));
        let table = Table::random(&mut random, features, count);
        let game = chaos(case);
        let rows = random.below(1_500);
        let explained = table.sampled(&game, sampling(rows, case));
        check_additivity(&explained);
        assert!((1..count).contains(&explained.background_rows));
        // One pair is done whatever it costs.
        assert!(explained.rows <= rows || explained.background_rows == 1, "{rows}: {explained:?}");
        assert!(explained.standard_errors.unwrap().iter().all(|error| error.is_finite()));
    }
}

#[test]
fn a_part_of_the_background_has_its_own_base() {
    let table = Table::numbers(&mut Random::new(8, "part"), 20, 31);
    let game = pairwise(&mut Random::new(8, "game"), 20);
    // A pair is 2 * 19 rows.
    let explained = table.sampled(&game, sampling(10 * 38 + 37, 0));
    assert_eq!((explained.background_rows, explained.rows), (10, 380));
    let (general, _) = table.explained(&game);
    let mut used = general.order[..10].to_vec();
    used.push(30);
    let part = Table { rows: table.rows.select(&used), ..table };
    let whole = part.sampled(&game, sampling(1_000, 1));
    assert_eq!(whole.background_rows, 10);
    assert!((whole.base - explained.base).abs() < TOLERANCE);
    // Of products of two features one pair of orders tells all.
    check_close(&explained.values, &whole.values, 1e-11);
}

#[test]
fn an_order_and_its_reverse_are_exact_where_features_interact_by_two() {
    let mut random = Random::new(9, "pairs");
    let table = Table::numbers(&mut random, 9, 8);
    let game = pairwise(&mut random, 9);
    let exact = table.exact(&game);
    let explained = table.sampled(&game, sampling(3 * 2 * 8 * 7, 5));
    check_close(&explained.values, &exact.values, 1e-11);
    assert!(explained.standard_errors.unwrap().iter().all(|error| *error < 1e-11));
    // Orders without their reverse are not: the same number of rows leaves an error.
    let worth = table.worth(&game);
    let mut plain = [0.0; 9];
    let mut order: Vec<usize> = (0..9).collect();
    for _ in 0..42 {
        random.shuffle(&mut order);
        let mut set = 0;
        for feature in &order {
            plain[*feature] += (worth[set | 1 << feature] - worth[set]) / 42.0;
            set |= 1 << feature;
        }
    }
    let furthest = plain.iter().zip(&exact.values).map(|(plain, exact)| (plain - exact).abs());
    assert!(furthest.fold(0.0, f64::max) > 0.01);
}

/// Whether features interact by many.
fn curved(random: &mut Random, features: usize) -> impl Fn(&[f64]) -> f64 + use<> {
    let inner = pairwise(random, features);
    move |cells| (inner(cells) / 4.0).tanh() + if cells[0] > 0.0 && cells[1] < cells[2] { 1.0 } else { 0.0 }
}

#[test]
fn sampling_converges() {
    let mut random = Random::new(10, "converges");
    let table = Table::numbers(&mut random, 7, 11);
    let game = curved(&mut random, 7);
    let exact = table.exact(&game).values;
    let round = 2 * 6 * 10;
    let distance = |rounds: usize| {
        let explained = table.sampled(&game, sampling(rounds * round, 1));
        let squares = explained.values.iter().zip(&exact).map(|(found, exact)| (found - exact).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let [few, many] = [distance(2), distance(800)];
    assert!(many < 0.01 && many * 8.0 < few, "{few} after 2 rounds, {many} after 800");
}

#[test]
fn standard_errors_cover_what_they_should() {
    let mut random = Random::new(11, "calibration");
    let table = Table::numbers(&mut random, 6, 26);
    let game = curved(&mut random, 6);
    let exact = table.exact(&game).values;
    let round = 2 * 5 * 25;
    // The share of values within two standard errors, and what their squared distance is to the squared standard error.
    let check = |rounds: usize| {
        let (mut covered, mut squares, mut expected) = (0.0, 0.0, 0.0);
        for seed in 0..200 {
            let explained = table.sampled(&game, sampling(rounds * round, seed));
            let errors = explained.standard_errors.unwrap();
            for ((found, error), exact) in explained.values.iter().zip(errors).zip(&exact) {
                covered += f64::from(u8::from((found - exact).abs() <= 2.0 * error));
                squares += (found - exact).powi(2);
                expected += error * error;
            }
        }
        (covered / (200.0 * 6.0), squares / expected)
    };
    let ((three, ratio), one) = (check(3), check(1));
    println!("within two standard errors: {three} after three rounds (squares {ratio}), {one:?} after one");
    assert!((0.93..0.975).contains(&three) && (0.85..1.15).contains(&ratio));
    // What differs between background rows counts as error after a single round.
    assert!(one.0 > 0.975 && one.1 < 1.0);
}

#[test]
fn many_features_take_several_words() {
    for features in [64, 65, 150] {
        let mut random = Random::new(12, "words");
        let table = Table::random(&mut random, features, 5);
        let weights: Vec<f64> = (0..features).map(|_| random.normal()).collect();
        let linear =
            move |cells: &[f64]| cells.iter().zip(&weights).map(|(cell, weight)| cell * weight).sum();
        let explained = table.sampled(&linear, sampling(100_000, 0));
        let own = cells(&table.rows, 4);
        let expected: Vec<f64> = (0..features)
            .map(|at| {
                let alone = |cell: f64| {
                    let mut cells = vec![0.0; features];
                    cells[at] = cell;
                    linear(&cells)
                };
                let others = (0..4).map(|row| alone(cells(&table.rows, row)[at])).sum::<f64>();
                alone(own[at]) - others / 4.0
            })
            .collect();
        check_close(&explained.values, &expected, 1e-11);
        check_additivity(&explained);
    }
}

#[test]
fn runs_of_many_features_are_of_fewer_rows() {
    let mut random = Random::new(13, "cells");
    let table = Table::numbers(&mut random, 400, 9);
    let sum = |cells: &[f64]| cells.iter().sum();
    let (general, value) = table.explained(&sum);
    let subject = Subject { rows: &table.rows, row: 8, answer: &[0.0, value] };
    let mut largest = 0;
    let mut run = |rows: &FeatureRows| {
        largest = largest.max(rows.len());
        Ok(answers(rows, &sum))
    };
    let explained = general.sampled(subject, sampling(6_384, 0), &mut run, &|answer| answer[1]).unwrap();
    assert_eq!((explained.rows, explained.background_rows, largest), (6_384, 8, (1 << 20) / 400));
}

#[test]
fn the_deadline_ends_sampling_between_runs() {
    let mut random = Random::new(14, "deadline");
    let table = Table::numbers(&mut random, 40, 101);
    let game = curved(&mut random, 40);
    let past = Sampling { rows: 1_000_000, deadline: Instant::now(), seed: 0 };
    // The first run is of 4,096 rows; a pair is of 78.
    let explained = table.sampled(&game, past);
    assert_eq!(explained.background_rows, MAX_ROWS_PER_RUN / 78 + 1);
    check_additivity(&explained);
    // A round that fits a run is done, and no other.
    let table = Table { rows: table.rows.select(&(80..101).collect::<Vec<_>>()), ..table };
    let explained = table.sampled(&game, past);
    assert_eq!((explained.background_rows, explained.rows), (20, 20 * 78));
    assert_eq!(explained, table.sampled(&game, sampling(20 * 78, 0)));
}

#[test]
fn the_same_question_has_the_same_answer() {
    let mut random = Random::new(15, "same");
    let table = Table::random(&mut random, 14, 20);
    let game = chaos(15);
    let first = table.sampled(&game, sampling(2_000, SEED));
    assert_eq!(first, table.sampled(&game, sampling(2_000, SEED)));
    assert_ne!(first.values, table.sampled(&game, sampling(2_000, SEED + 1)).values);
    let table = Table::random(&mut random, 7, 20);
    assert_eq!(table.exact(&game), table.exact(&game));
}

#[test]
fn what_goes_wrong_is_told() {
    let table = Table::random(&mut Random::new(16, "wrong"), 5, 102);
    let game = chaos(1);
    let part = |rows: std::ops::Range<usize>| table.rows.select(&rows.collect::<Vec<_>>());
    let new = |rows: &FeatureRows, answers| General::new(rows, &table.reader, answers).map(drop);
    assert_eq!(new(&part(0..0), vec![]), Err(Error::Rows(0)));
    assert_eq!(new(&part(0..101), vec![0.0; 101]), Err(Error::Rows(101)));
    assert_eq!(new(&part(0..100), vec![0.0; 199]), Err(Error::Answers { found: 199, rows: 100 }));
    assert_eq!(new(&part(0..100), vec![]), Err(Error::Answers { found: 0, rows: 100 }));

    let table = Table { rows: part(0..6), ..table };
    let (general, value) = table.explained(&game);
    let subject = Subject { rows: &table.rows, row: 5, answer: &[0.0, value] };
    let pick = |answer: &[f64]| answer[1];
    let fault = runtime::Error::Output(OutputFault::NotFinite { row: 3 }).to_string();
    let mut fails = |_: &FeatureRows| Err(runtime::Error::Output(OutputFault::NotFinite { row: 3 }));
    assert_eq!(general.exact(subject, &mut fails, &pick).unwrap_err().to_string(), fault);
    assert_eq!(general.sampled(subject, sampling(9, 0), &mut fails, &pick).unwrap_err().to_string(), fault);
    let mut short = |rows: &FeatureRows| Ok(answers(rows, &game)[1..].to_vec());
    assert!(matches!(
        general.exact(subject, &mut short, &pick),
        Err(runtime::Error::Output(OutputFault::Shape { columns: 2, .. }))
    ));
}

//! Rows put together of the explained row and background rows, on their way to the model.

use super::{General, Subject};
use crate::explain::Run;
use crate::features::{CategoryColumn, Column, FeatureRows};
use crate::runtime::{self, MAX_ROWS_PER_RUN, OutputFault};

/// Values that a run takes at most: what many features need must not grow with the rows of a run.
const MOST_CELLS: usize = 1 << 20;

/// The explained row beside the background.
pub(super) struct Meeting {
    /// The background rows and then the explained one.
    pool: FeatureRows,
    /// For each background row the features in which the explained one differs from it, ascending.
    differing: Vec<Vec<usize>>,
}

impl Meeting {
    pub(super) fn new(general: &General, subject: Subject<'_>) -> Self {
        let mut pool = general.background.clone();
        let mut differing = vec![Vec::new(); pool.len()];
        for (feature, column) in pool.columns.iter_mut().enumerate() {
            push(column, &subject.rows.columns[feature], subject.row, general.listed[feature]);
            let own = bits(column, differing.len());
            for (row, differing) in differing.iter_mut().enumerate() {
                if bits(column, row) != own {
                    differing.push(feature);
                }
            }
        }
        Self { pool, differing }
    }

    /// For each background row the features in which the explained one differs from it, ascending.
    pub(super) fn differing(&self) -> &[Vec<usize>] {
        &self.differing
    }
}

/// Gathers rows for large runs, and the explained numbers of those that were run.
pub(super) struct Asking<'a, 'r> {
    run: &'a mut Run<'r>,
    pick: &'a dyn Fn(&[f64]) -> f64,
    width: usize,
    pool: &'a FeatureRows,
    /// The place of the explained row in the pool.
    own: usize,
    /// The rows of a run.
    buffer: FeatureRows,
    rows_per_run: usize,
    /// For each row to come the background row in it.
    others: Vec<usize>,
    /// For each row to come the features that it has from there, one bit each.
    absent: Vec<u64>,
    /// Words of `absent` for one row.
    words: usize,
    numbers: Vec<f64>,
    rows: usize,
}

impl<'a, 'r> Asking<'a, 'r> {
    pub(super) fn new(
        general: &General,
        meeting: &'a Meeting,
        run: &'a mut Run<'r>,
        pick: &'a dyn Fn(&[f64]) -> f64,
    ) -> Self {
        let mut buffer = meeting.pool.clone();
        buffer.indices.clear();
        buffer.columns.iter_mut().for_each(empty);
        let features = general.features().max(1);
        Self {
            run,
            pick,
            width: general.width,
            pool: &meeting.pool,
            own: general.background.len(),
            buffer,
            rows_per_run: (MOST_CELLS / features).clamp(1, MAX_ROWS_PER_RUN),
            others: Vec::new(),
            absent: Vec::new(),
            words: features.div_ceil(64),
            numbers: Vec::new(),
            rows: 0,
        }
    }

    /// Asks for the number of the explained row with the features in `absent`, one bit each, from background row `other`;
    /// returns its place among the numbers.
    pub(super) fn ask(&mut self, other: usize, absent: &[u64]) -> Result<usize, runtime::Error> {
        debug_assert_eq!(absent.len(), self.words, "a bit for each feature");
        if self.others.len() == self.rows_per_run {
            self.flush()?;
        }
        let place = self.numbers.len() + self.others.len();
        self.others.push(other);
        self.absent.extend_from_slice(absent);
        Ok(place)
    }

    /// Words that name the absent features of a row.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// Runs the rows that were asked for and not run yet.
    pub(super) fn flush(&mut self) -> Result<(), runtime::Error> {
        let count = self.others.len();
        if count == 0 {
            return Ok(());
        }
        for (feature, (column, from)) in self.buffer.columns.iter_mut().zip(&self.pool.columns).enumerate() {
            let words = self.absent.iter().skip(feature / 64).step_by(self.words);
            let is_absent = words.map(|word| word >> (feature % 64) & 1 == 1);
            let rows = self.others.iter().zip(is_absent);
            let rows = rows.map(|(other, is_absent)| if is_absent { *other } else { self.own });
            match (column, from) {
                (Column::Number(values), Column::Number(from)) => {
                    values.clear();
                    values.extend(rows.map(|row| from[row]));
                }
                (Column::Category(column), Column::Category(from)) => {
                    column.codes.clear();
                    column.codes.extend(rows.map(|row| from.codes[row]));
                }
                _ => unreachable!("the buffer was a copy of the pool"),
            }
        }
        self.buffer.indices.clear();
        self.buffer.indices.extend(0..count as u32);
        self.buffer.submitted = count;
        self.others.clear();
        self.absent.clear();
        let answers = (self.run)(&self.buffer)?;
        if answers.len() != count * self.width {
            let found = vec![i64::try_from(answers.len()).unwrap_or(i64::MAX)];
            return Err(runtime::Error::Output(OutputFault::Shape {
                found,
                rows: count,
                columns: self.width,
            }));
        }
        self.numbers.extend(answers.chunks_exact(self.width).map(self.pick));
        self.rows += count;
        Ok(())
    }

    /// The numbers, in the order in which they were asked for, of all rows that were run.
    pub(super) fn numbers(&self) -> &[f64] {
        &self.numbers
    }

    /// Forgets what was asked for, and begins with numbers that are known.
    pub(super) fn restart(&mut self, known: impl Iterator<Item = f64>) {
        self.others.clear();
        self.absent.clear();
        self.numbers.clear();
        self.numbers.extend(known);
    }

    /// How many rows were run.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }
}

/// Which value row `row` has: the same bits for the same one, in a column whose texts are there once each. Of missing values
/// there is one kind; zeros with different signs are two values, because a graph can tell them apart.
pub(super) fn bits(column: &Column, row: usize) -> u64 {
    match column {
        Column::Number(values) if values[row].is_nan() => f64::NAN.to_bits(),
        Column::Number(values) => values[row].to_bits(),
        Column::Category(column) => u64::from(column.codes[row]),
    }
}

/// Keeps each text that the schema does not list once.
pub(super) fn merge_others(column: &mut Column, listed: usize) {
    let Column::Category(column) = column else { return };
    let whole = std::mem::take(column);
    for row in 0..whole.codes.len() {
        push_category(column, &whole, row, listed);
    }
}

/// Appends the value of a row of another column.
fn push(column: &mut Column, from: &Column, row: usize, listed: usize) {
    match (column, from) {
        (Column::Number(values), Column::Number(from)) => values.push(from[row]),
        (Column::Category(column), Column::Category(from)) => push_category(column, from, row, listed),
        _ => unreachable!("columns of one reader are of one kind"),
    }
}

fn push_category(column: &mut CategoryColumn, from: &CategoryColumn, row: usize, listed: usize) {
    let code = from.other(row, listed).map_or(from.codes[row], |text| {
        let found = column.others.iter().position(|other| other.as_ref() == text);
        let at = found.unwrap_or_else(|| {
            column.others.push(text.into());
            column.others.len() - 1
        });
        u32::try_from(listed + at).unwrap_or(u32::MAX)
    });
    column.codes.push(code);
}

/// Forgets the rows and keeps the texts.
fn empty(column: &mut Column) {
    match column {
        Column::Number(values) => values.clear(),
        Column::Category(column) => column.codes.clear(),
    }
}

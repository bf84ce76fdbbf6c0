//! Checked rows as columns, and one row on its way into them.

use std::collections::HashMap;

use super::field::{Cell, Slot};
use super::{FaultCode, FieldFault, MAX_DESCRIBED_FAULTS, Place, RowFault, RowReader};

/// Checked rows as columns.
#[derive(Debug, Default, Clone)]
pub struct FeatureRows {
    /// One column per feature in the order of the schema's features; all of the length of `indices`.
    pub columns: Vec<Column>,
    /// For each checked row its place among the rows that were sent, ascending.
    pub indices: Vec<u32>,
    /// How many rows were sent.
    pub submitted: usize,
    /// The rows that did not pass, in the order of their places.
    pub faults: Vec<RowFault>,
    /// Whom each checked row is about; empty where no row names one.
    pub entities: Vec<Option<Box<str>>>,
    /// Of which checked row the value of which feature was missing, whatever took its place; by row, ascending.
    pub missing: Vec<(u32, u32)>,
    pub(super) described: usize,
}

/// The checked values of one feature.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Numbers, integers, and booleans as 0 or 1; NaN where missing values pass.
    Number(Vec<f64>),
    /// Categories.
    Category(CategoryColumn),
}

/// Categories by code: below the number of listed values an index into them, from there on an index into `others`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CategoryColumn {
    /// One code per row.
    pub codes: Vec<u32>,
    /// Values that the schema does not list, one per row that has one.
    pub others: Vec<Box<str>>,
}

/// Where [`FeatureRows`] ended at some moment.
pub(super) struct Mark {
    rows: usize,
    faults: usize,
    entities: usize,
    submitted: usize,
    described: usize,
}

impl FeatureRows {
    /// The number of checked rows.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether no row passed.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Forgets all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
        self.indices.clear();
        self.missing.clear();
        self.faults.clear();
        self.entities.clear();
        self.submitted = 0;
        self.described = 0;
    }

    /// Takes out the fault of the row that was read last, if that row was refused.
    pub fn take_fault(&mut self) -> Option<RowFault> {
        let fault = self.faults.pop_if(|fault| fault.index + 1 == self.submitted)?;
        self.described -= fault.faults.len();
        Some(fault)
    }

    /// Checked row `row` by itself.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn single(&self, row: usize) -> Self {
        self.select(&[row])
    }

    /// The checked rows at `at` by themselves.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&self, at: &[usize]) -> Self {
        let columns = self.columns.iter().map(|column| match column {
            Column::Number(values) => Column::Number(at.iter().map(|row| values[*row]).collect()),
            Column::Category(column) => Column::Category(CategoryColumn {
                codes: at.iter().map(|row| column.codes[*row]).collect(),
                others: column.others.clone(),
            }),
        });
        let indices = (0..u32::try_from(at.len()).unwrap_or(u32::MAX)).collect();
        Self { columns: columns.collect(), indices, submitted: at.len(), ..Self::default() }
    }

    /// Forgets the row that was read last, if it passed.
    pub fn forget_last(&mut self) {
        let before = self.indices.len().saturating_sub(1);
        self.truncate(before);
        self.indices.truncate(before);
        self.entities.truncate(before);
        self.submitted -= usize::from(self.submitted > 0);
    }

    /// `count` rows: these, over and over.
    ///
    /// # Panics
    /// If there are no rows.
    pub fn cycled(&self, count: usize) -> Self {
        let rows = || (0..self.len()).cycle().take(count);
        let columns = self.columns.iter().map(|column| match column {
            Column::Number(values) => Column::Number(rows().map(|row| values[row]).collect()),
            Column::Category(column) => Column::Category(CategoryColumn {
                codes: rows().map(|row| column.codes[row]).collect(),
                others: column.others.clone(),
            }),
        });
        let indices = (0..u32::try_from(count).unwrap_or(u32::MAX)).collect();
        Self { columns: columns.collect(), indices, submitted: count, ..Self::default() }
    }

    /// Refuses the next row as a whole.
    pub(super) fn refuse(&mut self, code: FaultCode) {
        let index = self.submitted;
        self.submitted += 1;
        self.refuse_at(index, code, None);
    }

    fn refuse_at(&mut self, index: usize, code: FaultCode, entity: Option<Box<str>>) {
        let mut faults = Vec::new();
        if self.described < MAX_DESCRIBED_FAULTS {
            self.described += 1;
            faults.push(FieldFault { place: Place::Row, code });
        }
        self.faults.push(RowFault { index, faults, entity });
    }

    /// Where the rows end now, for [`FeatureRows::rewind`].
    pub(super) fn mark(&self) -> Mark {
        Mark {
            rows: self.indices.len(),
            faults: self.faults.len(),
            entities: self.entities.len(),
            submitted: self.submitted,
            described: self.described,
        }
    }

    /// Forgets everything since `mark`.
    pub(super) fn rewind(&mut self, mark: &Mark) {
        self.truncate(mark.rows);
        self.indices.truncate(mark.rows);
        self.faults.truncate(mark.faults);
        self.entities.truncate(mark.entities);
        self.submitted = mark.submitted;
        self.described = mark.described;
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        for column in &mut self.columns {
            column.truncate(rows);
        }
        while self.missing.pop_if(|(row, _)| *row as usize >= rows).is_some() {}
    }

    /// Refuses every row whose entity another row of the body names too: an outcome reported by entity could not tell
    /// them apart.
    pub(super) fn refuse_duplicate_entities(&mut self) {
        if self.entities.is_empty() {
            return;
        }
        self.entities.resize(self.indices.len(), None);
        // A keyed hash: entities are the client's own choice.
        let mut count: HashMap<&str, u32> = HashMap::new();
        for entity in self.entities.iter().flatten() {
            *count.entry(entity).or_default() += 1;
        }
        if count.values().all(|count| *count == 1) {
            return;
        }
        let keep: Vec<bool> = self
            .entities
            .iter()
            .map(|entity| entity.as_deref().is_none_or(|entity| count[entity] == 1))
            .collect();
        let refused = (0..keep.len()).filter(|row| !keep[*row]);
        let refused = refused.map(|row| (self.indices[row], self.entities[row].take())).collect::<Vec<_>>();
        for (index, entity) in refused {
            self.refuse_at(index as usize, FaultCode::DuplicateEntity, entity);
        }
        self.faults.sort_by_key(|fault| fault.index);
        self.keep(&keep);
    }
}

impl FeatureRows {
    /// Whom each row that was sent is about, checked or refused, by their places; nothing where it does not say.
    pub fn entities_sent(&self) -> impl Iterator<Item = Option<&str>> {
        let mut faults = self.faults.iter().peekable();
        let mut checked = 0;
        (0..self.submitted).map(move |index| match faults.next_if(|fault| fault.index == index) {
            Some(fault) => fault.entity.as_deref(),
            None => {
                checked += 1;
                self.entities.get(checked - 1)?.as_deref()
            }
        })
    }

    /// Forgets the rows that were sent in a place that `is_kept` does not want, whether they passed or not, and the memory that they
    /// took. The others keep their places, so that there are fewer rows now than `submitted` says.
    pub fn retain(&mut self, mut is_kept: impl FnMut(usize) -> bool) {
        self.faults.retain(|fault| is_kept(fault.index));
        let keep: Vec<bool> = self.indices.iter().map(|index| is_kept(*index as usize)).collect();
        self.keep(&keep);
        for column in &mut self.columns {
            match column {
                Column::Number(values) => values.shrink_to_fit(),
                Column::Category(column) => column.codes.shrink_to_fit(),
            }
        }
    }

    /// The rows that were sent in a place that `is_own` wants, whether they passed or not, as [`FeatureRows::retain`] would leave them;
    /// `reader` has read them.
    pub fn part(&self, reader: &RowReader, is_own: impl Fn(usize) -> bool) -> Self {
        let at: Vec<usize> = (0..self.len()).filter(|row| is_own(self.indices[*row] as usize)).collect();
        let columns = self.columns.iter().zip(reader.listed()).map(|(column, listed)| match column {
            Column::Number(values) => Column::Number(at.iter().map(|row| values[*row]).collect()),
            Column::Category(column) => Column::Category(column.part(&at, listed)),
        });
        let missing = at.iter().zip(0..).flat_map(|(row, place)| {
            let from = self.missing.partition_point(|(found, _)| (*found as usize) < *row);
            let of_row = self.missing[from..].iter().take_while(|(found, _)| *found as usize == *row);
            of_row.map(move |(_, feature)| (place, *feature))
        });
        let entities = at.iter().filter_map(|row| self.entities.get(*row)).cloned();
        let faults: Vec<RowFault> = self.faults.iter().filter(|fault| is_own(fault.index)).cloned().collect();
        Self {
            columns: columns.collect(),
            indices: at.iter().map(|row| self.indices[*row]).collect(),
            submitted: self.submitted,
            entities: entities.collect(),
            missing: missing.collect(),
            described: self.described,
            faults,
        }
    }

    /// Of `submitted` rows those in these `places`, each of which is refused for the same `faults`.
    pub fn refused(submitted: usize, places: impl Iterator<Item = usize>, faults: &[FieldFault]) -> Self {
        let mut rows = Self { submitted, ..Self::default() };
        for index in places {
            let described = faults.iter().take(MAX_DESCRIBED_FAULTS - rows.described).cloned();
            let faults: Vec<FieldFault> = described.collect();
            rows.described += faults.len();
            rows.faults.push(RowFault { index, faults, entity: None });
        }
        rows
    }

    /// Keeps the checked rows that are to `keep`.
    fn keep(&mut self, keep: &[bool]) {
        retain(&mut self.indices, keep);
        retain(&mut self.entities, keep);
        self.keep_missing(keep);
        for column in &mut self.columns {
            match column {
                Column::Number(values) => retain(values, keep),
                Column::Category(column) => retain(&mut column.codes, keep),
            }
        }
    }

    /// Forgets the missing values of rows that are not to `keep`, and counts the others anew.
    fn keep_missing(&mut self, keep: &[bool]) {
        let mut place = 0;
        let places: Vec<u32> = keep.iter().map(|kept| (place, place += u32::from(*kept)).0).collect();
        self.missing.retain(|(row, _)| keep[*row as usize]);
        for (row, _) in &mut self.missing {
            *row = places[*row as usize];
        }
    }
}

impl CategoryColumn {
    /// The rows at `at`, of which the schema lists so many values.
    fn part(&self, at: &[usize], listed: usize) -> Self {
        let mut part = Self { codes: Vec::with_capacity(at.len()), others: Vec::new() };
        for row in at {
            let other = self.other(*row, listed);
            let code = other.map_or(self.codes[*row] as usize, |_| listed + part.others.len());
            part.codes.push(u32::try_from(code).unwrap_or(u32::MAX));
            part.others.extend(other.map(Into::into));
        }
        part
    }

    /// The text of row `row`, unless it is one of the `listed` values of the schema.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn other(&self, row: usize, listed: usize) -> Option<&str> {
        (self.codes[row] as usize).checked_sub(listed).map(|at| self.others[at].as_ref())
    }
}

fn retain<T>(values: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    values.retain(|_| keep.next().is_none_or(|keep| *keep));
}

impl Column {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Number(values) => values.len(),
            Self::Category(column) => column.codes.len(),
        }
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        match self {
            Self::Number(values) => values.truncate(rows),
            Self::Category(column) => {
                // The others of dropped rows stay behind unused until the column is cleared.
                column.codes.truncate(rows);
                if rows == 0 {
                    column.others.clear();
                }
            }
        }
    }
}

/// One row on its way into [`FeatureRows`]: every field at most once, then [`RowBuilder::finish`].
pub(super) struct RowBuilder<'r> {
    pub(super) reader: &'r RowReader,
    rows: &'r mut FeatureRows,
    faults: Vec<FieldFault>,
    refused: bool,
    /// Bit per field that was named; fields beyond 64 in `named_more`.
    named: u64,
    named_more: Vec<bool>,
    entity: Option<Box<str>>,
}

impl<'r> RowBuilder<'r> {
    pub(super) fn new(reader: &'r RowReader, rows: &'r mut FeatureRows) -> Self {
        let named_more =
            if reader.fields.len() > 64 { vec![false; reader.fields.len() - 64] } else { Vec::new() };
        Self { reader, rows, faults: Vec::new(), refused: false, named: 0, named_more, entity: None }
    }

    /// Marks field `at` as named; false if it was before.
    pub(super) fn name(&mut self, at: usize) -> bool {
        if at < 64 {
            let fresh = self.named & (1 << at) == 0;
            self.named |= 1 << at;
            fresh
        } else {
            !std::mem::replace(&mut self.named_more[at - 64], true)
        }
    }

    fn is_named(&self, at: usize) -> bool {
        if at < 64 { self.named & (1 << at) != 0 } else { self.named_more[at - 64] }
    }

    /// Stores the value of field `at`, or what is wrong with it.
    pub(super) fn put(&mut self, at: usize, cell: Result<Cell<'_>, FaultCode>) {
        match cell {
            Err(code) => self.fault(Place::Field(at), code),
            Ok(cell) => match (self.reader.fields[at].slot, cell) {
                (Slot::Feature(column), cell) => {
                    let listed = self.reader.fields[at].codes.len();
                    match (&mut self.rows.columns[column], cell) {
                        (Column::Number(values), Cell::Number(number)) => values.push(number),
                        (Column::Category(column), Cell::Listed(code)) => column.codes.push(code),
                        (Column::Category(column), Cell::Text(text)) => {
                            let code = u32::try_from(listed + column.others.len()).unwrap_or(u32::MAX);
                            column.codes.push(code);
                            column.others.push(text.into_owned().into_boxed_str());
                        }
                        _ => self.fault(Place::Field(at), FaultCode::Type),
                    }
                }
                (Slot::Entity, Cell::Text(text)) => self.entity = Some(text.into_owned().into_boxed_str()),
                (Slot::Entity | Slot::Ignored, _) => {}
            },
        }
    }

    /// Stores what takes the place of field `at`, whose value is missing, or what is wrong with that.
    pub(super) fn put_missing(&mut self, at: usize) {
        let reader = self.reader;
        let field = &reader.fields[at];
        if let Slot::Feature(feature) = field.slot {
            let row = u32::try_from(self.rows.indices.len()).unwrap_or(u32::MAX);
            self.rows.missing.push((row, u32::try_from(feature).unwrap_or(u32::MAX)));
        }
        self.put(at, field.missing());
    }

    pub(super) fn fault(&mut self, place: Place, code: FaultCode) {
        self.refused = true;
        if self.rows.described < MAX_DESCRIBED_FAULTS {
            self.rows.described += 1;
            self.faults.push(FieldFault { place, code });
        }
    }

    /// Fills what was not named, and keeps the row or its faults.
    pub(super) fn finish(mut self) {
        let index = self.rows.submitted;
        let before = self.rows.indices.len();
        for at in 0..self.reader.fields.len() {
            if !self.is_named(at) {
                self.put_missing(at);
            }
        }
        self.rows.submitted += 1;
        if !self.refused {
            debug_assert!(
                self.rows.columns.iter().all(|column| column.len() == before + 1),
                "a value per feature"
            );
            self.rows.indices.push(u32::try_from(index).unwrap_or(u32::MAX));
            if self.entity.is_some() || !self.rows.entities.is_empty() {
                self.rows.entities.resize(before, None);
                self.rows.entities.push(self.entity);
            }
        } else {
            self.rows.truncate(before);
            self.rows.faults.push(RowFault { index, faults: self.faults, entity: self.entity });
        }
    }
}

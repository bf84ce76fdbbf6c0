//! CSV bodies → feature rows, by the names of the header.

use super::columns::RowBuilder;
use super::{BodyError, FaultCode, FeatureRows, FieldFault, Place, RowReader};

/// A CSV header matched with the schema's fields.
#[derive(Debug)]
struct CsvHeader {
    /// Per column the field that it fills, by its position among all fields.
    fields: Vec<usize>,
}

impl RowReader {
    /// Reads a CSV body with a header of field names. An empty cell is a missing value; quoting is RFC 4180's.
    ///
    /// # Errors
    /// [`BodyError`] if the header does not fit, or there are no rows or more than `limit`; a bad record is a fault in the
    /// answer.
    pub fn csv_rows(&self, body: &[u8], limit: usize) -> Result<FeatureRows, BodyError> {
        let mut reader = ::csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(body);
        let mut record = ::csv::ByteRecord::new();
        // Reading from memory fails for nothing: a flexible reader takes any bytes.
        let mut next = |record: &mut ::csv::ByteRecord| reader.read_byte_record(record).unwrap_or(false);
        if !next(&mut record) {
            return Err(BodyError::Empty);
        }
        let header = self.csv_header(&record)?;
        let mut rows = self.empty((body.len() / 32).clamp(1, limit.min(8_192)));
        while next(&mut record) {
            if rows.submitted == limit {
                return Err(BodyError::TooManyRows { limit });
            }
            self.csv_record(&header, &record, &mut rows);
        }
        if rows.submitted == 0 {
            return Err(BodyError::Empty);
        }
        rows.refuse_duplicate_entities();
        Ok(rows)
    }

    /// Matches a header with the schema's fields.
    ///
    /// # Errors
    /// [`BodyError::Header`] with every column that is unknown or named twice and every needed field that has no column.
    fn csv_header(&self, record: &::csv::ByteRecord) -> Result<CsvHeader, BodyError> {
        let mut faults = Vec::new();
        let mut fields = Vec::with_capacity(record.len());
        for cell in record {
            let name = String::from_utf8_lossy(cell);
            let name = name.trim();
            match self.by_name.get(name) {
                Some(at) if fields.contains(at) => {
                    faults.push(FieldFault { place: Place::Field(*at), code: FaultCode::Malformed });
                }
                Some(at) => fields.push(*at),
                None => {
                    let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
                    faults.push(FieldFault {
                        place: Place::Unknown(name.into()),
                        code: FaultCode::UnknownField,
                    });
                }
            }
            if faults.len() >= 100 {
                break;
            }
        }
        for (at, reader) in self.fields.iter().enumerate() {
            if !fields.contains(&at) && reader.missing().is_err() && faults.len() < 100 {
                faults.push(FieldFault { place: Place::Field(at), code: FaultCode::Required });
            }
        }
        if faults.is_empty() { Ok(CsvHeader { fields }) } else { Err(BodyError::Header(faults)) }
    }

    fn csv_record(&self, header: &CsvHeader, record: &::csv::ByteRecord, rows: &mut FeatureRows) {
        if record.len() != header.fields.len() {
            return rows.refuse(FaultCode::Columns);
        }
        let mut builder = RowBuilder::new(self, rows);
        for (at, cell) in header.fields.iter().zip(record) {
            builder.name(*at);
            let reader = &self.fields[*at];
            match std::str::from_utf8(cell) {
                Ok("") => builder.put_missing(*at),
                Ok(text) => builder.put(*at, reader.text(text)),
                Err(_) => builder.put(*at, Err(FaultCode::Malformed)),
            }
        }
        builder.finish();
    }
}

//! Indexes that readers may ask for. Each costs writers time, so none is there from the beginning.

use crate::lock::Mutex;
use crate::table_name::TableName;

/// What separates an aggregate's category from the rest of its id.
pub const CATEGORY_END: char = '-';

/// An index by a property of the events, and then by version: those of one value are read in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// By type.
    Type,
    /// By category: what precedes the first [`CATEGORY_END`] of the aggregate id.
    Category,
    /// By the partition of the aggregate, of so many.
    Partition(i32),
}

impl Index {
    /// What its name adds to that of the table.
    pub fn suffix(self) -> String {
        match self {
            Self::Type => "_type_version".to_owned(),
            Self::Category => "_category_version".to_owned(),
            Self::Partition(partitions) => format!("_partition_{partitions}"),
        }
    }

    /// The indexed expression. A condition must have it exactly so for the index to be used.
    pub fn expression(self, table: &TableName) -> String {
        match self {
            Self::Type => "event_type".to_owned(),
            Self::Category => format!("pg_catalog.split_part(aggregate_id, '{CATEGORY_END}', 1)"),
            Self::Partition(partitions) => format!("{}(aggregate_id, {partitions})", table.beside("_partition")),
        }
    }
}

/// The valid ones among the indexes of a table, as far as is known. They decide how events are found, and not which.
#[derive(Debug, Default)]
pub struct Indexes(Mutex<Vec<String>>);

impl Indexes {
    /// Indexes with these suffixes.
    pub fn new(suffixes: Vec<String>) -> Self {
        Self(Mutex::new(suffixes))
    }

    /// Whether an index is there.
    pub fn has(&self, index: Index) -> bool {
        self.0.lock().contains(&index.suffix())
    }

    /// Their suffixes.
    pub fn suffixes(&self) -> Vec<String> {
        self.0.lock().clone()
    }

    /// Take over what was found.
    pub fn become_like(&self, found: &Self) {
        let suffixes = found.suffixes();
        *self.0.lock() = suffixes;
    }
}

impl Clone for Indexes {
    fn clone(&self) -> Self {
        Self::new(self.suffixes())
    }
}

/// Tables that differ in their indexes are the same table.
impl PartialEq for Indexes {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Indexes {}

//! Filters of readers. While catching up, the server evaluates a filter; for live events this crate does, with the same
//! result. What this crate cannot decide is left to the server.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::store::event::StoredEvent;
use crate::store::indexes::{CATEGORY_END, Index};
use crate::store::json::Value;
use crate::store::table::Table;

/// One condition; all conditions of a filter must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The type is one of these.
    Types(Vec<String>),
    /// The type begins with one of these.
    TypePrefixes(Vec<String>),
    /// The aggregate id is one of these.
    Aggregates(Vec<String>),
    /// The aggregate id begins with one of these.
    AggregatePrefixes(Vec<String>),
    /// The metadata have this key with one of these JSON values.
    Metadata(String, Vec<String>),
    /// The data contain this JSON document, as `jsonb @>` has it.
    Data(String),
    /// The aggregate falls into one of these partitions. The first field is the number of all partitions.
    Partitions(i32, Vec<i32>),
}

/// The partition of an aggregate, where `partitions` is at least 1: the first three bytes of the id's SHA-256, as a
/// number, modulo `partitions`. Every language computes the same partition, and the definition must never change.
pub fn partition_of(aggregate_id: &str, partitions: i32) -> i32 {
    let digest = Sha256::digest(aggregate_id.as_bytes());
    let number = digest.iter().take(3).fold(0, |number, &byte| number << 8 | i32::from(byte));
    number % partitions.max(1)
}

/// See the module documentation.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    conditions: Vec<(Condition, Vec<Value>)>,
}

/// A parameter and its type.
pub type Parameter = (Box<dyn ToSql + Sync + Send>, Type);

impl Filter {
    /// A filter that requires all conditions.
    pub fn new(conditions: Vec<Condition>) -> Result<Self> {
        let parsed = conditions.into_iter().map(|condition| {
            let values = match &condition {
                Condition::Metadata(_, texts) => texts.iter().map(|text| parse(text)).collect::<Result<_>>()?,
                Condition::Data(text) => vec![parse(text)?],
                _ => Vec::new(),
            };
            Ok((condition, values))
        });
        Ok(Self { conditions: parsed.collect::<Result<_>>()? })
    }

    /// Whether the filter matches every event.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// Whether every encoding has the characters of all values.
    pub fn is_ascii(&self) -> bool {
        let are_ascii = |texts: &[String]| texts.iter().all(|text| text.is_ascii());
        self.conditions.iter().all(|(condition, _)| match condition {
            Condition::Types(texts)
            | Condition::TypePrefixes(texts)
            | Condition::Aggregates(texts)
            | Condition::AggregatePrefixes(texts) => are_ascii(texts),
            Condition::Metadata(key, texts) => key.is_ascii() && are_ascii(texts),
            Condition::Data(text) => text.is_ascii(),
            Condition::Partitions(..) => true,
        })
    }

    /// Whether the best plan depends on the values: a type or a category may have one event or nearly all. A plan for all
    /// values assumes an average, which for a rare one means reading the whole table. Aggregates are all small.
    pub fn is_planned_by_values(&self) -> bool {
        !self.is_empty() && !self.conditions.iter().any(|(condition, _)| matches!(condition, Condition::Aggregates(_)))
    }

    /// The filter's SQL, for the indexes of a table, to be appended to a `WHERE` condition. Its parameters are numbered after the existing ones.
    pub fn sql(&self, table: &Table, parameters: &mut Vec<Parameter>) -> String {
        let mut sql = String::new();
        for (condition, _) in &self.conditions {
            let mut place = |value: Box<dyn ToSql + Sync + Send>, kind: Type| {
                parameters.push((value, kind));
                parameters.len()
            };
            let test = match condition.clone() {
                Condition::Types(texts) => format!("event_type {}", is_one_of(texts, place)),
                Condition::Aggregates(texts) => format!("aggregate_id {}", is_one_of(texts, place)),
                Condition::TypePrefixes(texts) => {
                    let at = place(Box::new(texts), Type::TEXT_ARRAY);
                    begins_with_one_of("event_type", at)
                }
                Condition::AggregatePrefixes(texts) => {
                    // An index knows no prefixes.
                    let category = categories_of(&texts).filter(|_| table.indexes.has(Index::Category));
                    let category = category.map_or_else(String::new, |categories| {
                        let expression = Index::Category.expression(&table.table_name);
                        format!("{expression} {} AND ", is_one_of(categories, &mut place))
                    });
                    let at = place(Box::new(texts), Type::TEXT_ARRAY);
                    category + &begins_with_one_of("aggregate_id", at)
                }
                Condition::Metadata(key, texts) => {
                    let key = place(Box::new(key), Type::TEXT);
                    let texts = place(Box::new(texts), Type::TEXT_ARRAY);
                    format!(
                        "pg_catalog.jsonb_typeof(metadata) = 'object' \
                         AND metadata -> ${key} = ANY(${texts}::pg_catalog.jsonb[])"
                    )
                }
                Condition::Data(text) => format!("data @> ${}::pg_catalog.jsonb", place(Box::new(text), Type::TEXT)),
                Condition::Partitions(partitions, own) if table.indexes.has(Index::Partition(partitions)) => {
                    let expression = Index::Partition(partitions).expression(&table.table_name);
                    match *own {
                        [only] => format!("{expression} = ${}", place(Box::new(only), Type::INT4)),
                        _ => format!("{expression} = ANY(${})", place(Box::new(own), Type::INT4_ARRAY)),
                    }
                }
                Condition::Partitions(partitions, own) => format!(
                    "('x' || pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(\
                        pg_catalog.convert_to(aggregate_id, 'UTF8')), 1, 3), 'hex'))::bit(24)::int % {} = ANY(${})",
                    partitions.max(1),
                    place(Box::new(own), Type::INT4_ARRAY)
                ),
            };
            sql.push_str(" AND ");
            sql.push_str(&test);
        }
        sql
    }

    /// What an event must have to match, for an index of filters.
    pub fn key(&self) -> Key<'_> {
        let keys = self.conditions.iter().map(|(condition, _)| match condition {
            Condition::Aggregates(texts) => Key::Aggregates(texts),
            Condition::AggregatePrefixes(texts) => Key::AggregatePrefixes(texts),
            Condition::Types(texts) => Key::Types(texts),
            Condition::TypePrefixes(texts) => Key::TypePrefixes(texts),
            Condition::Partitions(partitions, own) => Key::Partitions(*partitions, own),
            Condition::Metadata(..) | Condition::Data(_) => Key::None,
        });
        keys.max().unwrap_or(Key::None)
    }

    /// Whether an event matches; `None` if that depends on JSON that [`Value::parse`] does not read.
    pub fn matches(&self, event: &Looked<'_>) -> Option<bool> {
        let mut is_known = true;
        for (condition, values) in &self.conditions {
            match holds(condition, values, event) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => is_known = false,
            }
        }
        is_known.then_some(true)
    }
}

/// What an event must have to match a filter: a text of these, a prefix of these, or a partition of these. In the order of how few events that
/// may be, the fewest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // as in `Condition`
pub enum Key<'a> {
    /// Any event may match.
    None,
    Partitions(i32, &'a [i32]),
    TypePrefixes(&'a [String]),
    Types(&'a [String]),
    AggregatePrefixes(&'a [String]),
    Aggregates(&'a [String]),
}

/// An event that is compared with filters. Its JSON is parsed once for all of them.
pub struct Looked<'a> {
    event: &'a StoredEvent,
    metadata: Json<'a>,
    data: Json<'a>,
}

struct Json<'a> {
    text: Option<&'a str>,
    value: OnceCell<Option<Value>>,
}

impl<'a> Looked<'a> {
    /// An event to compare.
    pub fn at(event: &'a StoredEvent) -> Self {
        let json = |text: &'a Option<String>| Json { text: text.as_deref(), value: OnceCell::new() };
        Self { event, metadata: json(&event.metadata), data: json(&event.data) }
    }
}

impl Json<'_> {
    /// Whether there is a document that passes a test; `None` if it cannot be read.
    fn passes(&self, test: impl Fn(&Value) -> bool) -> Option<bool> {
        let Some(document) = self.text else { return Some(false) };
        self.value.get_or_init(|| Value::parse(document)).as_ref().map(test)
    }
}

fn holds(condition: &Condition, values: &[Value], looked: &Looked<'_>) -> Option<bool> {
    let (kind, aggregate_id) = (&looked.event.event_type, &looked.event.aggregate_id);
    match condition {
        Condition::Types(texts) => Some(texts.contains(kind)),
        Condition::TypePrefixes(texts) => Some(texts.iter().any(|prefix| kind.starts_with(prefix))),
        Condition::Aggregates(texts) => Some(texts.contains(aggregate_id)),
        Condition::AggregatePrefixes(texts) => Some(texts.iter().any(|prefix| aggregate_id.starts_with(prefix))),
        Condition::Partitions(partitions, own) => Some(own.contains(&partition_of(aggregate_id, *partitions))),
        Condition::Metadata(key, _) => looked.metadata.passes(|document| match document {
            Value::Object(entries) => entries.get(key).is_some_and(|value| values.contains(value)),
            _ => false,
        }),
        Condition::Data(_) => looked.data.passes(|document| values.iter().all(|value| document.contains(value))),
    }
}

/// Equality with one value, or with any of several. For a single value an index returns the rows ordered by its next
/// column. For several values it does not, and PostgreSQL may scan all versions instead.
fn is_one_of(mut texts: Vec<String>, mut place: impl FnMut(Box<dyn ToSql + Sync + Send>, Type) -> usize) -> String {
    match texts.pop() {
        Some(only) if texts.is_empty() => format!("= ${}", place(Box::new(only), Type::TEXT)),
        last => {
            texts.extend(last);
            format!("= ANY(${})", place(Box::new(texts), Type::TEXT_ARRAY))
        }
    }
}

/// The categories of all aggregates with one of these prefixes; `None` if that may be any.
fn categories_of(prefixes: &[String]) -> Option<Vec<String>> {
    let categories = prefixes.iter().map(|prefix| Some(prefix.split_once(CATEGORY_END)?.0.to_owned()));
    Some(categories.collect::<Option<BTreeSet<_>>>()?.into_iter().collect())
}

fn begins_with_one_of(column: &str, at: usize) -> String {
    format!("EXISTS (SELECT FROM pg_catalog.unnest(${at}) AS prefix WHERE pg_catalog.starts_with({column}, prefix))")
}

fn parse(text: &str) -> Result<Value> {
    Value::parse(text).ok_or_else(|| Error::options("filter", text, "is not JSON, or nests too deep"))
}

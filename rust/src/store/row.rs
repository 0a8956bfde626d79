//! Reading columns whose types are known.

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use crate::error::{Error, Result};

const DATA_EXCEPTION: &str = "22000";

/// The text of a `jsonb` value: a version byte and the text.
struct JsonText(String);

impl<'a> FromSql<'a> for JsonText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match raw.split_first() {
            Some((1, text)) => Ok(Self(std::str::from_utf8(text)?.to_owned())),
            _ => Err("unknown version of the jsonb format".into()),
        }
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB
    }
}

/// A time in microseconds since 1970.
struct Micros(i64);

/// Microseconds from 1970 to 2000, PostgreSQL's epoch.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        // infinity and -infinity are the extreme values, and stay so
        Ok(Self(i64::from_be_bytes(raw.try_into()?).saturating_add(POSTGRES_EPOCH)))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

/// The microseconds in a `timestamptz` column.
pub fn micros(row: &Row, column: usize) -> Result<Option<i64>> {
    Ok(get::<Option<Micros>>(row, column)?.map(|Micros(micros)| micros))
}

/// The text in a `jsonb` column.
pub fn json_text(row: &Row, column: usize) -> Result<Option<String>> {
    Ok(get::<Option<JsonText>>(row, column)?.map(|JsonText(text)| text))
}

/// A column of a row whose types are known.
pub fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T> {
    row.try_get(column).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        Error::refused(DATA_EXCEPTION, "read a row", format!("{error}: {cause}"))
    })
}

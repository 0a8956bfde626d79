//! The name of a table, as a user gives it.

use crate::error::{Error, Result};
use crate::wire::protocol::quote_identifier;

/// A table name, as given and split into its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    schema: Option<String>,
    /// The table's name without its schema, not quoted.
    pub table: String,
}

impl TableName {
    /// `table` or `schema.table`, read as PostgreSQL reads it: folded to lower case unless quoted.
    pub fn parse(name: &str) -> Result<Self> {
        let wrong = || {
            Error::options("table_name", name, "give table or schema.table, each at most 63 bytes, quoted if unusual")
        };
        let mut parts = split(name).ok_or_else(wrong)?;
        let is_valid = |part: &String| !part.is_empty() && part.len() <= 63;
        if parts.len() > 2 || !parts.iter().all(is_valid) {
            return Err(wrong());
        }
        let table = parts.pop().ok_or_else(wrong)?;
        Ok(Self { schema: parts.pop(), table })
    }

    /// The table with something appended to its name, quoted, with its schema.
    pub fn beside(&self, suffix: &str) -> String {
        let table = quote_identifier(&format!("{}{suffix}", self.table));
        match &self.schema {
            Some(schema) => format!("{}.{table}", quote_identifier(schema)),
            None => table,
        }
    }

    /// An object with a fixed name in the table's schema, quoted.
    pub fn in_schema(&self, name: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{name}", quote_identifier(schema)),
            None => name.to_owned(),
        }
    }

    /// The quoted name, ready for SQL.
    pub fn quoted(&self) -> String {
        self.beside("")
    }

    /// As [`TableName::bare`], not quoted.
    pub fn bare_text(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.table)
    }

    /// The table's name with a suffix, without the schema: for objects that SQL names without one, such as an index in
    /// `CREATE INDEX`.
    pub fn bare(&self, suffix: &str) -> String {
        quote_identifier(&self.bare_text(suffix))
    }
}

/// Split `schema.table` into parts; `None` when a part is not an identifier.
fn split(name: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = name;
    loop {
        let part;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next()? {
                    (_, '"') if chars.next_if(|&(_, c)| c == '"').is_some() => text.push('"'),
                    (at, '"') => break at + 1,
                    (_, '\0') => return None,
                    (_, c) => text.push(c),
                }
            };
            part = text;
            rest = &quoted[end..];
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            let starts_well = word.starts_with(|c: char| c.is_alphabetic() || c == '_');
            if !starts_well || !word.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                return None;
            }
            part = word.to_lowercase();
            rest = tail;
        }
        parts.push(part);
        match rest.strip_prefix('.') {
            Some(tail) => rest = tail,
            None if rest.is_empty() => return Some(parts),
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_side_tables() {
        let name = TableName::parse(r#"Shop."My""Events""#).unwrap();
        assert_eq!(name.quoted(), r#""shop"."My""Events""#);
        assert_eq!(name.beside("_parked"), r#""shop"."My""Events_parked""#);
        assert_eq!(name.bare("_wake"), r#""My""Events_wake""#);
    }

    #[test]
    fn names_are_read_as_postgresql_reads_them() {
        let quoted = |name: &str| TableName::parse(name).map(|name| name.quoted());
        assert_eq!(quoted("socket_io_attachments").unwrap(), "\"socket_io_attachments\"");
        assert_eq!(quoted("Chat.Events").unwrap(), "\"chat\".\"events\"");
        assert_eq!(quoted(r#""Chat".ev$1"#).unwrap(), "\"Chat\".\"ev$1\"");
        assert_eq!(quoted(r#""a"".b""#).unwrap(), r#""a"".b""#);
        for bad in ["", "a.b.c", "a b", "a;drop", "\"open", "\"\"", ".a", "a.", "1a", &"x".repeat(64)] {
            assert!(matches!(quoted(bad), Err(Error::Options { .. })), "{bad:?}");
        }
    }
}

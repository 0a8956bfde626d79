//! The two formats of a connection string, `key=value` and URI, exactly as libpq reads them.
//!
//! Errors name the offending part only when it cannot be a piece of a password.

use super::keywords::{Pairs, is_keyword};
use crate::error::{Error, Result};

/// Keywords and values in the order written; a later one replaces an earlier one.
pub(super) fn parse(dsn: &str) -> Result<Pairs> {
    if dsn.contains('\0') {
        return Err(malformed("it contains a NUL character"));
    }
    let uri = dsn.strip_prefix("postgresql://").or_else(|| dsn.strip_prefix("postgres://"));
    let mut pairs = match uri {
        Some(rest) => parse_uri(rest)?,
        None => parse_pairs(dsn)?,
    };
    for (keyword, value) in &mut pairs {
        if keyword == "requiressl" {
            // Syntax of PostgreSQL 7, still accepted by libpq.
            let mode = if value.starts_with('1') { "require" } else { "prefer" };
            (*keyword, *value) = ("sslmode".to_owned(), mode.to_owned());
        }
    }
    Ok(pairs)
}

fn malformed(reason: impl Into<String>) -> Error {
    Error::options("dsn", "", reason)
}

/// C's `isspace`. `char::is_ascii_whitespace` does not include the vertical tab.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

fn parse_pairs(text: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = rest.find(|c| c == '=' || is_space(c)).unwrap_or(rest.len());
        let (keyword, after) = rest.split_at(end);
        let Some(after) = after.trim_start_matches(is_space).strip_prefix('=') else {
            // The word may be the tail of an unquoted password, so it is shown only if it is a keyword.
            let shown = if is_keyword(keyword) { format!(" after {keyword:?}") } else { String::new() };
            return Err(malformed(format!(
                "missing \"=\"{shown}; write key=value pairs (values with spaces in single quotes) \
                 or a postgresql:// URI"
            )));
        };
        let (value, after) = parse_value(after.trim_start_matches(is_space))?;
        pairs.push((keyword.to_owned(), value));
        rest = after.trim_start_matches(is_space);
    }
    Ok(pairs)
}

/// One value, bare or in single quotes, with `\` before any character that is to be taken literally.
fn parse_value(text: &str) -> Result<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && is_space(c) => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(malformed("a quoted value has no closing single quote"));
    }
    Ok((value, ""))
}

fn parse_uri(rest: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let (credentials, rest) = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => (&rest[..at], &rest[at + 1..]),
        _ => ("", rest),
    };
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));

    let (hosts, ports, rest) = parse_authority(rest)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let dbname = path.strip_prefix('/').unwrap_or(path);
    let given = [("user", user), ("password", password), ("host", &hosts), ("port", &ports), ("dbname", dbname)];
    for (keyword, value) in given {
        // An empty part is not stored, so that the environment can supply it.
        if !value.is_empty() {
            pairs.push((keyword.to_owned(), decode(value, keyword)?));
        }
    }
    parse_query(query, &mut pairs)?;
    Ok(pairs)
}

/// `host:port,[v6]:port,…` up to the path or query: comma-separated hosts, comma-separated ports, the rest.
fn parse_authority(mut rest: &str) -> Result<(String, String, &str)> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    loop {
        let host;
        if let Some(inner) = rest.strip_prefix('[') {
            (host, rest) = inner.split_once(']').ok_or_else(|| malformed("an IPv6 address has no closing \"]\""))?;
            if host.is_empty() {
                return Err(malformed("an IPv6 address \"[]\" is empty"));
            }
            if !rest.is_empty() && !rest.starts_with([':', '/', '?', ',']) {
                return Err(malformed("after \"]\" of an IPv6 address only \":\", \",\", \"/\" or \"?\" may follow"));
            }
        } else {
            (host, rest) = rest.split_at(rest.find([':', '/', '?', ',']).unwrap_or(rest.len()));
        }
        hosts.push_str(host);
        if let Some(after) = rest.strip_prefix(':') {
            let port;
            (port, rest) = after.split_at(after.find(['/', '?', ',']).unwrap_or(after.len()));
            ports.push_str(port);
        }
        let Some(next) = rest.strip_prefix(',') else { return Ok((hosts, ports, rest)) };
        rest = next;
        hosts.push(',');
        ports.push(',');
    }
}

fn parse_query(mut query: &str, pairs: &mut Pairs) -> Result<()> {
    while !query.is_empty() {
        let parameter;
        (parameter, query) = query.split_once('&').unwrap_or((query, ""));
        let Some((keyword, value)) = parameter.split_once('=') else {
            return Err(malformed("a query parameter of the URI has no \"=\""));
        };
        let keyword = decode(keyword, "query parameter")?;
        if value.contains('=') {
            return Err(Error::options(keyword, "", "a value in a URI has a second \"=\"; write it as %3D"));
        }
        let value = decode(value, &keyword)?;
        pairs.push(match (keyword.as_str(), value.as_str()) {
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()), // as JDBC writes it
            _ => (keyword, value),
        });
    }
    Ok(())
}

/// Undo percent-encoding. As in libpq 18 and later, spaces around a value are removed, and spaces inside it are an
/// error.
fn decode(text: &str, keyword: &str) -> Result<String> {
    let bad = |reason: &str| Error::options(keyword, "", format!("in a URI {reason}"));
    let text = text.trim_matches(' ');
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit(), digit());
                let (Some(high), Some(low)) = (high, low) else {
                    return Err(bad("\"%\" must be followed by two hexadecimal digits; write a literal % as %25"));
                };
                match u8::try_from(high * 16 + low) {
                    Ok(0) | Err(_) => return Err(bad("%00 is not allowed")),
                    Ok(decoded) => bytes.push(decoded),
                }
            }
            b' ' => return Err(bad("a space must be written as %20")),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad("the percent-encoded bytes are not UTF-8"))
}

//! The two files libpq consults: the service file and the password file (`.pgpass`).

use super::keywords::{Env, Pairs, is_keyword};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The settings of section `[service]`, from the named file, or else from `~/.pg_service.conf` and then the system-wide
/// file.
pub(super) fn read_service(service: &str, file: Option<&str>, env: Env) -> Result<Pairs> {
    let personal = match file {
        Some(file) => {
            let file = PathBuf::from(file);
            if !file.exists() {
                return Err(Error::options("servicefile", file.to_string_lossy(), "no such file"));
            }
            Some(file)
        }
        None => env("HOME").map(|home| Path::new(&home).join(".pg_service.conf")).filter(|file| file.exists()),
    };
    let system = env("PGSYSCONFDIR").map(|dir| Path::new(&dir).join("pg_service.conf")).filter(|file| file.exists());
    for file in personal.into_iter().chain(system) {
        if let Some(pairs) = read_service_file(&file, service)? {
            return Ok(pairs);
        }
    }
    Err(Error::options(
        "service",
        service,
        "not defined in the service file (PGSERVICEFILE or ~/.pg_service.conf, then PGSYSCONFDIR/pg_service.conf)",
    ))
}

fn read_service_file(file: &Path, service: &str) -> Result<Option<Pairs>> {
    let bad = |reason: String| Error::options("servicefile", file.to_string_lossy(), reason);
    let text = fs::read_to_string(file).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let header = format!("[{service}]");
    let mut found: Option<Pairs> = None;
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') {
            if found.is_some() {
                break; // the next section begins
            }
            if line == header {
                found = Some(Pairs::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        let number = number + 1;
        let Some((keyword, value)) = line.split_once('=') else {
            return Err(bad(format!("line {number} has no \"=\" (LDAP look-ups are not supported)")));
        };
        if matches!(keyword, "service" | "servicefile") {
            return Err(bad(format!("line {number}: a service cannot refer to another one")));
        }
        if !is_keyword(keyword) {
            return Err(bad(format!("line {number}: unknown keyword {keyword:?} (no spaces around \"=\")")));
        }
        // As in libpq, the first of two equal keywords takes precedence.
        if pairs.iter().all(|(known, _)| known != keyword) {
            pairs.push((keyword.to_owned(), value.to_owned()));
        }
    }
    Ok(found)
}

/// The password file's result for one server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Passfile {
    /// Password of the first matching line.
    pub(crate) password: Option<String>,
    /// Why the file was ignored although it exists.
    pub(crate) ignored: Option<String>,
}

/// Look up the password for `[host, port, dbname, user]`. As in libpq, a missing file is not an error, and an unsafe
/// file is ignored.
pub(super) fn read_passfile(file: &Path, wanted: [&str; 4]) -> Passfile {
    let ignored = |reason: &str| Passfile {
        password: None,
        ignored: Some(format!("the password file {} was ignored: {reason}", file.display())),
    };
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Passfile::default(),
        Err(error) => return ignored(&error.to_string()),
    };
    if !metadata.is_file() {
        return ignored("it is not a plain file");
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
        return ignored("group or others have access to it; run chmod 0600 on it");
    }
    match fs::read_to_string(file) {
        Ok(text) => Passfile { password: text.lines().find_map(|line| match_line(line, wanted)), ignored: None },
        Err(error) => ignored(&error.to_string()),
    }
}

/// The password of a line `host:port:dbname:user:password` if the first four fields match.
fn match_line(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for name in wanted {
        let (field, after) = split_field(rest);
        // Compared before unescaping: `\*` is the name "*", not the wildcard.
        if field != "*" && unescape(field) != name {
            return None;
        }
        rest = after?;
    }
    Some(unescape(split_field(rest).0))
}

/// The text before the first `:` that is not escaped by `\`, and the text after it.
fn split_field(text: &str) -> (&str, Option<&str>) {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            ':' => return (&text[..at], Some(&text[at + 1..])),
            _ => {}
        }
    }
    (text, None)
}

fn unescape(field: &str) -> String {
    let mut plain = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    plain
}

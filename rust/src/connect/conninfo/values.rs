//! The value of each keyword, from the connection string, the service file and the environment.

use super::keywords::{Env, KEYWORDS, UNSUPPORTED, is_keyword};
use super::{files, syntax};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::PathBuf;

/// The merged values by keyword. An empty value counts as not given, but takes precedence over the environment.
pub(super) struct Values {
    by_keyword: HashMap<String, String>,
    home: Option<PathBuf>,
}

impl Values {
    /// Merge with libpq's precedence, and reject unknown keywords and those that the driver does not support.
    pub(super) fn gather(dsn: &str, env: Env) -> Result<Self> {
        let mut by_keyword = HashMap::new();
        for (keyword, value) in syntax::parse(dsn)? {
            if !is_keyword(&keyword) {
                // The value is not shown: it may be a password behind a misspelt keyword.
                return Err(Error::options(keyword, "", "unknown connection parameter"));
            }
            by_keyword.insert(keyword, value);
        }
        let lookup = |keyword: &str, variable: &str| match by_keyword.get(keyword) {
            Some(value) => Some(value.clone()),
            None => env(variable),
        };
        if let Some(service) = lookup("service", "PGSERVICE").filter(|service| !service.is_empty()) {
            let file = lookup("servicefile", "PGSERVICEFILE").filter(|file| !file.is_empty());
            for (keyword, value) in files::read_service(&service, file.as_deref(), env)? {
                by_keyword.entry(keyword).or_insert(value);
            }
        }
        let unsupported = UNSUPPORTED.iter().map(|(keyword, variable, ..)| (keyword, variable));
        for (keyword, variable) in KEYWORDS.iter().map(|(keyword, variable)| (keyword, variable)).chain(unsupported) {
            if !variable.is_empty()
                && !by_keyword.contains_key(*keyword)
                && let Some(value) = env(variable)
            {
                by_keyword.insert((*keyword).to_owned(), value);
            }
        }
        let values = Self { by_keyword, home: env("HOME").map(PathBuf::from) };
        for (keyword, _, harmless, advice) in UNSUPPORTED {
            if let Some(value) = values.get(keyword)
                && !harmless.is_empty()
                && !harmless.contains(&value)
            {
                let is_secret = ["password", "secret", "scram"].iter().any(|word| keyword.contains(word));
                return Err(Error::options(*keyword, if is_secret { "" } else { value }, *advice));
            }
        }
        Ok(values)
    }

    /// The value of a keyword, unless it is empty.
    pub(super) fn get(&self, keyword: &str) -> Option<&str> {
        self.by_keyword.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn path(&self, keyword: &str) -> Option<PathBuf> {
        self.get(keyword).map(PathBuf::from)
    }

    /// A file in the home directory, where libpq has its default files.
    pub(super) fn at_home(&self, file: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(file))
    }

    /// The value of a keyword that must be one of the `allowed` words.
    pub(super) fn choice<T: Copy>(&self, keyword: &str, allowed: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.get(keyword) else { return Ok(None) };
        if let Some((_, choice)) = allowed.iter().find(|(name, _)| *name == value) {
            return Ok(Some(*choice));
        }
        let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
        Err(Error::options(keyword, value, format!("must be one of {}", names.join(", "))))
    }

    pub(super) fn integer(&self, keyword: &str) -> Result<Option<i32>> {
        let Some(value) = self.get(keyword) else { return Ok(None) };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::options(keyword, value, "must be an integer")),
        }
    }
}

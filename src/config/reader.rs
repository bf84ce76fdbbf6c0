//! Takes settings out of their sources, and remembers every mistake.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::values::{duration, one_or_many};
use super::{Mistakes, Sources};

/// The settings that `serve` knows: variable, place in the file, default.
pub(super) struct Reader {
    pub(super) flags: BTreeMap<String, String>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) file: BTreeMap<String, String>,
    /// `[model.NAME]` of the file.
    pub(super) model: toml::Table,
    /// `[plan.NAME]` of the file.
    pub(super) plan: toml::Table,
    /// `[guard]` of the file, but for its mode.
    pub(super) guard: toml::Table,
    /// `[[auth.issuer]]` of the file.
    pub(super) issuer: Vec<toml::Table>,
    /// `[[auth.certificate]]` of the file.
    pub(super) certificate: Vec<toml::Table>,
    pub(super) known: Vec<(&'static str, &'static str)>,
    pub(super) mistakes: Vec<String>,
}

impl Reader {
    pub(super) fn new(sources: Sources) -> Self {
        let mut mistakes = Vec::new();
        let mut file = BTreeMap::new();
        let (mut model, mut plan, mut guard) = (toml::Table::new(), toml::Table::new(), toml::Table::new());
        let (mut issuer, mut certificate) = (Vec::new(), Vec::new());
        match sources.file.as_deref().map(str::parse::<toml::Table>) {
            None => {}
            Some(Ok(mut table)) => {
                model = named_tables(&mut table, "model", &mut mistakes);
                plan = named_tables(&mut table, "plan", &mut mistakes);
                if let Some(toml::Value::Table(auth)) = table.get_mut("auth") {
                    issuer = tables(auth, "issuer", &mut mistakes);
                    certificate = tables(auth, "certificate", &mut mistakes);
                }
                match table.remove("guard") {
                    None => {}
                    Some(toml::Value::Table(mut rules)) => {
                        // A variable may say it, too.
                        let mode = rules.remove_entry("mode").into_iter().collect();
                        table.insert("guard".into(), toml::Value::Table(mode));
                        guard = rules;
                    }
                    Some(_) => mistakes.push("guard of the settings file: expected a table".into()),
                }
                flatten("", &table, &mut file, &mut mistakes);
            }
            Some(Err(error)) => mistakes.push(format!("scoregate.toml is not TOML: {error}")),
        }
        let mut environment = sources.environment;
        environment.remove("SCOREGATE_CONFIG");
        Self {
            flags: sources.flags,
            environment,
            file,
            model,
            plan,
            guard,
            issuer,
            certificate,
            known: Vec::new(),
            mistakes,
        }
    }

    /// The setting called `variable` in the environment and `key` in the file. On a mistake the default stands in, so that
    /// the others are read as well.
    pub(super) fn take<T>(
        &mut self,
        variable: &'static str,
        key: &'static str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        self.known.push((variable, key));
        let flag = self.flags.remove(variable).map(|value| (format!("flag for {variable}"), value));
        let environment = self.environment.remove(variable).map(|value| (variable.to_string(), value));
        let file = self.file.remove(key).map(|value| (format!("{key} of the settings file"), value));
        let fallback = || parse(default).expect("the default of every setting parses");
        let Some((name, value)) = flag.or(environment).or(file) else { return fallback() };
        parse(&value).unwrap_or_else(|expected| {
            self.mistakes
                .push(format!("{name}: found {}, expected {expected}", shown(&format!("\"{value}\""))));
            fallback()
        })
    }

    pub(super) fn finish(mut self) -> Result<(), Mistakes> {
        for name in self.environment.keys() {
            let hint = closest(name, self.known.iter().map(|(variable, _)| *variable));
            self.mistakes.push(format!("{name} is no setting{hint}"));
        }
        for key in self.file.keys() {
            let hint = closest(key, self.known.iter().map(|(_, key)| *key));
            self.mistakes.push(format!("{key} of the settings file is no setting{hint}"));
        }
        if self.mistakes.is_empty() { Ok(()) } else { Err(Mistakes(self.mistakes)) }
    }
}

/// The issuer that variables describe, each named by this and the key that it stands for.
pub(super) const ENVIRONMENT: &str = "SCOREGATE_JWT_";

/// Takes what it knows out of one table of the settings file.
pub(super) struct TableReader<'t> {
    /// What the table is called in mistakes.
    pub(super) name: String,
    pub(super) table: &'t mut toml::Table,
    pub(super) known: Vec<&'static str>,
    pub(super) mistakes: &'t mut Vec<String>,
}

impl TableReader<'_> {
    /// What the person who set `key` calls it.
    pub(super) fn place(&self, key: &str) -> String {
        match self.name.as_str() {
            ENVIRONMENT => format!("{ENVIRONMENT}{}", key.to_uppercase()),
            name => format!("{name}.{key} of the settings file"),
        }
    }

    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&toml::Value) -> Option<T>,
    ) -> Option<T> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            let found = shown(&value.to_string());
            let mistake = format!("{}: found {found}, expected {expected}", self.place(key));
            self.mistakes.push(mistake);
        }
        parsed
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.take(key, "a text that is not empty", |value| {
            value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
        })
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A text, or a list of them.
    pub(super) fn texts(&mut self, key: &'static str, expected: &str) -> Option<Vec<String>> {
        self.take(key, expected, one_or_many)
    }

    pub(super) fn duration(&mut self, key: &'static str) -> Option<Duration> {
        self.take(key, "a duration such as 250ms, 15s, 2m, 1h or 90d", |value| duration(value.as_str()?).ok())
    }

    /// What has to be there.
    pub(super) fn required<T: Default>(&mut self, key: &'static str, found: Option<T>) -> T {
        // A value that cannot be used has been complained about.
        let place = self.place(key);
        if found.is_none() && !self.mistakes.iter().any(|mistake| mistake.starts_with(&place)) {
            self.mistakes.push(format!("{place} is missing"));
        }
        found.unwrap_or_default()
    }

    pub(super) fn mistake(&mut self, message: &str) {
        let place = match self.name.as_str() {
            ENVIRONMENT => format!("{ENVIRONMENT}*"),
            name => format!("{name} of the settings file"),
        };
        self.mistakes.push(format!("{place}: {message}"));
    }

    /// Complains about what is left.
    pub(super) fn finish(self) {
        let name = &self.name;
        for key in self.table.keys() {
            let hint = closest(key, self.known.iter().copied());
            self.mistakes.push(format!("{name}.{key} of the settings file is no setting{hint}"));
        }
    }
}

/// Takes the tables `[KEY.NAME]` out of the file.
pub(super) fn named_tables(file: &mut toml::Table, key: &str, mistakes: &mut Vec<String>) -> toml::Table {
    match file.remove(key) {
        None => toml::Table::new(),
        Some(toml::Value::Table(tables)) => tables,
        Some(_) => {
            mistakes.push(format!("{key} of the settings file: expected tables [{key}.NAME]"));
            toml::Table::new()
        }
    }
}

/// A value as it may be shown. Secrets stand in files of their own, but a URL may have been given one all the same.
fn shown(value: &str) -> String {
    let Some((before, rest)) = value.split_once("://") else { return value.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{before}://…{}", &rest[at..]),
        None => value.to_owned(),
    }
}

/// Takes the list of tables called `key` out of `[auth]`.
fn tables(auth: &mut toml::Table, key: &str, mistakes: &mut Vec<String>) -> Vec<toml::Table> {
    let table = |value| match value {
        toml::Value::Table(table) => Some(table),
        _ => None,
    };
    match auth.remove(key) {
        None => Vec::new(),
        Some(toml::Value::Array(list)) => match list.into_iter().map(table).collect() {
            Some(tables) => tables,
            None => {
                mistakes.push(format!("auth.{key} of the settings file: expected tables [[auth.{key}]]"));
                Vec::new()
            }
        },
        Some(_) => {
            mistakes.push(format!("auth.{key} of the settings file: expected tables [[auth.{key}]]"));
            Vec::new()
        }
    }
}

/// A hint at the closest of the `known` names.
fn closest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    known
        .min_by_key(|candidate| strsim::damerau_levenshtein(name, candidate))
        .map_or_else(String::new, |candidate| format!("; did you mean {candidate}?"))
}

fn flatten(
    prefix: &str,
    table: &toml::Table,
    into: &mut BTreeMap<String, String>,
    mistakes: &mut Vec<String>,
) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, into, mistakes),
            toml::Value::String(text) => drop(into.insert(name, text.clone())),
            toml::Value::Integer(number) => drop(into.insert(name, number.to_string())),
            toml::Value::Boolean(switch) => drop(into.insert(name, switch.to_string())),
            // Its value is not shown: there may be a password in it.
            other => mistakes.push(format!(
                "{name} of the settings file: found {}, expected text, a whole number, true or false",
                match other {
                    toml::Value::Array(_) => "a list",
                    toml::Value::Float(_) => "a fraction",
                    toml::Value::Datetime(_) => "a date",
                    _ => "something else",
                }
            )),
        }
    }
}

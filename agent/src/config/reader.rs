//! Core: reads typed values out of the merged sources and collects every problem on the way.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use config::{Config as Settings, File, FileFormat, Value, ValueKind};

use super::keys::{KEYS, Trust};

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, `area.key`, or empty when the whole text is meant.
    pub key: String,
    /// What is wrong with it. Never repeats the value: values may be secret elsewhere.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = if self.key.is_empty() {
            "file"
        } else {
            &self.key
        };
        write!(f, "{key}: {}", self.message)
    }
}

/// Values given by command-line flags: key path to text.
pub type Overrides = BTreeMap<&'static str, String>;

/// The merged sources, and the problems found so far.
pub(super) struct Reader {
    sections: Vec<String>,
    settings: Settings,
    problems: Vec<Problem>,
}

impl Reader {
    /// Merges file, environment and flags, in rising precedence. Unknown keys and measured keys
    /// outside of the file become problems.
    pub(super) fn new(
        text: &str,
        environment: &BTreeMap<String, String>,
        flags: &Overrides,
    ) -> Result<Self, Problem> {
        let file = Settings::builder()
            .add_source(File::from_str(text, FileFormat::Toml))
            .build();
        // Without the file every key would be missing as well: that helps nobody.
        let file = file.map_err(|_| problem("", "is no valid TOML"))?;
        let mut reader = Self {
            sections: Vec::new(),
            settings: file.clone(),
            problems: Vec::new(),
        };
        reader.note_sections(file);
        let outside = reader.outside_values(environment, flags);
        let mut builder = Settings::builder().add_source(reader.settings.clone());
        for (path, value) in &outside {
            match builder.set_override(path, value.as_str()) {
                Ok(next) => builder = next,
                Err(_) => unreachable!("paths come from the table of keys"),
            }
        }
        if let Ok(merged) = builder.build() {
            reader.settings = merged;
        }
        Ok(reader)
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Whether the file has the section.
    pub(super) fn has_section(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section == name)
    }

    /// Notes a problem; the `None` lets callers return it.
    pub(super) fn problem<T>(&mut self, key: &str, message: &str) -> Option<T> {
        self.report(key, message);
        None
    }

    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match self.optional(key, parse)? {
            Some(value) => Some(value),
            None => self.problem(key, "missing"),
        }
    }

    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.optional(key, parse)
            .map(|value| value.unwrap_or(default))
    }

    /// Outer `None`: a problem. Inner `None`: not set.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let Some(value) = self.value(key) else {
            return Some(None);
        };
        let ValueKind::String(text) = value.kind else {
            return self.problem(key, "must be a text");
        };
        match parse(&text) {
            Ok(value) => Some(Some(value)),
            Err(message) => self.problem(key, &message),
        }
    }

    pub(super) fn optional_number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
    ) -> Option<Option<u32>> {
        let Some(value) = self.value(key) else {
            return Some(None);
        };
        let number = whole_number(&value).filter(|number| range.contains(&i64::from(*number)));
        match number {
            Some(number) => Some(Some(number)),
            None => {
                let (low, high) = range.into_inner();
                self.problem(key, &format!("must be a number from {low} to {high}"))
            }
        }
    }

    pub(super) fn number_or(
        &mut self,
        key: &'static str,
        default: u32,
        range: RangeInclusive<i64>,
    ) -> Option<u32> {
        self.optional_number(key, range)
            .map(|number| number.unwrap_or(default))
    }

    pub(super) fn seconds_or(
        &mut self,
        key: &'static str,
        default: u32,
        range: RangeInclusive<i64>,
    ) -> Option<Duration> {
        self.number_or(key, default, range)
            .map(|s| Duration::from_secs(u64::from(s)))
    }

    /// A list of numbers of 32 bits; empty when not set.
    pub(super) fn numbers(&mut self, key: &'static str) -> Option<Vec<u32>> {
        let Some(value) = self.value(key) else {
            return Some(Vec::new());
        };
        let values = value.into_array().ok();
        let numbers = values.and_then(|values| values.iter().map(whole_number).collect());
        numbers.or_else(|| self.problem(key, "must be a list of numbers"))
    }

    /// A list of texts; a problem when not set.
    pub(super) fn texts<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Some(value) = self.value(key) else {
            return self.problem(key, "missing");
        };
        let Ok(values) = value.into_array() else {
            return self.problem(key, "must be a list of texts");
        };
        let parsed: Result<Vec<T>, String> = values
            .into_iter()
            .map(|value| {
                value
                    .into_string()
                    .map_err(|_| "must be a list of texts".to_owned())
            })
            .map(|text| text.and_then(|text| parse(&text)))
            .collect();
        match parsed {
            Ok(values) => Some(values),
            Err(message) => self.problem(key, &message),
        }
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.settings
            .get::<Value>(key)
            .ok()
            .filter(|value| value.kind != ValueKind::Nil)
    }

    fn report(&mut self, key: &str, message: &str) {
        let problem = problem(key, message);
        // A key is read twice where its text and its parsed form are both needed.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Notes which sections the file has, and which of its keys are not known.
    fn note_sections(&mut self, file: Settings) {
        let Ok(areas) = file.try_deserialize::<BTreeMap<String, Value>>() else {
            return self.report("", "must consist of sections");
        };
        for (area, value) in areas {
            let Ok(table) = value.into_table() else {
                self.report(&area, "unknown key");
                continue;
            };
            self.sections.push(area.clone());
            for key in table.into_keys() {
                let path = format!("{area}.{key}");
                if !KEYS.iter().any(|known| known.path == path) {
                    self.report(&path, "unknown key");
                }
            }
        }
    }

    /// What the environment and the flags set, by key path. Measured keys are refused here.
    fn outside_values(
        &mut self,
        environment: &BTreeMap<String, String>,
        flags: &Overrides,
    ) -> BTreeMap<&'static str, String> {
        let mut values = BTreeMap::new();
        for (variable, text) in environment
            .iter()
            .filter(|(v, _)| v.starts_with("ENCLAVEID__"))
        {
            match KEYS.iter().find(|key| key.variable() == *variable) {
                None => self.report(variable, "unknown key, set in the environment"),
                Some(key) if key.trust == Trust::Measured => {
                    self.report(key.path, "is measured: it may be set in the file alone");
                }
                Some(key) => {
                    values.insert(key.path, text.clone());
                }
            }
        }
        for key in KEYS {
            let from_azure = key
                .azure_variable
                .and_then(|variable| environment.get(variable));
            let set = values.contains_key(key.path) || self.value(key.path).is_some();
            if let (Some(text), false) = (from_azure, set) {
                values.insert(key.path, text.clone());
            }
        }
        values.extend(flags.iter().map(|(path, text)| (*path, text.clone())));
        values
    }
}

fn problem(key: &str, message: &str) -> Problem {
    Problem {
        key: key.to_owned(),
        message: message.to_owned(),
    }
}

/// The number that `value` is. The library would also take true for 1 and 0.6 for 1: not here, where
/// a number may be a user. Text comes from the environment and from flags.
fn whole_number(value: &Value) -> Option<u32> {
    match &value.kind {
        ValueKind::I64(number) => u32::try_from(*number).ok(),
        ValueKind::U64(number) => u32::try_from(*number).ok(),
        ValueKind::String(text) => text.parse().ok(),
        ValueKind::Array(_)
        | ValueKind::Boolean(_)
        | ValueKind::Float(_)
        | ValueKind::I128(_)
        | ValueKind::Nil
        | ValueKind::Table(_)
        | ValueKind::U128(_) => None,
    }
}

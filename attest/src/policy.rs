//! Core: release policies as Azure Key Vault and Managed HSM evaluate them over a token's claims.
//!
//! ```text
//! policy    = {"version": "1.0.0", "anyOf": [authority, ...]}
//! authority = {"authority": issuer, "allOf" | "anyOf": [condition, ...]}
//! condition = {"claim": "a.b.c", operator: value}  |  {"allOf" | "anyOf": [condition, ...]}
//! operator  = equals | notEquals | less | lessOrEquals | greater | greaterOrEquals | exists
//! ```
//!
//! The vault answers a policy that says no, a missing role and a foreign token with the same 403.
//! Evaluating the policy here tells which it was, and names the claim. **Invariants.** What is not
//! understood is an error of the whole policy; a claim that is missing satisfies nothing.

use serde_json::{Map, Number, Value};

/// Longest policy in bytes.
const POLICY_BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting of lists, the outermost included.
const DEPTH_MAX: usize = 8;
/// Most conditions and lists in a policy.
const NODES_MAX: usize = 2048;
/// Most reasons in an explanation, and the longest value that is shown in one, in characters.
const REASONS_MAX: usize = 64;
const SHOWN_CHARS_MAX: usize = 160;

/// A release policy, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasePolicy(Vec<Authority>);

/// One issuer with what it must have attested.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    issuer: String,
    condition: Condition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    AllOf(Vec<Self>),
    AnyOf(Vec<Self>),
    Claim { path: String, test: Test },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Compare(Comparison, Scalar),
    Exists(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equals,
    NotEquals,
    Less,
    LessOrEquals,
    Greater,
    GreaterOrEquals,
}

/// The values that policies and claims are compared by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scalar {
    Bool(bool),
    Integer(i128),
    Text(String),
}

/// What a policy says about a set of claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The key is released.
    Allowed,
    /// It is not.
    Denied {
        /// Each condition that does not hold, with the wanted value and the claim's.
        reasons: Vec<String>,
    },
}

/// A policy is not one that this grammar gives a meaning to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A condition has no operator, several, or one that is not known.
    #[error("a condition has not exactly one known operator")]
    Operator,
    /// Not JSON of the documented form.
    #[error("the release policy is malformed")]
    Malformed,
    /// Too long, too deep, or too many conditions.
    #[error("the release policy is too large")]
    TooLarge,
    /// A value is no text, integer or boolean.
    #[error("a condition compares with a value that is no text, integer or boolean")]
    Value,
    /// The version is missing or not known.
    #[error("the release policy has not version 1.0.0")]
    Version,
}

impl PolicyError {
    /// Stable code for logs and exit codes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Operator => "policy.operator",
            Self::Malformed => "policy.malformed",
            Self::TooLarge => "policy.too_large",
            Self::Value => "policy.value",
            Self::Version => "policy.version",
        }
    }
}

impl ReleasePolicy {
    /// Parses a policy, the JSON text that the vault stores.
    pub fn parse(json: &[u8]) -> Result<Self, PolicyError> {
        if json.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLarge);
        }
        let policy: Value = serde_json::from_slice(json).map_err(|_| PolicyError::Malformed)?;
        let policy = policy.as_object().ok_or(PolicyError::Malformed)?;
        if policy.get("version").and_then(Value::as_str) != Some("1.0.0") {
            return Err(PolicyError::Version);
        }
        only_members(policy, &["version", "anyOf"])?;
        let mut nodes_left = NODES_MAX;
        let authorities = non_empty_list(policy.get("anyOf").ok_or(PolicyError::Malformed)?)?;
        let parse = |entry| Authority::parse(entry, &mut nodes_left);
        Ok(Self(
            authorities.iter().map(parse).collect::<Result<_, _>>()?,
        ))
    }

    /// Evaluates the policy over the claims of a verified token.
    pub fn evaluate(&self, claims: &Value) -> Verdict {
        let mut reasons = Reasons::default();
        let issuer = claims.get("iss").and_then(Value::as_str);
        for authority in &self.0 {
            if issuer != Some(authority.issuer.as_str()) {
                let issuer = issuer.map_or_else(|| "absent".to_owned(), shown);
                reasons.add(format!(
                    "authority {} wanted, but iss is {issuer}",
                    shown(&authority.issuer)
                ));
            } else if authority.condition.holds(claims, &mut reasons) {
                return Verdict::Allowed;
            }
        }
        Verdict::Denied { reasons: reasons.0 }
    }
}

impl Authority {
    fn parse(entry: &Value, nodes_left: &mut usize) -> Result<Self, PolicyError> {
        let entry = entry.as_object().ok_or(PolicyError::Malformed)?;
        only_members(entry, &["authority", "allOf", "anyOf"])?;
        let issuer = entry.get("authority").and_then(Value::as_str);
        let condition = Condition::parse_list(entry, DEPTH_MAX, nodes_left)?;
        Ok(Self {
            issuer: issuer.ok_or(PolicyError::Malformed)?.to_owned(),
            condition,
        })
    }
}

impl Condition {
    fn parse(
        entry: &Value,
        depth_left: usize,
        nodes_left: &mut usize,
    ) -> Result<Self, PolicyError> {
        *nodes_left = nodes_left.checked_sub(1).ok_or(PolicyError::TooLarge)?;
        let entry = entry.as_object().ok_or(PolicyError::Malformed)?;
        if !entry.contains_key("claim") {
            only_members(entry, &["allOf", "anyOf"])?;
            return Self::parse_list(entry, depth_left, nodes_left);
        }
        let path = entry
            .get("claim")
            .and_then(Value::as_str)
            .ok_or(PolicyError::Malformed)?;
        let mut operators = entry.iter().filter(|(name, _)| *name != "claim");
        let (Some((operator, value)), None) = (operators.next(), operators.next()) else {
            return Err(PolicyError::Operator);
        };
        Ok(Self::Claim {
            path: path.to_owned(),
            test: Test::parse(operator, value)?,
        })
    }

    /// Exactly one of `allOf` and `anyOf`, and not empty: an empty `allOf` would hold always.
    fn parse_list(
        entry: &Map<String, Value>,
        depth_left: usize,
        nodes_left: &mut usize,
    ) -> Result<Self, PolicyError> {
        let below = depth_left.checked_sub(1).ok_or(PolicyError::TooLarge)?;
        let mut parse_all = |list: &Value| {
            let parse = |entry| Self::parse(entry, below, nodes_left);
            non_empty_list(list)?
                .iter()
                .map(parse)
                .collect::<Result<Vec<_>, _>>()
        };
        match (entry.get("allOf"), entry.get("anyOf")) {
            (Some(list), None) => Ok(Self::AllOf(parse_all(list)?)),
            (None, Some(list)) => Ok(Self::AnyOf(parse_all(list)?)),
            (None, None) | (Some(_), Some(_)) => Err(PolicyError::Malformed),
        }
    }

    /// Whether the condition holds; notes each claim because of which it does not.
    fn holds(&self, claims: &Value, reasons: &mut Reasons) -> bool {
        match self {
            Self::AllOf(conditions) => {
                // All of them, also after one that does not hold: the explanation is complete.
                let failed = conditions
                    .iter()
                    .filter(|next| !next.holds(claims, reasons))
                    .count();
                failed == 0
            }
            Self::AnyOf(conditions) => {
                let mut within = Reasons::default();
                let any = conditions
                    .iter()
                    .any(|next| next.holds(claims, &mut within));
                if !any {
                    within.0.into_iter().for_each(|reason| reasons.add(reason));
                }
                any
            }
            Self::Claim { path, test } => {
                let claim = path
                    .split('.')
                    .try_fold(claims, |value, name| value.get(name));
                let holds = test.holds(claim);
                if !holds {
                    let is = claim.map_or_else(|| "absent".to_owned(), |c| shown(&c.to_string()));
                    reasons.add(format!("{} {}, but is {is}", shown(path), test.wanted()));
                }
                holds
            }
        }
    }
}

impl Test {
    fn parse(operator: &str, value: &Value) -> Result<Self, PolicyError> {
        let scalar = Scalar::of(value).ok_or(PolicyError::Value)?;
        let comparison = match operator {
            "exists" => {
                let wanted = scalar.as_bool().ok_or(PolicyError::Value)?;
                return Ok(Self::Exists(wanted));
            }
            "equals" => Comparison::Equals,
            "notEquals" => Comparison::NotEquals,
            "less" => Comparison::Less,
            "lessOrEquals" => Comparison::LessOrEquals,
            "greater" => Comparison::Greater,
            "greaterOrEquals" => Comparison::GreaterOrEquals,
            _ => return Err(PolicyError::Operator),
        };
        Ok(Self::Compare(comparison, scalar))
    }

    fn holds(&self, claim: Option<&Value>) -> bool {
        match self {
            Self::Exists(wanted) => claim.is_some() == *wanted,
            // An object, a list, a fraction or null compares with nothing, not even as different.
            Self::Compare(comparison, wanted) => claim
                .and_then(Scalar::of)
                .is_some_and(|claim| comparison.holds(&claim, wanted)),
        }
    }

    fn wanted(&self) -> String {
        match self {
            Self::Exists(true) => "must exist".to_owned(),
            Self::Exists(false) => "must not exist".to_owned(),
            Self::Compare(comparison, value) => {
                format!("must be {} {}", comparison.words(), shown(&value.to_json()))
            }
        }
    }
}

impl Comparison {
    fn holds(self, claim: &Scalar, wanted: &Scalar) -> bool {
        let integers = match (claim, wanted) {
            (Scalar::Integer(claim), Scalar::Integer(wanted)) => Some(claim.cmp(wanted)),
            _ => None,
        };
        match self {
            Self::Equals => claim.same_as(wanted),
            Self::NotEquals => !claim.same_as(wanted),
            Self::Less => integers.is_some_and(std::cmp::Ordering::is_lt),
            Self::LessOrEquals => integers.is_some_and(std::cmp::Ordering::is_le),
            Self::Greater => integers.is_some_and(std::cmp::Ordering::is_gt),
            Self::GreaterOrEquals => integers.is_some_and(std::cmp::Ordering::is_ge),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Equals => "equal to",
            Self::NotEquals => "different from",
            Self::Less => "less than",
            Self::LessOrEquals => "at most",
            Self::Greater => "greater than",
            Self::GreaterOrEquals => "at least",
        }
    }
}

impl Scalar {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Number(number) => integer(number).map(Self::Integer),
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// Policies in the field write booleans and numbers as text too ("false" for a claim that is
    /// false): a text equals what it spells.
    fn same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Text(text), Self::Bool(value)) | (Self::Bool(value), Self::Text(text)) => {
                text == if *value { "true" } else { "false" }
            }
            (Self::Text(text), Self::Integer(value)) | (Self::Integer(value), Self::Text(text)) => {
                *text == value.to_string()
            }
            (Self::Bool(_), Self::Integer(_)) | (Self::Integer(_), Self::Bool(_)) => false,
        }
    }

    fn as_bool(&self) -> Option<bool> {
        [true, false]
            .into_iter()
            .find(|value| self.same_as(&Self::Bool(*value)))
    }

    fn to_json(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Text(text) => Value::from(text.as_str()).to_string(),
        }
    }
}

fn integer(number: &Number) -> Option<i128> {
    number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))
}

/// Reasons without repetition, as many as anybody reads.
#[derive(Debug, Default)]
struct Reasons(Vec<String>);

impl Reasons {
    fn add(&mut self, reason: String) {
        if self.0.len() < REASONS_MAX && !self.0.contains(&reason) {
            self.0.push(reason);
        }
    }
}

/// A value for people: no control characters, cut when long.
fn shown(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = clean.take(SHOWN_CHARS_MAX).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

fn only_members(object: &Map<String, Value>, known: &[&str]) -> Result<(), PolicyError> {
    let all_known = object.keys().all(|name| known.contains(&name.as_str()));
    if all_known {
        Ok(())
    } else {
        Err(PolicyError::Malformed)
    }
}

fn non_empty_list(value: &Value) -> Result<&[Value], PolicyError> {
    match value.as_array().map(Vec::as_slice) {
        Some([]) | None => Err(PolicyError::Malformed),
        Some(list) => Ok(list),
    }
}

#[cfg(test)]
mod tests;

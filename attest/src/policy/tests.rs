#![allow(
    clippy::needless_pass_by_value,
    reason = "tables of json!() values read better"
)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

const ISSUER: &str = "https://maa.example";

fn policy(conditions: Value) -> Value {
    json!({"version": "1.0.0", "anyOf": [{"authority": ISSUER, "allOf": conditions}]})
}

fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "text": "abc",
        "no": false,
        "yes": true,
        "zero": 0,
        "svn": 104,
        "big": u64::MAX,
        "half": 0.5,
        "null": null,
        "list": ["abc"],
        "nested": {"deep": {"er": "abc"}},
    })
}

#[track_caller]
fn check(condition: Value, want: bool) {
    let parsed = ReleasePolicy::parse(policy(json!([condition])).to_string().as_bytes()).unwrap();
    let allowed = parsed.evaluate(&claims()) == Verdict::Allowed;
    assert_eq!(allowed, want, "{condition}");
}

#[track_caller]
fn check_refused(policy: &Value, want: PolicyError) {
    let got = ReleasePolicy::parse(policy.to_string().as_bytes());
    assert_eq!(got.map(|_| ()), Err(want), "{policy}");
}

#[test]
fn equality_compares_what_values_spell() {
    let equals = |claim: &str, value: Value| json!({"claim": claim, "equals": value});
    check(equals("text", json!("abc")), true);
    check(equals("text", json!("ABC")), false);
    check(equals("text", json!("")), false);
    check(equals("no", json!(false)), true);
    check(equals("no", json!("false")), true);
    check(equals("no", json!("true")), false);
    check(equals("no", json!(0)), false);
    check(equals("yes", json!("true")), true);
    check(equals("zero", json!(0)), true);
    check(equals("zero", json!("0")), true);
    check(equals("zero", json!("00")), false);
    check(equals("zero", json!(false)), false);
    check(equals("big", json!(u64::MAX)), true);
    check(equals("nested.deep.er", json!("abc")), true);
}

#[test]
fn a_claim_that_is_missing_or_no_scalar_satisfies_no_comparison() {
    for claim in [
        "missing",
        "nested.deep",
        "nested.deep.er.x",
        "list",
        "list.0",
        "null",
        "half",
        "",
    ] {
        for operator in ["equals", "notEquals", "less", "greaterOrEquals"] {
            check(json!({"claim": claim, operator: "x"}), false);
            check(json!({"claim": claim, operator: 1}), false);
        }
    }
}

#[test]
fn order_is_of_integers_alone() {
    let svn = |operator: &str, value: Value| json!({"claim": "svn", operator: value});
    check(svn("less", json!(105)), true);
    check(svn("less", json!(104)), false);
    check(svn("lessOrEquals", json!(104)), true);
    check(svn("lessOrEquals", json!(103)), false);
    check(svn("greater", json!(103)), true);
    check(svn("greater", json!(104)), false);
    check(svn("greaterOrEquals", json!(104)), true);
    check(svn("greaterOrEquals", json!(105)), false);
    check(svn("greaterOrEquals", json!(-1)), true);
    check(svn("greaterOrEquals", json!("1")), false);
    check(json!({"claim": "text", "greater": "a"}), false);
    check(json!({"claim": "big", "greater": i64::MAX}), true);
}

#[test]
fn other_operators_mean_what_they_say() {
    check(json!({"claim": "text", "notEquals": "x"}), true);
    check(json!({"claim": "text", "notEquals": "abc"}), false);
    check(json!({"claim": "no", "notEquals": "false"}), false);
    check(json!({"claim": "null", "exists": true}), true);
    check(json!({"claim": "missing", "exists": "true"}), false);
    check(json!({"claim": "missing", "exists": false}), true);
    check(json!({"claim": "text", "exists": "false"}), false);
}

#[test]
fn conditions_nest() {
    let good = json!({"claim": "text", "equals": "abc"});
    let bad = json!({"claim": "text", "equals": "x"});
    check(json!({"anyOf": [bad, good]}), true);
    check(json!({"anyOf": [bad, bad]}), false);
    check(json!({"allOf": [good, good]}), true);
    check(json!({"allOf": [good, bad]}), false);
    check(
        json!({"anyOf": [bad, {"allOf": [good, {"anyOf": [bad, good]}]}]}),
        true,
    );
}

#[test]
fn any_authority_may_allow_but_only_for_its_own_issuer() {
    let other =
        json!({"authority": "https://other.example", "allOf": [{"claim": "zero", "equals": 0}]});
    let ours = json!({"authority": ISSUER, "anyOf": [{"claim": "zero", "equals": 0}]});
    let evaluate = |authorities: Value, claims: &Value| {
        let policy = json!({"version": "1.0.0", "anyOf": authorities}).to_string();
        ReleasePolicy::parse(policy.as_bytes())
            .unwrap()
            .evaluate(claims)
    };
    assert_eq!(evaluate(json!([other, ours]), &claims()), Verdict::Allowed);
    let denied = Verdict::Denied {
        reasons: vec![format!(
            "authority https://other.example wanted, but iss is {ISSUER}"
        )],
    };
    assert_eq!(evaluate(json!([other]), &claims()), denied);
    for claims in [
        json!({"zero": 0}),
        json!({"iss": 1, "zero": 0}),
        json!([]),
        json!(null),
    ] {
        assert_ne!(
            evaluate(json!([ours]), &claims),
            Verdict::Allowed,
            "{claims}"
        );
    }
}

#[test]
fn a_denial_names_every_claim_with_what_was_wanted() {
    let conditions = json!([
        {"claim": "text", "equals": "abd"},
        {"claim": "zero", "equals": 0},
        {"anyOf": [{"claim": "svn", "less": 100}, {"claim": "no", "equals": "false"}]},
        {"anyOf": [{"claim": "svn", "less": 100}, {"claim": "missing", "equals": "x"}]},
        {"claim": "text", "exists": false},
    ]);
    let parsed = ReleasePolicy::parse(policy(conditions).to_string().as_bytes()).unwrap();
    let reasons = [
        r#"text must be equal to "abd", but is "abc""#,
        "svn must be less than 100, but is 104",
        r#"missing must be equal to "x", but is absent"#,
        r#"text must not exist, but is "abc""#,
    ];
    let want = Verdict::Denied {
        reasons: reasons.map(str::to_owned).to_vec(),
    };
    assert_eq!(parsed.evaluate(&claims()), want);
}

#[test]
fn explanations_are_bounded() {
    let conditions: Vec<Value> = (0..200)
        .map(|i| json!({"claim": format!("c{i}"), "equals": "x".repeat(200)}))
        .collect();
    let parsed = ReleasePolicy::parse(policy(json!(conditions)).to_string().as_bytes()).unwrap();
    let Verdict::Denied { reasons } = parsed.evaluate(&claims()) else {
        panic!("allowed")
    };
    assert_eq!(reasons.len(), REASONS_MAX);
    assert!(reasons.iter().all(|reason| reason.len() < 250));
}

#[test]
fn what_is_not_understood_is_no_policy() {
    let condition = |value: Value| policy(json!([value]));
    let good = json!({"claim": "a", "equals": 1});
    check_refused(&condition(json!({"claim": "a"})), PolicyError::Operator);
    check_refused(
        &condition(json!({"claim": "a", "matches": "x"})),
        PolicyError::Operator,
    );
    check_refused(
        &condition(json!({"claim": "a", "equals": 1, "less": 2})),
        PolicyError::Operator,
    );
    check_refused(
        &condition(json!({"claim": "a", "allOf": [good]})),
        PolicyError::Value,
    );
    check_refused(
        &condition(json!({"claim": "a", "equals": 0.5})),
        PolicyError::Value,
    );
    check_refused(
        &condition(json!({"claim": "a", "equals": null})),
        PolicyError::Value,
    );
    check_refused(
        &condition(json!({"claim": "a", "equals": ["x"]})),
        PolicyError::Value,
    );
    check_refused(
        &condition(json!({"claim": "a", "exists": "yes"})),
        PolicyError::Value,
    );
    check_refused(
        &condition(json!({"claim": 1, "equals": 1})),
        PolicyError::Malformed,
    );
    check_refused(
        &condition(json!({"allOf": [good], "anyOf": [good]})),
        PolicyError::Malformed,
    );
    check_refused(
        &condition(json!({"allOf": [good], "not": [good]})),
        PolicyError::Malformed,
    );
    check_refused(&condition(json!({})), PolicyError::Malformed);
    check_refused(&condition(json!("a")), PolicyError::Malformed);
    check_refused(&condition(json!({"allOf": []})), PolicyError::Malformed);
    check_refused(&policy(json!([])), PolicyError::Malformed);
    check_refused(&policy(json!({})), PolicyError::Malformed);
}

#[test]
fn the_outer_form_is_exact() {
    let change = |name: &str, value: Value| {
        let mut policy = policy(json!([{"claim": "a", "equals": 1}]));
        policy[name] = value;
        policy
    };
    for version in [json!("0.2"), json!("1.0.1"), json!(1), json!(null)] {
        check_refused(&change("version", version), PolicyError::Version);
    }
    check_refused(&json!({"anyOf": []}), PolicyError::Version);
    check_refused(&change("allOf", json!([])), PolicyError::Malformed);
    check_refused(&change("anyOf", json!([])), PolicyError::Malformed);
    let good = json!([{"claim": "a", "equals": 1}]);
    check_refused(
        &change("anyOf", json!([{"allOf": good}])),
        PolicyError::Malformed,
    );
    check_refused(
        &change("anyOf", json!([{"authority": 1, "allOf": good}])),
        PolicyError::Malformed,
    );
    check_refused(
        &change("anyOf", json!([{"authority": ISSUER}])),
        PolicyError::Malformed,
    );
    for text in ["", "[]", "null", "{"] {
        assert!(ReleasePolicy::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_policy_has_limits() {
    let mut deep = json!({"claim": "a", "equals": 1});
    for _ in 0..DEPTH_MAX {
        deep = json!({"allOf": [deep]});
    }
    check_refused(&policy(json!([deep])), PolicyError::TooLarge);
    let wide = vec![json!({"claim": "a", "equals": 1}); NODES_MAX + 1];
    check_refused(&policy(json!(wide)), PolicyError::TooLarge);
    let long = policy(json!([{"claim": "a", "equals": "x".repeat(POLICY_BYTES_MAX)}]));
    check_refused(&long, PolicyError::TooLarge);
    assert!(ReleasePolicy::parse("[".repeat(1000).as_bytes()).is_err());
}

proptest! {
    #[test]
    fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ReleasePolicy::parse(&bytes);
    }

    /// Policies of random operators over random claims: evaluation ends, and a denial has a reason.
    #[test]
    fn evaluation_never_panics(
        operator in "equals|notEquals|less|lessOrEquals|greater|greaterOrEquals",
        wanted in "[0-9]{1,3}|true|false|[a-c]{1,2}",
        claim in "text|no|svn|nested.deep.er|[a-z.]{0,6}",
    ) {
        let condition = policy(json!([{"claim": claim, operator: wanted}])).to_string();
        let parsed = ReleasePolicy::parse(condition.as_bytes()).unwrap();
        if let Verdict::Denied { reasons } = parsed.evaluate(&claims()) {
            prop_assert_eq!(reasons.len(), 1);
        }
    }
}

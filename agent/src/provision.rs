//! Core: what `create-secrets` makes: the release policy of the master key, and the CA's
//! certificate.

use attest::report::Report;
use keys::CaGeneration;
use openssl::x509::X509;
use runtime::clock::Clock;
use serde_json::{Value, json};

use crate::config::AdmittedPod;
use crate::hex;
use crate::pki::{CaError, MeshCa};

/// The policy that the HSM evaluates over attestation tokens: one branch for each of `pods`, and one
/// for the pod of `own_report`, as JSON text.
///
/// Everything is demanded here, whatever the attestation service's own policy says: that one
/// belongs to Microsoft or to the owner of the instance, and can be changed. create-secrets cannot
/// know its own HOST_DATA from its configuration, whose digest that is: it reads it in its report.
pub fn release_policy(issuer: &str, pods: &[AdmittedPod], own_report: &Report) -> String {
    let own = AdmittedPod {
        measurement: own_report.measurement(),
        host_data: own_report.host_data(),
    };
    policy_of(issuer, pods.iter().chain([&own])).to_string()
}

fn policy_of<'a>(issuer: &str, pods: impl Iterator<Item = &'a AdmittedPod>) -> Value {
    let equals = |claim: &str, value: Value| json!({"claim": claim, "equals": value});
    let branch = |pod: &AdmittedPod| {
        json!({
            "authority": issuer,
            "allOf": [
                equals("x-ms-attestation-type", "sevsnpvm".into()),
                equals("x-ms-sevsnpvm-is-debuggable", "false".into()),
                equals("x-ms-sevsnpvm-migration-allowed", "false".into()),
                equals("x-ms-sevsnpvm-vmpl", 0.into()),
                equals("x-ms-sevsnpvm-launchmeasurement", hex::encode(&pod.measurement).into()),
                equals("x-ms-sevsnpvm-hostdata", hex::encode(&pod.host_data).into()),
            ],
        })
    };
    json!({"version": "1.0.0", "anyOf": pods.map(branch).collect::<Vec<_>>()})
}

/// Issues the mesh CA's certificate: public, and checked by every pod against the key it derives.
pub fn issue_ca_certificate(
    secret: &keys::IntermediateSecret,
    trust_domain: &str,
    clock: &dyn Clock,
) -> Result<X509, CaError> {
    let ca = MeshCa::from_seed(&secret.derive_ca(CaGeneration(0)))?;
    ca.issue(trust_domain, clock.now())
}

#[cfg(test)]
mod tests {
    use attest::policy::{ReleasePolicy, Verdict};

    use super::*;

    const ISSUER: &str = "https://maa.example";

    fn claims(host_data_byte: u8, debuggable: bool) -> Value {
        json!({
            "iss": ISSUER,
            "x-ms-attestation-type": "sevsnpvm",
            "x-ms-sevsnpvm-is-debuggable": debuggable,
            "x-ms-sevsnpvm-migration-allowed": false,
            "x-ms-sevsnpvm-vmpl": 0,
            "x-ms-sevsnpvm-launchmeasurement": hex::encode(&[7; 48]),
            "x-ms-sevsnpvm-hostdata": hex::encode(&[host_data_byte; 32]),
        })
    }

    #[track_caller]
    fn check(claims: &Value, admitted: bool) {
        let pods = [1, 2].map(|byte| AdmittedPod {
            measurement: [7; 48],
            host_data: [byte; 32],
        });
        let policy = policy_of(ISSUER, pods.iter()).to_string();
        let policy = ReleasePolicy::parse(policy.as_bytes()).unwrap();
        assert_eq!(
            matches!(policy.evaluate(claims), Verdict::Allowed),
            admitted,
            "{claims}"
        );
    }

    #[test]
    fn the_policy_admits_the_listed_pods_and_nobody_else() {
        check(&claims(1, false), true);
        check(&claims(2, false), true);
        check(&claims(3, false), false);
        check(&claims(1, true), false);
        for claim in claims(1, false).as_object().unwrap().keys() {
            let mut without = claims(1, false);
            without.as_object_mut().unwrap().remove(claim);
            check(&without, false);
        }
    }
}

//! Core: who has to prove what to whom.

use serde_json::{Value, json};

use super::SpiffeMatch;
use super::clusters::SDS;

/// Clients have to show a certificate of one of `callers`.
pub(super) fn downstream(callers: &[SpiffeMatch]) -> Value {
    transport_socket(&json!({
        "@type": tls_type("DownstreamTlsContext"),
        "common_tls_context": common(callers, &["h2", "http/1.1"]),
        "require_client_certificate": true,
        // A resumed session would skip the verification of the client.
        "disable_stateless_session_resumption": true,
        "disable_stateful_session_resumption": true,
    }))
}

/// The server has to show a certificate of `peer`, whatever its address. `sni` is a DNS name.
pub(super) fn upstream(peer: &SpiffeMatch, sni: Option<&str>) -> Value {
    let mut context = json!({
        "@type": tls_type("UpstreamTlsContext"),
        "common_tls_context": common(std::slice::from_ref(peer), &["h2"]),
        "max_session_keys": 0,
    });
    if let (Some(sni), Some(fields)) = (sni, context.as_object_mut()) {
        fields.insert("sni".to_owned(), json!(sni));
    }
    transport_socket(&context)
}

fn common(peers: &[SpiffeMatch], alpn: &[&str]) -> Value {
    let matchers: Vec<Value> = peers.iter().map(SpiffeMatch::matcher).collect();
    json!({
        // Explicit on both sides: the upper bound of a client is 1.2 by default.
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "alpn_protocols": alpn,
        "tls_certificate_sds_secret_configs": [{ "name": "default", "sds_config": sds_config() }],
        // Repeated fields of the two add up, and any match admits: hence the matchers here, and
        // only the CA over SDS.
        "combined_validation_context": {
            "default_validation_context": { "match_typed_subject_alt_names": matchers },
            "validation_context_sds_secret_config": {
                "name": "ROOTCA",
                "sds_config": sds_config(),
            },
        },
    })
}

/// The same for every secret: Envoy opens one stream for equal pairs of name and configuration.
fn sds_config() -> Value {
    json!({
        "resource_api_version": "V3",
        // No timeout: a listener opens when its secrets are there. With one it would open before,
        // reset every connection, and be reported as ready.
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [{ "envoy_grpc": {
                "cluster_name": SDS,
                // A local socket: the default (0.5 s to 30 s) would make restarts of the agent
                // last.
                "retry_policy": {
                    "retry_back_off": { "base_interval": "0.050s", "max_interval": "0.500s" },
                },
            }}],
        },
    })
}

fn transport_socket(context: &Value) -> Value {
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

fn tls_type(message: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{message}")
}

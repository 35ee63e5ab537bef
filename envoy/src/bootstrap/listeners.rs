//! Core: where connections come in.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::clusters::{APP, peer_name};
use super::{Inbound, Outbound, address, tls};

/// Bytes that a connection may have buffered.
const BUFFER_BYTES: u32 = 64 * 1024;

pub(super) fn inbound(inbound: &Inbound, lifetime: &str) -> Value {
    let mut connections = http("inbound", "*", &route(APP, None), &[router()]);
    merge(
        &mut connections,
        json!({
            "common_http_protocol_options": { "max_connection_duration": lifetime },
            // The application learns who called, from us alone.
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": { "uri": true },
            "use_remote_address": true,
        }),
    );
    let mut chain = filter_chain(&connections);
    merge(
        &mut chain,
        json!({ "transport_socket": tls::downstream(&inbound.callers) }),
    );
    listener("inbound", inbound.listen, &chain)
}

pub(super) fn outbound(outbound: &Outbound) -> Value {
    // Only what the peer has not begun to work on is tried again, so any method may be: such
    // failures come from connections that end of age.
    let retry = json!({
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": 2,
    });
    let name = format!("outbound_{}", outbound.name);
    let route = route(&peer_name(outbound), Some(&retry));
    let connections = http(&name, "*", &route, &[router()]);
    listener(&name, outbound.listen, &filter_chain(&connections))
}

/// Envoy opens its listeners when all secrets are there, this one too.
pub(super) fn health(listen: SocketAddr) -> Value {
    let answer = json!({
        "name": "envoy.filters.http.health_check",
        "typed_config": {
            "@type": http_filter_type("health_check.v3.HealthCheck"),
            "pass_through_mode": false,
            "headers": [{ "name": ":path", "string_match": { "exact": "/healthz/ready" } }],
        },
    });
    let nothing_else = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 404 } });
    let connections = http("health", "*", &nothing_else, &[answer, router()]);
    listener("health", listen, &filter_chain(&connections))
}

fn listener(name: &str, listen: SocketAddr, chain: &Value) -> Value {
    json!({
        "name": name,
        // Statistics by name: the address has port 0 in them when the system chooses it.
        "stat_prefix": name,
        "address": address(listen),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [chain],
    })
}

fn filter_chain(connections: &Value) -> Value {
    json!({ "filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": connections,
    }]})
}

fn http(name: &str, domain: &str, route: &Value, filters: &[Value]) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3\
                  .HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "name": name,
            "virtual_hosts": [{ "name": name, "domains": [domain], "routes": [route] }],
        },
        "http_filters": filters,
    })
}

fn route(cluster: &str, retry: Option<&Value>) -> Value {
    // No time limit of ours on what an application does: the default would be 15 s.
    let mut action = json!({ "cluster": cluster, "timeout": "0s" });
    if let Some(retry) = retry {
        merge(&mut action, json!({ "retry_policy": retry }));
    }
    json!({ "match": { "prefix": "/" }, "route": action })
}

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": http_filter_type("router.v3.Router") },
    })
}

fn http_filter_type(message: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.filters.http.{message}")
}

/// Adds the fields of `more` to the object `to`.
fn merge(to: &mut Value, more: Value) {
    if let (Value::Object(to), Value::Object(more)) = (to, more) {
        to.extend(more);
    }
}

//! Core: where connections go.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Outbound, host_port, tls};

/// Name of the cluster of the SDS server.
pub(super) const SDS: &str = "sds";
/// Name of the cluster of the application.
pub(super) const APP: &str = "app";

/// Name of the cluster of a peer.
pub(super) fn peer_name(outbound: &Outbound) -> String {
    format!("peer_{}", outbound.name)
}

pub(super) fn sds(socket: &str) -> Value {
    json!({
        "name": SDS,
        "type": "STATIC",
        "connect_timeout": "0.250s",
        "typed_extension_protocol_options": http_options(&json!({
            "explicit_http_config": { "http2_protocol_options": {
                // A server that hangs would otherwise never be noticed.
                "connection_keepalive": { "interval": "30s", "timeout": "5s" },
            }},
        })),
        "load_assignment": endpoint(SDS, &json!({ "pipe": { "path": socket } })),
    })
}

pub(super) fn app(port: u16) -> Value {
    json!({
        "name": APP,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": endpoint(APP, &host_port("127.0.0.1", port)),
    })
}

pub(super) fn peer(outbound: &Outbound, lifetime: &str) -> Value {
    let name = peer_name(outbound);
    let is_address = outbound.host.parse::<IpAddr>().is_ok();
    // RFC 6066, section 3: no addresses as server names.
    let sni = (!is_address).then_some(outbound.host.as_str());
    json!({
        "name": name,
        "type": if is_address { "STATIC" } else { "STRICT_DNS" },
        "connect_timeout": "1s",
        "transport_socket": tls::upstream(&outbound.peer, sni),
        "typed_extension_protocol_options": http_options(&json!({
            "common_http_protocol_options": { "max_connection_duration": lifetime },
            "explicit_http_config": { "http2_protocol_options": {
                "connection_keepalive": { "interval": "30s", "timeout": "5s" },
            }},
        })),
        "load_assignment": endpoint(&name, &host_port(&outbound.host, outbound.port)),
    })
}

fn endpoint(cluster: &str, address: &Value) -> Value {
    json!({
        "cluster_name": cluster,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

fn http_options(options: &Value) -> Value {
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mut options = options.clone();
    if let Some(fields) = options.as_object_mut() {
        fields.insert(
            "@type".to_owned(),
            json!(format!("type.googleapis.com/{name}")),
        );
    }
    json!({ name: options })
}

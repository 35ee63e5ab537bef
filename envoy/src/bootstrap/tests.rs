//! Core: the bootstrap against a checked-in one, and what it refuses.
//!
//! With `ENCLAVEID_BLESS` set the checked-in file is written instead. That real Envoys take it is
//! tested in the workspace's integration tests.

use std::path::Path;

use super::*;

fn full() -> Bootstrap {
    Bootstrap {
        node_id: "web-0".to_owned(),
        cluster: "web".to_owned(),
        sds_socket: "/run/enclaveid/sds.sock".into(),
        admin_port: 15000,
        inbound: Some(Inbound {
            listen: "0.0.0.0:15006".parse().unwrap(),
            app_port: 8080,
            callers: vec![
                SpiffeMatch::exact("spiffe://mesh.example/ns/shop/web").unwrap(),
                SpiffeMatch::below("spiffe://mesh.example/ns/admin/").unwrap(),
            ],
        }),
        outbound: vec![
            outbound("ledger", "127.0.0.1:8081", "ledger.shop.svc"),
            outbound("vault_a", "[::1]:8082", "10.1.2.3"),
        ],
        health: Some("0.0.0.0:15021".parse().unwrap()),
        connections_max: 10_000,
        connection_lifetime: Duration::from_millis(1_200_500),
    }
}

fn outbound(name: &str, listen: &str, host: &str) -> Outbound {
    Outbound {
        name: name.to_owned(),
        listen: listen.parse().unwrap(),
        host: host.to_owned(),
        port: 15006,
        peer: SpiffeMatch::exact("spiffe://mesh.example/ns/shop/ledger").unwrap(),
    }
}

#[test]
fn the_whole_bootstrap_is_as_checked_in() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bootstrap.json");
    let json = full().to_json().unwrap();
    if std::env::var_os("ENCLAVEID_BLESS").is_some() {
        std::fs::write(&golden, &json).unwrap();
    }
    let checked_in = std::fs::read_to_string(&golden).unwrap();
    // As values: the order of keys is the JSON library's affair.
    let [checked_in, json] =
        [checked_in, json].map(|text| serde_json::from_str::<Value>(&text).unwrap());
    assert_eq!(checked_in, json);
}

#[track_caller]
fn check_refused(change: impl FnOnce(&mut Bootstrap), want: &str) {
    let mut bootstrap = full();
    change(&mut bootstrap);
    assert_eq!(bootstrap.to_json().unwrap_err().code(), want);
}

#[test]
fn what_would_open_the_pod_is_refused() {
    let no_callers = |b: &mut Bootstrap| b.inbound.as_mut().unwrap().callers.clear();
    check_refused(no_callers, "bootstrap.no_callers");
    let exposed = |b: &mut Bootstrap| b.outbound[0].listen = "0.0.0.0:8081".parse().unwrap();
    check_refused(exposed, "bootstrap.not_loopback");
    check_refused(
        |b| b.outbound[1].name = "ledger".to_owned(),
        "bootstrap.name",
    );
    check_refused(|b| b.outbound[1].name = "a b".to_owned(), "bootstrap.name");
    check_refused(|b| b.outbound[1].name.clear(), "bootstrap.name");
    check_refused(|b| b.node_id.clear(), "bootstrap.node");
    check_refused(|b| b.cluster.clear(), "bootstrap.node");
}

#[track_caller]
fn check_rule(
    parse: fn(&str) -> Result<SpiffeMatch, BootstrapError>,
    text: &str,
    want: Result<(), &str>,
) {
    assert_eq!(
        parse(text).map(|_| ()).map_err(|error| error.code()),
        want,
        "{text}"
    );
}

#[test]
fn rules_that_match_more_than_they_say_are_refused() {
    let not_an_id = Err("bootstrap.spiffe_id");
    let open = Err("bootstrap.open_prefix");
    check_rule(SpiffeMatch::exact, "spiffe://td/a/b", Ok(()));
    check_rule(SpiffeMatch::exact, "spiffe://td", not_an_id);
    check_rule(SpiffeMatch::exact, "spiffe://td/", not_an_id);
    check_rule(SpiffeMatch::exact, "spiffe://td/a//b", not_an_id);
    check_rule(SpiffeMatch::exact, "spiffe://td/a/../b", not_an_id);
    check_rule(SpiffeMatch::exact, "spiffe:///a", not_an_id);
    check_rule(SpiffeMatch::exact, "spiffe://TD/a", not_an_id);
    check_rule(SpiffeMatch::exact, "spiffe://td/a*", not_an_id);
    check_rule(SpiffeMatch::exact, "https://td/a", not_an_id);

    check_rule(SpiffeMatch::below, "spiffe://td/", Ok(()));
    check_rule(SpiffeMatch::below, "spiffe://td/ns/", Ok(()));
    check_rule(SpiffeMatch::below, "spiffe://td", open);
    check_rule(SpiffeMatch::below, "spiffe://td/ns", open);
    check_rule(SpiffeMatch::below, "", not_an_id);
    check_rule(SpiffeMatch::below, "spiffe:///", not_an_id);
}

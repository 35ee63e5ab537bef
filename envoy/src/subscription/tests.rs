//! Core: conversations as data: what the client says, what is published, what must follow.

use runtime::clock::UnixTime;
use zeroize::Zeroizing;

use self::Step::{Publish, Quiet, Says, Sends};
use super::*;
use crate::svid::Svid;

/// One step of a conversation.
enum Step {
    /// The pod now has this leaf and this bundle.
    Publish(&'static str, &'static str),
    /// The client sends names, nonce and whether it refuses; this is what it must mean.
    Says(
        &'static [&'static str],
        &'static str,
        bool,
        Result<Saw, Refusal>,
    ),
    /// This goes out: name and nonce.
    Sends(&'static str, &'static str),
    /// Nothing more goes out.
    Quiet,
}

#[derive(Debug, PartialEq, Eq)]
enum Saw {
    Acked(&'static str),
    Nacked(&'static str),
    Subscribed,
    Stale,
}

const TAKES: bool = false;
const REFUSES: bool = true;

fn snapshot(leaf: &str, bundle: &str) -> Snapshot {
    Snapshot::of(&Svid {
        spiffe_id: String::new(),
        certificate_chain_pem: leaf.as_bytes().to_vec(),
        private_key_pem: Zeroizing::new(Vec::new()),
        trust_bundle_pem: bundle.as_bytes().to_vec(),
        serial_hex: String::new(),
        not_before: UnixTime(0),
        not_after: UnixTime(0),
    })
}

fn next(
    subscription: &mut Subscription,
    latest: Option<&Snapshot>,
) -> Option<(&'static str, String)> {
    let push = subscription.next_push(latest?)?;
    Some((push.name.as_str(), push.nonce))
}

#[track_caller]
fn check(conversation: &[Step]) {
    let mut subscription = Subscription::default();
    let mut latest = None;
    for (number, step) in conversation.iter().enumerate() {
        match step {
            Publish(leaf, bundle) => latest = Some(snapshot(leaf, bundle)),
            Says(names, nonce, refuses, want) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let request = Request {
                    node: Some("pod-0"),
                    names: &names,
                    nonce,
                    refuses: *refuses,
                };
                let event = subscription.receive(&request).map(|event| match event {
                    Event::Acked(name, _) => Saw::Acked(name.as_str()),
                    Event::Nacked(name, _) => Saw::Nacked(name.as_str()),
                    Event::Subscribed => Saw::Subscribed,
                    Event::Stale => Saw::Stale,
                });
                assert_eq!(event, *want, "step {number}");
            }
            Sends(name, nonce) => {
                let push = next(&mut subscription, latest.as_ref());
                assert_eq!(push, Some((*name, (*nonce).to_owned())), "step {number}");
            }
            Quiet => {
                assert_eq!(
                    next(&mut subscription, latest.as_ref()),
                    None,
                    "step {number}"
                );
            }
        }
    }
}

#[test]
fn a_secret_is_sent_once_and_again_when_its_content_changes() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["default"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Quiet,
        Says(&["default"], "1", TAKES, Ok(Saw::Acked("default"))),
        Publish("leaf-2", "ca"),
        Sends("default", "2"),
        Quiet,
    ]);
}

#[test]
fn a_rotated_leaf_is_no_news_to_a_stream_of_the_bundle() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["ROOTCA"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("ROOTCA", "1"),
        Says(&["ROOTCA"], "1", TAKES, Ok(Saw::Acked("ROOTCA"))),
        Publish("leaf-2", "ca"),
        Quiet,
    ]);
}

#[test]
fn before_the_first_publication_the_stream_is_held() {
    check(&[
        Says(&["default"], "", TAKES, Ok(Saw::Subscribed)),
        Quiet,
        Publish("leaf-1", "ca"),
        Sends("default", "1"),
    ]);
}

#[test]
fn a_refused_version_is_never_sent_again_and_the_next_one_is() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["default"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Says(&["default"], "1", TAKES, Ok(Saw::Acked("default"))),
        Publish("bad", "ca"),
        Sends("default", "2"),
        Says(&["default"], "2", REFUSES, Ok(Saw::Nacked("default"))),
        Quiet,
        Publish("leaf-2", "ca"),
        Sends("default", "3"),
        Says(&["default"], "3", TAKES, Ok(Saw::Acked("default"))),
        // Published once more, as after a change of mind: still refused on this stream.
        Publish("bad", "ca"),
        Quiet,
    ]);
}

#[test]
fn unsubscribing_does_not_wash_a_refusal_away() {
    check(&[
        Publish("bad", "ca"),
        Says(&["default"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Says(&["ROOTCA"], "1", REFUSES, Ok(Saw::Nacked("default"))),
        Sends("ROOTCA", "2"),
        Says(&["default"], "2", TAKES, Ok(Saw::Acked("ROOTCA"))),
        Quiet,
    ]);
}

#[test]
fn stale_nonce_is_ignored_with_the_names_that_come_with_it() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["default"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Publish("leaf-2", "ca"),
        // The answer to the first is still on its way; the change does not wait for it.
        Sends("default", "2"),
        Says(&["ROOTCA"], "1", REFUSES, Ok(Saw::Stale)),
        Says(&["default"], "", TAKES, Ok(Saw::Stale)),
        Says(&["default"], "7", TAKES, Ok(Saw::Stale)),
        Quiet,
        Says(&["default"], "2", TAKES, Ok(Saw::Acked("default"))),
    ]);
}

#[test]
fn a_nonce_from_before_a_reconnect_does_not_matter() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["default"], "41", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
    ]);
}

#[test]
fn several_names_are_sent_one_by_one() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["ROOTCA", "default"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Quiet,
        Says(
            &["ROOTCA", "default"],
            "1",
            TAKES,
            Ok(Saw::Acked("default")),
        ),
        Sends("ROOTCA", "2"),
        Quiet,
    ]);
}

#[test]
fn an_added_name_is_sent_and_what_the_client_has_is_not() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["default"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Says(&["default"], "1", TAKES, Ok(Saw::Acked("default"))),
        Says(&["default", "ROOTCA"], "1", TAKES, Ok(Saw::Subscribed)),
        Sends("ROOTCA", "2"),
        Says(&["default", "ROOTCA"], "2", TAKES, Ok(Saw::Acked("ROOTCA"))),
        Quiet,
    ]);
}

#[test]
fn a_name_that_went_and_came_back_is_sent_again() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&["default"], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Says(&["default"], "1", TAKES, Ok(Saw::Acked("default"))),
        Says(&[], "1", TAKES, Ok(Saw::Subscribed)),
        Publish("leaf-2", "ca"),
        Quiet,
        Publish("leaf-1", "ca"),
        Says(&["default"], "1", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "2"),
    ]);
}

#[test]
fn no_names_at_all_means_everything_until_a_name_is_said() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(&[], "", TAKES, Ok(Saw::Subscribed)),
        Sends("default", "1"),
        Says(&[], "1", TAKES, Ok(Saw::Acked("default"))),
        Sends("ROOTCA", "2"),
        Says(&["ROOTCA"], "2", TAKES, Ok(Saw::Acked("ROOTCA"))),
        Publish("leaf-2", "ca"),
        Quiet,
    ]);
}

#[test]
fn a_foreign_name_and_too_many_names_end_the_stream() {
    check(&[
        Publish("leaf-1", "ca"),
        Says(
            &["default", "spiffe://other"],
            "",
            TAKES,
            Err(Refusal::UnknownName),
        ),
    ]);
    check(&[Says(
        &["default"; NAMES_MAX],
        "",
        TAKES,
        Ok(Saw::Subscribed),
    )]);
    check(&[Says(
        &["default"; NAMES_MAX + 1],
        "",
        TAKES,
        Err(Refusal::TooManyNames),
    )]);
}

#[test]
fn the_node_of_the_first_message_is_remembered_and_cut() {
    let mut subscription = Subscription::default();
    let long = "é".repeat(NODE_BYTES_MAX);
    for node in [Some(long.as_str()), Some("another"), None] {
        subscription
            .receive(&Request {
                node,
                ..Request::default()
            })
            .unwrap();
    }
    assert_eq!(subscription.node(), "é".repeat(NODE_BYTES_MAX / 2));
}

#[test]
fn memory_of_refusals_is_bounded() {
    let mut subscription = Subscription::default();
    let names = ["default".to_owned()];
    for round in 0..=REJECTED_MAX {
        let nonce = nonce(subscription.responses);
        let request = Request {
            names: &names,
            nonce: &nonce,
            refuses: true,
            ..Request::default()
        };
        subscription.receive(&request).unwrap();
        subscription
            .next_push(&snapshot(&round.to_string(), "ca"))
            .unwrap();
    }
    let nonce = nonce(subscription.responses);
    let last = Request {
        names: &names,
        nonce: &nonce,
        refuses: true,
        ..Request::default()
    };
    subscription.receive(&last).unwrap();
    assert_eq!(subscription.rejected.len(), REJECTED_MAX);
}

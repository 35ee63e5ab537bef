//! Core: what all services share: errors, faults, the record of requests, TLS.

use std::time::Duration;

use enclaveid_tests::emulator::{Client, Fault, LoggedRequest, Role};
use serde_json::{Value, json};

use super::support::{World, create_body, policy, release_body};

#[tokio::test]
async fn without_a_good_access_token_the_vault_says_where_to_get_one() {
    let world = World::start().await;
    let good = world.access(Role::CryptoUser).await;
    let kid = world.create_key("master", &good).await;
    let url = format!("{kid}?api-version=7.4");
    world.clock.advance(Duration::from_secs(3_600));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let forged = &*format!("{signed}.AAAA");
    for bearer in [
        None,
        Some("nonsense"),
        Some(forged),
        Some(&*good),
        Some(&*world.token().await),
    ] {
        let reply = world.client.get(&url, bearer).await.unwrap();
        assert_eq!(reply.status, 401, "{bearer:?}");
        assert_eq!(reply.body["error"]["code"], "Unauthorized");
        let (entra, tenant) = (world.cloud.entra.url(), &world.cloud.tenant);
        let challenge = format!(
            r#"Bearer authorization="{entra}/{tenant}", resource="https://managedhsm.azure.net""#
        );
        assert_eq!(reply.headers["www-authenticate"], challenge);
    }
}

#[tokio::test]
async fn what_there_is_not_is_not_found() {
    let world = World::start().await;
    let access = world.access(Role::CryptoUser).await;
    let kid = world.create_key("master", &access).await;
    let (name, _) = kid.rsplit_once('/').unwrap();
    let body = release_body(&world.token().await, "RSA_AES_KEY_WRAP_256");
    for missing in [
        format!("{name}/{}", "0".repeat(32)),
        name.replace("master", "slave"),
    ] {
        let reply = world.post_release(&missing, &access, &body).await;
        assert_eq!(
            (reply.status, &reply.body["error"]["code"]),
            (404, &json!("KeyNotFound"))
        );
    }
    for base in [world.cloud.hsm.url(), world.cloud.maa.url()] {
        let url = format!("{base}/nothing?api-version=7.4");
        assert_eq!(
            world.client.get(&url, Some(&access)).await.unwrap().status,
            404
        );
    }
}

#[tokio::test]
async fn keys_that_could_not_be_kept_to_their_promise_are_not_made() {
    let world = World::start().await;
    let access = world.access(Role::CryptoUser).await;
    let good = create_body(&policy(world.cloud.maa.url()));
    let with = |pointer: &str, value: Value| {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let mut open = good.clone();
    open.as_object_mut().unwrap().remove("release_policy");
    let unversioned = create_body(&json!({"anyOf": []}))["release_policy"]["data"].clone();
    let empty = create_body(&json!({"version": "1.0.0"}))["release_policy"]["data"].clone();
    for (body, message) in [
        (open, "Exportable keys must have release policy"),
        (
            with("/release_policy/data", unversioned),
            "missing 'version' property",
        ),
        (with("/release_policy/data", empty), "Key Release Policy"),
        (with("/release_policy/data", "%".into()), "no base64url"),
        (
            with("/attributes/exportable", false.into()),
            "must be exportable",
        ),
        (with("/kty", "RSA-HSM".into()), "oct-HSM"),
        (with("/key_size", 128.into()), "oct-HSM"),
    ] {
        let reply = world.post_create("master", &access, &body).await;
        assert_eq!(
            (reply.status, &reply.body["error"]["code"]),
            (400, &json!("BadParameter"))
        );
        let text = reply.body["error"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{text}");
    }
    assert_eq!(
        world.post_create("no_name", &access, &good).await.status,
        400
    );
    let url = format!("{}/keys/master/create", world.cloud.hsm.url());
    let reply = world.client.post(&url, Some(&access), &good).await.unwrap();
    assert_eq!(reply.status, 400, "without api-version");
    let kid = world.create_key("master", &access).await;
    for body in [json!({}), release_body("t", "RSA1_5"), json!([])] {
        assert_eq!(
            world.post_release(&kid, &access, &body).await.status,
            400,
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_service_fails_as_often_and_as_it_was_told_to() {
    let world = World::start().await;
    let maa = &world.cloud.maa;
    let certs = format!("{}/certs", maa.url());
    let get = || world.client.get(&certs, None);
    maa.fail_next(1, Fault::Status(500));
    maa.fail_next(
        2,
        Fault::RetryAfter {
            status: 429,
            seconds: 7,
        },
    );
    maa.fail_next(1, Fault::CloseConnection);
    let reply = get().await.unwrap();
    assert_eq!(
        (reply.status, reply.headers.get("retry-after")),
        (500, None)
    );
    for _ in 0..2 {
        let reply = get().await.unwrap();
        assert_eq!(
            (reply.status, &reply.headers["retry-after"]),
            (429, &"7".parse().unwrap())
        );
    }
    assert!(get().await.is_err());
    assert_eq!(get().await.unwrap().status, 200);
    let statuses: Vec<_> = maa
        .requests()
        .iter()
        .map(|request| request.status)
        .collect();
    assert_eq!(statuses, [Some(500), Some(429), Some(429), None, Some(200)]);

    maa.fail_next(u32::MAX, Fault::Hang);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), get())
            .await
            .is_err()
    );
    maa.recover();
    assert_eq!(get().await.unwrap().status, 200);
}

#[tokio::test]
async fn every_request_is_recorded() {
    let world = World::start().await;
    assert_eq!(
        world.cloud.maa.requests(),
        [],
        "the vault's own do not count"
    );
    world.token().await;
    let request = LoggedRequest {
        method: "POST".to_owned(),
        path: "/attest/SevSnpVm".to_owned(),
        status: Some(200),
    };
    assert_eq!(world.cloud.maa.requests(), [request]);
    world.cloud.maa.forget_requests();
    assert_eq!(world.cloud.maa.requests(), []);
}

#[tokio::test]
async fn servers_are_who_the_root_says_and_stop_when_dropped() {
    let world = World::start().await;
    let url = format!("{}/certs", world.cloud.maa.url());
    assert!(world.client.get(&url, None).await.is_ok());
    let by_address = url.replace("localhost", "127.0.0.1");
    assert!(world.client.get(&by_address, None).await.is_ok());
    let stranger = Client::new(&world.cloud.jws_roots_pem).unwrap();
    assert!(stranger.get(&url, None).await.is_err(), "the wrong root");
    let World { cloud, client, .. } = world;
    drop(cloud);
    // The task is gone as soon as it is polled again.
    tokio::task::yield_now().await;
    assert!(client.get(&url, None).await.is_err());
}

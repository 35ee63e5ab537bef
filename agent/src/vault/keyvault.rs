//! Adapter: Azure Managed HSM, data plane (`create` and `release` of keys, REST api-version 7.4).

use std::fmt;
use std::sync::Arc;

use attest::release::WrapAlgorithm;
use attest::token::AttestationToken;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{SecretRelease, VaultAdmin, VaultError};
use crate::cloud::http::{HttpClient, HttpsUrl, Request};
use crate::cloud::{Audience, BoxFuture, TokenSource};

const API_VERSION: &str = "7.4";

/// A Managed HSM, reached with the tokens of one identity.
pub struct ManagedHsm {
    http: Arc<HttpClient>,
    tokens: Arc<dyn TokenSource>,
    url: HttpsUrl,
}

#[derive(Deserialize)]
struct ReleaseAnswer {
    value: String,
}

#[derive(Deserialize)]
struct KeyAnswer {
    key: KeyIdentity,
}

#[derive(Deserialize)]
struct KeyIdentity {
    kid: String,
}

impl fmt::Debug for ManagedHsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagedHsm")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl ManagedHsm {
    /// A client of the HSM at `url`.
    pub fn new(http: Arc<HttpClient>, tokens: Arc<dyn TokenSource>, url: HttpsUrl) -> Self {
        Self { http, tokens, url }
    }

    async fn post(
        &self,
        url: HttpsUrl,
        body: &Value,
        idempotent: bool,
    ) -> Result<Bytes, VaultError> {
        let access = self.tokens.access_token(Audience::ManagedHsm).await;
        let access = access.map_err(VaultError::Token)?;
        let body = serde_json::to_vec(body).map_err(|_| VaultError::Malformed)?;
        let request = Request {
            method: Method::POST,
            url,
            authorization: Some(access.bearer()),
            content_type: "application/json",
            body: Zeroizing::new(body),
            idempotent,
        };
        self.http.send(&request).await.map_err(VaultError::Request)
    }
}

impl SecretRelease for ManagedHsm {
    fn release<'a>(
        &'a self,
        key_id: &'a HttpsUrl,
        token: &'a AttestationToken,
        algorithm: WrapAlgorithm,
        nonce: &'a str,
    ) -> BoxFuture<'a, Result<String, VaultError>> {
        Box::pin(async move {
            let url = key_id.join(&format!("/release?api-version={API_VERSION}"));
            let body = json!({"target": token.as_str(), "enc": algorithm.as_str(), "nonce": nonce});
            let answer = self.post(url, &body, true).await?;
            let answer: ReleaseAnswer =
                serde_json::from_slice(&answer).map_err(|_| VaultError::Malformed)?;
            Ok(answer.value)
        })
    }
}

impl VaultAdmin for ManagedHsm {
    fn create_key<'a>(
        &'a self,
        name: &'a str,
        release_policy: &'a str,
    ) -> BoxFuture<'a, Result<HttpsUrl, VaultError>> {
        Box::pin(async move {
            let url = self
                .url
                .join(&format!("/keys/{name}/create?api-version={API_VERSION}"));
            let policy = URL_SAFE_NO_PAD.encode(release_policy);
            // An absent key_ops list would allow every operation. wrapKey and unwrapKey are what
            // the service wants at least of an AES key; neither can compute HKDF over its bytes.
            // Not idempotent: each create makes another version, and none of them can be deleted.
            let body = json!({
                "kty": "oct-HSM",
                "key_size": 256,
                "key_ops": ["wrapKey", "unwrapKey"],
                "attributes": {"enabled": true, "exportable": true},
                "release_policy": {
                    "contentType": "application/json; charset=utf-8",
                    "data": policy,
                    "immutable": true,
                },
            });
            let answer = self.post(url, &body, false).await?;
            let answer: KeyAnswer =
                serde_json::from_slice(&answer).map_err(|_| VaultError::Malformed)?;
            let key_id = HttpsUrl::parse(&answer.key.kid).map_err(|_| VaultError::Malformed)?;
            // What it names is what the pods will be told, and where tokens will be sent.
            if self.url.key_name_in(&key_id) == Some(name) {
                Ok(key_id)
            } else {
                Err(VaultError::Malformed)
            }
        })
    }
}

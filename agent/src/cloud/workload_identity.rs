//! Adapter: access tokens by workload identity: the pod's service-account token, exchanged at
//! Microsoft Entra (OAuth 2.0 client credentials with a JWT assertion, RFC 7523).

use std::path::PathBuf;
use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::http::{HttpClient, HttpsUrl, Request};
use super::{AccessToken, Audience, BoxFuture, TokenError, TokenSource};
use crate::files::read_bounded;

/// Longest service-account token that is read.
const ASSERTION_BYTES_MAX: u64 = 64 * 1024;

/// Who this pod is to Entra. All of it comes from the host, and none of it is trusted.
#[derive(Debug, Clone)]
pub struct WorkloadIdentityConfig {
    /// The identity service, by default `https://login.microsoftonline.com`.
    pub endpoint: HttpsUrl,
    /// Directory (tenant) id.
    pub tenant_id: String,
    /// Application (client) id.
    pub client_id: String,
    /// File with the projected service-account token; read anew for each exchange, since the
    /// kubelet replaces it.
    pub token_file: PathBuf,
}

/// Exchanges the pod's service-account token for access tokens.
#[derive(Debug)]
pub struct WorkloadIdentity {
    http: Arc<HttpClient>,
    config: WorkloadIdentityConfig,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
}

impl WorkloadIdentity {
    /// A token source that talks over `http`.
    pub fn new(http: Arc<HttpClient>, config: WorkloadIdentityConfig) -> Self {
        Self { http, config }
    }

    async fn exchange(&self, audience: Audience) -> Result<AccessToken, TokenError> {
        let assertion = self.assertion()?;
        let form = [
            ("client_id", self.config.client_id.as_str()),
            ("grant_type", "client_credentials"),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", assertion.as_str()),
            ("scope", audience.scope()),
        ];
        let path = format!("/{}/oauth2/v2.0/token", self.config.tenant_id);
        let request = Request {
            method: Method::POST,
            url: self.config.endpoint.join(&path),
            authorization: None,
            content_type: "application/x-www-form-urlencoded",
            body: Zeroizing::new(encode_form(&form).into_bytes()),
            idempotent: true,
        };
        let answer = self
            .http
            .send(&request)
            .await
            .map_err(TokenError::Service)?;
        let answer: TokenAnswer =
            serde_json::from_slice(&answer).map_err(|_| TokenError::Malformed)?;
        Ok(AccessToken::new(answer.access_token))
    }
}

impl WorkloadIdentity {
    /// Reads the service-account token. Its path and its receiver are the host's choice: whatever
    /// is no JWT stays in the guest, so that no other file can be sent away under this name.
    fn assertion(&self) -> Result<Zeroizing<String>, TokenError> {
        let bytes = read_bounded(&self.config.token_file, ASSERTION_BYTES_MAX);
        let bytes = Zeroizing::new(bytes.map_err(TokenError::TokenFile)?);
        let text = std::str::from_utf8(&bytes).map_err(|_| TokenError::NoJwt)?;
        let text = Zeroizing::new(text.trim().to_owned());
        let base64url = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let parts: Vec<&str> = text.split('.').collect();
        let jwt = parts.len() == 3
            && parts.iter().all(|part| !part.is_empty() && base64url(part))
            && parts
                .first()
                .is_some_and(|header| header.starts_with("eyJ"));
        if jwt {
            Ok(text)
        } else {
            Err(TokenError::NoJwt)
        }
    }
}

impl TokenSource for WorkloadIdentity {
    fn access_token(&self, audience: Audience) -> BoxFuture<'_, Result<AccessToken, TokenError>> {
        Box::pin(self.exchange(audience))
    }
}

/// `application/x-www-form-urlencoded`: everything but the unreserved characters of RFC 3986 is
/// percent-encoded.
fn encode_form(fields: &[(&str, &str)]) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        if !form.is_empty() {
            form.push('&');
        }
        form.push_str(name);
        form.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    form.push(char::from(byte));
                }
                _ => form.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    form
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cloud::retry::RetryBudget;

    #[track_caller]
    fn check_assertion(content: &str, accepted: bool) {
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, content).unwrap();
        let budget = RetryBudget {
            total: Duration::from_secs(1),
            per_try: Duration::from_secs(1),
        };
        let identity = WorkloadIdentity {
            http: Arc::new(HttpClient::new(&[], budget).unwrap()),
            config: WorkloadIdentityConfig {
                endpoint: HttpsUrl::parse("https://localhost").unwrap(),
                tenant_id: String::new(),
                client_id: String::new(),
                token_file,
            },
        };
        assert_eq!(identity.assertion().is_ok(), accepted, "{content:?}");
    }

    #[test]
    fn nothing_but_a_jwt_is_sent_away_as_one() {
        check_assertion("eyJhbGciOiJSUzI1NiJ9.eyJhIjoxfQ.c2ln\n", true);
        for other in [
            "",
            "root:x:0:0:root:/root:/bin/bash\n",
            "eyJhbGciOiJSUzI1NiJ9.eyJhIjoxfQ",
            "eyJhbGciOiJSUzI1NiJ9.eyJhIjoxfQ.c2ln.more",
            "-----BEGIN PRIVATE KEY-----",
            "a.b.c",
        ] {
            check_assertion(other, false);
        }
    }

    #[test]
    fn form_values_are_percent_encoded() {
        let form = encode_form(&[("scope", "https://a.b/.default"), ("x", "a+b c~")]);
        assert_eq!(form, "scope=https%3A%2F%2Fa.b%2F.default&x=a%2Bb%20c~");
    }
}

//! Adapter: Microsoft Entra's token endpoint, client credentials with a JWT assertion (RFC 7523):
//! what workload identity uses.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use runtime::clock::Clock;
use runtime::sync::Mutex;
use serde_json::{Value, json};

use super::keys::EmulatorKeys;
use super::server::{Answer, Api, Call};
use super::{Emulator, StartError, jose, random_hex};

/// Audience of access tokens for a Managed HSM.
pub(super) const HSM_AUDIENCE: &str = "https://managedhsm.azure.net";
const TENANT: &str = "5f1c0de5-0000-4000-8000-00000000e1d0";
const LIFETIME_S: i64 = 3_599;
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The token service.
pub struct Entra {
    url: String,
    key: PKey<Private>,
    clock: Arc<dyn Clock>,
    /// By client id.
    workloads: Mutex<BTreeMap<String, Workload>>,
}

/// An identity that a pod may take on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Application (client) id.
    pub client_id: String,
    /// Object (principal) id, which roles are given to.
    pub object_id: String,
    /// The service-account token that proves it: the contents of the projected token file.
    pub assertion: String,
}

/// Why no token is issued: OAuth's error, Entra's number for it, and what it means.
struct Refusal(StatusCode, &'static str, u32, &'static str);

impl fmt::Debug for Entra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entra")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Entra {
    pub(super) fn new(url: &str, keys: &EmulatorKeys, clock: Arc<dyn Clock>) -> Self {
        let workloads = Mutex::new(BTreeMap::new());
        Self {
            url: url.to_owned(),
            key: keys.entra.clone(),
            clock,
            workloads,
        }
    }

    pub(super) fn tenant(&self) -> &'static str {
        TENANT
    }

    /// What services are to check access tokens with.
    pub(super) fn key(&self) -> &PKey<Private> {
        &self.key
    }

    /// `iss` of access tokens, and the address that a challenge names.
    pub(super) fn authority(&self) -> String {
        format!("{}/{TENANT}", self.url)
    }

    /// Checks the form in the order in which the real service complains.
    fn exchange(&self, call: &Call) -> Result<Value, Refusal> {
        let form: BTreeMap<String, String> =
            form_urlencoded::parse(&call.body).into_owned().collect();
        let field = |name: &str| {
            let missing = Refusal(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                900_144,
                "the request body lacks a parameter",
            );
            form.get(name).map(String::as_str).ok_or(missing)
        };
        expect(field("grant_type")? == "client_credentials", || {
            Refusal(
                StatusCode::BAD_REQUEST,
                "unsupported_grant_type",
                70_003,
                "the grant type is not supported",
            )
        })?;
        let workload = self.workloads.lock().get(field("client_id")?).cloned();
        let workload = workload.ok_or(Refusal(
            StatusCode::BAD_REQUEST,
            "unauthorized_client",
            700_016,
            "no such application in the directory",
        ))?;
        let proven = field("client_assertion_type")? == ASSERTION_TYPE
            && field("client_assertion")? == workload.assertion;
        expect(proven, || {
            Refusal(
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                700_213,
                "no federated credential matches the assertion",
            )
        })?;
        let scope = field("scope")?;
        let known = scope.strip_suffix("/.default") == Some(HSM_AUDIENCE);
        expect(known, || {
            Refusal(
                StatusCode::BAD_REQUEST,
                "invalid_scope",
                70_011,
                "the scope is not valid",
            )
        })?;
        self.access_token(&workload).map_err(|_| {
            Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                90_033,
                "a transient error has occurred",
            )
        })
    }

    fn access_token(&self, workload: &Workload) -> Result<Value, ErrorStack> {
        let now = self.clock.now().0;
        let claims = json!({
            "aud": HSM_AUDIENCE,
            "iss": self.authority(),
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(LIFETIME_S),
            "appid": workload.client_id,
            "oid": workload.object_id,
            "sub": workload.object_id,
            "tid": TENANT,
            "uti": random_hex::<16>()?,
            "ver": "1.0",
        });
        let token = jose::sign(&json!({"alg": "RS256", "typ": "JWT"}), &claims, &self.key)?;
        Ok(json!({"token_type": "Bearer", "expires_in": LIFETIME_S, "access_token": token}))
    }
}

impl Api for Entra {
    fn answer(&self, call: &Call) -> Result<Answer, Answer> {
        if call.path != format!("/{TENANT}/oauth2/v2.0/token") {
            let refusal = Refusal(
                StatusCode::BAD_REQUEST,
                "invalid_request",
                90_002,
                "no such tenant",
            );
            return Err(refusal.into_answer());
        }
        if call.method != Method::POST {
            let refusal = Refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "invalid_request",
                900_561,
                "the endpoint only accepts POST requests",
            );
            return Err(refusal.into_answer());
        }
        self.exchange(call)
            .map(Answer::ok)
            .map_err(Refusal::into_answer)
    }
}

impl Refusal {
    fn into_answer(self) -> Answer {
        let Self(status, error, code, description) = self;
        Answer::error(status, error, description).with_body(json!({
            "error": error,
            "error_description": format!("AADSTS{code}: {description}."),
            "error_codes": [code],
        }))
    }
}

impl Emulator<Entra> {
    /// Makes an application with a federated credential. It has no role anywhere.
    pub fn register(&self) -> Result<Workload, StartError> {
        let client_id = random_uuid()?;
        let subject = format!("system:serviceaccount:enclaveid:{client_id}");
        let now = self.service.clock.now().0;
        let claims = json!({
            "aud": ["api://AzureADTokenExchange"],
            "iss": "https://kubernetes.invalid",
            "sub": subject,
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(LIFETIME_S),
        });
        let header = json!({"alg": "RS256", "typ": "JWT"});
        let assertion = jose::sign(&header, &claims, &self.service.key)?;
        let workload = Workload {
            client_id: client_id.clone(),
            object_id: random_uuid()?,
            assertion,
        };
        self.service
            .workloads
            .lock()
            .insert(client_id, workload.clone());
        Ok(workload)
    }
}

fn expect(holds: bool, refusal: impl FnOnce() -> Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refusal()) }
}

/// Looks like a UUID; its version bits are random too.
fn random_uuid() -> Result<String, ErrorStack> {
    let [a, b, c, d, e] = [
        random_hex::<4>()?,
        random_hex::<2>()?,
        random_hex::<2>()?,
        random_hex::<2>()?,
        random_hex::<6>()?,
    ];
    Ok(format!("{a}-{b}-{c}-{d}-{e}"))
}

//! Port: the cloud's identity service, and the HTTP client that all cloud adapters share.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use zeroize::Zeroizing;

pub mod http;
pub mod retry;
pub mod workload_identity;

pub use http::{HttpClient, HttpError};

/// What an object-safe port returns in place of an `async fn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The service that an access token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Azure Managed HSM, data plane.
    ManagedHsm,
}

impl Audience {
    /// The OAuth 2.0 scope, as Microsoft Entra spells it.
    pub fn scope(self) -> &'static str {
        match self {
            Self::ManagedHsm => "https://managedhsm.azure.net/.default",
        }
    }
}

/// A bearer token. It authorises calls, it proves nothing: the host can mint such tokens too.
pub struct AccessToken(Zeroizing<String>);

impl AccessToken {
    /// Wraps the token as the identity service sent it.
    pub fn new(token: String) -> Self {
        Self(Zeroizing::new(token))
    }

    /// The value of the `Authorization` header.
    pub fn bearer(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("Bearer {}", self.0.as_str()))
    }
}

impl Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

/// A source of access tokens for this pod.
pub trait TokenSource: Debug + Send + Sync {
    /// A token for `audience`. Safe to drop at any point.
    fn access_token(&self, audience: Audience) -> BoxFuture<'_, Result<AccessToken, TokenError>>;
}

/// No access token could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file with the pod's service-account token cannot be read.
    #[error("cannot read the pod's federated token file")]
    TokenFile(#[source] std::io::Error),
    /// The file holds something else than a JWT; it stays where it is.
    #[error("the pod's federated token file holds no JWT")]
    NoJwt,
    /// The identity service could not be used.
    #[error("cannot get an access token")]
    Service(#[source] HttpError),
    /// The identity service answered with something else than a token.
    #[error("the identity service's answer is malformed")]
    Malformed,
}

impl TokenError {
    /// Stable code for logs and the API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TokenFile(_) | Self::NoJwt => "identity.token_file",
            Self::Service(error) if error.is_refusal() => "identity.refused",
            Self::Service(_) => "identity.unreachable",
            Self::Malformed => "identity.malformed",
        }
    }
}

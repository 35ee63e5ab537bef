//! Adapter: Microsoft Azure Attestation, `POST /attest/SevSnpVm` and `GET /certs`.

use std::sync::Arc;

use attest::token::{AttestationToken, Jwks};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use hyper::Method;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{AttestationService, ServiceError};
use crate::cloud::BoxFuture;
use crate::cloud::http::{HttpClient, HttpsUrl, Request};
use crate::platform::Evidence;

const API_VERSION: &str = "2022-08-01";

/// The configured attestation service.
#[derive(Debug)]
pub struct Maa {
    http: Arc<HttpClient>,
    issuer: HttpsUrl,
}

/// All base64 in this protocol is URL-safe **with** padding: what the service is known to accept.
#[derive(Serialize)]
struct AttestBody {
    report: String,
    #[serde(rename = "runtimeData")]
    runtime_data: RuntimeData,
}

#[derive(Serialize)]
struct RuntimeData {
    data: String,
    #[serde(rename = "dataType")]
    data_type: &'static str,
}

#[derive(Serialize)]
struct SnpEvidence {
    #[serde(rename = "SnpReport")]
    snp_report: String,
    #[serde(rename = "VcekCertChain")]
    vcek_cert_chain: String,
}

#[derive(Deserialize)]
struct AttestAnswer {
    token: String,
}

impl Maa {
    /// A client of the service at `issuer`.
    pub fn new(http: Arc<HttpClient>, issuer: HttpsUrl) -> Self {
        Self { http, issuer }
    }

    async fn attest(
        &self,
        evidence: &Evidence,
        runtime_data: &[u8],
    ) -> Result<AttestationToken, ServiceError> {
        let chain = [evidence.vcek_pem.as_slice(), &evidence.chain_pem].concat();
        let snp = SnpEvidence {
            snp_report: URL_SAFE.encode(&evidence.report),
            vcek_cert_chain: URL_SAFE.encode(chain),
        };
        let snp = serde_json::to_vec(&snp).map_err(|_| ServiceError::Malformed)?;
        let body = AttestBody {
            report: URL_SAFE.encode(snp),
            runtime_data: RuntimeData {
                data: URL_SAFE.encode(runtime_data),
                data_type: "JSON",
            },
        };
        let request = Request {
            method: Method::POST,
            url: self
                .issuer
                .join(&format!("/attest/SevSnpVm?api-version={API_VERSION}")),
            authorization: None,
            content_type: "application/json",
            body: Zeroizing::new(serde_json::to_vec(&body).map_err(|_| ServiceError::Malformed)?),
            idempotent: true,
        };
        let answer = self
            .http
            .send(&request)
            .await
            .map_err(ServiceError::Request)?;
        let answer: AttestAnswer =
            serde_json::from_slice(&answer).map_err(|_| ServiceError::Malformed)?;
        Ok(AttestationToken::new(answer.token))
    }

    async fn certs(&self) -> Result<Jwks, ServiceError> {
        // Always from the configured service: the token's own `jku` is the token's claim.
        let request = Request::get(self.issuer.join("/certs"));
        let answer = self
            .http
            .send(&request)
            .await
            .map_err(ServiceError::Request)?;
        Jwks::parse(&answer).map_err(|_| ServiceError::Malformed)
    }
}

impl AttestationService for Maa {
    fn appraise<'a>(
        &'a self,
        evidence: &'a Evidence,
        runtime_data: &'a [u8],
    ) -> BoxFuture<'a, Result<AttestationToken, ServiceError>> {
        Box::pin(self.attest(evidence, runtime_data))
    }

    fn signing_keys(&self) -> BoxFuture<'_, Result<Jwks, ServiceError>> {
        Box::pin(self.certs())
    }
}

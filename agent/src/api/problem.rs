//! Edge: error answers, RFC 9457.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::catalogue;

/// An error answer, `application/problem+json`.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// URI that names the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// Short text, the same for each occurrence.
    title: &'static str,
    /// The HTTP status again.
    status: u16,
    /// Stable code, `area.reason`.
    code: &'static str,
    /// What to look at first.
    hint: &'static str,
}

impl Problem {
    /// The problem that `code` of the catalogue names.
    pub fn new(status: StatusCode, code: &'static str) -> Self {
        let entry = catalogue::find(code);
        Self {
            kind: format!("https://enclaveid.dev/errors/{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code,
            hint: entry.hint,
        }
    }

    /// As an HTTP answer.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        let mut response = json(status, &self);
        let problem_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, problem_type);
        response
    }
}

/// An answer of `value` as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    // Our own types serialise: no map with keys that are no text, no failing implementation.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("cache-control", HeaderValue::from_static("no-store"));
    response
}

//! Edge: the routes of the local API and who may call which.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::evidence::{self, EvidenceFailure, EvidenceQuestion};
use super::problem::{Problem, json as json_answer};
use super::state::State;

/// Longest request body.
const BODY_BYTES_MAX: usize = 4 * 1024;
/// Longest time for it to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// Which door a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `admin.sock`.
    Admin,
    /// The vsock port: the peer is the host, an adversary.
    Host,
    /// `api.sock`.
    Pod,
    /// A Unix socket, by a caller whose uid and gid are not on the list.
    Refused,
}

type Answer = Response<Full<Bytes>>;

/// Answers one request.
pub(super) async fn answer(state: &Arc<State>, door: Door, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    match (door, request.method(), path.as_str()) {
        (Door::Refused, _, _) => refuse(StatusCode::FORBIDDEN, "api.forbidden"),
        (_, &Method::GET, "/livez") => json_answer(StatusCode::OK, &json!({"live": true})),
        (_, &Method::GET, "/readyz") => readiness(state),
        (_, &Method::POST, "/v1/evidence") => evidence(state, door, request).await,
        (Door::Admin | Door::Pod, &Method::GET, "/v1/status") => {
            json_answer(StatusCode::OK, &state.status())
        }
        (Door::Admin, &Method::POST, "/v1/rotate") => rotate(state),
        (Door::Pod, &Method::POST, "/v1/rotate") => refuse(StatusCode::FORBIDDEN, "api.admin_only"),
        (_, _, "/livez" | "/readyz" | "/v1/evidence" | "/v1/status" | "/v1/rotate")
            if door != Door::Host =>
        {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "api.method")
        }
        _ => refuse(StatusCode::NOT_FOUND, "api.no_such_route"),
    }
}

fn readiness(state: &State) -> Answer {
    if state.is_ready() {
        json_answer(StatusCode::OK, &json!({"ready": true}))
    } else {
        refuse(StatusCode::SERVICE_UNAVAILABLE, "api.not_ready")
    }
}

fn rotate(state: &State) -> Answer {
    match state.identity().map(|identity| identity.rotate()) {
        None => refuse(StatusCode::SERVICE_UNAVAILABLE, "api.not_ready"),
        Some(Ok(view)) => {
            tracing::info!(serial = view.serial, "leaf rotated on demand");
            json_answer(StatusCode::OK, &view)
        }
        Some(Err(error)) => {
            tracing::warn!(error_code = error.code(), "rotation on demand failed");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, error.code())
        }
    }
}

async fn evidence(state: &Arc<State>, door: Door, request: Request<Incoming>) -> Answer {
    if door == Door::Host && state.admit_host().is_err() {
        return refuse(StatusCode::TOO_MANY_REQUESTS, "api.rate_limited");
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(BODY_TIME_MAX, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(_too_long)) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "api.body"),
        Err(_elapsed) => return refuse(StatusCode::REQUEST_TIMEOUT, "api.body"),
    };
    let Ok(question) = serde_json::from_slice::<EvidenceQuestion>(&body.to_bytes()) else {
        return refuse(StatusCode::BAD_REQUEST, "api.body");
    };
    let state = Arc::clone(state);
    // The secure processor blocks, and a client that hangs up must not stop it half-way.
    let made = tokio::task::spawn_blocking(move || evidence::answer(&state, &question)).await;
    match made {
        Ok(Ok(answer)) => json_answer(StatusCode::OK, &answer),
        Ok(Err(EvidenceFailure::Question)) => refuse(StatusCode::BAD_REQUEST, "api.body"),
        Ok(Err(EvidenceFailure::Platform(code))) => refuse(StatusCode::SERVICE_UNAVAILABLE, code),
        Err(_panicked) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "bug.panic"),
    }
}

fn refuse(status: StatusCode, code: &'static str) -> Answer {
    Problem::new(status, code).into_response()
}

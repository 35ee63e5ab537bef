//! Adapter: the client of the local API, for the commands `status`, `evidence`, `rotate` and
//! `healthcheck`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A call to the local API failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens, or we may not connect.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The exchange broke off.
    #[error("the exchange with the agent broke off")]
    Exchange(#[source] hyper::Error),
    /// The answer is too long, malformed or late.
    #[error("the agent's answer is malformed or late")]
    Answer,
    /// The agent said no; its code and hint.
    #[error("the agent refused: {code} ({hint})")]
    Refused {
        /// The code in the answer.
        code: String,
        /// The hint in the answer.
        hint: String,
    },
}

/// Calls one route and returns the body of a 2xx answer.
pub async fn call(
    socket: &Path,
    method: Method,
    route: &str,
    body: Option<&serde_json::Value>,
) -> Result<Bytes, ClientError> {
    let exchange = exchange(socket, method, route, body);
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .unwrap_or(Err(ClientError::Answer))
}

async fn exchange(
    socket: &Path,
    method: Method,
    route: &str,
    body: Option<&serde_json::Value>,
) -> Result<Bytes, ClientError> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|source| ClientError::Connect {
        path: socket.to_owned(),
        source,
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(ClientError::Exchange)?;
    let driver = tokio::spawn(connection);
    let body = body
        .map(|json| Bytes::from(json.to_string()))
        .unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(route)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|_| ClientError::Answer)?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(ClientError::Exchange)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|_| ClientError::Answer)?.to_bytes();
    driver.abort();
    if status.is_success() {
        return Ok(body);
    }
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| {
        problem
            .get(name)
            .and_then(|v| v.as_str())
            .unwrap_or("")
            .to_owned()
    };
    Err(ClientError::Refused {
        code: text("code"),
        hint: text("hint"),
    })
}

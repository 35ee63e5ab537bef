//! Edge: an HTTPS server on a port of its own, with a record of requests and faults on demand.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use openssl::error::ErrorStack;
use openssl::ssl::{Ssl, SslAcceptor, SslContext, SslMethod};
use runtime::sync::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_openssl::SslStream;

use super::script::{Fault, Script};
use crate::pki::Identity;

/// Longest request body: a token and some room.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A service behind the server. Answers at once, so it never holds a connection up.
pub(super) trait Api: Send + Sync + 'static {
    /// Answers a request.
    fn answer(&self, call: &Call) -> Result<Answer, Answer>;
}

/// A request, read to its end.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    query: Vec<(String, String)>,
    pub(super) authorization: Option<String>,
    pub(super) body: Bytes,
}

/// An answer; as an error, one that says no.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, String)>,
    body: Value,
}

/// A request as the record keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// HTTP method.
    pub method: String,
    /// Path, without the query.
    pub path: String,
    /// Status that was answered; `None` when there was no answer (yet).
    pub status: Option<u16>,
}

/// A port that nobody serves yet.
#[derive(Debug)]
pub(super) struct Binding {
    listener: TcpListener,
    pub(super) url: String,
}

/// A running server. Dropping it closes the port and every connection.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    faults: Script<Fault>,
    log: Mutex<Log>,
}

/// The record. Requests are numbered for ever, so that an answer finds its own.
#[derive(Debug, Default)]
struct Log {
    forgotten: usize,
    requests: Vec<LoggedRequest>,
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed on purpose")]
struct Closed;

impl Call {
    /// A parameter of the query; the first one of that name.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON, or the answer to one that is none.
    pub(super) fn json(&self, malformed: &'static str) -> Result<Value, Answer> {
        serde_json::from_slice(&self.body)
            .map_err(|_| Answer::error(StatusCode::BAD_REQUEST, malformed, "the body is no JSON"))
    }
}

impl Answer {
    /// 200 with a JSON body.
    pub(super) fn ok(body: Value) -> Self {
        Self {
            status: StatusCode::OK,
            headers: Vec::new(),
            body,
        }
    }

    /// An error of the form that Azure's services share.
    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        let body = json!({"error": {"code": code, "message": message}});
        Self {
            status,
            headers: Vec::new(),
            body,
        }
    }

    /// The same with another body.
    pub(super) fn with_body(self, body: Value) -> Self {
        Self { body, ..self }
    }

    /// The same with one more header.
    pub(super) fn with_header(mut self, name: HeaderName, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body.to_string())));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        for (name, value) in self.headers {
            // Only text of ours gets here; one that is no header value would be a wrong test.
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }
}

impl From<ErrorStack> for Answer {
    fn from(error: ErrorStack) -> Self {
        Self::error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            &error.to_string(),
        )
    }
}

impl Binding {
    /// Takes a free port of 127.0.0.1.
    pub(super) async fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("https://localhost:{}", listener.local_addr()?.port());
        Ok(Self { listener, url })
    }

    /// Serves `api` there.
    pub(super) fn serve(self, tls: SslContext, api: Arc<dyn Api>) -> Server {
        let shared = Arc::new(Shared {
            faults: Script::new(),
            log: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(self.listener, tls, api, shared.clone()));
        Server {
            url: self.url,
            shared,
            accepting,
        }
    }
}

impl Server {
    pub(super) fn fail_next(&self, count: u32, fault: Fault) {
        self.shared.faults.append(count, fault);
    }

    pub(super) fn recover(&self) {
        self.shared.faults.clear();
    }

    pub(super) fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.log.lock().requests.clone()
    }

    pub(super) fn forget_requests(&self) {
        let mut log = self.shared.log.lock();
        log.forgotten += log.requests.len();
        log.requests.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// TLS as a public service has it, with the server's chain.
pub(super) fn tls_context(identity: &Identity) -> Result<SslContext, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    builder.set_private_key(&identity.key)?;
    builder.set_certificate(&identity.certificate)?;
    // The root stays out, as it does on real servers.
    let intermediates = identity
        .chain
        .split_last()
        .map_or(&[][..], |(_root, above)| above);
    for certificate in intermediates {
        builder.add_extra_chain_cert(certificate.clone())?;
    }
    Ok(builder.build().into_context())
}

/// Never returns; aborting it ends the connections too, which the set owns.
async fn accept(listener: TcpListener, tls: SslContext, api: Arc<dyn Api>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, or gone before it was accepted: the next one may do.
                let Ok((tcp, _peer)) = accepted else { continue };
                connections.spawn(serve(tcp, tls.clone(), api.clone(), shared.clone()));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// One connection. Whatever is wrong with it is the client's affair.
async fn serve(tcp: TcpStream, tls: SslContext, api: Arc<dyn Api>, shared: Arc<Shared>) {
    let Ok(stream) = Ssl::new(&tls).and_then(|ssl| SslStream::new(ssl, tcp)) else {
        return;
    };
    let mut stream = stream;
    if Pin::new(&mut stream).accept().await.is_err() {
        return;
    }
    let service = service_fn(|request| respond(request, &*api, &shared));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    request: Request<Incoming>,
    api: &dyn Api,
    shared: &Shared,
) -> Result<Response<Full<Bytes>>, Closed> {
    let number = shared.record(&request);
    let answer = match shared.faults.next() {
        None => match read(request).await {
            Ok(call) => api.answer(&call).unwrap_or_else(|refusal| refusal),
            Err(refusal) => refusal,
        },
        Some(Fault::CloseConnection) => return Err(Closed),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::RetryAfter { status, seconds }) => {
            failure(status).with_header(RETRY_AFTER, seconds.to_string())
        }
        Some(Fault::Status(status)) => failure(status),
    };
    shared.record_status(number, answer.status);
    Ok(answer.into_response())
}

impl Shared {
    /// Returns the request's number.
    fn record(&self, request: &Request<Incoming>) -> usize {
        let mut log = self.log.lock();
        log.requests.push(LoggedRequest {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            status: None,
        });
        log.forgotten + log.requests.len() - 1
    }

    fn record_status(&self, number: usize, status: StatusCode) {
        let mut log = self.log.lock();
        let index = number.checked_sub(log.forgotten);
        if let Some(request) = index.and_then(|index| log.requests.get_mut(index)) {
            request.status = Some(status.as_u16());
        }
    }
}

/// The error body of a status that was asked for.
fn failure(status: u16) -> Answer {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = match status {
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::TOO_MANY_REQUESTS => "Throttled",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        _ => "ServiceUnavailable",
    };
    Answer::error(status, code, "the emulator was told to fail")
}

async fn read(request: Request<Incoming>) -> Result<Call, Answer> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let query = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let authorization = head
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let authorization = authorization.map(str::to_owned);
    let body = Limited::new(body, BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|_| {
            Answer::error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestTooLarge",
                "the body is too long",
            )
        })?;
    let path = head.uri.path().to_owned();
    Ok(Call {
        method: head.method,
        path,
        query,
        authorization,
        body: body.to_bytes(),
    })
}

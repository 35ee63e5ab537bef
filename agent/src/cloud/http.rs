//! Adapter: HTTPS requests with pinned roots, bounded answers, timeouts and retries.
//!
//! One connection per request: a start makes four requests to three hosts, and a connection that
//! is not kept cannot be attacked later. TLS roots come from the measured configuration alone, so
//! a host that answers DNS queries falsely gains nothing.

use std::fmt;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Method;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper_util::rt::TokioIo;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509CheckFlags;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_openssl::SslStream;
use zeroize::Zeroizing;

use super::retry::{Retry, RetryBudget};

/// Longest answer that is read. The key set of a real attestation service is about 100 KB.
const ANSWER_BYTES_MAX: usize = 2 * 1024 * 1024;

/// An `https` URL, taken apart once.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpsUrl {
    host: String,
    port: u16,
    path: String,
}

/// A text is not an `https` URL with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an https URL with a host")]
pub struct NotHttps;

impl HttpsUrl {
    /// Parses `https://host[:port][/path]`. User info, queries and fragments are refused: none of
    /// our endpoints has one, and what is not needed cannot confuse.
    pub fn parse(text: &str) -> Result<Self, NotHttps> {
        let uri: hyper::Uri = text.parse().map_err(|_| NotHttps)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(NotHttps)?;
        let plain = !text.contains(['@', '?', '#']);
        if uri.scheme_str() != Some("https") || !plain {
            return Err(NotHttps);
        }
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port: uri.port_u16().unwrap_or(443),
            path,
        })
    }

    /// The host name, lower case.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path, without a trailing slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// This URL with `suffix` after its path.
    #[must_use]
    pub fn join(&self, suffix: &str) -> Self {
        Self {
            path: format!("{}{suffix}", self.path),
            ..self.clone()
        }
    }

    /// Whether two URLs name the same server.
    pub fn same_origin(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// The name in `key_id`, if that is a versioned key of the vault at this URL:
    /// `<this>/keys/<name>/<version>`. A key id without a version would let the host choose among
    /// all keys that were ever made under the name.
    pub fn key_name_in<'a>(&self, key_id: &'a Self) -> Option<&'a str> {
        let rest = key_id.path.strip_prefix(&self.path)?;
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let mut parts = rest.split('/');
        let known = [parts.next()?, parts.next()?] == ["", "keys"];
        let (name, version) = (parts.next()?, parts.next()?);
        let versioned = parts.next().is_none() && plain(name) && plain(version);
        (known && versioned && self.same_origin(key_id)).then_some(name)
    }

    fn authority(&self) -> String {
        if self.port == 443 {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

impl fmt::Debug for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One request.
#[derive(Debug)]
pub struct Request<'a> {
    /// `GET` or `POST`.
    pub method: Method,
    /// Where to; its path may carry a query.
    pub url: HttpsUrl,
    /// Value of the `Authorization` header.
    pub authorization: Option<Zeroizing<String>>,
    /// Media type of the body.
    pub content_type: &'a str,
    /// The body. May hold a token; our copy is wiped, the ones that the connection makes are not.
    pub body: Zeroizing<Vec<u8>>,
    /// Whether a second request does no harm when the first arrived and its answer did not.
    pub idempotent: bool,
}

impl Request<'_> {
    /// A `GET` of `url`.
    pub fn get(url: HttpsUrl) -> Self {
        let body = Zeroizing::default();
        Self {
            method: Method::GET,
            url,
            authorization: None,
            content_type: "",
            body,
            idempotent: true,
        }
    }
}

/// Why a request failed, after all tries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// No connection.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// The server could not be authenticated, or spoke no TLS.
    #[error("cannot establish TLS with a server that the measured roots vouch for")]
    Tls(#[source] openssl::ssl::Error),
    /// OpenSSL refused to be set up.
    #[error("cannot set up TLS")]
    TlsSetup(#[source] openssl::error::ErrorStack),
    /// The exchange broke off.
    #[error("the exchange broke off")]
    Exchange(#[source] hyper::Error),
    /// The answer was too long or broke off.
    #[error("the answer is too long or broke off")]
    Body,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The server answered with an error. Its body stays out of logs; its code is kept.
    #[error("the service answered {status} {service_code}")]
    Status {
        /// HTTP status.
        status: u16,
        /// `error.code` of the answer where it has one and it is a plain word, else empty.
        service_code: String,
        /// The `Retry-After` header.
        retry: Retry,
    },
}

impl HttpError {
    /// Whether the server understood us and said no.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Status {
                status: 400..=499,
                retry: Retry::Never,
                ..
            }
        )
    }

    /// The HTTP status, if the server answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Connect(_)
            | Self::Tls(_)
            | Self::TlsSetup(_)
            | Self::Exchange(_)
            | Self::Body
            | Self::Timeout => None,
        }
    }

    fn retry_of(&self, idempotent: bool) -> Retry {
        let not_begun = match self {
            Self::Connect(_) => true,
            Self::Status { status, .. } => matches!(status, 429 | 503),
            Self::Tls(_) | Self::TlsSetup(_) | Self::Exchange(_) | Self::Body | Self::Timeout => {
                false
            }
        };
        if idempotent || not_begun {
            self.retry()
        } else {
            Retry::Never
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Connect(_) | Self::Exchange(_) | Self::Body | Self::Timeout => Retry::Backoff,
            // A server that cannot prove who it is will not be able to a second later.
            Self::Tls(_) | Self::TlsSetup(_) => Retry::Never,
            Self::Status { retry, .. } => *retry,
        }
    }
}

/// Makes requests over TLS, trusting nobody but the given roots.
pub struct HttpClient {
    tls: SslContext,
    budget: RetryBudget,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

impl HttpClient {
    /// A client that trusts `roots` alone: not the system's certificates.
    pub fn new(roots: &[X509], budget: RetryBudget) -> Result<Self, HttpError> {
        Self::context(roots)
            .map(|tls| Self { tls, budget })
            .map_err(HttpError::TlsSetup)
    }

    fn context(roots: &[X509]) -> Result<SslContext, openssl::error::ErrorStack> {
        let mut store = X509StoreBuilder::new()?;
        for root in roots {
            store.add_cert(root.clone())?;
        }
        let mut builder = SslContext::builder(SslMethod::tls_client())?;
        builder.set_verify_cert_store(store.build())?;
        builder.set_verify(SslVerifyMode::PEER);
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        Ok(builder.build())
    }

    /// Sends `request`, again where that may help, and returns the body of a 2xx answer.
    ///
    /// Safe to drop at any point; a dropped request may still have reached the server.
    pub async fn send(&self, request: &Request<'_>) -> Result<Bytes, HttpError> {
        let start = Instant::now();
        let mut tries = 0;
        loop {
            let left = self.budget.total.saturating_sub(start.elapsed());
            let limit = self.budget.per_try.min(left);
            let outcome = tokio::time::timeout(limit, self.try_once(request)).await;
            let error = match outcome {
                Ok(Ok(body)) => return Ok(body),
                Ok(Err(error)) => error,
                Err(_elapsed) => HttpError::Timeout,
            };
            tries += 1;
            let retry = error.retry_of(request.idempotent);
            let pause = self
                .budget
                .pause(retry, tries, start.elapsed(), random_byte());
            let Some(pause) = pause else {
                return Err(error);
            };
            tracing::debug!(host = request.url.host(), tries, ?pause, %error, "request failed");
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_once(&self, request: &Request<'_>) -> Result<Bytes, HttpError> {
        let stream = self.connect(&request.url).await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(HttpError::Exchange)?;
        let exchange = async {
            let answer = sender
                .send_request(build(request)?)
                .await
                .map_err(HttpError::Exchange)?;
            read_answer(answer).await
        };
        tokio::pin!(connection);
        tokio::select! {
            answer = exchange => answer,
            // The connection only ends first when it failed; the exchange tells how.
            Err(error) = &mut connection => Err(HttpError::Exchange(error)),
        }
    }

    async fn connect(&self, url: &HttpsUrl) -> Result<SslStream<TcpStream>, HttpError> {
        let tcp = TcpStream::connect((url.host.as_str(), url.port)).await;
        let tcp = tcp.map_err(HttpError::Connect)?;
        // Small requests in a hurry: a start waits for each of them.
        tcp.set_nodelay(true).map_err(HttpError::Connect)?;
        let ssl = self.session(url).map_err(HttpError::TlsSetup)?;
        let mut stream = SslStream::new(ssl, tcp).map_err(HttpError::TlsSetup)?;
        std::pin::Pin::new(&mut stream)
            .connect()
            .await
            .map_err(HttpError::Tls)?;
        Ok(stream)
    }

    fn session(&self, url: &HttpsUrl) -> Result<Ssl, openssl::error::ErrorStack> {
        let mut ssl = Ssl::new(&self.tls)?;
        let param = ssl.param_mut();
        param.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
        match url.host.parse() {
            Ok(address) => param.set_ip(address)?,
            Err(_not_an_address) => {
                param.set_host(&url.host)?;
                ssl.set_hostname(&url.host)?;
            }
        }
        Ok(ssl)
    }
}

fn build(request: &Request<'_>) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
    let mut http = hyper::Request::new(Full::new(Bytes::copy_from_slice(&request.body)));
    *http.method_mut() = request.method.clone();
    // Paths are built from checked URLs and constants: a failure here cannot come from outside.
    *http.uri_mut() = request.url.path.parse().map_err(|_| HttpError::Body)?;
    let headers = http.headers_mut();
    let authority = request.url.authority();
    headers.insert(
        HOST,
        HeaderValue::from_str(&authority).map_err(|_| HttpError::Body)?,
    );
    headers.insert(USER_AGENT, HeaderValue::from_static("enclaveid"));
    if let Some(authorization) = &request.authorization {
        let value = HeaderValue::from_str(authorization);
        let mut value = value.map_err(|_| HttpError::Body)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    if !request.body.is_empty() {
        let value = HeaderValue::from_str(request.content_type);
        headers.insert(CONTENT_TYPE, value.map_err(|_| HttpError::Body)?);
    }
    Ok(http)
}

async fn read_answer(answer: hyper::Response<hyper::body::Incoming>) -> Result<Bytes, HttpError> {
    let status = answer.status().as_u16();
    let retry_after = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok());
    let retry = Retry::from_status(status, retry_after);
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|_| HttpError::Body)?.to_bytes();
    if (200..300).contains(&status) {
        return Ok(body);
    }
    Err(HttpError::Status {
        status,
        service_code: service_code(&body),
        retry,
    })
}

/// The machine-readable part of an Azure error body. Whatever is no short plain word is dropped:
/// it goes to the log, and the server is not trusted with that.
fn service_code(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let error = parsed.as_ref().and_then(|json| json.get("error"));
    let code = error.and_then(|error| error.get("code").unwrap_or(error).as_str());
    let plain = |text: &&str| {
        text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    code.filter(plain).unwrap_or_default().to_owned()
}

/// Randomness for jitter; its quality does not matter.
fn random_byte() -> u8 {
    let mut byte = [128];
    // On failure the middle of the range is as good as any.
    let _ = openssl::rand::rand_bytes(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_url(text: &str, want: Option<(&str, u16, &str)>) {
        let got = HttpsUrl::parse(text).ok();
        let got = got
            .as_ref()
            .map(|url| (url.host.as_str(), url.port, url.path.as_str()));
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn only_plain_https_urls_parse() {
        check_url("https://Vault.example", Some(("vault.example", 443, "")));
        check_url(
            "https://localhost:8443/keys/k/1/",
            Some(("localhost", 8443, "/keys/k/1")),
        );
        check_url("http://vault.example", None);
        check_url("https://user@vault.example", None);
        check_url("https://vault.example/?a=b", None);
        check_url("vault.example", None);
        check_url("https://", None);
    }

    #[test]
    fn service_codes_are_short_plain_words() {
        assert_eq!(
            service_code(br#"{"error":{"code":"Forbidden","message":"m"}}"#),
            "Forbidden"
        );
        assert_eq!(
            service_code(br#"{"error":"invalid_client"}"#),
            "invalid_client"
        );
        assert_eq!(service_code(br#"{"error":{"code":"a b\n"}}"#), "");
        assert_eq!(service_code(b"<html>"), "");
    }
}

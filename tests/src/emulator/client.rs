//! Edge: a small HTTPS client that trusts given roots: for tests, and for the vault, which reads
//! the attestation service's metadata as the real one does.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::request::Builder;
use hyper::{HeaderMap, Request, Uri};
use hyper_util::rt::TokioIo;
use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// Makes requests, one connection each.
pub struct Client(SslConnector);

/// An answer of any status.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body; null when it is no JSON.
    pub body: Value,
}

/// No answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL or a header is malformed.
    #[error("the request is malformed")]
    Request,
    /// No TCP connection.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// TLS could not be set up on our side.
    #[error("cannot set up TLS")]
    Setup(#[from] ErrorStack),
    /// The server could not be authenticated.
    #[error("no TLS with this server")]
    Tls(#[source] openssl::ssl::Error),
    /// The connection broke.
    #[error("the exchange broke off")]
    Exchange(#[from] hyper::Error),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client(..)")
    }
}

impl Client {
    /// A client that trusts the certificates in `roots_pem` alone.
    pub fn new(roots_pem: &str) -> Result<Self, ErrorStack> {
        let mut store = X509StoreBuilder::new()?;
        for root in X509::stack_from_pem(roots_pem.as_bytes())? {
            store.add_cert(root)?;
        }
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_cert_store(store.build());
        Ok(Self(builder.build()))
    }

    /// `GET`, with a bearer token if one is given.
    pub async fn get(&self, url: &str, bearer: Option<&str>) -> Result<Reply, ClientError> {
        self.send(url, authorized(Request::get(url), bearer), String::new())
            .await
    }

    /// `POST` of JSON, with a bearer token if one is given.
    pub async fn post(
        &self,
        url: &str,
        bearer: Option<&str>,
        body: &Value,
    ) -> Result<Reply, ClientError> {
        let request = Request::post(url).header(CONTENT_TYPE, "application/json");
        self.send(url, authorized(request, bearer), body.to_string())
            .await
    }

    /// `POST` of a form.
    pub async fn post_form(
        &self,
        url: &str,
        fields: &[(&str, &str)],
    ) -> Result<Reply, ClientError> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(fields);
        let request = Request::post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(url, request, form.finish()).await
    }

    async fn send(&self, url: &str, request: Builder, body: String) -> Result<Reply, ClientError> {
        let url: Uri = url.parse().map_err(|_| ClientError::Request)?;
        let authority = url.authority().ok_or(ClientError::Request)?;
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let request = request
            .uri(path)
            .header(HOST, authority.as_str())
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| ClientError::Request)?;
        let stream = self
            .connect(authority.host(), authority.port_u16().unwrap_or(443))
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            Ok(Reply {
                status: head.status.as_u16(),
                headers: head.headers,
                body,
            })
        };
        tokio::pin!(connection);
        tokio::select! {
            reply = exchange => reply,
            Err(error) = &mut connection => Err(error.into()),
        }
    }

    async fn connect(&self, host: &str, port: u16) -> Result<SslStream<TcpStream>, ClientError> {
        let tcp = TcpStream::connect((host, port))
            .await
            .map_err(ClientError::Connect)?;
        let ssl = self.0.configure()?.into_ssl(host)?;
        let mut stream = SslStream::new(ssl, tcp)?;
        Pin::new(&mut stream)
            .connect()
            .await
            .map_err(ClientError::Tls)?;
        Ok(stream)
    }
}

fn authorized(request: Builder, bearer: Option<&str>) -> Builder {
    match bearer {
        Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
        None => request,
    }
}

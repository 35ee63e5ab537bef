//! Edge: the secret discovery service over gRPC. Wire types stop here.
//!
//! **Design.** `StreamSecrets` (state of the world) alone; Delta and Fetch are answered
//! UNIMPLEMENTED, as SPIRE and Istio do for Delta. A stream is driven by whoever reads its
//! responses: a client that does not read is not pushed to, and when it goes its state goes.

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;

use futures_util::Stream;
use hyper::body::Incoming;
use runtime::peer::{AdmittedPeer, RefusedPeer};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, StreamingService};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::source::Snapshots;
use crate::status::OpenStream;
use crate::stopping::Stopping;
use crate::subscription::{Event, Push, Refusal, Request, Subscription};

pub(crate) mod encode;
#[expect(
    clippy::doc_markdown,
    unreachable_pub,
    reason = "generated from proto/sds.proto, whose comments it takes over"
)]
#[rustfmt::skip]
mod pb;

/// Path of the one method that is served.
const STREAM_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
/// What the resources of this service are.
const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// Longest request. Envoy's first one lists every extension that it has: 61 kB in 1.40.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// What one connection's streams share.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) admission: Result<AdmittedPeer, RefusedPeer>,
    pub(crate) snapshots: Snapshots,
    pub(crate) stopping: Stopping,
}

impl Connection {
    /// Answers one request, whatever its method. The body of the answer lives as long as the
    /// stream.
    pub(crate) async fn answer(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Body>, Infallible> {
        if self.admission.is_err() {
            let refused = Status::permission_denied("this user is not allowed on this socket");
            return Ok(refused.into_http());
        }
        if request.uri().path() != STREAM_SECRETS {
            return Ok(Status::unimplemented("only StreamSecrets is served").into_http());
        }
        let mut grpc = Grpc::new(ProstCodec::default())
            .apply_max_message_size_config(Some(REQUEST_BYTES_MAX), None);
        Ok(grpc.streaming(self, request).await)
    }
}

type Requests = Streaming<pb::DiscoveryRequest>;

impl StreamingService<pb::DiscoveryRequest> for Connection {
    type Response = pb::DiscoveryResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<pb::DiscoveryResponse, Status>> + Send>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Requests>) -> Self::Future {
        let stream = SecretStream {
            _open: self.snapshots.status().open_stream(),
            requests: request.into_inner(),
            snapshots: self.snapshots.clone(),
            stopping: self.stopping.clone(),
            subscription: Subscription::default(),
            pushed_at: Instant::now(),
        };
        let responses = futures_util::stream::try_unfold(stream, |mut stream| async move {
            let response = stream.next_response().await?;
            Ok(response.map(|response| (response, stream)))
        });
        ready(Ok(tonic::Response::new(Box::pin(responses))))
    }
}

/// One stream: a subscription with its two ends on the wire.
struct SecretStream {
    requests: Requests,
    snapshots: Snapshots,
    stopping: Stopping,
    subscription: Subscription,
    pushed_at: Instant,
    _open: OpenStream,
}

impl SecretStream {
    /// Waits for the next secret that the client lacks; `None` when the client has ended the
    /// stream.
    async fn next_response(&mut self) -> Result<Option<pb::DiscoveryResponse>, Status> {
        loop {
            if let Some(response) = self.due_response() {
                return Ok(Some(response));
            }
            tokio::select! {
                // Answers first: they decide what may be sent.
                biased;
                request = self.requests.message() => match request? {
                    Some(request) => self.receive(&request)?,
                    None => return Ok(None),
                },
                changed = self.snapshots.latest.changed() => {
                    changed.map_err(|_| Status::unavailable("no more identities"))?;
                }
                () = self.stopping.stopped() => {
                    return Err(Status::unavailable("shutting down"));
                }
            }
        }
    }

    fn due_response(&mut self) -> Option<pb::DiscoveryResponse> {
        let latest = self.snapshots.latest.borrow_and_update().clone()?;
        let push = self.subscription.next_push(&latest)?;
        self.pushed_at = Instant::now();
        self.snapshots.status().pushed();
        let Push {
            name,
            version,
            nonce,
        } = push;
        Some(pb::DiscoveryResponse {
            version_info: version.to_string(),
            resources: vec![pb::Any {
                type_url: SECRET_TYPE.to_owned(),
                value: latest.secret(name).message.clone(),
            }],
            type_url: SECRET_TYPE.to_owned(),
            nonce,
        })
    }

    fn receive(&mut self, request: &pb::DiscoveryRequest) -> Result<(), Status> {
        // The service has one type; a client may leave it out.
        if !request.type_url.is_empty() && request.type_url != SECRET_TYPE {
            return Err(Status::invalid_argument("only secrets are served here"));
        }
        let event = self.subscription.receive(&Request {
            node: request.node.as_ref().map(|node| node.id.as_str()),
            names: &request.resource_names,
            nonce: &request.response_nonce,
            refuses: request.error_detail.is_some(),
        });
        let status = self.snapshots.status();
        match event.map_err(refuse)? {
            Event::Acked(name, version) => {
                status.acked(self.pushed_at.elapsed());
                tracing::debug!(name = name.as_str(), %version, "client took a secret");
            }
            Event::Nacked(name, version) => {
                status.nacked(name, version, self.subscription.node());
                tracing::warn!(
                    name = name.as_str(),
                    %version,
                    error_code = "sds.nack",
                    "client refused a secret and keeps the one before"
                );
            }
            Event::Subscribed => tracing::debug!("client subscribed"),
            Event::Stale => {}
        }
        Ok(())
    }
}

fn refuse(refusal: Refusal) -> Status {
    let (code, message) = match refusal {
        Refusal::TooManyNames => (Code::InvalidArgument, "too many names"),
        Refusal::UnknownName => (Code::PermissionDenied, "no such secret for this client"),
    };
    Status::new(code, message)
}

#[cfg(test)]
mod tests;

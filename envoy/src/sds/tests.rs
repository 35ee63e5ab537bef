//! Edge: the service over a pair of connected sockets, spoken to by a gRPC client.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use runtime::clock::UnixTime;
use runtime::peer::{AllowedPeers, Peer};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::client::Grpc as GrpcClient;
use tonic::codegen::Service;
use zeroize::Zeroizing;

use super::*;
use crate::server::serve_connection;
use crate::source::{Publisher, channel};
use crate::status::SdsStatus;
use crate::stopping::Stop;
use crate::svid::Svid;

const OURS: Peer = Peer {
    uid: 7,
    gid: 7,
    pid: None,
};

/// The least that makes a gRPC client of hyper's.
#[derive(Clone)]
struct Client(http2::SendRequest<Body>);

impl Service<http::Request<Body>> for Client {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A server on one end of a pair of sockets, a client on the other.
struct Pair {
    publisher: Publisher,
    status: SdsStatus,
    stop: Stop,
    client: Client,
}

/// A stream as its client holds it.
struct ClientStream {
    say: mpsc::Sender<pb::DiscoveryRequest>,
    hear: Streaming<pb::DiscoveryResponse>,
}

impl Pair {
    async fn connect(allowed: AllowedPeers) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (publisher, snapshots) = channel();
        let (stop, stopping) = Stopping::channel();
        let status = snapshots.status();
        tokio::spawn(serve_connection(
            ours,
            allowed.admit(OURS),
            snapshots,
            stopping,
        ));
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(theirs));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        Self {
            publisher,
            status,
            stop,
            client: Client(sender),
        }
    }

    async fn admitted() -> Self {
        Self::connect(AllowedPeers {
            uids: vec![OURS.uid],
            gids: Vec::new(),
        })
        .await
    }

    async fn stream(&self, path: &'static str) -> Result<ClientStream, Status> {
        let origin = http::Uri::from_static("http://sds");
        let mut grpc = GrpcClient::with_origin(self.client.clone(), origin);
        grpc.ready().await.unwrap();
        let (say, said) = mpsc::channel(8);
        let said = futures_util::stream::unfold(said, |mut said| async move {
            said.recv().await.map(|request| (request, said))
        });
        let path = http::uri::PathAndQuery::from_static(path);
        let codec = ProstCodec::<pb::DiscoveryRequest, pb::DiscoveryResponse>::default();
        let response = grpc
            .streaming(tonic::Request::new(said), path, codec)
            .await?;
        Ok(ClientStream {
            say,
            hear: response.into_inner(),
        })
    }

    fn publish(&self, chain: &str) {
        self.publisher.publish(&Svid {
            spiffe_id: "spiffe://td/pod".to_owned(),
            certificate_chain_pem: chain.as_bytes().to_vec(),
            private_key_pem: Zeroizing::new(b"KEY".to_vec()),
            trust_bundle_pem: b"CA".to_vec(),
            serial_hex: "01".to_owned(),
            not_before: UnixTime(0),
            not_after: UnixTime(0),
        });
    }
}

impl ClientStream {
    /// The next response: nonce and certificate chain.
    async fn hear(&mut self) -> (String, Vec<u8>) {
        let response = self.hear.message().await.unwrap().unwrap();
        assert_eq!(response.type_url, SECRET_TYPE);
        let [resource] = response.resources.as_slice() else {
            panic!("not one resource")
        };
        assert_eq!(resource.type_url, SECRET_TYPE);
        let secret = pb::Secret::decode(resource.value.clone()).unwrap();
        let Some(pb::secret::Type::TlsCertificate(certificate)) = secret.r#type else {
            panic!("not a certificate")
        };
        let pb::data_source::Specifier::InlineBytes(chain) =
            certificate.certificate_chain.unwrap().specifier.unwrap();
        (response.nonce, chain.to_vec())
    }
}

fn asks(names: &[&str]) -> pb::DiscoveryRequest {
    let node = pb::Node {
        id: "pod-0".to_owned(),
        cluster: "web".to_owned(),
    };
    pb::DiscoveryRequest {
        node: Some(node),
        resource_names: names.iter().map(ToString::to_string).collect(),
        type_url: SECRET_TYPE.to_owned(),
        ..Default::default()
    }
}

fn answers(nonce: &str, refuses: bool) -> pb::DiscoveryRequest {
    pb::DiscoveryRequest {
        response_nonce: nonce.to_owned(),
        error_detail: refuses.then_some(pb::Status { code: 13 }),
        node: None,
        ..asks(&["default"])
    }
}

async fn check_refused(allowed_uid: u32, path: &'static str, asks: pb::DiscoveryRequest) -> Code {
    let pair = Pair::connect(AllowedPeers {
        uids: vec![allowed_uid],
        gids: Vec::new(),
    })
    .await;
    pair.publish("CHAIN");
    let status = match pair.stream(path).await {
        Err(status) => status,
        Ok(mut stream) => {
            stream.say.send(asks).await.unwrap();
            stream.hear.message().await.err().unwrap()
        }
    };
    assert_eq!(pair.status.view().pushes, 0, "nothing may have been sent");
    status.code()
}

#[tokio::test]
async fn what_must_not_be_asked_is_refused_by_name() {
    const DELTA: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";
    const FETCH: &str = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets";
    let uid = OURS.uid;
    let good = asks(&["default"]);
    let refused = check_refused(uid + 1, STREAM_SECRETS, good.clone());
    assert_eq!(refused.await, Code::PermissionDenied);
    assert_eq!(
        check_refused(uid, DELTA, good.clone()).await,
        Code::Unimplemented
    );
    assert_eq!(
        check_refused(uid, FETCH, good.clone()).await,
        Code::Unimplemented
    );

    let foreign = asks(&["default", "spiffe://other"]);
    assert_eq!(
        check_refused(uid, STREAM_SECRETS, foreign).await,
        Code::PermissionDenied
    );
    let many = asks(&["default"; 17]);
    assert_eq!(
        check_refused(uid, STREAM_SECRETS, many).await,
        Code::InvalidArgument
    );
    let cluster = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    let cluster = pb::DiscoveryRequest {
        type_url: cluster,
        ..good.clone()
    };
    assert_eq!(
        check_refused(uid, STREAM_SECRETS, cluster).await,
        Code::InvalidArgument
    );
    let huge = pb::DiscoveryRequest {
        version_info: "v".repeat(REQUEST_BYTES_MAX),
        ..good
    };
    assert_eq!(
        check_refused(uid, STREAM_SECRETS, huge).await,
        Code::OutOfRange
    );
}

#[tokio::test]
async fn a_stream_is_held_until_there_is_a_secret_and_follows_it() {
    let pair = Pair::admitted().await;
    let mut stream = pair.stream(STREAM_SECRETS).await.unwrap();
    stream.say.send(asks(&["default"])).await.unwrap();
    let held = pair.status.wait_for(|view| view.streams == 1).await;
    assert_eq!(held.pushes, 0);

    pair.publish("CHAIN 1");
    assert_eq!(stream.hear().await, ("1".to_owned(), b"CHAIN 1".to_vec()));
    stream.say.send(answers("1", false)).await.unwrap();
    let taken = pair.status.wait_for(|view| view.acks == 1).await;
    assert!(taken.last_ack_ms.is_some());
    pair.publish("CHAIN 2");
    assert_eq!(stream.hear().await, ("2".to_owned(), b"CHAIN 2".to_vec()));
}

#[tokio::test]
async fn a_refusal_is_reported_with_the_clients_name_and_not_pushed_again() {
    let pair = Pair::admitted().await;
    pair.publish("BAD");
    let mut stream = pair.stream(STREAM_SECRETS).await.unwrap();
    stream.say.send(asks(&["default"])).await.unwrap();
    let (nonce, _) = stream.hear().await;
    stream.say.send(answers(&nonce, true)).await.unwrap();
    let view = pair.status.wait_for(|view| view.nacks == 1).await;
    let last = view.last_nack.unwrap();
    assert_eq!((last.name, last.node.as_str()), ("default", "pod-0"));

    pair.publish("GOOD");
    assert_eq!(stream.hear().await, ("2".to_owned(), b"GOOD".to_vec()));
    assert_eq!(pair.status.view().pushes, 2);
}

#[tokio::test]
async fn streams_end_when_the_server_stops() {
    let pair = Pair::admitted().await;
    let mut stream = pair.stream(STREAM_SECRETS).await.unwrap();
    pair.stop.stop();
    assert_eq!(
        stream.hear.message().await.err().unwrap().code(),
        Code::Unavailable
    );
    pair.status.wait_for(|view| view.streams == 0).await;
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() {
    let pair = Pair::admitted().await;
    let stream = pair.stream(STREAM_SECRETS).await.unwrap();
    pair.status.wait_for(|view| view.streams == 1).await;
    drop(stream);
    pair.status.wait_for(|view| view.streams == 0).await;
}

//! Edge: connections of the SDS server, HTTP/2 over the runtime's Unix listener.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use runtime::listener::UnixSocket;
use runtime::peer::{AdmittedPeer, RefusedPeer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::sds::Connection;
use crate::source::Snapshots;
use crate::stopping::Stopping;

/// Connections of admitted peers at once. An Envoy needs one.
const CONNECTIONS_MAX: usize = 32;
/// Connections of refused peers at once: they are told so, but cannot crowd out the others.
const REFUSED_CONNECTIONS_MAX: usize = 4;
/// Time that a refused peer has to ask and be told.
const REFUSED_LIFETIME: Duration = Duration::from_secs(2);
/// Streams of one connection. An Envoy opens one for each secret that it names.
const STREAMS_MAX: u32 = 32;
/// Bytes of a request's header fields.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// A peer that is silent for this long is asked whether it still lives, and has as long to answer.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Pause after the system ran out of something.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);
/// Time for clients to take notice of a shutdown.
const DRAIN: Duration = Duration::from_secs(1);

/// Why the SDS server ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SdsError {
    /// The listener is broken; a mere shortage of descriptors or memory is waited out.
    #[error("cannot accept connections of SDS clients")]
    Accept(#[source] io::Error),
}

impl SdsError {
    /// Stable code for logs and exit codes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Accept(_) => "sds.accept",
        }
    }
}

/// Serves `snapshots` on `socket` until `shutdown` completes, then ends the streams that are open
/// and returns.
///
/// When dropped instead, it ends without a word to its clients, who reconnect.
pub async fn serve(
    socket: UnixSocket,
    snapshots: Snapshots,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), SdsError> {
    let (stop, stopping) = Stopping::channel();
    let mut connections = JoinSet::new();
    let mut doors = Doors::new(snapshots, stopping);
    let mut shutdown = pin!(shutdown);
    let ended = loop {
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            // Frees what ended connections leave behind.
            Some(_) = connections.join_next() => {}
            accepted = socket.accept() => match accepted {
                Ok((stream, admission)) => doors.open(&mut connections, stream, admission),
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, error_code = "sds.accept", "cannot accept now");
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
                Err(error) => break Err(SdsError::Accept(error)),
            },
        }
    };
    // First the path, so that clients who reconnect wait for a successor.
    drop(socket);
    stop.stop();
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all_ended).await.is_err() {
        connections.shutdown().await;
    }
    ended
}

/// Serves one connection to its end, over any transport.
///
/// Ends early when told to stop. Safe to drop.
pub(crate) async fn serve_connection<S>(
    stream: S,
    admission: Result<AdmittedPeer, RefusedPeer>,
    snapshots: Snapshots,
    mut stopping: Stopping,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Connection {
        admission,
        snapshots,
        stopping: stopping.clone(),
    };
    let service = service_fn(move |request| connection.clone().answer(request));
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stopping.stopped() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Lets connections in, as far as there is room.
struct Doors {
    admitted: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    snapshots: Snapshots,
    stopping: Stopping,
}

impl Doors {
    fn new(snapshots: Snapshots, stopping: Stopping) -> Self {
        Self {
            admitted: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            refused: Arc::new(Semaphore::new(REFUSED_CONNECTIONS_MAX)),
            snapshots,
            stopping,
        }
    }

    /// Serves `stream` in a task of its own, or closes it when there are too many.
    fn open<S>(
        &mut self,
        connections: &mut JoinSet<()>,
        stream: S,
        admission: Result<AdmittedPeer, RefusedPeer>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some((slot, lifetime)) = self.slot(&admission) else {
            return;
        };
        let snapshots = self.snapshots.clone();
        let stopping = self.stopping.clone();
        connections.spawn(async move {
            let served = serve_connection(stream, admission, snapshots, stopping);
            match lifetime {
                // Told or not, its time is over.
                Some(lifetime) => drop(tokio::time::timeout(lifetime, served).await),
                None => served.await,
            }
            drop(slot);
        });
    }

    fn slot(
        &self,
        admission: &Result<AdmittedPeer, RefusedPeer>,
    ) -> Option<(OwnedSemaphorePermit, Option<Duration>)> {
        match admission {
            Ok(_) => {
                let slot = Arc::clone(&self.admitted).try_acquire_owned().ok();
                if slot.is_none() {
                    tracing::warn!(error_code = "sds.connections", "too many connections");
                }
                slot.map(|slot| (slot, None))
            }
            Err(refused) => {
                self.snapshots.status().refused_peer();
                let peer = refused.peer();
                tracing::warn!(
                    uid = peer.uid,
                    gid = peer.gid,
                    error_code = "sds.refused_peer",
                    "connection refused"
                );
                let slot = Arc::clone(&self.refused).try_acquire_owned().ok();
                slot.map(|slot| (slot, Some(REFUSED_LIFETIME)))
            }
        }
    }
}

/// Whether an error of accept concerns one connection or a shortage, see accept(2).
fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::PERM,
        Errno::PROTO,
    ];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

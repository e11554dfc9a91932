//! The API's connections: how many there may be, and how long a request may take to come.
//!
//! Descriptors are the ports', too: clients that connect and say nothing, or half of something, are not to use them up.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

/// Those of event streams count as well.
const MAX_CONNECTIONS: usize = 1024;
/// For the head of a request, and again for its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an accept that failed: out of descriptors, say.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`; requests under way are finished.
pub(super) async fn serve(listener: UnixListener, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let under_way = GracefulShutdown::new();
    let mut full = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection to the API: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            if !full {
                tracing::warn!(
                    "{MAX_CONNECTIONS} clients are connected to the API: others are closed"
                );
            }
            full = true;
            continue;
        };
        full = false;
        let service = TowerToHyperService::new(router.clone());
        let served = under_way.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!("a connection to the API ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    under_way.shutdown().await;
}

/// A body that does not come in time is an error.
pub(super) async fn patience(request: Request, next: Next) -> Response {
    let deadline = Instant::now() + PATIENCE;
    let request = request.map(|body| {
        let chunks = stream::unfold(body.into_data_stream(), move |mut chunks| async move {
            let chunk = match timeout_at(deadline, chunks.next()).await {
                Ok(chunk) => chunk?,
                Err(_) => Err(axum::Error::new("it did not come in time")),
            };
            Some((chunk, chunks))
        });
        Body::from_stream(chunks)
    });
    next.run(request).await
}

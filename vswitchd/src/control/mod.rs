//! The control API: HTTP on the instance's Unix socket.
//!
//! Handlers translate between HTTP and `network`; they decide nothing. A change runs to its end
//! even when its client goes away. Bodies are bounded; every error is a problem document.

mod body;
mod events;
mod fdb;
mod instance;
mod networks;
mod object;
mod openapi;
mod ports;
mod problem;
mod revision;
mod server;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use api::{Code, Problem, SocketAccess};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::network::Manager;
use crate::socket::{self, Access};
use problem::{Failure, Result};

/// What handlers need.
#[derive(Clone, Debug)]
struct Context {
    manager: Arc<Manager>,
    /// Ends event streams, which would otherwise outlive everything.
    stop: CancellationToken,
}

fn router(context: Context) -> Router {
    Router::new()
        .route("/v1/instance", get(instance::show))
        .route("/v1/networks", get(networks::list).post(networks::define))
        .route("/v1/networks/{network}", get(networks::show).delete(networks::undefine))
        .route("/v1/networks/{network}/xml", get(networks::xml))
        .route("/v1/networks/{network}/start", post(networks::start))
        .route("/v1/networks/{network}/destroy", post(networks::destroy))
        .route("/v1/networks/{network}/autostart", put(networks::autostart))
        .route("/v1/networks/{network}/leases", get(networks::leases))
        .route("/v1/networks/{network}/stats", get(networks::stats))
        .route("/v1/networks/{network}/fdb", get(fdb::show).post(fdb::add).delete(fdb::remove))
        .route("/v1/networks/{network}/ports", get(ports::list_of).post(ports::add))
        .route("/v1/ports", get(ports::list))
        .route("/v1/ports/{port}", get(ports::show).patch(ports::set).delete(ports::delete))
        .route("/v1/ports/{port}/stats", get(ports::stats))
        .route("/v1/workers", get(instance::workers))
        .route("/v1/events", get(events::stream))
        .route("/v1/openapi.json", get(openapi::document))
        .fallback(no_such_resource)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(body::JSON_LIMIT))
        .layer(middleware::from_fn(server::patience))
        .layer(middleware::from_fn_with_state(context.clone(), etag))
        .with_state(context)
}

async fn no_such_resource(uri: Uri) -> Failure {
    let title = format!("there is no resource {}", uri.path());
    let mut problem = Problem::new(Code::InvalidArgument, title);
    problem.status = 404;
    Failure(problem)
}

async fn no_such_method(method: Method, uri: Uri) -> Failure {
    let title = format!("{method} is not possible on {}", uri.path());
    let mut problem = Problem::new(Code::InvalidArgument, title);
    problem.status = 405;
    Failure(problem)
}

/// Every answer carries the revision of the state as its ETag.
async fn etag(State(context): State<Context>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let revision = context.manager.events().revision();
    ([("etag", format!("\"{revision}\""))], response).into_response()
}

/// Runs a change to its end, whether or not the client waits for it.
async fn run<T: Send + 'static>(
    change: impl Future<Output = std::result::Result<T, Problem>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(change).await {
        Ok(result) => result.map_err(Failure),
        Err(error) => {
            tracing::error!("a request handler failed: {error}");
            Err(Failure(Problem::new(Code::Internal, "the daemon has a bug: see its log")))
        }
    }
}

/// Binds the API socket, or goes on with the one of the daemon before; with its group and mode.
///
/// # Errors
/// When another process listens there, or the socket cannot be made.
pub fn bind(
    instance: &api::Instance,
    config: &Config,
    inherited: Option<OwnedFd>,
) -> anyhow::Result<UnixListener> {
    let path = instance.api_socket();
    let wanted = SocketAccess { group: config.api_group.clone(), ..SocketAccess::default() };
    let access = Access::new(&wanted, config.api_mode)?;
    let listener = match inherited {
        Some(inherited) => socket::keep(inherited, &path, &access)?,
        None => None,
    };
    let listener = match listener {
        Some(listener) => listener,
        None => socket::listen(&path, &access)?,
    };
    Ok(UnixListener::from_std(listener)?)
}

/// Serves until `stop`; requests under way are finished.
pub async fn serve(listener: UnixListener, manager: Arc<Manager>, stop: CancellationToken) {
    let context = Context { manager, stop: stop.clone() };
    server::serve(listener, router(context), stop).await;
}

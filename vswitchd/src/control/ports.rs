//! `/v1/ports` and `/v1/networks/{network}/ports`.

use api::{PortAdd, PortInfo, PortSet, PortStats, Problem};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::problem::Result;
use super::revision::Expected;
use super::{Context, body, run};

type PathResult = std::result::Result<Path<String>, PathRejection>;

/// All ports, by name.
#[utoipa::path(get, operation_id = "list_ports", path = "/v1/ports", responses((status = 200, body = Vec<PortInfo>)))]
pub(super) async fn list(State(context): State<Context>) -> Result<Json<Vec<PortInfo>>> {
    Ok(Json(context.manager.ports(None)?))
}

/// The ports of a network, by name.
#[utoipa::path(
    get, operation_id = "list_network_ports", path = "/v1/networks/{network}/ports", params(("network" = String, Path)),
    responses((status = 200, body = Vec<PortInfo>), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn list_of(
    State(context): State<Context>,
    path: PathResult,
) -> Result<Json<Vec<PortInfo>>> {
    let Path(network) = path?;
    Ok(Json(context.manager.ports(Some(&network))?))
}

/// Adds a port. It comes up at once when the network is active, else with it.
#[utoipa::path(
    post, operation_id = "add_port", path = "/v1/networks/{network}/ports", params(("network" = String, Path)),
    request_body = PortAdd,
    responses((status = 201, body = PortInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn add(
    State(context): State<Context>,
    path: PathResult,
    expected: Expected,
    request: std::result::Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<PortInfo>)> {
    let Path(network) = path?;
    let (manager, expected) = (context.manager, expected.revision()?);
    let request: PortAdd = body::json(request)?;
    let info = run(async move {
        let operation = manager.begin(expected).await?;
        manager.add_port(&operation, &network, request).await
    })
    .await?;
    Ok((StatusCode::CREATED, Json(info)))
}

/// One port, by name or UUID.
#[utoipa::path(
    get, operation_id = "show_port", path = "/v1/ports/{port}", params(("port" = String, Path)),
    responses((status = 200, body = PortInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn show(
    State(context): State<Context>,
    path: PathResult,
) -> Result<Json<PortInfo>> {
    let Path(port) = path?;
    Ok(Json(context.manager.port(&port)?))
}

/// Changes a port's profile, also while frames flow; its state stays.
#[utoipa::path(
    patch, operation_id = "set_port", path = "/v1/ports/{port}", params(("port" = String, Path)),
    request_body = PortSet,
    responses((status = 200, body = PortInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn set(
    State(context): State<Context>,
    path: PathResult,
    expected: Expected,
    request: std::result::Result<Bytes, BytesRejection>,
) -> Result<Json<PortInfo>> {
    let Path(port) = path?;
    let (manager, expected) = (context.manager, expected.revision()?);
    let change: PortSet = body::json(request)?;
    let info = run(async move {
        let operation = manager.begin(expected).await?;
        manager.set_port(&operation, &port, change).await
    })
    .await?;
    Ok(Json(info))
}

/// Deletes a port, its socket or TAP, and the leases that were taken through it.
#[utoipa::path(
    delete, operation_id = "delete_port", path = "/v1/ports/{port}", params(("port" = String, Path)),
    responses((status = 204), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn delete(
    State(context): State<Context>,
    path: PathResult,
    expected: Expected,
) -> Result<StatusCode> {
    let Path(port) = path?;
    let (manager, expected) = (context.manager, expected.revision()?);
    run(async move {
        let operation = manager.begin(expected).await?;
        manager.delete_port(&operation, &port).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Counters since the port came up.
#[utoipa::path(
    get, operation_id = "show_port_stats", path = "/v1/ports/{port}/stats", params(("port" = String, Path)),
    responses((status = 200, body = PortStats), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn stats(
    State(context): State<Context>,
    path: PathResult,
) -> Result<Json<PortStats>> {
    let Path(port) = path?;
    Ok(Json(context.manager.stats(&port)?))
}

//! `/v1/ports` and `/v1/networks/{network}/ports`.

use api::{PortAdd, PortInfo, PortSet, PortStats, Problem};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;

use super::object::{Change, Object};
use super::problem::Result;
use super::{Context, body, run};

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
pub(super) async fn list_of(object: Object) -> Result<Json<Vec<PortInfo>>> {
    Ok(Json(object.manager.ports(Some(&object.name))?))
}

/// Adds a port. It comes up at once when the network is active, else with it.
#[utoipa::path(
    post, operation_id = "add_port", path = "/v1/networks/{network}/ports", params(("network" = String, Path)),
    request_body = PortAdd,
    responses((status = 201, body = PortInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn add(
    change: Change,
    request: std::result::Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<PortInfo>)> {
    let request: PortAdd = body::json(request)?;
    let info = run(async move {
        let operation = change.begin().await?;
        change.manager.add_port(&operation, &change.name, request).await
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
pub(super) async fn show(object: Object) -> Result<Json<PortInfo>> {
    Ok(Json(object.manager.port(&object.name)?))
}

/// Changes a port's profile, also while frames flow; its state stays.
#[utoipa::path(
    patch, operation_id = "set_port", path = "/v1/ports/{port}", params(("port" = String, Path)),
    request_body = PortSet,
    responses((status = 200, body = PortInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn set(
    change: Change,
    request: std::result::Result<Bytes, BytesRejection>,
) -> Result<Json<PortInfo>> {
    let wanted: PortSet = body::json(request)?;
    let info = run(async move {
        let operation = change.begin().await?;
        change.manager.set_port(&operation, &change.name, wanted).await
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
pub(super) async fn delete(change: Change) -> Result<StatusCode> {
    run(async move {
        let operation = change.begin().await?;
        change.manager.delete_port(&operation, &change.name).await
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
pub(super) async fn stats(object: Object) -> Result<Json<PortStats>> {
    Ok(Json(object.manager.stats(&object.name)?))
}

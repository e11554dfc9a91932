//! `/v1/networks/{network}/fdb`.

use api::{FdbAdd, FdbEntry, FdbRemove, FdbRemoved, Problem};
use axum::Json;
use axum::body::Bytes;
use axum::extract::Query;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::StatusCode;

use super::object::{Change, Object};
use super::problem::Result;
use super::{body, run};

/// The forwarding database; empty when the network is inactive.
#[utoipa::path(
    get, operation_id = "show_fdb", path = "/v1/networks/{network}/fdb", params(("network" = String, Path)),
    responses((status = 200, body = Vec<FdbEntry>), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn show(object: Object) -> Result<Json<Vec<FdbEntry>>> {
    Ok(Json(object.manager.fdb(&object.name)?))
}

/// Adds a static entry, in place of one that was there. It goes with its port and when the network is stopped.
#[utoipa::path(
    post, operation_id = "add_fdb_entry", path = "/v1/networks/{network}/fdb", params(("network" = String, Path)),
    request_body = FdbAdd,
    responses((status = 201, body = FdbEntry), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn add(
    change: Change,
    request: std::result::Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<FdbEntry>)> {
    let request: FdbAdd = body::json(request)?;
    let entry = run(async move {
        let operation = change.begin().await?;
        change.manager.add_fdb(&operation, &change.name, request).await
    })
    .await?;
    Ok((StatusCode::CREATED, Json(entry)))
}

/// Removes the entries of an address, static or learned; without an address, all that were learned.
#[utoipa::path(
    delete, operation_id = "remove_fdb_entries", path = "/v1/networks/{network}/fdb",
    params(("network" = String, Path), FdbRemove),
    responses((status = 200, body = FdbRemoved), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn remove(
    change: Change,
    query: std::result::Result<Query<FdbRemove>, QueryRejection>,
) -> Result<Json<FdbRemoved>> {
    let Query(which) = query?;
    let removed = run(async move {
        let operation = change.begin().await?;
        change.manager.remove_fdb(&operation, &change.name, which).await
    })
    .await?;
    Ok(Json(removed))
}

//! `/v1/instance` and `/v1/workers`.

use api::{InstanceInfo, WorkerInfo};
use axum::Json;
use axum::extract::State;

use super::Context;

/// What this daemon is.
#[utoipa::path(
    get, operation_id = "show_instance", path = "/v1/instance",
    responses((status = 200, body = InstanceInfo))
)]
pub(super) async fn show(State(context): State<Context>) -> Json<InstanceInfo> {
    Json(context.manager.instance())
}

/// The threads that move frames, with the queues that each serves and what they cost it.
#[utoipa::path(
    get, operation_id = "list_workers", path = "/v1/workers",
    responses((status = 200, body = Vec<WorkerInfo>))
)]
pub(super) async fn workers(State(context): State<Context>) -> Json<Vec<WorkerInfo>> {
    Json(context.manager.workers())
}

//! `/v1/instance`.

use api::InstanceInfo;
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

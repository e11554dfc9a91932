//! `/v1/networks`.

use api::{Autostart, Lease, NetworkInfo, NetworkStats, Problem};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;

use super::object::{Change, Object};
use super::problem::Result;
use super::revision::Expected;
use super::{Context, body, run};

type QueryResult<T> = std::result::Result<Query<T>, QueryRejection>;

/// A definition's text, with its own limit in place of the router's.
pub(super) struct Xml(std::result::Result<Bytes, BytesRejection>);

impl FromRequest<Context> for Xml {
    type Rejection = std::convert::Infallible;

    async fn from_request(
        mut request: Request,
        context: &Context,
    ) -> std::result::Result<Self, Self::Rejection> {
        DefaultBodyLimit::max(body::XML_LIMIT).apply(&mut request);
        Ok(Self(Bytes::from_request(request, context).await))
    }
}

/// All networks, by name.
#[utoipa::path(get, operation_id = "list_networks", path = "/v1/networks", responses((status = 200, body = Vec<NetworkInfo>)))]
pub(super) async fn list(State(context): State<Context>) -> Json<Vec<NetworkInfo>> {
    Json(context.manager.networks())
}

#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DefineQuery {
    /// Start the network and keep no definition.
    #[serde(default)]
    transient: bool,
}

/// Defines a network from libvirt's XML, or creates a transient one.
///
/// Defining a network again changes its definition; an active one goes on with what it was
/// started with.
#[utoipa::path(
    post, operation_id = "define_network", path = "/v1/networks", params(DefineQuery),
    request_body(content = String, content_type = "application/xml"),
    responses((status = 201, body = NetworkInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn define(
    State(context): State<Context>,
    query: QueryResult<DefineQuery>,
    expected: Expected,
    Xml(text): Xml,
) -> Result<(StatusCode, Json<NetworkInfo>)> {
    let Query(DefineQuery { transient }) = query?;
    let expected = expected.revision()?;
    let text = body::xml(text)?;
    let manager = context.manager;
    let info = run(async move {
        let operation = manager.begin(expected).await?;
        if transient {
            manager.create(&operation, text).await
        } else {
            manager.define(&operation, text).await
        }
    })
    .await?;
    Ok((StatusCode::CREATED, Json(info)))
}

/// One network, by name or UUID.
#[utoipa::path(
    get, operation_id = "show_network", path = "/v1/networks/{network}", params(("network" = String, Path)),
    responses((status = 200, body = NetworkInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn show(object: Object) -> Result<Json<NetworkInfo>> {
    Ok(Json(object.manager.network(&object.name)?))
}

/// Removes the definition; an active network becomes transient, an inactive one ceases to exist,
/// with its ports.
#[utoipa::path(
    delete, operation_id = "undefine_network", path = "/v1/networks/{network}", params(("network" = String, Path)),
    responses((status = 204), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn undefine(change: Change) -> Result<StatusCode> {
    run(async move {
        let operation = change.begin().await?;
        change.manager.undefine(&operation, &change.name).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct XmlQuery {
    /// The definition of the next start, not the one in force.
    #[serde(default)]
    inactive: bool,
}

/// The definition in libvirt's canonical form.
#[utoipa::path(
    get, operation_id = "dump_network_xml", path = "/v1/networks/{network}/xml", params(("network" = String, Path), XmlQuery),
    responses((status = 200, body = String, content_type = "application/xml"),
        (status = "4XX", body = Problem, content_type = "application/problem+json"))
)]
pub(super) async fn xml(object: Object, query: QueryResult<XmlQuery>) -> Result<impl IntoResponse> {
    let Query(query) = query?;
    let text = object.manager.xml(&object.name, query.inactive)?;
    Ok(([(header::CONTENT_TYPE, "application/xml")], text))
}

/// Starts a network: all of it, or, when a step fails, nothing.
#[utoipa::path(
    post, operation_id = "start_network", path = "/v1/networks/{network}/start", params(("network" = String, Path)),
    responses((status = 200, body = NetworkInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn start(change: Change) -> Result<Json<NetworkInfo>> {
    let info = run(async move {
        let operation = change.begin().await?;
        change.manager.start(&operation, &change.name).await
    })
    .await?;
    Ok(Json(info))
}

/// Stops a network and removes everything that it made; its ports go down. A transient network
/// ceases to exist.
#[utoipa::path(
    post, operation_id = "destroy_network", path = "/v1/networks/{network}/destroy", params(("network" = String, Path)),
    responses((status = 204), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn destroy(change: Change) -> Result<StatusCode> {
    run(async move {
        let operation = change.begin().await?;
        change.manager.destroy(&operation, &change.name).await
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether the network starts with the host.
#[utoipa::path(
    put, operation_id = "set_network_autostart", path = "/v1/networks/{network}/autostart", params(("network" = String, Path)),
    request_body = Autostart,
    responses((status = 200, body = NetworkInfo), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn autostart(
    change: Change,
    request: std::result::Result<Bytes, BytesRejection>,
) -> Result<Json<NetworkInfo>> {
    let Autostart { autostart } = body::json(request)?;
    let info = run(async move {
        let operation = change.begin().await?;
        change.manager.set_autostart(&operation, &change.name, autostart).await
    })
    .await?;
    Ok(Json(info))
}

/// Current DHCP leases; none when the network is inactive.
#[utoipa::path(
    get, operation_id = "list_leases", path = "/v1/networks/{network}/leases", params(("network" = String, Path)),
    responses((status = 200, body = Vec<Lease>), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn leases(object: Object) -> Result<Json<Vec<Lease>>> {
    Ok(Json(object.manager.leases(&object.name)?))
}

/// What DHCP and DNS have seen, done and dropped; nothing when the network is inactive.
#[utoipa::path(
    get, operation_id = "show_network_stats", path = "/v1/networks/{network}/stats", params(("network" = String, Path)),
    responses((status = 200, body = NetworkStats), (status = "4XX", body = Problem,
        content_type = "application/problem+json"))
)]
pub(super) async fn stats(object: Object) -> Result<Json<NetworkStats>> {
    Ok(Json(object.manager.network_stats(&object.name)?))
}

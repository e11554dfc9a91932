//! `/v1/events`: server-sent events, one JSON [`api::Event`] each, with its number as the id.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use serde::Deserialize;

use super::Context;
use super::problem::Result;

#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Number of the last event seen: what came after it is sent first. Without it, only what is
    /// to come.
    since: Option<u64>,
}

/// What happens, as it happens. What was not kept for a reader shows as a `gap`.
#[utoipa::path(
    get, operation_id = "stream_events", path = "/v1/events", params(EventsQuery),
    responses((status = 200, body = api::Event, content_type = "text/event-stream"))
)]
pub(super) async fn stream(
    State(context): State<Context>,
    query: std::result::Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = std::result::Result<Event, Infallible>>>> {
    let Query(query) = query?;
    // A browser's EventSource says it this way when it comes back.
    let again = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let subscription = context.manager.events().subscribe(query.since.or(again));
    let events = stream::unfold((subscription, context.stop), |(mut subscription, stop)| async {
        let event = tokio::select! {
            event = subscription.next() => event?,
            () = stop.cancelled() => return None,
        };
        let id = event.seq.to_string();
        let event = match Event::default().id(id).json_data(&*event) {
            Ok(event) => event,
            Err(error) => Event::default().comment(error.to_string()),
        };
        Some((Ok(event), (subscription, stop)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

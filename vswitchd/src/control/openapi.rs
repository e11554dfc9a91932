//! `/v1/openapi.json`: the API's own description, from the handlers and types themselves.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;

use super::{events, fdb, instance, networks, ports};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "netloom",
        description = "Virtual networks for KVM guests: the control API of vswitchd, on the Unix \
                       socket /run/netloom/api.sock. Errors are problem details (RFC 9457); every \
                       answer carries the revision of the state as its ETag, and every change \
                       takes it back as If-Match."
    ),
    paths(
        instance::show,
        instance::workers,
        networks::list,
        networks::define,
        networks::show,
        networks::undefine,
        networks::xml,
        networks::start,
        networks::destroy,
        networks::autostart,
        networks::leases,
        networks::stats,
        fdb::show,
        fdb::add,
        fdb::remove,
        ports::list,
        ports::list_of,
        ports::add,
        ports::show,
        ports::set,
        ports::delete,
        ports::stats,
        events::stream
    )
)]
struct Document;

static TEXT: LazyLock<Result<String, serde_json::Error>> =
    LazyLock::new(|| Document::openapi().to_json());

pub(super) async fn document() -> impl IntoResponse {
    let text = TEXT.as_ref().map_or("{}", String::as_str);
    ([(header::CONTENT_TYPE, "application/json")], text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_describes_every_type_that_the_paths_name() {
        let text = TEXT.as_ref().expect("serializes");
        let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let schemas = value["components"]["schemas"].as_object().expect("schemas");
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().expect("a name");
            assert!(schemas.contains_key(name), "{name} is not described");
        }
        let mut ids: Vec<_> = text
            .split("\"operationId\":\"")
            .skip(1)
            .map(|part| part.split('"').next().expect("an id"))
            .collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), all), (23, 23), "every operation has a name of its own");
        assert!(schemas.contains_key("PortKind") && schemas.contains_key("Problem"));
        assert!(value["paths"]["/v1/networks/{network}/ports"]["post"].is_object());
    }
}

//! Bodies: XML definitions and JSON requests, bounded.

use api::{Code, Problem};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde::de::DeserializeOwned;

use super::problem::{Failure, Result, unread};

/// Largest JSON request.
pub(super) const JSON_LIMIT: usize = 64 << 10;
/// Largest definition.
pub(super) const XML_LIMIT: usize = netdef::MAX_DOCUMENT;

type Body = std::result::Result<Bytes, BytesRejection>;

pub(super) fn xml(body: Body) -> Result<Bytes> {
    body.map_err(|rejection| unread(Code::XmlError, XML_LIMIT, &rejection))
}

/// # Errors
/// What is wrong with it, with line and column.
pub(super) fn json<T: DeserializeOwned>(body: Body) -> Result<T> {
    let bytes = body.map_err(|rejection| unread(Code::InvalidArgument, JSON_LIMIT, &rejection))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let position = |value: usize| u32::try_from(value).ok().filter(|&value| value != 0);
        Failure(Problem {
            line: position(error.line()),
            column: position(error.column()),
            ..Problem::new(Code::InvalidArgument, format!("bad request: {error}"))
        })
    })
}

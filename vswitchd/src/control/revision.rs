//! `If-Match`: a change that is meant for one state only.

use std::convert::Infallible;

use api::{Code, Problem};
use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;

use super::problem::Failure;

/// The revision that the client expects, if it expects one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected(Option<Result<u64, ()>>);

impl Expected {
    /// # Errors
    /// When the header was there and is no revision of ours.
    pub(super) fn revision(self) -> Result<Option<u64>, Failure> {
        self.0.transpose().map_err(|()| {
            Failure(Problem {
                remedy: Some("send the ETag of an earlier answer, or *".to_owned()),
                ..Problem::new(Code::InvalidArgument, "If-Match is not a revision")
            })
        })
    }
}

impl<S: Sync> FromRequestParts<S> for Expected {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        Ok(Self(Some(bare.unwrap_or(text).parse().map_err(|_| ()))))
    }
}

//! Errors as problem documents (RFC 9457).

use api::{Code, Problem};
use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct Failure(pub(super) Problem);

pub(super) type Result<T> = std::result::Result<T, Failure>;

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self(Problem::new(Code::InvalidArgument, rejection.body_text()))
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self(Problem::new(Code::InvalidArgument, rejection.body_text()))
    }
}

/// A body that could not be read: too large, or cut short.
pub(super) fn unread(code: Code, limit: usize, rejection: &BytesRejection) -> Failure {
    let status = rejection.status();
    if status != StatusCode::PAYLOAD_TOO_LARGE {
        let problem = Problem::new(code, rejection.body_text());
        return Failure(problem.with_remedy("send the whole body, at once"));
    }
    let mut problem = Problem::new(code, format!("the document is larger than {limit} bytes"));
    problem.status = status.as_u16();
    problem.remedy = Some(format!("send at most {limit} bytes"));
    Failure(problem)
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::error!(causes = ?self.0.causes, "{}", self.0.title);
        }
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(self.0)).into_response()
    }
}

//! Requests about one object, which the path names.

use std::convert::Infallible;
use std::sync::Arc;

use api::Problem;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::Context;
use super::problem::Failure;
use super::revision::Expected;
use crate::network::{Manager, Operation};

/// What is asked of it.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) manager: Arc<Manager>,
    /// Name or UUID.
    pub(super) name: String,
}

impl FromRequestParts<Context> for Object {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Failure> {
        let Path(name) = Path::from_request_parts(parts, context).await?;
        Ok(Self { manager: Arc::clone(&context.manager), name })
    }
}

/// How it is to be changed.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) manager: Arc<Manager>,
    /// Name or UUID.
    pub(super) name: String,
    expected: Option<u64>,
}

impl Change {
    /// # Errors
    /// When the state is not what the client expects, or changes have ended.
    pub(super) async fn begin(&self) -> Result<Operation<'_>, Problem> {
        self.manager.begin(self.expected).await
    }
}

impl FromRequestParts<Context> for Change {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Failure> {
        let Object { manager, name } = Object::from_request_parts(parts, context).await?;
        let expected = Expected::from_request_parts(parts, context).await;
        let expected = expected.unwrap_or_else(|never: Infallible| match never {}).revision()?;
        Ok(Self { manager, name, expected })
    }
}

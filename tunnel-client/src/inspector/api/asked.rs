//! What a request asks for, read strictly: a mistyped name is refused, not passed over.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Refused;
use crate::filter::Filter;
use crate::mask::Secrets;

/// A query, with the names that its operation knows and no other.
pub(super) struct Params<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let read = Query::<T>::try_from_uri(&parts.uri);
        read.map(|query| Self(query.0)).map_err(|error| Refused::wrong(error.body_text()))
    }
}

/// The parts of a path.
pub(super) struct At<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        read.map(|Path(parts)| Self(parts)).map_err(|error| Refused::new(error.status(), error.body_text()))
    }
}

/// A body, whole.
pub(super) struct Payload(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self).map_err(|error| Refused::new(error.status(), error.body_text()))
    }
}

pub(super) fn filter(text: &str) -> Result<Filter, Refused> {
    text.parse::<Filter>().map_err(|error| Refused {
        status: StatusCode::BAD_REQUEST,
        error: json!({"message": error.message, "at": error.at, "length": error.length}),
    })
}

/// Shown for `true` or `1`.
pub(super) fn secrets<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Secrets, D::Error> {
    match String::deserialize(value)?.as_str() {
        "true" | "1" => Ok(Secrets::Shown),
        "false" | "0" => Ok(Secrets::Masked),
        other => Err(serde::de::Error::custom(format!("`{other}` is neither true nor false"))),
    }
}

/// An object in JSON; nothing for no body.
pub(super) fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    let value = if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice::<Value>(body) };
    let value = value.map_err(|error| Refused::wrong(format!("the body is no JSON: {error}")))?;
    if !value.is_object() {
        return Err(Refused::wrong("the body is a JSON object"));
    }
    serde_json::from_value(value).map_err(|error| Refused::wrong(error.to_string()))
}

//! Replays, as they were or edited.

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hookway_protocol::headers::Headers;
use serde::Deserialize;

use super::asked::{At, Payload, object};
use super::{Answer, Refused, Shared, detail};
use crate::mask::Secrets;
use crate::replay::{Edits, ReplayError};

/// What is different from the original; see [`Edits`].
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Edited {
    method: Option<String>,
    path: Option<String>,
    headers: Option<Vec<Field>>,
    body: Option<EditedBody>,
    target: Option<String>,
    /// Whether it is signed afresh where that can be; yes unless it says no.
    resign: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Field {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EditedBody {
    Text(String),
    Base64(String),
}

impl Edited {
    fn parse(self) -> Result<Edits, Refused> {
        let method = |text: String| {
            Method::from_bytes(text.as_bytes()).map_err(|_| Refused::wrong(format!("`{text}` is no method")))
        };
        let target = |text: String| match text.starts_with('/') || text == "*" {
            true => text.parse().map_err(|_| Refused::wrong(format!("`{text}` is no path"))),
            false => Err(Refused::wrong(format!("`{text}` is no path: it begins with /"))),
        };
        let field = |field: Field| {
            let name = HeaderName::try_from(field.name.trim())
                .map_err(|_| Refused::wrong(format!("`{}` is no header name", field.name)))?;
            let value = HeaderValue::try_from(&field.value)
                .map_err(|_| Refused::wrong(format!("the value of {name} has a character that no header has")))?;
            Ok((name, value))
        };
        let headers = |fields: Vec<Field>| fields.into_iter().map(field).collect::<Result<Headers, Refused>>();
        let body = |body| match body {
            EditedBody::Text(text) => Ok(text.into()),
            EditedBody::Base64(text) => {
                BASE64_STANDARD.decode(text).map(Into::into).map_err(|_| Refused::wrong("the body is not in base64"))
            }
        };
        Ok(Edits {
            method: self.method.map(method).transpose()?,
            target: self.path.map(target).transpose()?,
            headers: self.headers.map(headers).transpose()?,
            more_headers: vec![],
            body: self.body.map(body).transpose()?,
            to: self
                .target
                .map(|text| text.parse().map_err(|error| Refused::wrong(format!("`{text}`: {error}"))))
                .transpose()?,
            no_resign: self.resign == Some(false),
            as_sent: false,
        })
    }
}

pub(super) async fn replay(State(context): Shared, At(id): At<String>, Payload(body): Payload) -> Answer {
    let edits = object::<Edited>(&body)?.parse()?;
    let original = context.exchange(&id).await?;
    // A page that goes away does not break a replay off.
    let own = context.clone();
    #[expect(clippy::disallowed_methods, reason = "bounded by the app's time to answer")]
    let replayed = tokio::spawn(async move { own.shown.replayer.replay(&original, edits).await }).await;
    let replayed = replayed.map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let id = replayed.map_err(|error| match error {
        ReplayError::History(error) => error.into(),
        error => Refused::new(StatusCode::CONFLICT, error.to_string()),
    })?;
    detail(context.exchange(&id.to_string()).await?, Secrets::Masked).await
}

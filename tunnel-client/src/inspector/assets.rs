//! The page's files: as they are in the source folder; a debug build reads them from there each time.

use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use rust_embed::Embed;

use super::api::Refused;

#[derive(Embed)]
#[folder = "src/inspector/ui/"]
struct Files;

/// A file, or the page for `/`.
pub(super) async fn serve(method: Method, uri: Uri) -> Response {
    if !matches!(method, Method::GET | Method::HEAD) {
        return super::api::no_method().await.into_response();
    }
    let name = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    match Files::get(name) {
        Some(file) => {
            let kind = match file.metadata.mimetype() {
                text if text.starts_with("text/") => format!("{text}; charset=utf-8"),
                other => other.to_owned(),
            };
            ([(header::CONTENT_TYPE, kind)], file.data).into_response()
        }
        None => Refused::new(StatusCode::NOT_FOUND, "there is no such page").into_response(),
    }
}

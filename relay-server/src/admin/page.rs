//! The status page: what the API says, for people. It changes nothing, and knows no more than the token it is given.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Admin;

/// The page runs its own scripts and asks its own relay, and nobody shows it inside another.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// Where each file is, its type and its text.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("ui/index.html")),
    ("/status.js", "text/javascript; charset=utf-8", include_str!("ui/status.js")),
    ("/status.css", "text/css; charset=utf-8", include_str!("ui/status.css")),
    ("/favicon.svg", "image/svg+xml", include_str!("ui/favicon.svg")),
    ("/api/openapi.json", "application/json", include_str!("openapi.json")),
];

pub(super) fn routes() -> Router<Arc<Admin>> {
    FILES
        .iter()
        .fold(Router::new(), |router, (path, kind, text)| router.route(path, get(move || async { file(kind, text) })))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

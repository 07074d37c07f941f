//! How things are: the tunnel, the apps, the history.

use std::time::Duration;

use serde_json::{Value, json};

use super::Context;
use crate::view::millis;

/// All of it.
pub(super) fn status(context: &Context) -> Value {
    let tunnel = context.shown.tunnel.as_ref();
    let link = context.recorder().events().link();
    let urls = link.urls().into_iter().map(|(name, mut urls)| {
        if tunnel.is_some_and(|tunnel| tunnel.plain_first) {
            urls.reverse();
        }
        let dead_letters = link.dead_letters.get(&name).copied().unwrap_or(0);
        json!({"endpoint": name, "url": urls.first(), "more": urls.get(1..), "dead_letters": dead_letters})
    });
    let first = link.welcomed.as_ref().and_then(|welcomed| welcomed.first.clone());
    let mut urls: Vec<_> = urls.collect();
    urls.sort_by_key(|url| url["endpoint"].as_str() != first.as_deref());
    let session = tunnel.map(|tunnel| {
        json!({
            "state": match (&link.welcomed, &link.down) {
                (None, _) => "connecting",
                (Some(_), None) => "up",
                (Some(_), Some(_)) => "down",
            },
            "relay": tunnel.relay,
            "transport": link.welcomed.as_ref().filter(|_| link.down.is_none()).map(|welcomed| welcomed.transport.name()),
            "reason": link.down,
            // Coarse, or each measurement would be news.
            "rtt_ms": link.rtt.filter(|_| link.down.is_none()).map(coarse),
        })
    });
    let targets = tunnel.iter().flat_map(|tunnel| tunnel.forwarder.routes()).map(|(route, up)| {
        let state = up.map_or("unknown", |up| if up { "up" } else { "down" });
        json!({"endpoint": route.endpoint, "prefix": route.prefix, "target": route.target.to_string(), "state": state})
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "token": context.token,
        "mode": if tunnel.is_some() { "live" } else { "stored" },
        "session": session,
        "urls": urls,
        "targets": targets.collect::<Vec<_>>(),
        "history": history(context),
    })
}

fn history(context: &Context) -> Value {
    let Some(history) = context.history() else {
        return json!({
            "count": 0, "bytes": 0, "max_count": 0, "max_age_s": 0, "max_bytes": 0, "path": null,
            "problem": null, "recording": false, "generation": 0,
        });
    };
    let (state, limits) = (history.state(), history.limits());
    let state = state.borrow();
    json!({
        "count": state.total.count,
        "bytes": state.total.bytes,
        "max_count": limits.max_count,
        "max_age_s": limits.max_age.as_secs(),
        "max_bytes": limits.max_bytes,
        "path": history.path().display().to_string(),
        "problem": state.problem,
        "recording": true,
        "generation": state.total.generation,
    })
}

fn coarse(duration: Duration) -> f64 {
    let ms = millis(duration);
    let step = if ms < 1.0 { 0.1 } else { 10f64.powf(ms.log10().floor()) / 2.0 };
    ((ms / step).round() * step * 10.0).round() / 10.0
}

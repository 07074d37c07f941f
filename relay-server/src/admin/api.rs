//! The admin API: what an operator sees and changes. `openapi.json` describes it; a test holds the two together.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use hookway_protocol::host::Host;
use hookway_protocol::id::DeliveryId;
use hookway_protocol::settings;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Admin;
use super::access::{self, Json, Operator, Path, Query, Refused};
use crate::auth::{Scope, TokenName, TokenPattern};
use crate::certs;
use crate::limits::Rate;
use crate::protection::{PRESETS, PathPrefix, Protection, Shown, Source, User};
use crate::queue::Depth;
use crate::store::{Dead, EndpointRow, HELD_FOR, Listing, QueuedRow};
use crate::tunnel::Endpoint;

/// The answer to a question.
type Answer = Result<axum::Json<Value>, Refused>;

/// Items of a list at most, and when nobody says how many.
const MOST: usize = 500;
const USUAL: usize = 100;

/// All of it, below `/api`.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/status", get(status))
        .route("/endpoints", get(endpoints))
        .route("/endpoints/{name}", get(endpoint).delete(release))
        .route("/endpoints/{name}/protection", get(protection).put(protect).delete(unprotect))
        .route("/domains/{host}", delete(release_domain))
        .route("/presets", get(presets))
        .route("/sessions", get(sessions))
        .route("/sessions/{id}", delete(end_session))
        .route("/queue", get(queue))
        .route("/deliveries", get(deliveries))
        .route("/deliveries/retry", post(retry))
        .route("/deliveries/discard", post(discard))
        .route("/tokens", get(tokens).post(create_token))
        .route("/tokens/{id}", delete(revoke))
        .route("/certificates", get(certificates))
        .route("/certificates/renew", post(renew))
        .route("/drain", get(draining).put(drain).delete(undrain))
        .route("/audit", get(audit))
        .method_not_allowed_fallback(access::no_method)
        .fallback(access::nothing)
}

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    /// What comes after that.
    after: Option<String>,
    /// So many.
    limit: Option<usize>,
}

impl Part {
    fn limit(limit: Option<usize>) -> Result<usize, Refused> {
        let limit = limit.unwrap_or(USUAL);
        let fits = (1..=MOST).contains(&limit);
        fits.then_some(limit).ok_or_else(|| Refused::wrong(format!("limit is 1 to {MOST}")))
    }

    /// So many of all that come after, by their keys, and where the rest begins.
    fn of<T>(&self, mut all: Vec<(String, T)>, shown: impl Fn(T) -> Value) -> Answer {
        let limit = Self::limit(self.limit)?;
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.retain(|(key, _)| self.after.as_ref().is_none_or(|after| key > after));
        all.truncate(limit + 1);
        let mut keys: Vec<String> = all.iter().map(|(key, _)| key.clone()).collect();
        page(all.into_iter().map(|(_, item)| shown(item)).collect(), limit, |_| keys.swap_remove(limit - 1))
    }
}

/// A part of a list, of which one more was asked for than it may have, and where the rest begins.
fn page<T: Serialize, K: Serialize>(mut items: Vec<T>, most: usize, key: impl FnOnce(&T) -> K) -> Answer {
    let more = items.len() > most;
    items.truncate(most);
    let next = items.last().filter(|_| more).map(key);
    Ok(axum::Json(json!({"items": items, "next": next})))
}

async fn status(State(admin): State<Arc<Admin>>, Operator(store): Operator) -> Answer {
    let problems = admin.problems().await;
    let queue = admin.registry.all().iter().fold(Depth::default(), |mut sum, endpoint| {
        sum.add(&admin.queue.depth_of(&endpoint.waiting));
        sum
    });
    let (endpoints, tokens) = (store.endpoints().await?.len(), store.tokens().await?);
    let valid = tokens.iter().filter(|token| token.is_valid()).count();
    let certificate = admin.certificate();
    Ok(axum::Json(json!({
        "version": env!("CARGO_PKG_VERSION"), "domain": admin.urls.domain, "started_at": admin.started_at,
        "now": Timestamp::now(), "well": problems.is_empty(), "problems": problems, "draining": admin.shutdown.is_draining(),
        "sessions": admin.tunnel.sessions_now().len(), "endpoints": endpoints, "tokens": valid,
        "queue": {
            "waiting": queue.count, "bytes": queue.bytes, "oldest_s": queue.oldest.as_secs(), "dead_letters": queue.dead,
        },
        "certificate": certificate,
    })))
}

async fn endpoints(State(admin): State<Arc<Admin>>, Operator(store): Operator, Query(part): Query<Part>) -> Answer {
    let rows = store.endpoints().await?.into_iter().map(|row| (row.name.clone(), row));
    part.of(rows.collect(), |row| admin.shown(&row))
}

async fn endpoint(State(admin): State<Arc<Admin>>, Operator(store): Operator, Path(name): Path) -> Answer {
    let row = find(&*store, &name).await?;
    let mut shown = admin.shown(&row);
    let mut listeners = store.listeners().await?;
    listeners.retain(|listener| listener.endpoint == row.id && !listener.name.is_empty());
    shown["listeners"] = json!(listeners);
    Ok(axum::Json(shown))
}

async fn find(store: &dyn crate::store::Store, name: &str) -> Result<EndpointRow, Refused> {
    let row = store.endpoints().await?.into_iter().find(|row| row.name == name);
    row.ok_or_else(|| Refused::unknown("endpoint", name))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hold {
    hold: Option<String>,
}

async fn release(
    State(admin): State<Arc<Admin>>,
    Operator(store): Operator,
    Path(name): Path,
    Query(Hold { hold }): Query<Hold>,
) -> Answer {
    let hold = hold.as_deref().map_or(Ok(HELD_FOR), settings::duration);
    let hold = hold.map_err(|why| Refused::wrong(format!("hold: {why}")))?;
    let now = Timestamp::now();
    let until = now.checked_add(hold).map_err(|_| Refused::wrong("hold: it is too long"))?;
    let parsed = name.parse().map_err(|_| Refused::unknown("endpoint", &name))?;
    if !store.release_endpoint(&parsed, None, now, until).await? {
        return Err(Refused::unknown("endpoint", &name));
    }
    admin.changed().await?;
    Ok(axum::Json(json!({"released": name, "held_until": until})))
}

async fn release_domain(State(admin): State<Arc<Admin>>, Operator(store): Operator, Path(host): Path) -> Answer {
    let parsed = Host::parse(&host).map_err(|_| Refused::unknown("host name", &host))?;
    if !store.remove_domain(parsed.as_str(), None).await? {
        return Err(Refused::unknown("host name", &host));
    }
    admin.changed().await?;
    Ok(axum::Json(json!({"released": parsed.as_str()})))
}

/// What an endpoint is to be protected with. Passwords come in plain text, and are kept as hashes.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    allow: Vec<Source>,
    deny: Vec<Source>,
    /// `NAME:PASSWORD`; a name alone keeps the password that he has.
    users: Vec<String>,
    paths: Vec<PathPrefix>,
    rate: Option<Rate>,
    max_body: Option<u64>,
}

async fn protection(Operator(store): Operator, Path(name): Path) -> Answer {
    Ok(axum::Json(json!(Shown(&find(&*store, &name).await?.protection))))
}

async fn protect(
    State(admin): State<Arc<Admin>>,
    Operator(store): Operator,
    Path(name): Path,
    Json(wanted): Json<Wanted>,
) -> Answer {
    let before = find(&*store, &name).await?.protection;
    let Wanted { allow, deny, users, paths, rate, max_body } = wanted;
    if users.len() > crate::protection::MAX_USERS {
        return Err(Refused::wrong(format!("users has more than {} entries", crate::protection::MAX_USERS)));
    }
    // Each password takes a core for a while.
    let hashed = tokio::task::spawn_blocking(move || {
        let user = |text: String| match before.users.iter().find(|user| user.name() == text) {
            Some(known) => Ok(known.clone()),
            None => User::new(&text),
        };
        users.into_iter().map(user).collect::<Result<Vec<_>, _>>()
    });
    let users = hashed.await.map_err(|_| Refused::wrong("users cannot be used"))?;
    let users = users.map_err(|error| Refused::wrong(format!("users: {error}")))?;
    let protection = Protection { allow, deny, users, paths, rate, max_body };
    protection.check().map_err(|error| Refused::wrong(error.to_string()))?;
    admin.protect(&*store, &name, protection).await
}

async fn unprotect(State(admin): State<Arc<Admin>>, Operator(store): Operator, Path(name): Path) -> Answer {
    admin.protect(&*store, &name, Protection::default()).await
}

async fn presets(Operator(_): Operator) -> Answer {
    Ok(axum::Json(json!(*PRESETS)))
}

async fn sessions(State(admin): State<Arc<Admin>>, Operator(_): Operator, Query(part): Query<Part>) -> Answer {
    let mut served: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for endpoint in admin.registry.all() {
        for session in endpoint.served_by() {
            served.entry(session).or_default().insert(endpoint.name.to_string());
        }
    }
    let all = admin.tunnel.sessions_now().into_iter().map(|session| (session.id.clone(), session));
    part.of(all.collect(), |session| {
        let mut shown = session.shown();
        shown["endpoints"] = json!(served.get(&session.id).cloned().unwrap_or_default());
        shown
    })
}

async fn end_session(State(admin): State<Arc<Admin>>, Operator(store): Operator, Path(id): Path) -> Answer {
    let session = admin.tunnel.sessions_now().into_iter().find(|session| session.id == id);
    let session = session.ok_or_else(|| Refused::unknown("session", &id))?;
    store.note(crate::store::Note::done("session.end", &id, format!("of {}", session.owner()))).await?;
    session.end("the relay's operator has ended the session");
    Ok(axum::Json(json!({"ended": id})))
}

/// What waits, endpoint by endpoint.
async fn queue(State(admin): State<Arc<Admin>>, Operator(_): Operator, Query(part): Query<Part>) -> Answer {
    let all = admin.registry.all().into_iter().map(|endpoint| (endpoint.name.to_string(), endpoint));
    part.of(all.collect(), |endpoint| {
        let depth = admin.queue.depth_of(&endpoint.waiting);
        json!({
            "endpoint": endpoint.name.as_str(), "depth": depth.count, "bytes": depth.bytes,
            "oldest_s": (depth.oldest.as_secs_f64() * 10.0).round() / 10.0, "dead": depth.dead,
        })
    })
}

/// Which of those that are kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Kept {
    endpoint: Option<String>,
    state: Option<State_>,
    id: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State_ {
    Waiting,
    Dead,
}

async fn deliveries(Operator(store): Operator, Query(kept): Query<Kept>) -> Answer {
    let id = kept.id.map(|id| id.parse::<DeliveryId>().map_err(|_| Refused::wrong("id is none of a delivery")));
    let most = Part::limit(kept.limit)?;
    let listing = Listing {
        endpoint: kept.endpoint,
        dead: kept.state.map(|state| state == State_::Dead),
        id: id.transpose()?,
        after: kept.after.unwrap_or(0),
        most: most + 1,
    };
    page(store.list(listing).await?, most, |row| row.seq)
}

/// Which dead letters: one of the three.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    ids: Option<Vec<String>>,
    endpoint: Option<String>,
    all: Option<bool>,
}

impl Which {
    /// Those that are there, of endpoints for which `wanted` holds: a row says whose it was when its endpoint is gone.
    async fn dead(self, store: &dyn crate::store::Store, wanted: impl Fn(&QueuedRow) -> bool) -> Result<Dead, Refused> {
        let (endpoint, ids) = match (self.ids, self.endpoint, self.all) {
            (None, Some(name), None) => (Some(name), None),
            (Some(ids), None, None) if (1..=MOST).contains(&ids.len()) => {
                let wrong = |_| Refused::wrong("ids are whole ids of deliveries, such as req_01…");
                let ids = ids.iter().map(|id| id.parse::<DeliveryId>().map_err(wrong)).collect::<Result<_, _>>()?;
                (None, Some(ids))
            }
            (None, None, Some(true)) => (None, None),
            _ => return Err(Refused::wrong(format!("give one of: ids (1 to {MOST}), endpoint, or all: true"))),
        };
        let listing = Listing { endpoint: endpoint.clone(), dead: Some(true), most: usize::MAX, ..Listing::default() };
        let mut rows = store.list(listing).await?;
        rows.retain(wanted);
        if let Some(name) = endpoint.filter(|_| rows.is_empty()) {
            find(store, &name).await?;
        }
        let is_one = |row: &&QueuedRow| ids.as_ref().is_none_or(|ids: &HashSet<_>| ids.contains(&row.delivery.id));
        Ok(Dead::These(rows.iter().filter(is_one).map(|row| row.seq).collect()))
    }
}

async fn retry(State(admin): State<Arc<Admin>>, Operator(store): Operator, Json(which): Json<Which>) -> Answer {
    // Nobody can get any more what is of an endpoint that is gone.
    let there: HashSet<_> = store.endpoints().await?.into_iter().map(|row| row.id).collect();
    let dead = which.dead(&*store, |row| there.contains(&row.delivery.endpoint)).await?;
    let revived = store.revive(dead, Timestamp::now()).await?;
    admin.changed().await?;
    Ok(axum::Json(json!({"retried": revived.len()})))
}

async fn discard(State(admin): State<Arc<Admin>>, Operator(store): Operator, Json(which): Json<Which>) -> Answer {
    let gone = store.remove(which.dead(&*store, |_| true).await?).await?;
    admin.queue.forget(&gone);
    Ok(axum::Json(json!({"discarded": gone.len()})))
}

async fn tokens(Operator(store): Operator, Query(part): Query<Part>) -> Answer {
    let rows = store.tokens().await?.into_iter().map(|row| (row.id.clone(), row));
    part.of(rows.collect(), |row| {
        let valid = row.is_valid();
        let mut shown = json!(row);
        shown["valid"] = valid.into();
        shown
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    name: TokenName,
    #[serde(default)]
    scope: Scope,
    #[serde(default)]
    endpoints: Vec<TokenPattern>,
    /// From now.
    expires: Option<String>,
}

async fn create_token(
    Operator(store): Operator,
    Json(new): Json<NewToken>,
) -> Result<(StatusCode, axum::Json<Value>), Refused> {
    const MOST_PATTERNS: usize = 100;
    let wrong = |why: String| Refused::wrong(format!("expires: {why}"));
    let expires = new.expires.as_deref().map(settings::duration).transpose().map_err(wrong)?;
    let at = |after: Duration| Timestamp::now().checked_add(after).map_err(|_| wrong("it is too long".into()));
    let expires_at = expires.map(at).transpose()?;
    if expires.is_some_and(|after| after.is_zero()) {
        return Err(wrong("it would be over at once".into()));
    }
    if new.endpoints.len() > MOST_PATTERNS {
        return Err(Refused::wrong(format!("endpoints has more than {MOST_PATTERNS} entries")));
    }
    let patterns = new.endpoints.into_iter().map(|pattern| pattern.0).collect();
    let made = store.create_scoped_token(&new.name.0, new.scope, patterns, expires_at).await?;
    let mut shown = json!(made.row);
    (shown["valid"], shown["token"]) = (true.into(), made.token.reveal().into());
    Ok((StatusCode::CREATED, axum::Json(shown)))
}

async fn revoke(State(admin): State<Arc<Admin>>, Operator(store): Operator, Path(id): Path) -> Answer {
    if id.contains("hwt_") {
        return Err(Refused::wrong("that is a token's secret; revoke it by its id, which is tok_…"));
    }
    // By its id alone: a name could be of several.
    let known = store.tokens().await?.into_iter().any(|row| row.id == id);
    let revoked = if known { store.revoke_tokens(&id, Timestamp::now()).await? } else { vec![] };
    let row = revoked.first().ok_or_else(|| Refused::unknown("valid token", &id))?;
    admin.changed().await?;
    Ok(axum::Json(json!({"revoked": row.id, "name": row.name})))
}

async fn certificates(Operator(store): Operator) -> Answer {
    let items: Vec<Value> = store.certificates().await?.iter().map(certs::shown).collect();
    Ok(axum::Json(json!({"items": items, "next": null})))
}

async fn renew(State(admin): State<Arc<Admin>>, Operator(store): Operator) -> Answer {
    let due = store.renew_certificates(Timestamp::now()).await?;
    admin.changed().await?;
    Ok(axum::Json(json!({"due": due})))
}

async fn draining(State(admin): State<Arc<Admin>>, Operator(_): Operator) -> Answer {
    let in_flight = admin.metrics.in_flight.get();
    let connections = admin.metrics.connections.get();
    let draining = admin.shutdown.is_draining();
    Ok(axum::Json(json!({"draining": draining, "in_flight": in_flight, "connections": connections})))
}

async fn drain(admin: State<Arc<Admin>>, operator: Operator) -> Answer {
    set_draining(admin, operator, true).await
}

async fn undrain(admin: State<Arc<Admin>>, operator: Operator) -> Answer {
    set_draining(admin, operator, false).await
}

async fn set_draining(State(admin): State<Arc<Admin>>, operator: Operator, draining: bool) -> Answer {
    let action = if draining { "drain.begin" } else { "drain.end" };
    operator.0.note(crate::store::Note::done(action, "", "")).await?;
    admin.shutdown.drain(draining);
    self::draining(State(admin), operator).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Lines {
    before: Option<u64>,
    limit: Option<usize>,
}

async fn audit(Operator(store): Operator, Query(lines): Query<Lines>) -> Answer {
    let most = Part::limit(lines.limit)?;
    page(store.audit_log(lines.before, most + 1).await?, most, |row| row.seq)
}

impl Admin {
    async fn protect(&self, store: &dyn crate::store::Store, name: &str, protection: Protection) -> Answer {
        let shown = json!(Shown(&protection));
        let parsed = name.parse().map_err(|_| Refused::unknown("endpoint", name))?;
        if !store.put_protection(&parsed, protection).await? {
            return Err(Refused::unknown("endpoint", name));
        }
        self.changed().await?;
        Ok(axum::Json(shown))
    }

    /// Puts in force what was changed in the store.
    async fn changed(&self) -> Result<(), Refused> {
        self.registry.reload().await?;
        if let Some(acme) = self.certs.acme() {
            acme.reload().await?;
        }
        Ok(self.tunnel.cut_off(true).await?)
    }

    fn shown(&self, row: &EndpointRow) -> Value {
        let live = self.registry.find(&row.name).filter(|endpoint| endpoint.id == row.id);
        let depth = live.as_ref().map(|endpoint| self.queue.depth_of(&endpoint.waiting)).unwrap_or_default();
        let domains = live.as_ref().map(|endpoint| self.registry.domains_of(endpoint)).unwrap_or_default();
        let clients = live.as_deref().map_or(0, Endpoint::clients);
        json!({
            "name": row.name, "url": self.urls.of(&row.name), "owner": row.owner,
            "created_at": row.created_at, "last_seen_at": row.last_seen_at, "clients": clients,
            "domains": domains, "waiting": depth.count, "dead_letters": depth.dead,
            "protection": Shown(&row.protection),
        })
    }
}

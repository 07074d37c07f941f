//! HAR 1.2, for the network panels of browsers.

use std::io::{self, Write};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hookway_protocol::headers::Headers;
use http::header;
use serde_json::{Map, Value, json};

use crate::content::{self, Plain};
use crate::exchange::{Attempt, Exchange, Outcome, Request};
use crate::harmless;
use crate::mask::{self, MASK, Secrets};

/// Writes the exchanges with their last attempts, one after the other: only one is in memory at a time.
pub(crate) fn har(exchanges: impl Iterator<Item = Exchange>, secrets: Secrets, out: &mut dyn Write) -> io::Result<()> {
    let creator = json!({"name": "Hookway", "version": env!("CARGO_PKG_VERSION")});
    // Importers look through the pages; none is fine, no list is not.
    write!(out, "{{\"log\":{{\"version\":\"1.2\",\"creator\":{creator},\"pages\":[],\"entries\":[")?;
    for (i, exchange) in exchanges.enumerate() {
        out.write_all(if i == 0 { b"\n" } else { b",\n" })?;
        harmless::json(&mut *out, &entry(&exchange, secrets))?;
    }
    out.write_all(b"\n]}}\n")
}

fn entry(exchange: &Exchange, secrets: Secrets) -> Value {
    let attempt = exchange.attempts.last();
    let http = if exchange.http2 { "HTTP/2" } else { "HTTP/1.1" };
    let timings = Timings::of(attempt);
    let mut entry = json!({
        // Chromium and Firefox both sort by it and compute all other times from it.
        "startedDateTime": format!("{:.6}", attempt.map_or(exchange.received_at, |attempt| attempt.at)),
        // Chromium takes it for the end of the request: it is the sum of the timings that are not -1.
        "time": timings.total,
        // Chromium goes by the answer's type else, and calls JSON a script.
        "_resourceType": "fetch",
        "request": request(exchange, http, secrets),
        "response": response(attempt, secrets),
        // Both want the object to be there.
        "cache": {},
        "timings": timings.json(),
        "_id": exchange.id.to_string(),
        "_endpoint": exchange.endpoint.as_str(),
        "_remote": exchange.remote,
        "_received_at": format!("{:.6}", exchange.received_at),
        "_attempts": exchange.attempts.len(),
    });
    let replay_of = exchange.replay_of.map(|id| id.to_string());
    for (name, value) in [("_replay_of", replay_of), ("_error", error(attempt))] {
        if let (Some(value), Some(entry)) = (value, entry.as_object_mut()) {
            entry.insert(name.into(), value.into());
        }
    }
    entry
}

fn error(attempt: Option<&Attempt>) -> Option<String> {
    match &attempt?.outcome {
        Outcome::Answered(_) => None,
        Outcome::Cut(_) => Some("cut".into()),
        Outcome::Failed { short, .. } => Some(short.clone()),
    }
}

fn request(exchange: &Exchange, http: &str, secrets: Secrets) -> Value {
    let request = &exchange.request;
    let mut value = json!({
        "method": request.method.as_str(),
        // Chromium drops an entry whose URL it cannot parse: it must be absolute.
        "url": url(exchange, secrets),
        "httpVersion": http,
        // Firefox reads the three lists without asking whether they are there.
        "cookies": cookies(&request.headers, &header::COOKIE, secrets),
        "headers": fields(&request.headers, secrets),
        "queryString": query(request.target.query().unwrap_or_default(), secrets),
        "headersSize": -1,
        "bodySize": request.body.size,
    });
    if let (false, Some(value)) = (request.body.bytes.is_empty(), value.as_object_mut()) {
        value.insert("postData".into(), post_data(request));
    }
    value
}

/// The body as `text`, and a form's fields as `params` too: Chromium shows those, Firefox parses the text.
fn post_data(request: &Request) -> Value {
    let media_type = media_type(&request.headers);
    let mut plain = Plain::of(&request.headers, &request.body);
    plain.cut |= request.unfinished;
    let mut data = text(&plain);
    if let Some((content::Kind::Form, text)) = plain.text() {
        let params: Vec<_> =
            content::form(&text).into_iter().map(|f| json!({"name": f.name, "value": f.value})).collect();
        data.insert("params".into(), params.into());
    }
    data.insert("mimeType".into(), media_type.into());
    data.into()
}

fn response(attempt: Option<&Attempt>, secrets: Secrets) -> Value {
    let Some(reply) = attempt.and_then(|attempt| attempt.reply.as_ref()) else {
        // All of it has to be there even when there was no answer. Firefox shows status 0 as failed, Chromium greys it.
        return json!({
            "status": 0, "statusText": "", "httpVersion": "", "cookies": [], "headers": [],
            "content": {"size": 0, "mimeType": "x-unknown"}, "redirectURL": "", "headersSize": -1, "bodySize": -1,
            "_error": error(attempt).unwrap_or_else(|| "no attempt yet".into()),
        });
    };
    let plain = Plain::of(&reply.headers, &reply.body);
    let mut content = text(&plain);
    content.insert("size".into(), plain.bytes.len().into());
    content.insert("mimeType".into(), media_type(&reply.headers).into());
    let location = reply.headers.get(&header::LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let location = location.as_deref().unwrap_or_default();
    let location = if secrets == Secrets::Masked { mask::url(location) } else { location.into() };
    json!({
        "status": reply.status.as_u16(),
        "statusText": reply.status.canonical_reason().unwrap_or_default(),
        "httpVersion": "HTTP/1.1",
        "cookies": cookies(&reply.headers, &header::SET_COOKIE, secrets),
        "headers": fields(&reply.headers, secrets),
        "content": content,
        // Firefox follows it, an absent one fails the import.
        "redirectURL": location,
        "headersSize": -1,
        "bodySize": reply.body.size,
    })
}

/// The inflated bytes as `text`; in base64, said in the field `encoding`, when they are no UTF-8. HAR 1.2 has that field
/// for answers only; who reads requests in base64 looks for it there, too.
fn text(plain: &Plain) -> Map<String, Value> {
    let mut fields = Map::new();
    match std::str::from_utf8(&plain.bytes) {
        Ok(text) => fields.insert("text".into(), text.into()),
        Err(_) => {
            fields.insert("encoding".into(), "base64".into());
            fields.insert("text".into(), STANDARD.encode(&plain.bytes).into())
        }
    };
    if plain.cut {
        fields.insert("comment".into(), "only the beginning is kept".into());
    }
    fields
}

/// Never empty: Chromium takes the type of what it shows from it.
fn media_type(headers: &Headers) -> String {
    let value = headers.get(&header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    value.unwrap_or_else(|| "application/octet-stream".into())
}

fn url(exchange: &Exchange, secrets: Secrets) -> String {
    let target = &exchange.request.target;
    let host = exchange.request.headers.get(&header::HOST).and_then(|host| host.to_str().ok());
    // It may have been put nowhere.
    let url = match exchange.attempts.last().map(|attempt| &attempt.url).filter(|url| !url.is_empty()) {
        Some(url) if url.contains('?') => url.clone(),
        Some(url) => target.query().map_or_else(|| url.clone(), |query| format!("{url}?{query}")),
        None => format!("https://{}{target}", host.unwrap_or(exchange.endpoint.as_str())),
    };
    match secrets {
        // As it stands in a URL.
        Secrets::Masked => mask::url(&url).replace(MASK, "%E2%80%A2%E2%80%A2%E2%80%A2%E2%80%A2"),
        Secrets::Shown => url,
    }
}

fn fields(headers: &Headers, secrets: Secrets) -> Vec<Value> {
    mask::rows(headers, secrets).into_iter().map(|row| json!({"name": row.name, "value": row.value})).collect()
}

fn query(query: &str, secrets: Secrets) -> Vec<Value> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = mask::decoded(name);
        let secret = secrets == Secrets::Masked && !value.is_empty() && mask::is_secret_parameter(&name);
        let value = if secret { MASK.to_owned() } else { mask::decoded(value) };
        json!({"name": name, "value": value})
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

/// The cookies by name; of a `Set-Cookie` the first pair, the attributes are in the header.
fn cookies(headers: &Headers, name: &header::HeaderName, secrets: Secrets) -> Vec<Value> {
    let values = headers.iter().filter(|(n, _)| *n == name).map(|(_, v)| String::from_utf8_lossy(v.as_bytes()));
    let pairs = values.flat_map(|value| {
        let most = if *name == header::SET_COOKIE { 1 } else { usize::MAX };
        value.split(';').take(most).map(|pair| pair.trim().to_owned()).collect::<Vec<_>>()
    });
    let cookie = |pair: String| {
        let (name, value) = pair.split_once('=').unwrap_or(("", &pair));
        json!({"name": name, "value": if secrets == Secrets::Masked { MASK } else { value }})
    };
    pairs.filter(|pair| !pair.is_empty()).map(cookie).collect()
}

/// Milliseconds; -1 where something did not happen or is not known.
struct Timings {
    connect: Option<f64>,
    wait: f64,
    receive: f64,
    total: f64,
}

impl Timings {
    fn of(attempt: Option<&Attempt>) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let total = attempt.map_or(Duration::ZERO, |attempt| attempt.duration);
        let connect = attempt.and_then(|attempt| attempt.connect);
        // Without an answer all the time was waiting for it.
        let first = attempt.and_then(|attempt| attempt.first_byte).unwrap_or(total);
        Self {
            connect: connect.map(ms),
            wait: ms(first.saturating_sub(connect.unwrap_or_default())),
            receive: ms(total.saturating_sub(first)),
            total: ms(total),
        }
    }

    /// All of them, for both importers calculate with each.
    fn json(&self) -> Value {
        json!({
            "blocked": -1, "dns": -1, "connect": self.connect.unwrap_or(-1.0), "ssl": -1, "send": 0,
            "wait": self.wait, "receive": self.receive,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::samples;

    fn log(exchanges: Vec<Exchange>, secrets: Secrets) -> Value {
        let mut out = Vec::new();
        har(exchanges.into_iter(), secrets, &mut out).expect("it is memory");
        let har: Value = serde_json::from_slice(&out).expect("JSON");
        check(&har);
        har["log"].clone()
    }

    /// The fields that HAR 1.2 requires, and their types.
    fn check(har: &Value) {
        let all = |value: &Value, what: &str, fields: &str, is: fn(&Value) -> bool| {
            for field in fields.split(' ') {
                assert!(value.get(field).is_some_and(is), "{what}: {field} in {value}");
            }
        };
        let log = &har["log"];
        all(log, "log", "version", Value::is_string);
        all(&log["creator"], "creator", "name version", Value::is_string);
        all(log, "log", "entries pages", Value::is_array);
        for entry in log["entries"].as_array().expect("checked") {
            let started = entry["startedDateTime"].as_str().expect("a time");
            started.parse::<jiff::Timestamp>().expect("a time");
            all(entry, "entry", "time", Value::is_number);
            all(entry, "entry", "request response cache timings", Value::is_object);
            let (request, response) = (&entry["request"], &entry["response"]);
            all(request, "request", "method url httpVersion", Value::is_string);
            all(request, "request", "cookies headers queryString", Value::is_array);
            all(request, "request", "headersSize bodySize", Value::is_number);
            request["url"].as_str().expect("checked").parse::<http::Uri>().expect("a URL").authority().expect("a host");
            if let Some(data) = request.get("postData") {
                all(data, "postData", "mimeType text", Value::is_string);
            }
            all(response, "response", "statusText httpVersion redirectURL", Value::is_string);
            all(response, "response", "status headersSize bodySize", Value::is_number);
            all(response, "response", "cookies headers", Value::is_array);
            all(&response["content"], "content", "size", Value::is_number);
            all(&response["content"], "content", "mimeType", Value::is_string);
            all(&entry["timings"], "timings", "blocked dns connect ssl send wait receive", Value::is_number);
            let times = entry["timings"].as_object().expect("checked").values().filter_map(Value::as_f64);
            let sum: f64 = times.filter(|ms| *ms >= 0.0).sum();
            assert!((sum - entry["time"].as_f64().expect("checked")).abs() < 0.001, "{entry}");
            for list in [&request["headers"], &request["queryString"], &request["cookies"], &response["headers"]] {
                for pair in list.as_array().expect("checked") {
                    all(pair, "pair", "name value", Value::is_string);
                }
            }
        }
    }

    #[test]
    fn nothing_is_a_har_too() {
        assert_eq!(log(Vec::new(), Secrets::Masked)["entries"], json!([]));
    }

    #[test]
    fn a_delivery() {
        let fields: &[(&str, &[u8])] = &[
            ("host", b"billing.example"),
            ("cookie", b"a=1; b=2"),
            ("content-type", b"application/x-www-form-urlencoded"),
            ("x", b"caf\xe9"),
        ];
        let mut exchange = samples::request("POST", "/a?x=%201&x=2&token=t", fields, b"a=1&a=2+");
        let reply: &[(&str, &[u8])] = &[("set-cookie", b"s=1; Path=/"), ("location", b"/there")];
        exchange.attempts = vec![samples::attempt("http://localhost:3000/a", reply, b"\xff\0")];
        let shown = log(vec![exchange.clone(), exchange.clone()], Secrets::Shown);
        assert_eq!(shown["entries"].as_array().map(Vec::len), Some(2));
        let entry = &shown["entries"][0];
        assert_eq!(entry["request"]["url"], "http://localhost:3000/a?x=%201&x=2&token=t");
        assert_eq!(entry["request"]["queryString"][0], json!({"name": "x", "value": " 1"}));
        assert_eq!(entry["request"]["cookies"][1], json!({"name": "b", "value": "2"}));
        let params = json!([{"name": "a", "value": "1"}, {"name": "a", "value": "2 "}]);
        assert_eq!(
            (&entry["request"]["postData"]["params"], &entry["request"]["postData"]["text"]),
            (&params, &json!("a=1&a=2+"))
        );
        assert_eq!(entry["response"]["content"]["encoding"], "base64");
        assert_eq!(entry["response"]["content"]["text"], "/wA=");
        assert_eq!(entry["response"]["redirectURL"], "/there");
        assert_eq!(entry["_id"], exchange.id.to_string());

        let masked = log(vec![exchange], Secrets::Masked);
        let entry = &masked["entries"][0];
        assert_eq!(
            entry["request"]["url"],
            "http://localhost:3000/a?x=%201&x=2&token=%E2%80%A2%E2%80%A2%E2%80%A2%E2%80%A2"
        );
        assert_eq!(entry["request"]["cookies"][0], json!({"name": "a", "value": MASK}));
        assert_eq!(entry["request"]["queryString"][2]["value"], MASK);
        assert_eq!(entry["response"]["headers"][0]["value"], MASK);
    }

    #[test]
    fn a_failure_and_a_pending_one() {
        let mut failed = samples::request("GET", "/", &[("host", b"billing.example")], b"");
        let pending = failed.clone();
        let mut attempt = samples::attempt("http://localhost:3000/", &[], b"");
        attempt.reply = None;
        attempt.first_byte = None;
        attempt.outcome =
            Outcome::Failed { failure: hookway_protocol::head::Failure::Refused, short: "refused".into() };
        failed.attempts = vec![attempt];
        failed.replay_of = Some(failed.id);
        let log = log(vec![failed.clone(), pending], Secrets::Masked);
        let [failure, pending] = [&log["entries"][0], &log["entries"][1]];
        assert_eq!((&failure["_error"], &failure["response"]["status"]), (&json!("refused"), &json!(0)));
        assert_eq!(failure["_replay_of"], failed.id.to_string());
        assert_eq!(pending["request"]["url"], "https://billing.example/");
    }
}

use http::StatusCode;
use rstest::rstest;

use super::*;
use crate::exchange::samples;

fn bodies(content_type: &'static str, a: &str, b: &str) -> Diff {
    let of = |body: &str| samples::request("POST", "/", &[("content-type", content_type.as_bytes())], body.as_bytes());
    Diff::of(&of(a), &of(b), Secrets::Masked)
}

fn shown(diff: &Diff) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
    let change = |change: &Change| match change {
        Change::Value { op, path, a, b } => format!("{op:?} {path}: {} > {}", text(a), text(b)),
        Change::Line { op, line } => format!("{op:?} {line}"),
    };
    diff.sections.iter().flat_map(|s| &s.changes).map(change).collect()
}

#[rstest]
#[case("{\"a\":1}", "{ \"a\" : 1 }", &[])]
#[case("{\"a\":1,\"b\":\"x\"}", "{\"b\":\"\\u0078\",\"a\":1}", &[])]
#[case("{\"a\":1}", "{\"a\":1.0}", &["Change $.a: 1 > 1.0"])]
#[case("{\"a\":{\"odd key\":[0,{\"id\":1}]}}", "{\"a\":{\"odd key\":[0,{\"id\":2}, []]}}",
    &["Change $.a[\"odd key\"][1].id: 1 > 2", "Add $.a[\"odd key\"][2]: - > []"])]
#[case("{\"a\":1,\"a\":2}", "{\"a\":1}", &["Remove $.a (again, 2): 2 > -"])]
#[case("[\"a]\\\"\",null]", "[\"a]\\\"\",[true]]", &["Change $[1]: null > [true]"])]
#[case("{\"a\":{}}", "{\"b\":[]}", &["Remove $.a: {} > -", "Add $.b: - > []"])]
#[case("1", "\"1\"", &["Change $: 1 > \"1\""])]
fn json_by_structure(#[case] a: &str, #[case] b: &str, #[case] want: &[&str]) {
    let diff = bodies("application/json", a, b);
    assert_eq!(shown(&diff), want);
    assert_eq!((diff.same, diff.sections[0].kind), (want.is_empty(), SectionKind::Json));
}

#[test]
fn deep_json_is_text() {
    let deep = |n: &str| format!("{}{n}{}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(bodies("application/json", &deep("1"), &deep("2")).sections[0].kind, SectionKind::Text);
}

#[rstest]
#[case("a=1&b=2&a=3", "b=2&a=1&a=4&c=", &["Change a: 3 > 4", "Add c: - > "])]
#[case("z=1", "a=1", &["Add a: - > 1", "Remove z: 1 > -"])]
fn forms_by_fields(#[case] a: &str, #[case] b: &str, #[case] want: &[&str]) {
    assert_eq!(shown(&bodies("application/x-www-form-urlencoded", a, b)), want);
}

#[test]
fn text_by_lines() {
    let a: String = (0..30).map(|n| format!("{n}\n")).collect();
    let b = a.replace("10\n", "ten\n").replace("25\n", "");
    let want = [
        "Same 7",
        "Same 8",
        "Same 9",
        "Remove 10",
        "Add ten",
        "Same 11",
        "Same 12",
        "Same 13",
        "Gap 8 lines",
        "Same 22",
        "Same 23",
        "Same 24",
        "Remove 25",
        "Same 26",
        "Same 27",
        "Same 28",
    ];
    assert_eq!(shown(&bodies("text/plain", &a, &b)), want);
    assert_eq!(shown(&bodies("text/plain", "", "a")), ["Add a"]);
}

#[test]
fn bytes_by_size_and_first_difference() {
    let want = ["Change size: 2 > 3", "Change first difference: at 1: 01 > at 1: 02 61"];
    assert_eq!(shown(&bodies("image/x", "\0\u{1}", "\0\u{2}a")), want);
}

#[test]
fn too_much_is_counted() {
    let list = |n: u32| serde_json::to_string(&vec![n; 3000]).expect("it serializes");
    let changes = shown(&bodies("application/json", &list(1), &list(2)));
    assert_eq!((changes.len(), changes[2000].as_str()), (2001, "Change …: - > 1000 more"));
    let long = |c: &str| format!("{c}\n").repeat(1 << 19);
    assert_eq!(bodies("text/plain", &long("aa"), &long("bb")).sections[0].kind, SectionKind::Bytes);
}

#[test]
fn hostile_lines_end_in_time() {
    let text = |step: usize| (0..40_000).map(|n: usize| format!("{}\n", n * step % 7919)).collect::<String>();
    let start = std::time::Instant::now();
    bodies("text/plain", &text(31), &text(17));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn headers_as_sets() {
    let a: &[(&str, &[u8])] =
        &[("x", b"1"), ("x", b"2"), ("authorization", b"a"), ("date", b"1"), ("y", b"\xe9"), ("host", b"a")];
    let b: &[(&str, &[u8])] = &[
        ("host", b"a"),
        ("x", b"2"),
        ("authorization", b"b"),
        ("date", b"2"),
        ("y", b"\xe8"),
        ("x", b"3"),
        ("z", b""),
    ];
    let (a, b) = (("/?a=1&key=1", a), ("/?a=1&key=2", b));
    let [a, b] = [a, b].map(|(target, fields)| samples::request("POST", target, fields, b""));
    let diff = Diff::of(&a, &b, Secrets::Masked);
    let want = [
        "Change path: /?a=1&key=•••• > /?a=1&key=•••• (differs)",
        "Change authorization: •••• > •••• (differs)",
        "Change x: 1 > 3",
        "Change y: \u{fffd} > \u{fffd} (other bytes)",
        "Add z: - > ",
    ];
    assert_eq!(shown(&diff), want);
    assert_eq!(diff.sections[1].ignored, ["date"]);
}

#[test]
fn replies_of_the_last_attempt() {
    let attempt = |status: u16, body: &str| {
        let mut attempt = samples::attempt("", &[], body.as_bytes());
        let reply = attempt.reply.as_mut().expect("an answer");
        reply.status = StatusCode::from_u16(status).expect("a status");
        attempt
    };
    let with = |attempts| Exchange { attempts, ..samples::request("POST", "/", &[], b"") };
    let a = with(vec![attempt(500, "no"), attempt(200, "ok")]);
    assert!(Diff::of(&a, &with(vec![attempt(200, "ok")]), Secrets::Masked).same);
    let diff = Diff::of(&a, &with(vec![attempt(201, "OK")]), Secrets::Masked);
    assert_eq!(shown(&diff), ["Change status: 200 > 201", "Remove ok", "Add OK"]);
    assert_eq!(diff.sections.iter().map(|s| s.name).collect::<Vec<_>>(), ["reply", "reply body"]);
    let mut failed = attempt(200, "");
    failed.reply = None;
    failed.outcome = Outcome::Failed { failure: hookway_protocol::head::Failure::Refused, short: "refused".into() };
    let diff = Diff::of(&a, &with(vec![failed]), Secrets::Masked);
    assert_eq!(shown(&diff), ["Remove status: 200 > -", "Add error: - > refused", "Remove ok"]);
    let json = serde_json::to_value(&diff.sections[0]).expect("it serializes");
    let want = serde_json::json!({"name": "reply", "kind": "fields", "ignored": [], "changes": [
        {"op": "remove", "path": "status", "a": "200", "b": null}, {"op": "add", "path": "error", "a": null, "b": "refused"}]});
    assert_eq!(json, want);
}

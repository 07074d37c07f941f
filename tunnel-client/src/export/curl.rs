//! A shell command that sends a request again, byte for byte.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};

use crate::exchange::Exchange;
use crate::mask::{self, MASK, Secrets};

/// A longer body goes into a file: Linux takes no argument over 128 KiB, and nobody pastes so much.
const MAX_INLINE: usize = 32 << 10;

/// The command, for a POSIX shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Curl {
    /// Ends without a line end.
    pub(crate) command: String,
    /// A file that it reads: its name, to be made in the folder in which the command runs, and what is to be in it.
    pub(crate) file: Option<(String, Bytes)>,
}

/// The command that sends the exchange's request to `base` (`http://localhost:3000`), else to the URL of its last
/// attempt.
pub(crate) fn curl(exchange: &Exchange, base: Option<&str>, secrets: Secrets) -> Curl {
    let request = &exchange.request;
    let mut command = notes(exchange);
    // Neither may curl touch the dots of the path nor take braces for a pattern.
    command.push_str("curl --path-as-is -g");
    let has = |name: HeaderName| request.headers.get(&name).is_some();
    let body = !request.body.bytes.is_empty();
    // Else curl sends no Content-Length for an empty body.
    let sends = body || (has(header::CONTENT_LENGTH) && request.method != Method::HEAD);
    match (&request.method, sends) {
        (&Method::GET, false) | (&Method::POST, true) => {}
        // With -X HEAD alone it would wait for the body that the length in the answer promises.
        (&Method::HEAD, false) => command.push_str(" -I"),
        (method, _) => command.push_str(&format!(" -X {}", quoted(method.as_str()))),
    }
    command.push(' ');
    command.push_str(&quoted(&url(exchange, base, secrets)));

    let mut option = |name: &str, value: &str| command.push_str(&format!(" \\\n  {name} {value}"));
    for (name, value) in request.headers.iter() {
        // curl makes these of the body that it sends.
        if *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING {
            option("-H", &field(name, value, secrets));
        }
    }
    for (name, added) in [
        (header::ACCEPT, true),
        (header::USER_AGENT, true),
        (header::CONTENT_TYPE, sends),
        // Added to bodies over 1 MiB.
        (header::EXPECT, body),
    ] {
        if added && !has(name.clone()) {
            option("-H", &quoted(&format!("{name}:")));
        }
    }
    if !sends {
        return Curl { command, file: None };
    }
    match std::str::from_utf8(&request.body.bytes) {
        Ok(text) if text.len() <= MAX_INLINE && is_pasted_as_it_is(text) => {
            option("--data-raw", &quoted(text));
            Curl { command, file: None }
        }
        _ => {
            let name = format!("{}.bin", exchange.id);
            option("--data-binary", &quoted(&format!("@{name}")));
            Curl { command, file: Some((name, request.body.bytes.clone())) }
        }
    }
}

/// What the command cannot do, in comments before it.
fn notes(exchange: &Exchange) -> String {
    let mut notes = String::new();
    let body = &exchange.request.body;
    if body.is_cut() {
        notes.push_str(&format!("# only the first {} of {} bytes of the body are kept\n", body.bytes.len(), body.size));
    }
    if exchange.request.unfinished {
        notes.push_str("# the end of the body did not come\n");
    }
    if !exchange.request.trailers.is_empty() {
        notes.push_str("# curl sends no trailers\n");
    }
    notes
}

fn url(exchange: &Exchange, base: Option<&str>, secrets: Secrets) -> String {
    let target = exchange.request.target.as_str();
    let url = match (base, exchange.attempts.last()) {
        (None, Some(attempt)) if attempt.url.contains('?') => attempt.url.clone(),
        (None, Some(attempt)) if !attempt.url.is_empty() => match exchange.request.target.query() {
            Some(query) => format!("{}?{query}", attempt.url),
            None => attempt.url.clone(),
        },
        (base, _) => format!("{}{target}", base.unwrap_or("http://localhost").trim_end_matches('/')),
    };
    match secrets {
        Secrets::Masked => mask::url(&url).into_owned(),
        Secrets::Shown => url,
    }
}

/// The argument of `-H`.
fn field(name: &HeaderName, value: &HeaderValue, secrets: Secrets) -> String {
    let value = match secrets {
        Secrets::Masked if mask::is_secret(name) => MASK.as_bytes(),
        _ => value.as_bytes(),
    };
    if value.is_empty() {
        // `name:` would mean to leave it out.
        return quoted(&format!("{name};"));
    }
    match std::str::from_utf8(value) {
        Ok(text) if is_pasted_as_it_is(text) && !text.contains(['\t', '\n']) => quoted(&format!("{name}: {text}")),
        // POSIX has no quotes for bytes, but a printf for them.
        _ => format!("\"$(printf {})\"", quoted(&format!("{name}: {}", printf_format(value)))),
    }
}

/// A format that makes printf write these bytes.
fn printf_format(bytes: &[u8]) -> String {
    let mut format = String::new();
    for &byte in bytes {
        match byte {
            b'%' => format.push_str("%%"),
            b'\\' => format.push_str("\\\\"),
            b' '..=b'~' => format.push(byte.into()),
            _ => format.push_str(&format!("\\{byte:03o}")),
        }
    }
    format
}

/// Whether a terminal passes it on as it is: it takes control characters for keys, CR for the end of a line.
fn is_pasted_as_it_is(text: &str) -> bool {
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t'))
}

/// One word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::process::{Command, Stdio};
    use std::thread;

    use rstest::rstest;

    use super::*;
    use crate::exchange::samples;

    /// What the command sends: the request line, the fields in order, the body.
    fn sent(exchange: &Exchange, secrets: Secrets) -> (String, Vec<Vec<u8>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut bytes = Vec::new();
            loop {
                let mut buffer = [0; 65536];
                let read = stream.read(&mut buffer).expect("bytes");
                assert_ne!(read, 0, "the request has an end");
                bytes.extend_from_slice(&buffer[..read]);
                let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
                let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
                let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
                if bytes.len() >= end + 4 + length {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n").expect("sent");
                    if !head.starts_with("head") {
                        stream.write_all(b"yes").expect("sent");
                    }
                    return (bytes[..end].to_vec(), bytes[end + 4..].to_vec());
                }
            }
        });
        let Curl { command, file } = curl(exchange, Some(&base), secrets);
        let folder = tempfile::tempdir().expect("a folder");
        if let Some((name, bytes)) = file {
            std::fs::write(folder.path().join(name), bytes).expect("written");
        }
        let status = Command::new("sh")
            .args(["-c", &command])
            .env("CURL_HOME", folder.path())
            .env("no_proxy", "127.0.0.1")
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("sh runs");
        assert!(status.success(), "{command}");
        let (head, body) = server.join().expect("a request");
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec());
        let first = String::from_utf8(lines.next().expect("a line")).expect("text");
        // HTTP's names have no case; curl writes this one with a capital.
        let fields = lines.map(|line| match line.strip_prefix(b"Host") {
            Some(rest) => [b"host", rest].concat(),
            None => line,
        });
        (first, fields.collect(), body)
    }

    #[rstest]
    #[case::empty(b"")]
    #[case::text(b"a=1&b=2")]
    #[case::quotes(br#"{"a":"it's $HOME `x` \ \\n !"}"#)]
    #[case::newlines(b"\na\n\nb\n")]
    #[case::crlf(b"a\r\nb\r\n")]
    #[case::binary(b"\xff\x00\x80\x1b")]
    #[case::nul(b"a\0b")]
    #[case::four_byte("🦀é".as_bytes())]
    #[case::file_like(b"@/etc/passwd")]
    #[case::dash(b"-d")]
    #[case::long(&[b'x'; 100_000])]
    #[case::over_a_mebibyte(&[b'x'; 1_100_000])]
    fn bodies(#[case] body: &[u8], #[values("POST", "GET", "DELETE", "PUT")] method: &str) {
        let length = body.len().to_string();
        let exchange = samples::request(method, "/", &[("content-length", length.as_bytes())], body);
        let (first, fields, got) = sent(&exchange, Secrets::Shown);
        assert_eq!((first, got == body), (format!("{method} / HTTP/1.1"), true));
        let fields: Vec<_> = fields.iter().map(|field| String::from_utf8_lossy(field).to_lowercase()).collect();
        assert_eq!(
            fields.iter().filter(|f| !f.starts_with("host:")).collect::<Vec<_>>(),
            [&format!("content-length: {length}")]
        );
    }

    #[rstest]
    #[case("GET")]
    #[case("POST")]
    #[case("HEAD")]
    #[case("OPTIONS")]
    #[case("X'Y")]
    fn without_a_body(#[case] method: &str) {
        let (first, fields, body) =
            sent(&samples::request(method, "/", &[("host", b"a.example")], b""), Secrets::Shown);
        assert_eq!((first, body.len()), (format!("{method} / HTTP/1.1"), 0));
        assert_eq!(fields, [b"host: a.example"]);
    }

    #[test]
    fn every_field_as_it_was() {
        let fields: &[(&str, &[u8])] = &[
            ("host", b"a.example"),
            ("user-agent", b""),
            ("x-quotes", br#"it's "so" \ \\ $HOME `x` %s"#),
            ("x-latin", b"caf\xe9 100% \\ 'x'"),
            ("x-tab", b"a\tb"),
            ("x-utf8", "é🦀".as_bytes()),
            ("x-empty", b""),
            ("x-twice", b"1"),
            ("x-other", b"@file"),
            ("x-twice", b"2"),
            ("x-semicolon", b";"),
            ("cookie", b"a=1"),
            ("cookie", b"b=2"),
            ("authorization", b"Bearer x"),
            ("accept-encoding", b"gzip"),
        ];
        let exchange = samples::request("POST", "/", fields, b"");
        let plain = |(name, value): &(&str, &[u8])| {
            let blank: &[u8] = if value.is_empty() { b":" } else { b": " };
            [name.as_bytes(), blank, value].concat()
        };
        let want: Vec<_> = fields.iter().map(plain).collect();
        let (_, got, _) = sent(&exchange, Secrets::Shown);
        assert_eq!(got, want);
        let (_, got, _) = sent(&exchange, Secrets::Masked);
        assert!(got.contains(&format!("authorization: {MASK}").into_bytes()));
    }

    #[rstest]
    #[case("/a{b,c}[1-3]")]
    #[case("/a/../b/./c")]
    #[case("/%2e%2e/%2E/%00")]
    #[case("//x//")]
    #[case("/?a=b&c[]=d&e={1}")]
    #[case("/a?")]
    #[case("/?x='$(id)'`id`;&y=!")]
    #[case("/\"|^~*")]
    #[case("/?q=http://x/?y")]
    fn targets(#[case] target: &str) {
        let (first, _, _) = sent(&samples::request("GET", target, &[], b""), Secrets::Shown);
        assert_eq!(first, format!("GET {target} HTTP/1.1"));
    }

    #[test]
    fn the_url_is_that_of_the_last_attempt() {
        let mut exchange = samples::request("GET", "/a?key=1", &[], b"");
        exchange.attempts = vec![samples::attempt("http://localhost:3000/x/a", &[], b"")];
        let command = curl(&exchange, None, Secrets::Shown).command;
        assert!(command.starts_with("curl --path-as-is -g 'http://localhost:3000/x/a?key=1'"), "{command}");
        let command = curl(&exchange, None, Secrets::Masked).command;
        assert!(command.contains("?key=••••'"), "{command}");
    }

    #[test]
    fn what_it_cannot_do_is_said() {
        let mut exchange = samples::request("POST", "/", &[], b"abc");
        exchange.request.body.size = 10;
        exchange.request.trailers = samples::headers(&[("x-sum", b"1")]);
        let command = curl(&exchange, None, Secrets::Shown).command;
        let want = "# only the first 3 of 10 bytes of the body are kept\n# curl sends no trailers\ncurl ";
        assert!(command.starts_with(want), "{command}");
    }
}

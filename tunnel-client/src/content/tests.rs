use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{HeaderName, HeaderValue};
use rstest::rstest;

use super::*;

fn headers(fields: &[(&'static str, &str)]) -> Headers {
    let field = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
    };
    fields.iter().map(field).collect()
}

fn kept(bytes: impl Into<Bytes>) -> Kept {
    let bytes = bytes.into();
    Kept { size: bytes.len() as u64, bytes }
}

fn of(content_type: &str, bytes: &[u8]) -> Content {
    Content::of(&headers(&[("content-type", content_type)]), &kept(bytes.to_vec()))
}

fn coded(codings: &str, bytes: Vec<u8>) -> Content {
    Content::of(&headers(&[("content-encoding", codings)]), &kept(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("it is memory")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("it is memory")
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("it is memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).expect("zstd")
}

/// `hello` in an uncompressed meta-block (RFC 7932 §9.2).
const BROTLI: &[u8] = b"\x0b\x02\x80hello\x03";

#[rstest]
#[case("", b"", Kind::Empty)]
#[case("application/json", b"{}", Kind::Json)]
#[case("application/problem+json; charset=utf-8", b"{", Kind::Json)]
#[case("text/plain", b" [1]", Kind::Json)]
#[case("text/plain", b"[1] and", Kind::Text)]
#[case("text/plain", b"12", Kind::Text)]
#[case("", b"{\"a\":1}\n", Kind::Json)]
#[case("application/json", b"<html>", Kind::Text)]
#[case("application/json", b"oops", Kind::Json)]
#[case("application/x-www-form-urlencoded", b"a=1", Kind::Form)]
#[case("text/plain", b"a=1", Kind::Text)]
#[case("application/soap+xml", b"<a/>", Kind::Xml)]
#[case("", b"<?xml version='1.0'?><a/>", Kind::Xml)]
#[case("", b"\x89PNG\r\n\x1a\n", Kind::Image)]
#[case("image/png", b"GIF89a", Kind::Image)]
#[case("image/svg+xml", b"<svg/>", Kind::Image)]
#[case("", b"RIFF1234WEBP", Kind::Image)]
#[case("text/plain", b"a\0b", Kind::Binary)]
#[case("text/plain", b"\xe9", Kind::Text)]
#[case("", b"\xe9", Kind::Binary)]
#[case("application/grpc+json", b"{}", Kind::Binary)]
#[case("multipart/form-data", b"a", Kind::Text)]
fn kinds(#[case] content_type: &str, #[case] bytes: &[u8], #[case] kind: Kind) {
    assert_eq!(of(content_type, bytes).kind, kind);
}

#[rstest]
#[case("{\"a\":\n 1 2}", Some((2, 4, 9, "expected `,` or `}`")))]
#[case("[\"🦀\" x]", Some((1, 7, 6, "expected `,` or `]`")))]
#[case("[1", Some((1, 3, 2, "EOF while parsing a list")))]
#[case("[1]", None)]
fn json_errors(#[case] text: &str, #[case] error: Option<(usize, usize, usize, &str)>) {
    let found = of("application/json", text.as_bytes()).json_error;
    let error =
        error.map(|(line, column, offset, message)| JsonError { line, column, offset, message: message.into() });
    assert_eq!(found, error);
}

#[test]
fn deep_json_is_json() {
    let text = "[".repeat(100_000) + &"]".repeat(100_000);
    assert_eq!(of("application/json", text.as_bytes()).json_error, None);
}

#[test]
fn cut_json_is_not_called_invalid() {
    let kept = Kept { bytes: Bytes::from_static(b"{\"a\":[1,\"\xc3"), size: 100 };
    for content_type in ["application/json", "text/plain"] {
        let content = Content::of(&headers(&[("content-type", content_type)]), &kept);
        assert_eq!((content.size, content.kept, content.json_error), (100, 10, None));
    }
}

#[rstest]
#[case("gzip", gzip(b"hello"))]
#[case("X-GZip", gzip(b"hello"))]
#[case("gzip", [gzip(b"hel"), gzip(b"lo")].concat())]
#[case("deflate", zlib(b"hello"))]
#[case("deflate", deflate(b"hello"))]
#[case("br", BROTLI.to_vec())]
#[case("zstd", zstd(b"hello"))]
#[case("zstd", [zstd(b"hel"), b"\x50\x2a\x4d\x18\x02\0\0\0xx".to_vec(), zstd(b"lo")].concat())]
#[case("zstd, gzip,deflate", zlib(&gzip(&zstd(b"hello"))))]
fn undone(#[case] list: &str, #[case] bytes: Vec<u8>) {
    let content = coded(list, bytes);
    assert_eq!(content.encoding_error, None);
    assert_eq!((content.text.as_deref(), content.inflated_size, content.inflated_cut), (Some("hello"), Some(5), false));
}

#[rstest]
#[case("gzip", b"hello, you there".to_vec(), "not valid gzip", Some("hello, you there"))]
#[case("gzip", b"hello".to_vec(), "the end of the gzip data is missing", Some("hello"))]
#[case("gzip, identity, br,", BROTLI.to_vec(), "the end of the gzip data is missing", None)]
#[case("zstd", b"hello".to_vec(), "not valid zstd", Some("hello"))]
#[case("aws-chunked", b"hello".to_vec(), "an unknown content coding: aws-chunked", Some("hello"))]
#[case("gzip,gzip,gzip,gzip,gzip", b"hello".to_vec(), "more than 4", Some("hello"))]
#[case("zstd", b"\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "not valid zstd", None)]
fn broken_codings(#[case] codings: &str, #[case] bytes: Vec<u8>, #[case] error: &str, #[case] text: Option<&str>) {
    let content = coded(codings, bytes);
    let found = content.encoding_error.expect("an error");
    assert!(found.starts_with(error), "{found}");
    assert_eq!((content.text.as_deref(), content.inflated_size), (text, None));
}

#[rstest]
#[case("gzip", gzip)]
#[case("deflate", zlib)]
fn what_comes_before_the_break_is_shown(#[case] coding: &str, #[case] code: fn(&[u8]) -> Vec<u8>) {
    let text: String = (0..200_000).map(|n| n.to_string()).collect();
    let mut bytes = code(text.as_bytes());
    bytes.truncate(bytes.len() - 9);
    let content = coded(coding, bytes.clone());
    assert!(content.encoding_error.is_some());
    let shown = content.text.expect("text");
    assert!(shown.len() > 1000 && text.starts_with(&shown));
    let kept = Kept { size: bytes.len() as u64 + 9, bytes: bytes.into() };
    let content = Content::of(&headers(&[("content-encoding", coding)]), &kept);
    assert_eq!((content.encoding_error, content.inflated_cut), (None, true));
}

#[rstest]
#[case("gzip", gzip(&vec![0; 64 << 20]), 64 << 10)]
#[case("gzip, gzip", gzip(&gzip(&vec![0; 64 << 20])), 0)]
#[case("gzip, deflate", zlib(&gzip(&[]).repeat(1 << 17)), 0)]
#[case("zstd", zstd(&vec![0; 64 << 20]), 0)]
fn bombs_are_cut(#[case] codings: &str, #[case] bytes: Vec<u8>, #[case] at_least: usize) {
    let limit = (bytes.len() * 100).clamp(1 << 20, 10 << 20);
    let content = coded(codings, bytes);
    assert!(content.inflated_cut && content.encoding_error.is_none(), "{:?}", content.encoding_error);
    let size = content.inflated_size.expect("it was inflated");
    assert!((at_least..=limit).contains(&size), "{size}");
}

#[test]
fn a_body_that_just_fits_is_not_cut() {
    let content = coded("gzip", gzip(&vec![b'a'; 1 << 20]));
    assert_eq!((content.inflated_cut, content.inflated_size), (false, Some(1 << 20)));
}

#[test]
fn forms() {
    let content = of("application/x-www-form-urlencoded", b"a=1&a=+2%C3%A9&b&=c&&d=x%3Dy=z\r\n");
    let fields: Vec<_> = content.fields.into_iter().flatten().map(|f| (f.name, f.value)).collect();
    let want = [("a", "1"), ("a", " 2é"), ("b", ""), ("", "c"), ("d", "x=y=z")];
    assert_eq!(fields, want.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

const PARTS: &str = "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--x\r\n\
    Content-Disposition: form-data; name=\"file\"; filename=\"b.json\"\r\nContent-Type: application/json\r\n\r\n{}\r\n--x--\r\n";

#[rstest]
#[case("multipart/form-data; boundary=x", PARTS, &[("a", "1"), ("file", "{}")])]
#[case("Multipart/Mixed;charset=utf-8; Boundary=\"x\"", PARTS, &[("a", "1"), ("file", "{}")])]
#[case("multipart/form-data; boundary=x", &PARTS[..PARTS.len() - 9], &[("a", "1"), ("file", "{}")])]
#[case("multipart/form-data; boundary=x", &PARTS[..50], &[("a", "1")])]
#[case("multipart/form-data; boundary=y", PARTS, &[])]
fn multiparts(#[case] content_type: &str, #[case] body: &str, #[case] want: &[(&str, &str)]) {
    let content = of(content_type, body.as_bytes());
    assert_eq!(content.kind, Kind::Multipart);
    let parts = content.parts.expect("parts");
    let found: Vec<_> = parts
        .iter()
        .map(|part| (part.name.as_deref().unwrap_or_default(), part.body.text.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(found, want);
    if let Some(file) = parts.get(1) {
        assert_eq!((file.file_name.as_deref(), file.body.kind), (Some("b.json"), Kind::Json));
    }
}

#[test]
fn parts_are_bounded_and_not_taken_apart_again() {
    let inner = "--x\r\nContent-Type: multipart/mixed; boundary=y\r\nContent-Encoding: gzip\r\n\r\n--y--\r\n";
    let body = inner.repeat(150) + "--x--\r\n";
    let parts = of("multipart/mixed; boundary=x", body.as_bytes()).parts.expect("parts");
    assert_eq!(parts.len(), 100);
    assert!(parts.iter().all(|part| part.body.kind == Kind::Binary && part.body.parts.is_none()));
}

#[test]
fn long_bodies_are_shown_in_part() {
    let content = coded("gzip", gzip("é".repeat(2 << 20).as_bytes()));
    // 4 MiB of two bytes a letter compress so well that the ratio caps them.
    assert!(content.text_cut && content.base64_cut && content.inflated_cut || content.text.is_some());
    assert!(content.text.expect("text").len() <= MAX_TEXT && content.base64.len() <= MAX_HEX * 4 / 3 + 4);
    assert_eq!(of("image/png", &[b"\x89PNG\r\n\x1a\n".as_slice(), &vec![0; 4 << 20]].concat()).image, None);
}

#[test]
fn json_of_it_is_the_contracts() {
    let json = serde_json::to_value(of("text/plain", b"a")).expect("it serializes");
    let want = serde_json::json!({
        "size": 1, "kept": 1, "content_type": "text/plain", "encodings": [], "inflated_size": null,
        "inflated_cut": false, "encoding_error": null, "kind": "text", "charset": "utf-8", "text": "a",
        "text_cut": false, "json_error": null, "fields": null, "parts": null, "image": null, "base64": "YQ==",
        "base64_cut": false
    });
    assert_eq!(json, want);
}

#[test]
fn a_zstd_block_that_swells() {
    let mut bytes = b"\x28\xb5\x2f\xfd\x00\x38".to_vec(); // a frame with a window of 128 KiB
    bytes.extend([8 << 3, 0, 0]); // a raw block of 8 bytes
    bytes.extend(b"abcdefgh");
    let n = 1000u16;
    let mut block = vec![0, (n >> 8) as u8 + 128, n as u8, 0x54, 0, 0, 52];
    block.extend(vec![0; usize::from(n) * 2]);
    block.push(1);
    let header = (block.len() << 3 | 2 << 1 | 1) as u32;
    bytes.extend(&header.to_le_bytes()[..3]);
    bytes.extend(block);
    let content = coded("zstd", bytes);
    // A block is 128 KiB at most (RFC 8878 §3.1.1.2.4), whatever its sequences say.
    assert!(content.encoding_error.expect("refused").starts_with("not valid zstd: "));
    assert!(content.inflated_size.is_none_or(|size| size <= 128 << 10));
}

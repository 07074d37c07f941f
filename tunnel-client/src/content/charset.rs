//! Bytes to text.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8};

/// An XML declaration is looked for in so many bytes.
const MAX_DECLARATION: usize = 256;

/// Decoded bytes.
#[derive(Debug, Default)]
pub(crate) struct Decoded<'a> {
    pub(crate) text: Cow<'a, str>,
    /// The charset's name in lower case.
    pub(crate) charset: &'static str,
    /// Whether bytes had to be replaced.
    pub(crate) wrong: bool,
}

impl Decoded<'_> {
    /// Whether there are control characters that text does not have.
    pub(crate) fn has_controls(&self) -> bool {
        // ESC is in logs with colours.
        let usual = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{c}' | '\u{1b}');
        self.text.chars().any(|c| c.is_ascii_control() && !usual(c))
    }
}

/// Decodes `bytes`: by their byte order mark, the `label` of their content type, their XML declaration, else as UTF-8.
pub(crate) fn decode<'a>(bytes: &'a [u8], label: Option<&str>) -> Decoded<'a> {
    let labelled = label.and_then(|label| Encoding::for_label(label.as_bytes()));
    let encoding = labelled.or_else(|| declared(bytes)).unwrap_or(UTF_8);
    let (text, encoding, wrong) = encoding.decode(bytes);
    Decoded { text, charset: name(encoding), wrong }
}

/// The encoding that an XML declaration names.
fn declared(bytes: &[u8]) -> Option<&'static Encoding> {
    let start = bytes[..bytes.len().min(MAX_DECLARATION)].strip_prefix(b"<?xml")?;
    let start = String::from_utf8_lossy(start);
    let (declaration, _) = start.split_once("?>")?;
    let (_, value) = declaration.split_once("encoding")?;
    let value = value.trim_start().strip_prefix('=')?.trim_start();
    let label = value.trim_start_matches(['"', '\'']).split(['"', '\'']).next()?;
    // It could be read as ASCII, so it is not UTF-16, whatever it says.
    Encoding::for_label(label.as_bytes()).map(|e| if e.is_ascii_compatible() { e } else { UTF_8 })
}

fn name(encoding: &'static Encoding) -> &'static str {
    match encoding.name() {
        "UTF-8" => "utf-8",
        "UTF-16LE" => "utf-16le",
        "UTF-16BE" => "utf-16be",
        "Shift_JIS" => "shift_jis",
        "EUC-JP" => "euc-jp",
        "EUC-KR" => "euc-kr",
        "ISO-8859-15" => "iso-8859-15",
        "Big5" => "big5",
        "GBK" => "gbk",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(b"\xc3\xa9", None, "é", "utf-8", false)]
    #[case(b"\xe9", None, "\u{fffd}", "utf-8", true)]
    #[case(b"\xe9", Some("latin1"), "é", "windows-1252", false)]
    #[case(b"\xe9", Some("no such"), "\u{fffd}", "utf-8", true)]
    #[case(b"\xef\xbb\xbfa", Some("latin1"), "a", "utf-8", false)]
    #[case(b"\xff\xfea\0", None, "a", "utf-16le", false)]
    #[case(b"\x82\xa0", Some("Shift_JIS"), "あ", "shift_jis", false)]
    #[case(
        b"<?xml version='1.0' encoding = 'ISO-8859-1'?>\xe9",
        None,
        "<?xml version='1.0' encoding = 'ISO-8859-1'?>é",
        "windows-1252",
        false
    )]
    #[case(b"<?xml encoding=\"utf-16\"?>", None, "<?xml encoding=\"utf-16\"?>", "utf-8", false)]
    fn charsets(
        #[case] bytes: &[u8],
        #[case] label: Option<&str>,
        #[case] text: &str,
        #[case] charset: &str,
        #[case] wrong: bool,
    ) {
        let decoded = decode(bytes, label);
        assert_eq!((&*decoded.text, decoded.charset, decoded.wrong), (text, charset, wrong));
    }
}

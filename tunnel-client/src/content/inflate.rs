//! Content codings undone, within bounds: a few bytes of a hostile body may stand for gigabytes.

use std::cell::Cell;
use std::io::{self, Chain, Cursor, ErrorKind, Read};
use std::rc::Rc;

use brotli_decompressor::Decompressor;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// So much is inflated at most.
pub(crate) const MAX_OUT: usize = 10 << 20;
/// From here on so many times what went in, at most.
const ALWAYS: usize = 1 << 20;
const MAX_RATIO: usize = 100;
/// So many codings in a row are undone.
const MAX_CODINGS: usize = 4;
const BUFFER: usize = 16 << 10;
/// What a zstd frame may ask to be remembered: the 8 MiB that every decoder should allow (RFC 8878 §3.1.1.1.2).
const MAX_WINDOW_LOG: u32 = 23;

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Inflated {
    pub(crate) bytes: Vec<u8>,
    /// Whether there would be more.
    pub(crate) cut: bool,
    /// Why there is no more, in a sentence.
    pub(crate) error: Option<String>,
}

/// Undoes `codings`, the last one first. `cut`: the end of `bytes` is missing, which is then no error.
pub(crate) fn inflate(bytes: &[u8], codings: &[String], cut: bool) -> Inflated {
    if codings.len() > MAX_CODINGS {
        let error = Some(format!("more than {MAX_CODINGS} content codings"));
        return Inflated { error, ..Inflated::default() };
    }
    let limit = bytes.len().saturating_mul(MAX_RATIO).clamp(ALWAYS, MAX_OUT);
    let over = Rc::new(Cell::new(false));
    let mut reader: Box<dyn Read + '_> = Box::new(bytes);
    for coding in codings.iter().rev() {
        reader = match undo(coding, reader) {
            Ok(inner) => Box::new(Capped { inner, left: limit, over: over.clone() }),
            Err(e) => return Inflated { error: Some(describe(coding, &e)), ..Inflated::default() },
        };
    }
    let mut out = Vec::new();
    let result = reader.read_to_end(&mut out);
    let over = over.get();
    let error = match result {
        // A layer further in was stopped; what follows from that is no error of the body.
        Err(_) if over => None,
        Err(e) if cut && is_end(&e) => None,
        Err(e) => Some(describe(codings.first().map_or("", String::as_str), &e)),
        Ok(_) => None,
    };
    Inflated { bytes: out, cut: over || cut, error }
}

fn undo<'a>(coding: &str, mut inner: Box<dyn Read + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match coding {
        "gzip" | "x-gzip" => Box::new(Named("gzip", MultiGzDecoder::new(inner))),
        "br" => Box::new(Named("brotli", Decompressor::new(inner, BUFFER))),
        "zstd" => {
            let mut decoder = zstd::Decoder::new(inner)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(Named("zstd", decoder))
        }
        "deflate" => {
            let mut start = Vec::new();
            inner.by_ref().take(2).read_to_end(&mut start)?;
            // The specification means zlib, old programs send the bare stream (RFC 9110 §8.4.1.2).
            let zlib = matches!(*start, [a, b] if a & 15 == 8 && u16::from_be_bytes([a, b]) % 31 == 0);
            let inner: Chain<Cursor<Vec<u8>>, Box<dyn Read + 'a>> = Cursor::new(start).chain(inner);
            if zlib {
                Box::new(Named("zlib", ZlibDecoder::new(inner)))
            } else {
                Box::new(Named("deflate", DeflateDecoder::new(inner)))
            }
        }
        _ => return Err(io::Error::new(ErrorKind::Unsupported, "an unknown content coding")),
    })
}

fn is_end(e: &io::Error) -> bool {
    e.kind() == ErrorKind::UnexpectedEof
}

fn describe(coding: &str, e: &io::Error) -> String {
    match e.kind() {
        ErrorKind::Unsupported => format!("{e}: {coding}"),
        _ => e.to_string(),
    }
}

/// Says in its errors which coding it is that broke.
struct Named<R>(&'static str, R);

impl<R: Read> Read for Named<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1.read(buf).map_err(|e| {
            // Errors of the layer below already have their name.
            let said = e.to_string();
            if said.starts_with("not valid ") || said.starts_with("the end of ") {
                return e;
            }
            // brotli-decompressor has one error for all; at the end of the input it is most likely that.
            match e.kind() {
                ErrorKind::UnexpectedEof => {
                    io::Error::new(ErrorKind::UnexpectedEof, format!("the end of the {} data is missing", self.0))
                }
                kind => io::Error::new(kind, format!("not valid {}: {said}", self.0)),
            }
        })
    }
}

/// Ends after `left` bytes. Each layer has one: a layer may eat gigabytes and give nothing.
struct Capped<R> {
    inner: R,
    left: usize,
    over: Rc<Cell<bool>>,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !buf.is_empty() {
            // Only what would go on is cut.
            if !self.over.get() && self.inner.read(&mut [0])? > 0 {
                self.over.set(true);
            }
            return Ok(0);
        }
        let most = buf.len().min(self.left);
        let read = self.inner.read(&mut buf[..most])?;
        self.left -= read;
        Ok(read)
    }
}

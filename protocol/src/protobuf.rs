//! Protobuf's encoding of fields: a key, then a varint or so many bytes. `head.rs` writes and reads its messages with it.

use bytes::{Buf, BufMut, BytesMut};

/// The bytes are no protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// A length-delimited field. Every tag here is below 16, so its key is one byte.
pub(crate) fn put_bytes(out: &mut BytesMut, tag: u8, bytes: &[u8]) {
    let key = tag << 3 | 2;
    match bytes.len() {
        // Nearly all are short, and a call costs more than a byte.
        length @ 0..0x80 => out.put_slice(&[key, length as u8]),
        length => {
            out.put_u8(key);
            put_varint(out, length as u64);
        }
    }
    out.put_slice(bytes);
}

/// A varint field; zero is the default and is left out.
pub(crate) fn put_number(out: &mut BytesMut, tag: u8, number: u64) {
    if number != 0 {
        out.put_u8(tag << 3);
        put_varint(out, number);
    }
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// A field's value.
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A fixed-width field, of which we know none.
    Skipped,
}

/// The next field's tag and value.
pub(crate) fn next_field<'a>(from: &mut &'a [u8]) -> Result<Option<(u64, Value<'a>)>, Broken> {
    if from.is_empty() {
        return Ok(None);
    }
    let key = varint(from)?;
    let value = match key & 7 {
        0 => Value::Number(varint(from)?),
        1 => skip(from, 8)?,
        2 => {
            let length = usize::try_from(varint(from)?).map_err(|_| Broken)?;
            let (value, rest) = from.split_at_checked(length).ok_or(Broken)?;
            *from = rest;
            Value::Bytes(value)
        }
        5 => skip(from, 4)?,
        _ => return Err(Broken),
    };
    match key >> 3 {
        0 => Err(Broken),
        tag => Ok(Some((tag, value))),
    }
}

fn skip<'a>(from: &mut &'a [u8], length: usize) -> Result<Value<'a>, Broken> {
    *from = from.get(length..).ok_or(Broken)?;
    Ok(Value::Skipped)
}

fn varint(from: &mut &[u8]) -> Result<u64, Broken> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = from.try_get_u8().map_err(|_| Broken)?;
        if shift == 63 && byte > 1 {
            return Err(Broken);
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Broken)
}

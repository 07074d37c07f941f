"""Hostile HTTP/1.1 towards the public port: one parser decides, and it decides the same as the app's (threat 1).

`CASES` is the table: an id after the clause of RFC 9112 (or 9110) that it tries, the raw bytes, what is wanted:

    REFUSED   4xx (or 501, 505) or nothing, the connection closed, and the app saw nothing
    REJECTED  the same, but the connection may stay, since the end of the request is beyond doubt
    OK        exactly one request at the app, with this body, answered by the app
    EITHER    REFUSED or OK: the RFC leaves it to the recipient

After every case a canary goes down the same connection, then another down a new one: both are answered as
themselves or, on the same connection, not at all.
"""

import contextlib
import hashlib
import io
import itertools
import json
import random
import re
import shutil
import socket
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from world import DOMAIN, LONG, Closed, Program, Unclean, _Reader, eventually, request

REFUSED, REJECTED, OK, EITHER = "refused", "rejected", "ok", "either"

NAME = f"billing.{DOMAIN}".encode()
HOST = b"Host: " + NAME + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"


@dataclass
class Case:
    id: str
    raw: bytes
    want: str
    body: bytes = b""
    target: str = "/case"
    closes: bool = False  # an accepted one must be the last on its connection


def raw(fields=b"", body=b"", method=b"POST", target=b"/case", version=b"HTTP/1.1", host=HOST):
    return method + b" " + target + b" " + version + b"\r\n" + host + fields + b"\r\n" + body


def length(value, body=b"hello"):
    return raw(b"Content-Length: " + value + b"\r\n", body)


def coding(value, body=HELLO):
    return raw(b"Transfer-Encoding: " + value + b"\r\n", body)


def chunks(data):
    return raw(CHUNKED, data)


def trailer(line):
    return raw(CHUNKED, b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n")


def field(line):
    return raw(line + b"\r\n", method=b"GET")


def target(path, method=b"GET"):
    return raw(target=path, method=method)


def host(value):
    return raw(method=b"GET", host=b"Host: " + value + b"\r\n")


def start(line, after=HOST + b"\r\n"):
    return line + b"\r\n" + after


def both(first, second, body):
    return raw(first + b"\r\n" + second + b"\r\n", body)


def rows(want, builder, prefix, table, **more):
    """One case a row of `table`: {name: bytes}."""
    return [Case(f"{prefix}-{name}", builder(value), want, **more) for name, value in table.items()]


CL5, CL0, TE = b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked"

CASES = [
    # ── 9112 §6.1, §6.3: Content-Length and Transfer-Encoding together ──
    Case("9112-6.3-cl-te-zero-chunk", both(CL5, TE, b"0\r\n\r\n"), EITHER, closes=True),
    Case("9112-6.3-te-cl-zero-chunk", both(TE, CL5, b"0\r\n\r\n"), EITHER, closes=True),
    Case("9112-6.3-cl-te-hello", both(CL5, TE, HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-te-cl-hello", both(TE, CL5, HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-cl0-te", both(CL0, TE, HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-te-cl0", both(TE, CL0, HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-cl-covers-smuggled", both(b"Content-Length: 57", TE, b"0\r\n\r\n" + SMUGGLED), EITHER, closes=True),
    Case("9112-6.3-te-covers-smuggled", both(TE, b"Content-Length: 4", b"37\r\n" + SMUGGLED.ljust(55) + b"\r\n0\r\n\r\n"),
         EITHER, SMUGGLED.ljust(55), closes=True),
    Case("9112-6.3-cl-of-whole-chunked-text", both(b"Content-Length: 15", TE, HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-te-between-two-cl", raw(CL5 + b"\r\n" + CHUNKED + CL5 + b"\r\n", HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-lower-case-both", both(CL5.lower(), TE.lower(), HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-cl-te-get", raw(CL5 + b"\r\n" + CHUNKED, HELLO, method=b"GET"), EITHER, b"hello", closes=True),
    Case("9112-6.3-cl-te-head", raw(CL5 + b"\r\n" + CHUNKED, HELLO, method=b"HEAD"), EITHER, b"hello", closes=True),
    Case("9112-6.3-cl-te-delete", raw(CL5 + b"\r\n" + CHUNKED, HELLO, method=b"DELETE"), EITHER, b"hello", closes=True),
    Case("9112-6.3-bad-cl-then-te", both(b"Content-Length: x", TE, HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-te-then-bad-cl", both(TE, b"Content-Length: x", HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-negative-cl-then-te", both(b"Content-Length: -1", TE, HELLO), EITHER, b"hello", closes=True),
    Case("9112-6.3-cl-te-identity", both(CL5, b"Transfer-Encoding: identity", b"hello"), REFUSED),
    Case("9112-6.3-te-identity-cl", both(b"Transfer-Encoding: identity", CL5, b"hello"), REFUSED),
    Case("9112-6.3-cl-te-empty", both(CL5, b"Transfer-Encoding:", b"hello"), REFUSED),
    Case("9112-6.3-cl-te-xchunked", both(CL5, b"Transfer-Encoding: xchunked", b"hello"), REFUSED),
    Case("9112-6.3-cl-te-gzip", both(CL5, b"Transfer-Encoding: gzip", b"hello"), REFUSED),
    Case("9112-6.3-cl-te-list", both(CL5, b"Transfer-Encoding: gzip, chunked", HELLO), REFUSED),
    Case("9112-6.3-cl-te-space-colon", both(CL5, b"Transfer-Encoding : chunked", b"hello"), REFUSED),
    Case("9112-6.3-cl-te-folded", both(CL5, b"Transfer-Encoding:\r\n chunked", HELLO), REFUSED),
    Case("9112-6.3-cl-te-http10", raw(CL5 + b"\r\n" + CHUNKED, HELLO, version=b"HTTP/1.0"), REFUSED),
    Case("9112-6.3-cl-te-underscore", both(CL5, b"Transfer_Encoding: chunked", b"hello"), OK, b"hello"),
    Case("9112-6.3-cl-and-te-field", both(CL5, b"TE: chunked", b"hello"), OK, b"hello"),
    Case("9112-6.3-connection-names-te", both(b"Connection: transfer-encoding", TE, HELLO), EITHER, b"hello"),
    Case("9112-6.3-connection-names-cl", both(b"Connection: content-length", CL5, b"hello"), EITHER, b"hello"),
    Case("9112-6.3-connection-names-host", both(b"Connection: host", CL5, b"hello"), EITHER, b"hello"),

    # ── 9112 §6.1: Transfer-Encoding that is not exactly `chunked` ──
    *rows(REFUSED, coding, "9112-6.1-te", {
        "twice-in-list": b"chunked, chunked", "twice-no-space": b"chunked,chunked", "identity": b"identity",
        "identity-chunked": b"identity, chunked", "chunked-identity": b"chunked, identity", "gzip-chunked": b"gzip, chunked",
        "chunked-gzip": b"chunked, gzip", "gzip": b"gzip", "deflate-chunked": b"deflate, chunked",
        "compress-chunked": b"compress, chunked", "x-gzip": b"x-gzip", "cow-chunked": b"cow, chunked",
        "xchunked": b"xchunked", "chunkedx": b"chunkedx", "chunke": b"chunke", "chunked-word": b"chunked x",
        "word-chunked": b"x chunked", "quoted": b'"chunked"', "single-quoted": b"'chunked'", "parameter": b"chunked;q=1",
        "parameter-spaced": b"chunked ; a=b", "trailing-comma": b"chunked,", "trailing-comma-space": b"chunked, ",
        "leading-comma": b",chunked", "leading-comma-space": b", chunked", "only-comma": b",", "empty": b"", "null": b"null",
        "zero": b"0", "chunked-zero": b"chunked, 0", "trailers": b"trailers", "split-tab": b"chun\tked", "dash": b"chunked-",
        "vertical-tab": b"\x0bchunked", "form-feed": b"\x0cchunked", "vertical-tab-after": b"chunked\x0b",
        "nul-before": b"\0chunked", "nul-after": b"chunked\0", "nbsp": b"\xa0chunked", "nel": b"\x85chunked",
        "bom": b"\xef\xbb\xbfchunked", "kelvin-sign": "chun\u212aed".encode(), "bare-cr": b"\rchunked", "colon": b": chunked",
    }),
    *rows(EITHER, coding, "9112-6.1-te", {
        "tab-before": b"\tchunked", "tab-after": b"chunked\t", "spaces": b"   chunked   ", "capital": b"Chunked",
        "upper": b"CHUNKED", "mixed": b"cHuNkEd",
    }, body=b"hello"),
    *rows(REFUSED, lambda lines: raw(lines + b"\r\n", HELLO), "9112-6.1-te-lines", {
        "chunked-chunked": TE + b"\r\n" + TE, "chunked-identity": TE + b"\r\nTransfer-Encoding: identity",
        "identity-chunked": b"Transfer-Encoding: identity\r\n" + TE, "chunked-empty": TE + b"\r\nTransfer-Encoding:",
        "empty-chunked": b"Transfer-Encoding:\r\n" + TE, "chunked-cow": TE + b"\r\nTransfer-encoding: cow",
        "cow-chunked": b"Transfer-Encoding: cow\r\n" + TE, "gzip-chunked": b"Transfer-Encoding: gzip\r\n" + TE,
        "folded": b"Transfer-Encoding:\r\n chunked", "folded-tab": b"Transfer-Encoding:\r\n\tchunked",
        "folded-list": TE + b"\r\n , identity", "leading-space": b" " + TE, "space-colon": b"Transfer-Encoding : chunked",
        "tab-colon": b"Transfer-Encoding\t: chunked", "space-in-name": b"Transfer Encoding: chunked\r\n" + TE,
        "nul-in-name": b"Transfer-Encoding\0: chunked", "after-bare-cr": b"X: y\r" + TE,
    }),
    Case("9112-6.1-te-after-bare-lf", raw(b"X: y\n" + CHUNKED, HELLO), EITHER, b"hello"),
    Case("9112-6.1-te-bare-lf-end", raw(TE + b"\n", HELLO), EITHER, b"hello"),
    Case("9112-6.1-te-http10", raw(CHUNKED, HELLO, version=b"HTTP/1.0"), REFUSED),
    Case("9112-6.1-te-http10-keep-alive", raw(CHUNKED + b"Connection: keep-alive\r\n", HELLO, version=b"HTTP/1.0"), REFUSED),
    Case("9112-6.1-te-get", raw(CHUNKED, HELLO, method=b"GET"), OK, b"hello"),
    Case("9112-6.1-te-head", raw(CHUNKED, HELLO, method=b"HEAD"), OK, b"hello"),
    Case("9112-6.1-te-delete", raw(CHUNKED, HELLO, method=b"DELETE"), OK, b"hello"),
    Case("9112-6.1-te-options", raw(CHUNKED, HELLO, method=b"OPTIONS"), OK, b"hello"),
    Case("9112-6.1-te-no-space", raw(b"Transfer-Encoding:chunked\r\n", HELLO), OK, b"hello"),
    Case("9112-6.1-te-shouted-name", raw(b"TRANSFER-ENCODING: chunked\r\n", HELLO), OK, b"hello"),

    # ── 9110 §8.6: forms of Content-Length ──
    *rows(REFUSED, length, "9110-8.6-cl", {
        "plus": b"+5", "minus": b"-5", "minus-zero": b"-0", "plus-zero": b"+0", "hex": b"0x5", "octal": b"0o5", "float": b"5.0",
        "exponent": b"5e0", "two-words": b"5 5", "quoted": b'"5"', "single-quoted": b"'5'", "empty": b"", "word": b"five",
        "semicolon": b"5;", "parameter": b"5;a=b", "underscore": b"0_5", "list-differs": b"5, 6", "list-empty-end": b"5, ",
        "list-empty-start": b", 5", "only-comma": b",", "arabic-digit": "\u0665".encode(), "wide-digit": "\uff15".encode(),
        "superscript": b"\xb2", "nul": b"5\0", "vertical-tab": b"\x0b5", "form-feed": b"5\x0c", "letters": b"5abc",
        "newline-word": b"\r5", "overflow-64": b"18446744073709551616", "wraps-to-five": b"18446744073709551621",
        "twenty-nines": b"9" * 20, "hundred-nines": b"9" * 100, "thousands": b"1,000",
    }),
    *rows(EITHER, length, "9110-8.6-cl", {
        "list-same": b"5,5", "list-same-spaced": b"5, 5", "leading-zero": b"05", "leading-zeros": b"0" * 30 + b"5",
    }, body=b"hello"),
    *rows(OK, length, "9110-8.6-cl", {"plain": b"5", "spaces": b"   5   ", "tabs": b"\t5\t"}, body=b"hello"),
    *rows(REJECTED, length, "9110-8.6-cl", {
        "max-signed": b"9223372036854775807", "over-signed": b"9223372036854775808", "max-unsigned": b"18446744073709551615",
        "four-gib-and-five": b"4294967301",
    }),
    *rows(REFUSED, lambda lines: raw(lines + b"\r\n", b"hello"), "9110-8.6-cl-lines", {
        "differ": CL5 + b"\r\nContent-Length: 6", "differ-zero-first": CL0 + b"\r\n" + CL5, "differ-zero-last": CL5 + b"\r\n" + CL0,
        "empty-second": CL5 + b"\r\nContent-Length:", "word-second": CL5 + b"\r\nContent-Length: x",
        "space-colon": b"Content-Length : 5", "tab-colon": b"Content-Length\t: 5", "leading-space": b" " + CL5,
        "folded": b"Content-Length:\r\n 5", "folded-second-number": CL5 + b"\r\n 5", "nul-in-name": b"Content-Length\0: 5",
        "three-differ": CL5 + b"\r\n" + CL5 + b"\r\nContent-Length: 4",
    }),
    *rows(EITHER, lambda lines: raw(lines + b"\r\n", b"hello"), "9110-8.6-cl-lines", {
        "same": CL5 + b"\r\n" + CL5, "same-case": CL5 + b"\r\n" + CL5.lower(), "same-by-value": CL5 + b"\r\nContent-Length: 05",
        "three-same": CL5 + b"\r\n" + CL5 + b"\r\n" + CL5, "after-bare-lf": b"X: y\n" + CL5, "bare-lf-end": CL5 + b"\nX: y",
    }, body=b"hello"),
    Case("9110-8.6-cl-underscore-name", raw(b"Content_Length: 3\r\n" + CL5 + b"\r\n", b"hello"), OK, b"hello"),
    Case("9110-8.6-cl-no-space", raw(b"Content-Length:5\r\n", b"hello"), OK, b"hello"),
    Case("9110-8.6-cl-get", raw(CL5 + b"\r\n", b"hello", method=b"GET"), OK, b"hello"),
    Case("9110-8.6-cl-head", raw(CL5 + b"\r\n", b"hello", method=b"HEAD"), OK, b"hello"),
    Case("9110-8.6-cl-looks-like-request", raw(b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED), OK, SMUGGLED),
    Case("9110-8.6-no-length-post", raw(), OK),
    Case("9110-8.6-cl-zero-post", raw(CL0 + b"\r\n"), OK),

    # ── 9112 §7.1: chunks ──
    *rows(OK, chunks, "9112-7.1-chunk", {
        "plain": HELLO, "two": b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "bytes": b"".join(b"1\r\n%c\r\n" % c for c in b"hello") + b"0\r\n\r\n",
        "last-extension": b"5\r\nhello\r\n0;a=b\r\n\r\n",
    }, body=b"hello"),
    Case("9112-7.1-chunk-hex-lower", chunks(b"a\r\n0123456789\r\n0\r\n\r\n"), OK, b"0123456789"),
    Case("9112-7.1-chunk-hex-upper", chunks(b"A\r\n0123456789\r\n0\r\n\r\n"), OK, b"0123456789"),
    Case("9112-7.1-chunk-crlf-data", chunks(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), OK, b"\r\n\r\n"),
    Case("9112-7.1-chunk-empty", chunks(b"0\r\n\r\n"), OK),
    *rows(EITHER, chunks, "9112-7.1-chunk", {
        "leading-zero": b"05\r\nhello\r\n0\r\n\r\n", "leading-zeros": b"0000000005\r\nhello\r\n0\r\n\r\n",
        "many-leading-zeros": b"0" * 40 + b"5\r\nhello\r\n0\r\n\r\n", "space-after-size": b"5 \r\nhello\r\n0\r\n\r\n",
        "tab-after-size": b"5\t\r\nhello\r\n0\r\n\r\n", "double-zero-end": b"5\r\nhello\r\n00\r\n\r\n",
        "space-after-zero": b"5\r\nhello\r\n0 \r\n\r\n",
    }, body=b"hello"),
    *rows(EITHER, lambda extension: chunks(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n"), "9112-7.1.1-extension", {
        "name": b";a", "value": b";a=b", "quoted": b';a="b"', "quoted-semicolon": b';a="b;c"', "spaced": b" ; a = b", "empty": b";",
        "two-empty": b";;", "no-name": b";=b", "two": b";a=b;c=d", "one-kib": b";a=" + b"x" * 1024, "unended-quote": b';a="b',
        "high-bytes": b";a=\xff", "escaped-quote": b';a="\\""',
    }, body=b"hello"),
    *rows(REFUSED, lambda extension: chunks(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n"), "9112-7.1.1-extension", {
        "bare-lf": b";a\n", "bare-lf-chunk": b";\n5\r\nhello\r\n0\r\n\r\n" + SMUGGLED, "quoted-bare-lf": b';a="\n"',
        "bare-cr": b";a\rb", "64-kib": b";a=" + b"x" * 65536,
    }),
    *rows(REFUSED, chunks, "9112-7.1-chunk", {
        "space-before-size": b" 5\r\nhello\r\n0\r\n\r\n", "tab-before-size": b"\t5\r\nhello\r\n0\r\n\r\n",
        "hex-prefix": b"0x5\r\nhello\r\n0\r\n\r\n", "plus": b"+5\r\nhello\r\n0\r\n\r\n", "minus": b"-5\r\nhello\r\n0\r\n\r\n",
        "minus-zero": b"-0\r\n\r\n", "not-hex": b"g\r\nhello\r\n0\r\n\r\n", "trailing-letter": b"5h\r\nhello\r\n0\r\n\r\n",
        "no-size": b"\r\nhello\r\n0\r\n\r\n", "only-extension": b";a=b\r\nhello\r\n0\r\n\r\n", "comma": b"5,\r\nhello\r\n0\r\n\r\n",
        "underscore": b"0_5\r\nhello\r\n0\r\n\r\n", "dot": b"5.0\r\nhello\r\n0\r\n\r\n", "quoted": b'"5"\r\nhello\r\n0\r\n\r\n',
        "arabic-digit": "\u0665\r\nhello\r\n0\r\n\r\n".encode(), "nul-after-size": b"5\0\r\nhello\r\n0\r\n\r\n",
        "overflow-17-digits": b"10000000000000000\r\nhello\r\n0\r\n\r\n", "wraps-to-five": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "overflow-many": b"f" * 64 + b"\r\nhello\r\n0\r\n\r\n", "two-sizes": b"5 5\r\nhello\r\n0\r\n\r\n",
        "size-bare-lf": b"5\nhello\r\n0\r\n\r\n", "size-bare-cr": b"5\rhello\r\n0\r\n\r\n", "size-cr-cr-lf": b"5\r\r\nhello\r\n0\r\n\r\n",
        "size-lf-cr": b"5\n\rhello\r\n0\r\n\r\n", "no-crlf-after-data": b"5\r\nhello0\r\n\r\n", "lf-after-data": b"5\r\nhello\n0\r\n\r\n",
        "cr-after-data": b"5\r\nhello\r0\r\n\r\n", "junk-after-data": b"5\r\nhelloXX0\r\n\r\n", "data-short": b"6\r\nhello\r\n0\r\n\r\n",
        "data-long": b"4\r\nhello\r\n0\r\n\r\n", "two-crlf-after-data": b"5\r\nhello\r\n\r\n0\r\n\r\n",
        "last-bare-lf": b"5\r\nhello\r\n0\n\r\n", "last-then-junk": b"5\r\nhello\r\n0\r\nXX\r\n\r\n",
        "max-unsigned": b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", "max-signed": b"7fffffffffffffff\r\nhello\r\n0\r\n\r\n",
    }),
    Case("9112-7.1-chunk-final-bare-lf", chunks(b"5\r\nhello\r\n0\r\n\n"), EITHER, b"hello"),

    # ── 9112 §7.1.2, 9110 §6.5: trailers ──
    *rows(OK, trailer, "9112-7.1.2-trailer", {"plain": b"X-Sum: 1", "two": b"X-Sum: 1\r\nX-Other: 2", "empty-value": b"X-Sum:"}, body=b"hello"),
    *rows(EITHER, trailer, "9110-6.5.1-trailer", {
        "te": TE, "te-identity": b"Transfer-Encoding: identity", "cl": b"Content-Length: 50", "host": b"Host: other.hooks.test",
        "authorization": b"Authorization: Basic eA==", "cookie": b"Cookie: a=b", "set-cookie": b"Set-Cookie: a=b",
        "content-type": b"Content-Type: text/html", "content-encoding": b"Content-Encoding: gzip", "connection": b"Connection: close",
        "forwarded-for": b"X-Forwarded-For: 6.6.6.6", "trailer": b"Trailer: x", "delivery": b"Hookway-Delivery: req_forged",
        "expect": b"Expect: 100-continue", "upgrade": b"Upgrade: websocket", "te-field": b"TE: trailers", "cl-negative": b"Content-Length: -1",
    }, body=b"hello"),
    *rows(REFUSED, trailer, "9112-7.1.2-trailer", {
        "folded": b"X: y\r\n z", "leading-space": b" X: y", "no-colon": b"XY", "space-colon": b"X : y", "empty-name": b": y",
        "nul-value": b"X: y\0", "nul-name": b"X\0: y", "control": b"X: \x01", "bare-cr": b"X: y\rz", "escape": b"X: \x1b[2J",
        "128-kib": b"X: " + b"y" * 131072, "thousands": b"\r\n".join(b"X-%d: y" % n for n in range(5000)),
    }),

    # ── 9112 §5: field lines ──
    *rows(REFUSED, field, "9112-5.2-fold", {
        "space": b"X: a\r\n b", "tab": b"X: a\r\n\tb", "twice": b"X: a\r\n b\r\n c", "only-space": b"X: a\r\n ",
        "only-tab": b"X: a\r\n\t", "of-empty": b"X:\r\n b", "looks-like-field": b"X: a\r\n Content-Length: 5",
    }),
    *rows(REFUSED, lambda line: raw(method=b"GET", host=line), "9112-5.2-first", {
        "space": b" X: y\r\n" + HOST, "tab": b"\tX: y\r\n" + HOST, "space-host": b" " + HOST, "spaces-only": b"  \r\n" + HOST,
    }),
    *rows(REFUSED, field, "9112-5.1-name", {
        "space-colon": b"X : y", "tab-colon": b"X\t: y", "empty": b": y", "no-colon": b"XY", "space-inside": b"X Y: z", "nul": b"X\0Y: z",
        "control": b"X\x01: y", "escape": b"\x1bX: y", "delete": b"X\x7f: y", "high": b"X\xff: y", "utf8": "Ü: y".encode(), "paren": b"X(Y): z",
        "at": b"X@Y: z", "slash": b"X/Y: z", "brace": b"X{Y}: z", "bracket": b"X[0]: z", "equals": b"X=Y: z", "comma": b"X,Y: z",
        "semicolon": b"X;Y: z", "less": b"X<Y: z", "backslash": b"X\\Y: z", "quote": b'"X": y', "question": b"X?: y", "bare-cr": b"X\rY: z",
    }),
    *rows(REFUSED, field, "9110-5.5-value", {
        "nul": b"X: a\0b", "soh": b"X: \x01", "bell": b"X: \x07", "backspace": b"X: \x08", "vertical-tab": b"X: a\x0bb",
        "form-feed": b"X: a\x0cb", "escape": b"X: \x1b]8;;http://evil\x07", "unit-separator": b"X: \x1f", "delete": b"X: \x7f",
        "bare-cr": b"X: a\rb", "cr-at-end": b"X: a\r", "cr-field": b"X: a\rContent-Length: 5", "lf-word": b"X: a\nb", "nul-start": b"X:\0",
    }),
    *rows(OK, field, "9110-5.5-value", {
        "empty": b"X:", "spaces": b"X:    ", "tab-inside": b"X: a\tb", "utf8": "X: grüße ✓".encode(), "high": b"X: \x80\xff",
        "no-space": b"X:y", "token-name": b"!#$%&'*+-.^_`|~09aZ: y", "colons": b"X: a:b:c", "quote": b'X: "a\\"b', "eight-kb": b"X: " + b"y" * 8000,
    }),
    Case("9112-2.2-lf-field", field(b"X: a\nY: b"), EITHER),
    Case("9112-5-underscore-name", field(b"X_Y: z"), OK),
    Case("9112-5-sixty-fields", field(b"\r\n".join(b"X-%d: y" % n for n in range(60))), OK),

    # ── 9112 §2.2: line ends, what stands before a request ──
    Case("9112-2.2-leading-crlf", b"\r\n" + raw(method=b"GET"), EITHER),
    Case("9112-2.2-leading-two-crlf", b"\r\n\r\n" + raw(method=b"GET"), EITHER),
    Case("9112-2.2-leading-lf", b"\n" + raw(method=b"GET"), EITHER),
    Case("9112-2.2-leading-space", b" " + raw(method=b"GET"), REFUSED),
    Case("9112-2.2-leading-tab", b"\t" + raw(method=b"GET"), REFUSED),
    Case("9112-2.2-leading-nul", b"\0" + raw(method=b"GET"), REFUSED),
    Case("9112-2.2-leading-bom", b"\xef\xbb\xbf" + raw(method=b"GET"), REFUSED),
    Case("9112-2.2-leading-cr", b"\r" + raw(method=b"GET"), REFUSED),
    Case("9112-2.2-all-lf", raw(method=b"GET").replace(b"\r\n", b"\n"), EITHER),
    Case("9112-2.2-head-ends-lf-lf", raw(method=b"GET")[:-4] + b"\n\n", EITHER),
    Case("9112-2.2-head-ends-crlf-lf", raw(method=b"GET")[:-2] + b"\n", EITHER),
    Case("9112-2.2-request-line-lf", b"GET /case HTTP/1.1\n" + HOST + b"\r\n", EITHER),
    Case("9112-2.2-request-line-cr", b"GET /case HTTP/1.1\r" + HOST + b"\r\n", REFUSED),
    Case("9112-2.2-request-line-cr-cr-lf", b"GET /case HTTP/1.1\r\r\n" + HOST + b"\r\n", REFUSED),
    Case("9112-2.2-host-cr-cr-lf", b"GET /case HTTP/1.1\r\nHost: " + NAME + b"\r\r\n\r\n", REFUSED),
    Case("9112-2.2-lf-body", raw(CL5 + b"\r\n", b"hello").replace(b"\r\n", b"\n"), EITHER, b"hello"),

    # ── 9112 §3: the request line ──
    *rows(REFUSED, start, "9112-3-line", {
        "two-spaces-first": b"GET  /case HTTP/1.1", "two-spaces-second": b"GET /case  HTTP/1.1", "tab-first": b"GET\t/case HTTP/1.1",
        "tab-second": b"GET /case\tHTTP/1.1", "trailing-space": b"GET /case HTTP/1.1 ", "extra-word": b"GET /case HTTP/1.1 x",
        "space-in-target": b"GET /ca se HTTP/1.1", "no-version": b"GET /case", "no-target": b"GET HTTP/1.1", "only-method": b"GET",
        "empty-target": b"GET  HTTP/1.1", "vertical-tab": b"GET\x0b/case HTTP/1.1", "nul-space": b"GET\0/case HTTP/1.1",
        "no-method": b" /case HTTP/1.1", "garbage": b"\x16\x03\x01\x02\x00\x01\x00",
    }),
    *rows(REFUSED, lambda version: raw(method=b"GET", version=version), "9112-2.3-version", {
        "2.0": b"HTTP/2.0", "3.0": b"HTTP/3.0", "0.9": b"HTTP/0.9", "two-digits": b"HTTP/1.10", "leading-zero": b"HTTP/01.1",
        "no-minor": b"HTTP/1", "no-number": b"HTTP/", "space": b"HTTP/ 1.1", "space-before-slash": b"HTTP /1.1", "letter": b"HTTP/1.1x",
        "minus": b"HTTP/-1.1", "comma": b"HTTP/1,1", "lower": b"http/1.1", "https": b"HTTPS/1.1", "other": b"ICAP/1.0", "9.9": b"HTTP/9.9",
    }),
    Case("9112-2.3-version-1.2", raw(method=b"GET", version=b"HTTP/1.2"), EITHER),
    Case("9112-2.3-version-1.0", raw(method=b"GET", version=b"HTTP/1.0"), OK),
    Case("9112-2.3-version-1.0-body", raw(CL5 + b"\r\n", b"hello", version=b"HTTP/1.0"), OK, b"hello"),
    Case("9112-2.3-version-1.0-no-host", raw(method=b"GET", version=b"HTTP/1.0", host=b""), REFUSED),
    Case("9113-3.4-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REFUSED),
    *rows(REFUSED, lambda method: raw(method=method), "9110-9.1-method", {
        "nul": b"G\0T", "control": b"G\x01T", "paren": b"(GET)", "quote": b'"GET"', "brace": b"{GET}", "colon": b"GET:", "comma": b"GET,",
        "slash": b"GE/T", "at": b"G@T", "high": b"G\xffT", "delete": b"GET\x7f", "escape": b"\x1bGET", "bare-cr": b"GE\rT",
    }),
    Case("9110-9.1-method-huge", raw(method=b"A" * 100_000), REFUSED),
    *rows(EITHER, lambda method: raw(method=method), "9110-9.1-method", {
        "lower": b"get", "custom": b"PURGE", "webdav": b"PROPFIND", "dash": b"M-SEARCH", "token-signs": b"!#$", "trace": b"TRACE",
    }),
    *rows(OK, lambda method: raw(method=method), "9110-9.3-method", {"put": b"PUT", "patch": b"PATCH", "delete": b"DELETE", "options": b"OPTIONS"}),

    # ── 9112 §3.2: the request target ──
    *[
        Case(f"9112-3.2.1-target-{name}", target(path), EITHER, target=path.decode("latin-1"))
        for name, path in {
            "double-slash": b"//evil.example/case", "triple-slash": b"///case", "dots": b"/a/../case", "dot": b"/./case",
            "dots-semicolon": b"/..;/case", "encoded-dots": b"/%2e%2e/case", "encoded-slash": b"/a%2fcase", "encoded-nul": b"/%00",
            "encoded-crlf": b"/%0d%0aX:%20y", "bad-percent": b"/%zz", "lone-percent": b"/%", "double-encoded": b"/%252e", "at": b"/@evil.example",
            "backslash": b"/\\evil.example", "quote": b'/"', "less": b"/<b>", "caret": b"/^", "backtick": b"/`", "braces": b"/{x}", "pipe": b"/|",
            "query-only-mark": b"/case?", "query-twice": b"/case??a=b", "query-slash": b"/?/../case", "query-url": b"/?u=http://evil.example/",
            "semicolon": b"/case;a=b", "colon": b"/a:b", "brackets": b"/[x]", "utf8": "/grüße".encode(), "high": b"/\xff", "plus": b"/a+b",
            "eight-kib": b"/" + b"a" * 8000, "tilde": b"/~", "star": b"/*", "trailing-dot": b"/case.", "encoded-space": b"/a%20b",
        }.items()
    ],
    Case("9112-3.2.1-target-fragment", target(b"/case#fragment"), EITHER, target=...),
    *rows(REFUSED, target, "9112-3.2.1-target", {
        "nul": b"/a\0b", "control": b"/a\x01b", "escape": b"/\x1b[2J", "delete": b"/a\x7fb", "tab": b"/a\tb", "bare-cr": b"/a\rb",
        "vertical-tab": b"/a\x0bb", "cr-injection": b"/a\rX: y",
    }),
    *rows(REJECTED, target, "9112-3.2-target", {
        "no-slash": b"case", "at-host": b"@evil.example/", "backslash-host": b"\\\\evil.example\\", "query-alone": b"?a=b",
        "host-port": NAME + b":443", "scheme-only": b"http:", "one-slash": b"http:/case", "dot": b"./case", "star": b"*", "semicolon": b";/case",
        "huge": b"/" + b"a" * 100_000,
    }),
    Case("9112-3.2.4-options-star", target(b"*", b"OPTIONS"), EITHER, target=...),
    Case("9112-3.2.4-post-star", target(b"*", b"POST"), REJECTED),
    *rows(OK, target, "9112-3.2.2-absolute", {
        "https": b"https://" + NAME + b"/case", "upper": b"HTTPS://" + NAME.upper() + b"/case", "port": b"https://" + NAME + b":443/case",
        "dot": b"https://" + NAME + b"./case",
    }),
    Case("9112-3.2.2-absolute-http", target(b"http://" + NAME + b"/case"), EITHER),
    Case("9112-3.2.2-absolute-no-path", target(b"https://" + NAME), EITHER, target="/"),
    *rows(REJECTED, target, "9112-3.2.2-absolute", {
        "other-endpoint": b"https://other.hooks.test/case", "foreign": b"https://evil.example/case", "foreign-http": b"http://evil.example/case",
        "metadata": b"http://169.254.169.254/latest/meta-data/", "loopback": b"http://127.0.0.1/case", "userinfo": b"https://user@" + NAME + b"/case",
        "userinfo-password": b"https://user:pw@" + NAME + b"/case", "as-userinfo": b"https://" + NAME + b"@evil.example/case",
        "no-host": b"https:///case", "bad-port": b"https://" + NAME + b":x/case", "big-port": b"https://" + NAME + b":70000/case",
        "backslash": b"https://" + NAME + b"\\@evil.example/case", "space": b"https://evil .example/", "bare-domain": b"https://hooks.test/case",
        "domain-suffix": b"https://" + NAME + b".evil.example/", "file": b"file:///etc/passwd", "gopher": b"gopher://evil.example/",
    }),
    Case("9112-3.2.2-host-disagrees", raw(method=b"GET", target=b"https://" + NAME + b"/case", host=b"Host: other.hooks.test\r\n"), REJECTED),
    Case("9112-3.2.2-no-host", raw(method=b"GET", target=b"https://" + NAME + b"/case", host=b""), REFUSED),
    *rows(REJECTED, lambda where: target(where, b"CONNECT"), "9110-9.3.6-connect", {
        "own": NAME + b":443", "foreign": b"evil.example:443", "metadata": b"169.254.169.254:80", "path": b"/case", "absolute": b"https://" + NAME + b"/",
        "no-port": NAME, "loopback": b"127.0.0.1:22", "star": b"*",
    }),
    Case("9110-9.3.6-connect-body", raw(CL5 + b"\r\n", b"hello", method=b"CONNECT", target=NAME + b":443"), REJECTED),
    Case("9110-9.3.6-connect-smuggled", target(NAME + b":443", b"CONNECT") + SMUGGLED, REFUSED),

    # ── 9112 §3.2, 9110 §7.2: Host ──
    Case("9112-3.2-host-missing", raw(method=b"GET", host=b""), REFUSED),
    Case("9112-3.2-host-x-host-only", raw(method=b"GET", host=b"X-Host: " + NAME + b"\r\n"), REFUSED),
    Case("9112-3.2-host-twice", raw(method=b"GET", host=HOST + HOST), REFUSED),
    Case("9112-3.2-host-twice-differ", raw(method=b"GET", host=HOST + b"Host: other.hooks.test\r\n"), REFUSED),
    Case("9112-3.2-host-twice-differ-last", raw(method=b"GET", host=b"Host: other.hooks.test\r\n" + HOST), REFUSED),
    Case("9112-3.2-host-twice-empty", raw(method=b"GET", host=HOST + b"Host:\r\n"), REFUSED),
    Case("9112-3.2-host-twice-case", raw(method=b"GET", host=HOST + HOST.lower()), REFUSED),
    Case("9112-3.2-host-space-colon", raw(method=b"GET", host=b"Host : " + NAME + b"\r\n"), REFUSED),
    Case("9112-3.2-host-no-colon", raw(method=b"GET", host=b"Host " + NAME + b"\r\n"), REFUSED),
    Case("9112-3.2-host-folded", raw(method=b"GET", host=b"Host:\r\n " + NAME + b"\r\n"), REFUSED),
    Case("9112-3.2-host-last-field", raw(b"X: y\r\n", method=b"GET", host=b"") [:-2] + HOST + b"\r\n", OK),
    *rows(REFUSED, host, "9110-7.2-host", {
        "empty": b"", "spaces": b"   ", "list": NAME + b", evil.example", "list-same": NAME + b", " + NAME, "comma": NAME + b",",
        "space-inside": b"billing .hooks.test", "two-words": NAME + b" evil.example", "userinfo": b"user@" + NAME, "password": b"u:p@" + NAME,
        "as-userinfo": NAME + b"@evil.example", "port-word": NAME + b":x", "port-big": NAME + b":70000", "port-minus": NAME + b":-1",
        "port-plus": NAME + b":+443", "port-hex": NAME + b":0x1bb", "port-twice": NAME + b":443:443", "port-at": NAME + b":443@evil.example",
        "path": NAME + b"/x", "query": NAME + b"?x", "fragment": NAME + b"#x", "backslash": NAME + b"\\x", "scheme": b"https://" + NAME,
        "bracket": b"[" + NAME + b"]", "open-bracket": b"[::1", "nul": NAME + b"\0", "nul-inside": b"billing\0.hooks.test",
        "tab-inside": b"billing\t.hooks.test", "utf8": "bílling.hooks.test".encode(), "high": b"billing\xff.hooks.test", "quote": b'"' + NAME + b'"',
        "semicolon": NAME + b";evil", "less": b"<" + NAME + b">", "pipe": NAME + b"|x", "bare-cr": NAME + b"\rx", "escape": NAME + b"\x1b[2J",
        "long": b"a" * 300 + b".hooks.test", "two-dots": b"billing..hooks.test", "leading-dot": b"." + NAME, "only-port": b":443", "only-dot": b".",
    }),
    *rows(REJECTED, host, "9110-7.2-host", {
        "other": b"other.hooks.test", "bare-domain": b"hooks.test", "foreign": b"evil.example", "suffix": NAME + b".evil.example",
        "prefix": b"x." + NAME, "wildcard": b"*.hooks.test", "percent": b"billing%2ehooks.test", "address": b"127.0.0.1", "v6": b"[::1]",
        "localhost": b"localhost", "two-end-dots": NAME + b"..", "long-label": b"b" * 64 + b".hooks.test",
    }),
    *rows(OK, host, "9110-7.2-host", {
        "upper": NAME.upper(), "mixed": b"BiLLing.HooKs.tesT", "dot": NAME + b".", "port": NAME + b":443", "spaces-round": b"  " + NAME + b"  ",
        "dot-port": NAME + b".:8443",
    }),
    Case("9110-7.2-host-empty-port", host(NAME + b":"), EITHER),

    # ── limits (9110 §5.4, §4.1) ──
    Case("9110-5.4-value-128-kib", field(b"X: " + b"y" * 131072), REJECTED),
    Case("9110-5.4-name-128-kib", field(b"X" * 131072 + b": y"), REJECTED),
    Case("9110-5.4-thousand-fields", field(b"\r\n".join(b"X-%d: y" % n for n in range(1000))), REJECTED),
    Case("9110-5.4-head-256-kib", field(b"\r\n".join(b"X-%d: %s" % (n, b"y" * 4000) for n in range(64))), REJECTED),
    Case("9110-4.1-target-1-mib", target(b"/" + b"a" * (1 << 20)), REJECTED),

    # ── 9110 §7.6, §7.8, §10.1: hop-by-hop, upgrades, expectations ──
    *rows(OK, lambda lines: raw(lines + b"\r\n" + CL5 + b"\r\n", b"hello"), "9110-7.6.1-connection", {
        "close": b"Connection: close", "keep-alive": b"Connection: keep-alive", "empty-items": b"Connection: , ,keep-alive,,",
        "names-field": b"Connection: x-secret\r\nX-Secret: 1", "names-itself": b"Connection: connection", "proxy": b"Proxy-Connection: keep-alive",
        "keep-alive-field": b"Keep-Alive: timeout=5, max=1000", "trailer": b"Trailer: content-length", "te-trailers": b"TE: trailers",
    }, body=b"hello"),
    *rows(EITHER, lambda lines: raw(lines + b"\r\n" + CL5 + b"\r\n", b"hello"), "9110-7.6.1-connection", {
        "not-token": b"Connection: (x)", "names-delivery": b"Connection: close, hookway-delivery", "names-forwarded": b"Connection: x-forwarded-for",
        "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        "tls": b"Connection: Upgrade\r\nUpgrade: TLS/1.3", "upgrade-without-connection": b"Upgrade: websocket",
    }, body=b"hello"),
    Case("9110-10.1.1-expect-continue", raw(b"Expect: 100-continue\r\n" + CL5 + b"\r\n", b"hello"), OK, b"hello"),
    Case("9110-10.1.1-expect-upper", raw(b"EXPECT: 100-CONTINUE\r\n" + CL5 + b"\r\n", b"hello"), EITHER, b"hello"),
    Case("9110-10.1.1-expect-unknown", raw(b"Expect: something\r\n" + CL5 + b"\r\n", b"hello"), EITHER, b"hello"),
    Case("9110-10.1.1-expect-chunked", raw(b"Expect: 100-continue\r\n" + CHUNKED, HELLO), OK, b"hello"),
]  # fmt: skip

FORBIDDEN_IN_TRAILERS = {
    "transfer-encoding", "content-length", "host", "authorization", "cookie", "set-cookie", "content-type", "content-encoding",
    "connection", "x-forwarded-for", "trailer", "hookway-delivery", "expect", "upgrade", "te",
}  # fmt: skip

_canaries = itertools.count()


def test_the_table_is_large_enough_and_its_ids_unique():
    assert len(CASES) >= 215
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_case(shared, case):
    app, world = shared.app, shared.world
    app.clear()
    with world.wire(timeout=2) as wire:
        reply = attempt(wire, case.raw)
        refused = reply is None or reply.header("x-app") is None
        if refused:
            assert case.want != OK, f"not accepted: {reply or 'closed'}"
            assert reply is None or 400 <= reply.status < 500 or reply.status in (501, 505), reply
            assert [seen.target for seen in app.seen] == []
        else:
            assert case.want in (OK, EITHER), f"accepted: {[seen.raw for seen in app.seen]}"
            assert reply.status == 200
            [seen] = app.seen
            assert seen.body == case.body
            assert case.target is ... or seen.target == case.target
            assert not {name.lower() for name, _ in seen.trailers} & FORBIDDEN_IN_TRAILERS
        must_close = refused and case.want in (REFUSED, EITHER) or not refused and case.closes
        assert not (answered := canary_on(wire)) or not must_close, f"the connection stayed open: {answered}"
    path = f"/canary-{next(_canaries)}"
    assert world.get(path).json()["target"] == path
    assert not app.unclean
    assert len(app.at("/smuggled")) == 0


def attempt(wire, data):
    """The final answer to `data`; None where the relay closed, said nothing, or spoke something else."""
    wire.send(data)
    try:
        return wire.reply(data.lstrip().split(b" ", 1)[0].decode("latin-1"))
    except (Closed, TimeoutError, ConnectionError, AssertionError):
        wire.close()
        return None


def canary_on(wire):
    """A canary down a used connection: its own answer, or None where the connection is closed."""
    path = f"/canary-{next(_canaries)}"
    try:
        reply = wire.ask(request("GET", path))
    except (Closed, TimeoutError, OSError, ValueError):
        return None
    assert reply.json()["target"] == path, f"the canary was answered with {reply}"
    return reply


def test_pipelined_requests_are_answered_in_their_order(shared):
    shared.app.clear()
    bodies = [f"body {number}".encode() for number in range(20)]
    requests = [request("POST", f"/pipe-{number}", body) for number, body in enumerate(bodies)]
    requests[7] = raw(CHUNKED, b"6\r\nbody 7\r\n0\r\n\r\n", target=b"/pipe-7")
    with shared.world.wire() as wire:
        wire.send(b"".join(requests))
        replies = [wire.reply("POST").json() for _ in requests]
    assert [reply["target"] for reply in replies] == [f"/pipe-{number}" for number in range(20)]
    assert [reply["sha256"] for reply in replies] == [hashlib.sha256(body).hexdigest() for body in bodies]
    assert len(shared.app.seen) == 20


@pytest.mark.parametrize("step", [1, 7])
def test_a_request_in_small_pieces_is_one_request(shared, step):
    shared.app.clear()
    data = raw(CHUNKED + b"Trailer: X-Sum\r\n", b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n", target=b"/pieces")
    with shared.world.wire() as wire:
        for at in range(0, len(data), step):
            wire.send(data[at : at + step])
        assert wire.reply("POST").status == 200
    [seen] = shared.app.seen
    assert seen.body == b"hello world" and seen.trailers == [("x-sum", "1")]


def test_trailers_pass_without_being_announced(shared):
    """`Trailer` is a SHOULD (9110 §6.6.2); the trailers of who left it out are the app's as well."""
    shared.app.clear()
    with shared.world.wire() as wire:
        assert wire.ask(raw(CHUNKED, b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")).status == 200
    [seen] = shared.app.seen
    assert seen.trailers == [("x-sum", "1")]


# ── mutations ─────────────────────────────────────────────────────────────────────────────────────────────────────

SEEDS = [
    raw(CL5 + b"\r\n", b"hello"),
    raw(CHUNKED, HELLO),
    raw(CHUNKED + b"Trailer: X-Sum\r\n", b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"),
    raw(b"X-A: b\r\nContent-Type: text/plain\r\nContent-Length: 63\r\n", SMUGGLED.ljust(63)),
    raw(method=b"GET", target=b"/case?a=b&c=%2f"),
    raw(method=b"GET", target=b"https://" + NAME + b"/case"),
]
SPICE = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"5", b"+", b"-", b"0x", b"\x0b", b"\xff",
    b"\r\n ", b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Length: 5", b"\r\nContent-Length: 0", b"chunked", b"identity, ", b"HTTP/1.0", b"/", b"#",
]  # fmt: skip


def mutate(data, chance):
    """One to three small changes at random places."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at, to = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        to = min(to, at + 12)
        change = chance.randrange(6)
        if change == 0 and at < len(data):
            data[at] = chance.randrange(256)
        elif change == 1:
            data[at:at] = chance.choice(SPICE)
        elif change == 2:
            del data[at : at + chance.randint(1, 4)]
        elif change == 3:
            data[at:at] = data[at:to]
        elif change == 4:
            data[at:to] = chance.choice(SPICE)
        elif at < len(data):
            data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


class Bytes:
    """A socket's reading half over bytes, for the app's own parser."""

    def __init__(self, data):
        self.recv = io.BytesIO(data).read

    def sendall(self, _data):
        pass


class Lenient(_Reader):
    """The same parser with the liberties that RFC 9112 gives a recipient: bare LF, empty lines first, TE over CL."""

    def _line(self):
        while (at := self.buffer.find(b"\n")) < 0:
            if not self._more():
                raise OSError("cut short")
        line = self._take(at + 1)[:-1]
        line = line[:-1] if line.endswith(b"\r") else line
        if b"\r" in line or b"\0" in line:
            raise Unclean(f"line {line!r}")
        return line

    def _fields(self):
        fields = super()._fields()
        if any(name.lower() == "transfer-encoding" for name, _ in fields):
            fields = [(name, value) for name, value in fields if name.lower() != "content-length"]
        lengths = [value for name, value in fields if name.lower() == "content-length"]
        if len(lengths) > 1 and len(set(lengths)) == 1:
            fields = [(name, value) for name, value in fields if name.lower() != "content-length"]
            fields.append(("Content-Length", lengths[0]))
        return fields

    def request(self, number):
        while True:
            while not self.buffer:
                if not self._more():
                    return None
            if self.buffer.startswith(b"\r\n"):
                del self.buffer[:2]
            elif self.buffer.startswith(b"\n"):
                del self.buffer[:1]
            else:
                return super().request(number)


def reading(data):
    """What a lenient recipient makes of `data`: the requests, and whether it then waits for more."""
    reader, requests = Lenient(Bytes(data)), []
    try:
        while (seen := reader.request(0)) is not None:
            requests.append((seen.method, path_of(seen.target), seen.sha256))
            if "close" in (seen.header("connection") or "").lower():
                return requests, False
    except Unclean:
        return requests, False
    except OSError:
        return requests, True
    return requests, True


def path_of(text):
    """The origin form of a target, whatever its scheme, without a fragment."""
    text = text.partition("#")[0]
    if not text.startswith("/") and "://" in text:
        path = re.sub(r"^[^/?]*", "", text.split("://", 1)[1])
        return path if path.startswith("/") else "/" + path
    return text


def exchange(world, data):
    """The app's answers to `data`, in order, and whatever else was said."""
    expected, waits = reading(data)
    answers = []
    with world.wire(timeout=2) as wire:
        wire.send(data)
        # A stream that ends inside a request is waited on by the relay: the answers that are due, then away.
        while not waits or len(answers) < len(expected):
            try:
                reply = wire.reply(expected[len(answers)][0] if len(answers) < len(expected) else "GET")
            except (Closed, TimeoutError, AssertionError):
                break
            if reply.header("x-app") is None:
                break
            if expected[len(answers) : len(answers) + 1] and expected[len(answers)][0] == "HEAD":
                answers.append(expected[len(answers)])
            else:
                seen = reply.json()
                answers.append((seen["method"], path_of(seen["target"]), seen["sha256"]))
    return expected, answers


@pytest.mark.timeout(9000 if LONG else 180)
def test_mutated_requests_are_read_alike_on_both_sides(shared):
    """No mutation makes relay and app disagree on where a request ends or what its body is."""
    count = 1_000_000 if LONG else 2_000
    chance = random.Random(9112)
    world, app = shared.world, shared.app
    app.clear()
    last = request("GET", "/canary", headers=[("Connection", "close")])
    disagreements, answered, batch = [], Counter(), 2_000
    with ThreadPoolExecutor(4) as pool:
        for _ in range(count // batch):
            mutants = [mutate(chance.choice(SEEDS), chance) + last for _ in range(batch)]
            for data, (expected, answers) in zip(mutants, pool.map(lambda data: exchange(world, data), mutants)):
                answered.update(answers)
                if answers != expected[: len(answers)]:
                    disagreements.append((data, expected, answers))
            assert not disagreements, f"{len(disagreements)}, the first: {disagreements[0]}"
            eventually(lambda: len(app.seen) >= answered.total(), what="the app seeing what was answered")
            seen = Counter((seen.method, path_of(seen.target), seen.sha256) for seen in app.seen)
            assert not (twice := answered - seen), f"answered, never seen: {twice}"
            # An answer that the sender did not wait for is fine; one request turned into two of a kind is not.
            assert len(app.seen) <= answered.total() + batch // 20, seen - answered
            assert not app.unclean, app.unclean[0]
            app.clear()
            answered.clear()


# ── differential: the apps that developers have ───────────────────────────────────────────────────────────────────

WSGI = """
import hashlib, itertools, json
count = itertools.count(1)
def app(environ, start):
    body = environ["wsgi.input"].read()
    answer = json.dumps({"count": next(count), "length": len(body), "sha256": hashlib.sha256(body).hexdigest()}).encode()
    start("200 OK", [("X-App", "wsgi"), ("Content-Length", str(len(answer)))])
    return [answer]
"""

ASGI = """
import hashlib, itertools, json
count = itertools.count(1)
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body, more = body + event.get("body", b""), event.get("more_body", False)
    answer = json.dumps({"count": next(count), "length": len(body), "sha256": hashlib.sha256(body).hexdigest()}).encode()
    fields = [(b"x-app", b"asgi"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})
"""

AIOHTTP = """
import hashlib, itertools, sys
from aiohttp import web
count = itertools.count(1)
async def handle(request):
    body = await request.read()
    answer = {"count": next(count), "length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return web.json_response(answer, headers={"X-App": "aiohttp"})
app = web.Application()
app.router.add_route("*", "/{any:.*}", handle)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""

NODE = """
const { createServer } = require("node:http"), { createHash } = require("node:crypto");
let count = 0;
createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part)).on("end", () => {
    const body = Buffer.concat(parts), sha256 = createHash("sha256").update(body).digest("hex");
    response.setHeader("X-App", "node").end(JSON.stringify({ count: ++count, length: body.length, sha256 }));
  });
}).listen(Number(process.argv[1]), "127.0.0.1");
"""

NGINX = """
daemon off; worker_processes 1; error_log stderr; pid {folder}/nginx.pid;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; }} }}
}}
"""


HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
listen app
  bind 127.0.0.1:{port}
  server behind 127.0.0.1:{behind}
"""


def start_haproxy(world, folder, port):
    """As nginx."""
    behind = world.app(answer=_counting())
    (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, behind=behind.port))
    return [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


def start_nginx(world, folder, port):
    """nginx passes on what it understood to a strict app behind it, which counts and hashes."""
    behind = world.app(answer=_counting())
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, behind=behind.port))
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _counting():
    count = itertools.count(1)

    def answer(seen, _socket):
        body = json.dumps({"count": next(count), "length": len(seen.body), "sha256": seen.sha256}).encode()
        head = b"HTTP/1.1 200 OK\r\nX-App: nginx\r\nContent-Length: %d\r\n\r\n" % len(body)
        return head + (b"" if seen.method == "HEAD" else body)

    return answer


def start_node(_world, _folder, port):
    return [shutil.which("node"), "-e", NODE, str(port)]


def start_gunicorn(_world, folder, port):
    (folder / "wsgi.py").write_text(WSGI)
    options = ["--threads", "4", "--bind", f"127.0.0.1:{port}", "--chdir", str(folder), "--log-level", "error"]
    return [sys.executable, "-m", "gunicorn", "wsgi:app", *options]


def start_waitress(_world, folder, port):
    (folder / "wsgi.py").write_text(WSGI)
    return [sys.executable, "-c", f"import waitress, wsgi; waitress.serve(wsgi.app, host='127.0.0.1', port={port})"]


def start_uvicorn(_world, folder, port):
    (folder / "asgi.py").write_text(ASGI)
    return [sys.executable, "-m", "uvicorn", "asgi:app", "--app-dir", str(folder), "--port", str(port), "--http", "h11", "--log-level", "error"]


def start_hypercorn(_world, folder, port):
    (folder / "asgi.py").write_text(ASGI)
    return [sys.executable, "-m", "hypercorn", f"{folder}/asgi:app", "--bind", f"127.0.0.1:{port}"]


def start_aiohttp(_world, folder, port):
    (folder / "serve.py").write_text(AIOHTTP)
    return [sys.executable, str(folder / "serve.py"), str(port)]


SBIN = "/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin"
BACK_ENDS = {
    "nginx": (start_nginx, lambda: shutil.which("nginx", path=SBIN)),
    "haproxy": (start_haproxy, lambda: shutil.which("haproxy", path=SBIN)),
    "node": (start_node, lambda: shutil.which("node")),
    "gunicorn": (start_gunicorn, lambda: _importable("gunicorn")),
    "waitress": (start_waitress, lambda: _importable("waitress")),
    "aiohttp": (start_aiohttp, lambda: _importable("aiohttp")),
    "uvicorn": (start_uvicorn, lambda: _importable("uvicorn")),
    "hypercorn": (start_hypercorn, lambda: _importable("hypercorn")),
}
NO_PATH = {"9112-3.2.4-options-star"}  # an asterisk is no path of these apps


def _importable(module):
    import importlib.util

    return importlib.util.find_spec(module)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_every_accepted_case_is_one_request_with_its_body_at(shared, name):
    """What the relay lets through means to each app what it meant to the relay."""
    start_app, present = BACK_ENDS[name]
    if not present():
        pytest.skip(f"{name} is not installed")
    world = shared.world
    folder = world.folder / f"back-end-{name}"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Program(name, start_app(world, folder, port), folder)
    try:
        eventually(lambda: _listening(port), what=f"{name} listening\n{server.log()}")
        client = world.client(f"127.0.0.1:{port}", name=name)
        wrong, count = [], 0
        for case in [case for case in CASES if case.want in (OK, EITHER) and case.id not in NO_PATH]:
            data = case.raw.replace(NAME, f"{name}.{DOMAIN}".encode()).replace(NAME.upper(), f"{name}.{DOMAIN}".upper().encode())
            data = data.replace(b"BiLLing.HooKs.tesT", f"{name}.{DOMAIN}".encode())
            if SMUGGLED in case.body or case.body.startswith(b"GET /smuggled"):
                continue  # its body holds the name, whose length differs
            with world.wire(name, timeout=4) as wire:
                reply = attempt(wire, data)
                if reply is None or reply.header("x-app") is None:
                    if case.want == OK:
                        wrong.append((case.id, reply))
                else:
                    count += 1
                    if not data.startswith(b"HEAD"):
                        seen = reply.json()
                        if seen["sha256"] != hashlib.sha256(case.body).hexdigest():
                            wrong.append((case.id, "body", seen))
            with world.wire(name) as wire:
                count += 1
                seen = wire.ask(request("GET", "/canary", host=f"{name}.{DOMAIN}")).json()
            if seen["count"] != count:
                wrong.append((case.id, f"{seen['count']} requests, not {count}"))
                count = seen["count"]
        assert not wrong, wrong
        client.stop()
    finally:
        server.stop()


def _listening(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False

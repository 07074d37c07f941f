// @ts-check
// Long text in pieces, of which the browser lays out only those in view (content-visibility in detail.css).

import { h } from './dom.js';
import { rangeOf, tokenMarks } from './search.js';

/** @import { Token } from './json.js' */

const PIECE = 8192;
const LINE_HEIGHT = 18;
// Beyond this colours cost more than they help.
const MOST_TOKENS = 20_000;

/**
 * @param {string} text
 * @param {{ tokens?: Token[], error?: { offset: number, message: string } | null, name?: string }} [options]
 */
export function textView(text, { tokens = [], error = null, name = '' } = {}) {
  const view = h('div', { class: 'text mono', 'aria-label': name || null, role: name ? 'group' : null });
  const coloured = tokens.length <= MOST_TOKENS ? tokens : [];
  let token = 0;
  for (let start = 0; start < text.length;) {
    const end = pieceEnd(text, start);
    const node = document.createTextNode(text.slice(start, end));
    const piece = h('div', { class: 'piece' }, node);
    piece.style.containIntrinsicBlockSize = `auto ${lines(node.data) * LINE_HEIGHT}px`;
    for (; token < coloured.length && coloured[token].start < end; token += 1) {
      const { type, start: from, end: to } = coloured[token];
      tokenMarks[type].add(rangeOf(node, Math.max(0, from - start), Math.min(to, end) - start));
      if (to > end) break;
    }
    if (error && error.offset >= start && (error.offset < end || end === text.length)) markError(piece, node, error.offset - start, error.message);
    view.append(piece);
    start = end;
  }
  return view;
}

/** At a line's end where there is one, and never between the halves of a surrogate pair. @param {string} text @param {number} start */
function pieceEnd(text, start) {
  if (text.length - start <= PIECE) return text.length;
  const newline = text.lastIndexOf('\n', start + PIECE);
  if (newline > start) return newline + 1;
  const end = start + PIECE;
  return (text.charCodeAt(end) & 0xfc00) === 0xdc00 ? end - 1 : end;
}

/** @param {string} text */
const lines = (text) => Math.max(1, text.split('\n').length - 1, Math.ceil(text.length / 100));

/** Puts a caret and the reason under the wrong line. @param {HTMLElement} piece @param {Text} node @param {number} offset @param {string} message */
function markError(piece, node, offset, message) {
  const { data } = node;
  const lineStart = data.lastIndexOf('\n', offset - 1) + 1;
  const lineEnd = data.indexOf('\n', offset) < 0 ? data.length : data.indexOf('\n', offset);
  // In a very long line the caret would be far out of view, so only the part around it is repeated.
  const from = Math.max(lineStart, offset - 60);
  const line = data.slice(from, Math.min(lineEnd, offset + 60));
  const whole = from === lineStart && from + line.length === lineEnd;
  node.data = data.slice(0, whole ? lineStart : lineEnd);
  piece.append(
    h('div', { class: 'wrong-line' }, line || ' '),
    h('div', { class: 'wrong-caret' }, `${' '.repeat(offset - from)}^ ${message}`),
    data.slice(lineEnd + 1));
}

// @ts-check
// Search inside a part of the page. Matches are marked with the browser's highlight API, so the text itself stays as it is.

import { h, button, setText } from './dom.js';

export const MOST = 5000;

const highlight = (/** @type {string} */ name) => {
  // An older browser has no marks and no colours in long texts; search still goes to the matches.
  if (typeof Highlight === 'undefined') return /** @type {Highlight} */ (/** @type {unknown} */ (new Set()));
  const made = new Highlight();
  CSS.highlights.set(name, made);
  return made;
};
const matchesMark = highlight('match');
const currentMark = highlight('current-match');
currentMark.priority = 1;

/** Colours for JSON tokens, by kind. */
export const tokenMarks = { key: highlight('json-key'), string: highlight('json-string'), number: highlight('json-number'), literal: highlight('json-literal') };

/** Forgets all marks, as when another exchange is shown. */
export function clearMarks() {
  for (const mark of [matchesMark, currentMark, ...Object.values(tokenMarks)]) mark.clear();
}

/** @typedef {() => Range} Match brings a match onto the page, if it is not there yet, and says where it is */

/**
 * A search field with the number of matches.
 * @param {{ root: Element, find: (query: string) => Match[] }} options `root` is where what is on the page already is marked
 */
export function searchField({ root, find }) {
  /** @type {Match[]} */
  let matches = [];
  let at = -1;
  const number = h('span', { class: 'note', role: 'status' });
  const input = h('input', { type: 'search', placeholder: 'Search', 'aria-label': 'Search in the body', spellcheck: 'false' });
  const previous = button('↑', () => go(-1), { 'aria-label': 'Previous match', hidden: true });
  const next = button('↓', () => go(1), { 'aria-label': 'Next match', hidden: true });

  const go = (/** @type {number} */ step) => {
    if (matches.length === 0) return;
    at = (at + step + matches.length) % matches.length;
    const range = matches[at]();
    currentMark.clear();
    currentMark.add(range);
    scrollTo(range);
    setText(number, `${at + 1} of ${matches.length >= MOST ? `${MOST}+` : matches.length}`);
  };
  const search = () => {
    matchesMark.clear();
    currentMark.clear();
    matches = input.value ? find(input.value) : [];
    at = -1;
    if (input.value) for (const range of findText(root, input.value)) matchesMark.add(range);
    previous.hidden = next.hidden = matches.length < 2;
    setText(number, input.value ? 'no match' : '');
    go(1);
  };
  input.addEventListener('input', search);
  input.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') go(event.shiftKey ? -1 : 1);
  });
  return { field: h('span', { class: 'search' }, input, number, previous, next), search };
}

/** All places of a text inside an element, in any case. @param {Element} root @param {string} query @returns {Range[]} */
export function findText(root, query) {
  // A pattern and not toLowerCase(), which changes the length of some texts.
  const pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'), 'giu');
  const ranges = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (const match of (node.nodeValue ?? '').matchAll(pattern)) {
      ranges.push(rangeOf(node, match.index, match.index + match[0].length));
      if (ranges.length === MOST) return ranges;
    }
  }
  return ranges;
}

/** @param {Node} node @param {number} start @param {number} end */
export function rangeOf(node, start, end) {
  const range = document.createRange();
  range.setStart(node, start);
  range.setEnd(node, end);
  return range;
}

/** Brings a range into the middle of the pane, if it is out of view. @param {Range} range */
function scrollTo(range) {
  const parent = range.startContainer.parentElement;
  const pane = parent?.closest('#detail');
  if (!pane) return;
  const seen = () => ({ rect: range.getBoundingClientRect(), view: pane.getBoundingClientRect() });
  // Text out of view may not be laid out yet; then the first step only comes near.
  if (seen().rect.height === 0) parent?.scrollIntoView({ block: 'center' });
  const { rect, view } = seen();
  if (rect.top < view.top + 80 || rect.bottom > view.bottom - 20) pane.scrollTop += rect.top - view.top - view.height / 2;
}

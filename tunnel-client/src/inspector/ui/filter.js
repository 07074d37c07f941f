// @ts-check
// The filter bar. The server alone parses a filter; here terms are only split at blanks, for chips and suggestions.

import { byId, button, fill, h, setText } from './dom.js';
import { Suggestions } from './suggestions.js';
import * as format from './format.js';

/** @import { Exchanges } from './exchanges.js' */

const QUICK = [['Failed', 'is:failed'], ['Slow', 'latency:>1s'], ['Replays', 'is:replay'], ['Pinned', 'is:pinned'], ['Last hour', 'since:1h']];

/** @typedef {{ text: string, start: number, end: number }} Term */

/** @param {string} filter @returns {Term[]} */
export const terms = (filter) =>
  [...filter.matchAll(/(?:[^\s"]|"[^"]*"?)+/g)].map((match) => ({ text: match[0], start: match.index, end: match.index + match[0].length }));

export class FilterBar {
  #input = /** @type {HTMLInputElement} */ (byId('filter'));
  #mark = byId('filter-mark');
  #chips = byId('chips');
  #timer = 0;
  #measure = document.createElement('canvas').getContext('2d');

  /** @param {{ exchanges: Exchanges, change: (filter: string) => void, leave: () => void }} options */
  constructor({ exchanges, change, leave }) {
    this.exchanges = exchanges;
    this.change = change;
    this.suggestions = new Suggestions({ input: this.#input, exchanges, accepted: () => this.#typed() });
    this.#input.addEventListener('input', () => this.#typed());
    this.#input.addEventListener('scroll', () => this.#showError());
    this.#input.addEventListener('blur', () => this.#showError());
    this.#input.addEventListener('keydown', (event) => {
      if (this.suggestions.key(event)) return;
      if (event.key === 'Enter') this.#apply();
      else if (event.key === 'Escape') {
        this.#input.blur();
        leave();
      }
    });
    exchanges.addEventListener('filter', () => {
      this.update();
      // The count itself changes with every webhook; a screen reader is told only what a filter leaves.
      setText(byId('filter-status'), exchanges.taken ? byId('count').textContent ?? '' : '');
    });
    exchanges.addEventListener('rows', () => this.#showCount());
    addEventListener('resize', () => this.#showError());
    this.update();
  }

  focus() {
    this.#input.focus();
    this.#input.select();
  }

  /** Shows another filter, as after Back. @param {string} filter */
  set(filter) {
    if (this.#input.value !== filter) this.#input.value = filter;
    this.update();
  }

  /** Takes a filter at once, as from a chip. @param {string} filter */
  take(filter) {
    this.#input.value = filter.trim();
    this.#apply();
  }

  /** Puts terms in place of those with the same keys. @param {string[]} added */
  replaceTerms(added) {
    const keys = added.map((term) => term.slice(0, term.indexOf(':') + 1));
    const kept = terms(this.#input.value).map((term) => term.text).filter((text) => !keys.some((key) => text.startsWith(key)));
    this.take([...kept, ...added].join(' '));
  }

  update() {
    const all = terms(this.exchanges.filter);
    const quick = QUICK.map(([name, term]) => button(name, () => this.take(term), { class: 'chip quick', title: term }));
    fill(this.#chips, ...(all.length ? all.map((term) => this.#chip(term)) : quick));
    if (all.length > 1) this.#chips.append(button('Clear filter', () => this.take(''), { class: 'chip quick' }));
    this.#showError();
    this.#showCount();
  }

  /** @param {Term} term */
  #chip(term) {
    const { filter } = this.exchanges;
    const remove = () => {
      this.take(`${filter.slice(0, term.start).trimEnd()} ${filter.slice(term.end).trimStart()}`);
      this.#input.focus();
    };
    return h('span', { class: 'chip' }, h('span', { class: 'chip-text' }, term.text), button('✕', remove, { 'aria-label': `Remove ${term.text}` }));
  }

  // As one types the list follows; the pause keeps half-typed words from being asked for.
  #typed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#apply(), 250);
    this.#mark.hidden = true;
  }

  #apply() {
    clearTimeout(this.#timer);
    if (this.#input.value !== this.exchanges.filter || this.exchanges.filterError) this.change(this.#input.value);
  }

  #showError() {
    const error = this.#input.value === this.exchanges.filter ? this.exchanges.filterError : null;
    const shown = error && !this.#unfinished(error) ? error : null;
    setText(byId('filter-error'), shown?.message ?? '');
    this.#input.toggleAttribute('aria-invalid', false);
    if (shown) this.#input.setAttribute('aria-invalid', 'true');
    this.#mark.hidden = shown?.at === undefined;
    if (shown?.at !== undefined) this.#underline(shown.at, Math.max(1, shown.length));
  }

  /** `status:` with the caret behind it is not wrong yet. @param {import('./api.js').ApiError} error */
  #unfinished(error) {
    const { value, selectionEnd } = this.#input;
    return document.activeElement === this.#input && selectionEnd === value.length && value.endsWith(':') && error.at !== undefined && error.at + error.length >= value.length;
  }

  /** @param {number} at @param {number} length */
  #underline(at, length) {
    const style = getComputedStyle(this.#input);
    if (!this.#measure) return;
    this.#measure.font = style.font;
    const { value } = this.#input;
    const width = (/** @type {string} */ text) => this.#measure?.measureText(text).width ?? 0;
    const from = width(value.slice(0, at));
    const left = parseFloat(style.paddingLeft) + 1 + from - this.#input.scrollLeft;
    this.#mark.style.left = `${Math.max(4, left)}px`;
    this.#mark.style.width = `${Math.max(6, width(value.slice(0, at + length)) - from)}px`;
  }

  #showCount() {
    const { matched, total, taken } = this.exchanges;
    const text = taken ? `${format.count(matched)} of ${format.count(total)}` : format.plural(total, 'exchange');
    setText(byId('count'), text);
  }
}

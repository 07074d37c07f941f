// @ts-check
// What could be typed next in the filter: keys first, then values, from what the history holds.

import { byId, h } from './dom.js';

/** @import { Exchanges } from './exchanges.js' */

/** @type {[string, string][]} */
export const KEYS = [
  ['method:', 'method:POST'], ['path:', 'path:/stripe*, without * the path begins so'], ['status:', 'status:200, 5xx or err'],
  ['is:', 'is:failed, replay, duplicate, pinned…'], ['sig:', 'sig:ok, bad or none'], ['provider:', 'provider:stripe'],
  ['event:', 'event:charge or event:*.failed, without * it begins so'], ['latency:', 'latency:>200ms or <1s'], ['since:', 'since:15m or since:2026-11-21T10:00'],
  ['until:', 'until:2026-11-21T11:00'], ['body:', 'body:"evt_1", text in a body'], ['header.', 'header.x-github-event:push'],
  ['endpoint:', 'endpoint:billing'], ['id:', 'id:req_…'],
];

/** @type {Record<string, string[]>} */
const VALUES = {
  'status:': ['2xx', '3xx', '4xx', '5xx', 'err'],
  'is:': ['failed', 'replay', 'edited', 'pinned', 'pending', 'duplicate', 'resigned', 'queued'],
  'sig:': ['ok', 'bad', 'none'],
  'latency:': ['>200ms', '>1s', '>5s', '<50ms'],
  'since:': ['5m', '15m', '1h', '24h', '7d'],
};

/** @type {Record<string, (exchange: import('./api.js').Summary) => string | null>} */
const SEEN = {
  'method:': (exchange) => exchange.method,
  'path:': (exchange) => exchange.path.split('?')[0],
  'endpoint:': (exchange) => exchange.endpoint,
  'provider:': (exchange) => exchange.provider,
  'event:': (exchange) => exchange.event_type,
};

/** @typedef {{ text: string, note: string }} Suggestion */

export class Suggestions {
  #list = byId('suggestions');
  /** @type {Suggestion[]} */
  #shown = [];
  #active = -1;

  /** @param {{ input: HTMLInputElement, exchanges: Exchanges, accepted: () => void }} options */
  constructor({ input, exchanges, accepted }) {
    this.input = input;
    this.exchanges = exchanges;
    this.accepted = accepted;
    input.addEventListener('input', () => this.#update());
    input.addEventListener('click', () => this.#update());
    input.addEventListener('blur', () => this.#show([]));
    // A pointer press would take the focus away before the click.
    this.#list.addEventListener('pointerdown', (event) => event.preventDefault());
    this.#list.addEventListener('click', (event) => {
      const option = event.target instanceof Element ? event.target.closest('[role=option]') : null;
      if (option) this.#accept([...this.#list.children].indexOf(option));
    });
  }

  /** @param {KeyboardEvent} event @returns {boolean} whether the key was for the suggestions */
  key(event) {
    if (event.key === 'ArrowDown' && this.#shown.length === 0) this.#update();
    if (this.#shown.length === 0) return false;
    if (event.key === 'ArrowDown') this.#activate((this.#active + 1) % this.#shown.length);
    else if (event.key === 'ArrowUp') this.#activate((this.#active + this.#shown.length) % (this.#shown.length + 1) - 1);
    else if (event.key === 'Escape') this.#show([]);
    else if ((event.key === 'Enter' || event.key === 'Tab') && this.#active >= 0) this.#accept(this.#active);
    else {
      if (event.key === 'Enter') this.#show([]);
      return false;
    }
    event.preventDefault();
    return true;
  }

  /** The term that the caret is in. */
  #term() {
    const caret = this.input.selectionEnd ?? 0;
    const before = this.input.value.slice(0, caret);
    const start = before.search(/(?:[^\s"]|"[^"]*"?)*$/);
    const minus = before[start] === '-' ? 1 : 0;
    return { start: start + minus, caret, text: before.slice(start + minus) };
  }

  #update() {
    const { text } = this.#term();
    const colon = text.indexOf(':') + 1;
    if (colon === 0) {
      this.#show(KEYS.filter(([key]) => key.startsWith(text.toLowerCase())).map(([key, note]) => ({ text: key, note })));
      return;
    }
    const key = text.slice(0, colon);
    const typed = text.slice(colon);
    this.#show(this.#values(key).filter((value) => value.toLowerCase().startsWith(typed.toLowerCase()) && value !== typed).slice(0, 12).map((value) => ({ text: key + quoted(value), note: '' })));
  }

  /** @param {string} key @returns {string[]} */
  #values(key) {
    if (VALUES[key]) return VALUES[key];
    const seen = SEEN[key];
    if (!seen) return [];
    const values = new Set(this.exchanges.rows.slice(0, 2000).map((exchange) => seen(exchange) ?? ''));
    // What would have to be escaped, or can't be seen, is left out.
    return [...values].filter((value) => value && !/["\\\p{C}]/u.test(value));
  }

  /** @param {Suggestion[]} suggestions */
  #show(suggestions) {
    this.#shown = suggestions;
    this.#list.replaceChildren(...suggestions.map(({ text, note }, index) =>
      h('div', { id: `suggestion-${index}`, role: 'option', 'aria-selected': 'false' }, h('code', {}, text), note && h('span', { class: 'note' }, note))));
    this.#list.hidden = suggestions.length === 0;
    this.input.setAttribute('aria-expanded', String(suggestions.length > 0));
    this.#activate(-1);
  }

  /** @param {number} index */
  #activate(index) {
    this.#active = index;
    [...this.#list.children].forEach((option, at) => option.setAttribute('aria-selected', String(at === index)));
    this.#list.children[index]?.scrollIntoView({ block: 'nearest' });
    if (index < 0) this.input.removeAttribute('aria-activedescendant');
    else this.input.setAttribute('aria-activedescendant', `suggestion-${index}`);
  }

  /** @param {number} index */
  #accept(index) {
    const { start, caret } = this.#term();
    const { text } = this.#shown[index];
    const { value } = this.input;
    const more = /[:.]$/.test(text) ? '' : ' ';
    this.input.value = `${value.slice(0, start)}${text}${more}${value.slice(caret).trimStart()}`;
    this.input.setSelectionRange(start + text.length + more.length, start + text.length + more.length);
    this.accepted();
    this.#update();
    if (!more) return;
    this.#show([]);
  }
}

/** @param {string} value */
const quoted = (value) => (/\s/.test(value) ? `"${value}"` : value);

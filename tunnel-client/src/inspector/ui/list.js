// @ts-check
// The list of exchanges: a listbox of which only the rows in view exist. A row's node is used again for another exchange.

import { h, setText } from './dom.js';
import { say } from './notice.js';
import * as format from './format.js';

/** @import { Summary } from './api.js' */
/** @import { Exchanges } from './exchanges.js' */

// As in style.css: rows have one height, so that a position is a multiplication and not a measurement.
const ROW = 44;
const EXTRA = 6;

/** @typedef {{ node: HTMLElement, time: HTMLElement, method: HTMLElement, path: HTMLElement, status: HTMLElement, duration: HTMLElement, day: HTMLElement, event: HTMLElement, badges: HTMLElement, exchange: Summary | null, index: number, shown: string }} Row */

export class List {
  /** @type {string | null} */
  selected = null;
  /** @type {Row[]} */
  #rows = [];
  #space = h('div', { class: 'list-space', role: 'presentation' });
  #unseen = 0;
  /** @type {Summary | null} the first row in view, which stays where it is when others come above it */
  #anchor = null;
  #anchorIndex = 0;
  #length = -1;
  /** The last was asked for while older ones were still loading. */
  #toLast = false;

  /**
   * @param {{ exchanges: Exchanges, box: HTMLElement, fresh: HTMLElement, select: (id: string) => void, open: (id: string) => void }} options
   *   `fresh` is the button that says how many came above
   */
  constructor({ exchanges, box, fresh, select, open }) {
    this.exchanges = exchanges;
    this.box = box;
    this.fresh = fresh;
    this.select = select;
    box.append(this.#space);
    box.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    box.addEventListener('click', (event) => {
      const exchange = this.#at(event.target);
      if (exchange) open(exchange.id);
    });
    box.addEventListener('keydown', (event) => this.#key(event));
    fresh.addEventListener('click', () => this.scrollToTop());
    new ResizeObserver(() => this.#draw()).observe(box);
  }

  /** Shows the rows as they are now. What is in view stays in view. */
  update() {
    const { rows } = this.exchanges;
    if (rows.length !== this.#length) {
      this.#length = rows.length;
      this.#space.style.height = `${rows.length * ROW}px`;
    }
    this.#keepPlace();
    this.#draw();
    if (this.#toLast && this.exchanges.complete) this.moveTo('last');
  }

  /** Back to the newest, as after another filter. */
  scrollToTop() {
    this.#anchor = null;
    this.#unseen = 0;
    this.#toLast = false;
    this.box.scrollTop = 0;
    this.#draw();
  }

  /** @param {string | null} id @param {boolean} [reveal] */
  setSelected(id, reveal = true) {
    this.selected = id;
    this.#toLast = false;
    if (id && reveal) this.#reveal(this.exchanges.indexOf(id));
    this.#draw();
  }

  /** Selects the next row in a direction. @param {number} step */
  move(step) {
    const { rows } = this.exchanges;
    if (rows.length === 0) return;
    const at = this.selected ? this.exchanges.indexOf(this.selected) : -1;
    const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, at + step));
    this.select(rows[next].id);
  }

  /** Selects the first, or the last as soon as it is there. @param {'first' | 'last'} end */
  moveTo(end) {
    const { rows, complete } = this.exchanges;
    this.#toLast = end === 'last' && !complete;
    const row = rows.at(end === 'first' ? 0 : -1);
    if (this.#toLast) say('Loading the older ones…');
    else if (row) this.select(row.id);
  }

  /** Selects the next failed one below, going round. @returns {boolean} whether there is one */
  moveToFailed() {
    const { rows } = this.exchanges;
    const from = this.selected ? this.exchanges.indexOf(this.selected) : -1;
    for (let step = 1; step <= rows.length; step += 1) {
      const row = rows[(from + step + rows.length) % rows.length];
      if (!format.failed(row)) continue;
      this.select(row.id);
      return true;
    }
    return false;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page }[event.key];
    if (step) this.move(step);
    else if (event.key === 'Home') this.moveTo('first');
    else if (event.key === 'End') this.moveTo('last');
    else return;
    event.preventDefault();
  }

  #scrolled() {
    this.#anchorIndex = Math.floor(this.box.scrollTop / ROW);
    this.#anchor = this.box.scrollTop > 0 ? this.exchanges.rows[this.#anchorIndex] ?? null : null;
    if (!this.#anchor) this.#unseen = 0;
    this.#draw();
  }

  // Rows that came above push the view down by their height; at the very top they simply appear.
  #keepPlace() {
    if (!this.#anchor) return;
    const index = this.exchanges.indexOf(this.#anchor.id);
    if (index < 0) return this.#scrolled();
    // Not from where the box is by now: it may have been scrolled since, and its event is still to come.
    const moved = index - this.#anchorIndex;
    if (moved === 0) return;
    this.#anchorIndex = index;
    this.#unseen = Math.max(0, this.#unseen + moved);
    this.box.scrollTop += moved * ROW;
  }

  /** @param {number} index */
  #reveal(index) {
    if (index < 0) return;
    const top = index * ROW;
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.box.scrollTop = top + ROW - clientHeight;
  }

  #draw() {
    const { rows } = this.exchanges;
    const { scrollTop, clientHeight } = this.box;
    if (clientHeight === 0) return;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - EXTRA);
    const last = Math.min(rows.length, Math.ceil((scrollTop + clientHeight) / ROW) + EXTRA);
    const size = Math.ceil(clientHeight / ROW) + 2 * EXTRA + 1;
    while (this.#rows.length < size) this.#rows.push(makeRow(this.#space, this.#rows.length));
    let active = '';
    const day = new Date().toDateString();
    const endpoints = (this.exchanges.status?.urls.length ?? 0) > 1;
    const used = new Set();
    for (let index = first; index < last; index += 1) {
      const row = this.#rows[index % this.#rows.length];
      used.add(row);
      showRow(row, rows[index], index, { day, endpoints });
      const selected = rows[index].id === this.selected;
      if (selected) active = row.node.id;
      attribute(row.node, 'aria-selected', String(selected));
      attribute(row.node, 'aria-setsize', String(rows.length));
    }
    for (const row of this.#rows) if (row.node.hidden === used.has(row)) row.node.hidden = !used.has(row);
    attribute(this.box, 'aria-activedescendant', active);
    setText(this.fresh, `${format.count(this.#unseen)} new`);
    if (this.fresh.hidden !== (this.#unseen === 0)) this.fresh.hidden = this.#unseen === 0;
  }

  /** @param {EventTarget | null} target */
  #at(target) {
    const node = target instanceof Element ? target.closest('[role=option]') : null;
    return this.#rows.find((row) => row.node === node)?.exchange ?? null;
  }
}

/** @param {HTMLElement} space @param {number} number @returns {Row} */
function makeRow(space, number) {
  const cell = (/** @type {string} */ name) => h('span', { class: `cell ${name}` });
  const [time, method, path, status, duration, day, event, badges] =
    ['time', 'method', 'path', 'status', 'duration', 'day', 'event', 'badges'].map(cell);
  const node = h('div', { id: `row-${number}`, class: 'row', role: 'option', hidden: true },
    h('div', { class: 'line' }, time, method, path, status, duration),
    h('div', { class: 'line second' }, day, event, badges));
  space.append(node);
  return { node, time, method, path, status, duration, day, event, badges, exchange: null, index: -1, shown: '' };
}

/** @param {Row} row @param {Summary} exchange @param {number} index @param {{ day: string, endpoints: boolean }} context */
function showRow(row, exchange, index, { day, endpoints }) {
  if (row.index !== index) {
    row.index = index;
    row.node.style.transform = `translateY(${index * ROW}px)`;
    attribute(row.node, 'aria-posinset', String(index + 1));
  }
  const shown = `${day} ${endpoints}`;
  if (row.exchange === exchange && row.shown === shown) return;
  row.exchange = exchange;
  row.shown = shown;
  row.node.className = `row tone-${format.tone(exchange)}`;
  setText(row.time, format.clock(exchange.received_at));
  setText(row.method, exchange.method);
  setText(row.path, exchange.path);
  setText(row.status, format.outcome(exchange));
  setText(row.duration, format.duration(exchange.duration_ms));
  setText(row.day, format.otherDay(exchange.received_at));
  setText(row.event, [endpoints && exchange.endpoint, exchange.event_type ?? exchange.provider ?? format.contentType(exchange)].filter(Boolean).join(' · '));
  row.badges.replaceChildren(...badges(exchange));
}

/** @param {Summary} exchange */
function badges(exchange) {
  /** @type {HTMLElement[]} */
  const all = [];
  const add = (/** @type {string} */ text, tone = '') => all.push(h('span', { class: `badge ${tone}` }, text));
  if (exchange.pinned) add('pinned', 'accent');
  if (exchange.signature === 'ok') add('✓sig', 'good');
  else if (exchange.signature === 'bad') add('✕sig', 'bad');
  const late = format.overDeadline(exchange);
  if (late) add(late, 'bad');
  if (exchange.replay_of) add('replay');
  if (exchange.edited) add('edited');
  if (exchange.attempts > 1) add(`${exchange.attempts} attempts`, 'warn');
  if (exchange.queued_ms) add(`queued ${format.duration(exchange.queued_ms)}`, 'warn');
  if (exchange.duplicate_of) add('duplicate', 'warn');
  if (exchange.resigned) add('re-signed');
  if (exchange.acked_ms !== null) add('early 202', 'warn');
  return all;
}

/** @param {Element} element @param {string} name @param {string} value */
function attribute(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value) element.setAttribute(name, value);
  else element.removeAttribute(name);
}

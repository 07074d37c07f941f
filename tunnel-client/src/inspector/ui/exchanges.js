// @ts-check
// The exchanges that the filter takes, newest first, kept up to date by server-sent events.

import { ApiError, eventsPath, getStatus, listExchanges, setToken } from './api.js';

/** @import { Status, Summary } from './api.js' */

const FIRST_PAGE = 200;
const PAGE = 2000;

/**
 * Events: `rows` (rows or counts changed), `status`, `filter` (a filter was taken or refused), `connection`, `paused`,
 * `changed` (detail: a Map of the exchanges that changed, by id).
 */
export class Exchanges extends EventTarget {
  /** @type {Summary[]} newest first; the same array until the next load */
  rows = [];
  /** How many the history holds, as the last status said, and how many of them the filter takes. */
  total = 0;
  matched = 0;
  /** @type {'loading' | 'loaded' | 'lost'} */
  connection = 'loading';
  /** @type {Status | null} */
  status = null;
  /** What was asked for last, and what the server took last: the filter that the rows are of. */
  filter = '';
  taken = '';
  /** @type {ApiError | null} why the last filter was refused */
  filterError = null;
  paused = false;

  /** @type {Map<string, { exchange: Summary, matches: boolean }>} what came since the last frame, or since Pause */
  #incoming = new Map();
  /** @type {EventSource | null} */
  #events = null;
  /** @type {Map<string, Summary>} */
  #byId = new Map();
  #run = 0;
  #version = 0;
  #generation = 0;
  #oldestLoaded = 0;
  #frame = 0;
  #retry = 0;

  /** New exchanges that wait while paused. */
  get waiting() {
    let waiting = 0;
    for (const { exchange, matches } of this.#incoming.values()) if (matches && !this.#byId.has(exchange.id)) waiting += 1;
    return waiting;
  }

  /** Whether `rows` reaches down to the oldest; else older pages are still to come. */
  get complete() {
    return this.#oldestLoaded === 0;
  }

  /** @param {string} id @returns {Summary | undefined} */
  get(id) {
    return this.#byId.get(id);
  }

  /** Where this exchange stands in `rows`, or -1. @param {string} id */
  indexOf(id) {
    const summary = this.#byId.get(id);
    return summary ? this.#position(summary.seq) : -1;
  }

  /** Shows what this filter takes; a wrong one leaves what is shown as it is. @param {string} filter */
  async setFilter(filter) {
    this.filter = filter;
    this.filterError = null;
    await this.#load(filter, FIRST_PAGE);
  }

  /** Loads again what is shown, as much at once as is needed to stay in the same place. */
  #reload() {
    return this.#load(this.taken, Math.max(FIRST_PAGE, Math.min(PAGE, this.rows.length)));
  }

  /** @param {string} filter @param {number} firstPage */
  async #load(filter, firstPage) {
    const run = ++this.#run;
    try {
      const first = await listExchanges({ filter, limit: firstPage });
      if (run !== this.#run) return;
      this.taken = filter;
      if (filter === this.filter) this.filterError = null;
      this.#start(first);
    } catch (error) {
      if (run === this.#run) this.#refused(error);
      return;
    }
    await this.#loadOlder();
  }

  /** Loads page after page down to the oldest, unless another load begins meanwhile. */
  async #loadOlder() {
    const run = this.#run;
    try {
      while (!this.complete) {
        const page = await listExchanges({ filter: this.taken, before: this.#oldestLoaded, limit: PAGE });
        if (run !== this.#run) return;
        this.#append(page);
      }
      this.matched = this.rows.length;
      this.#emit('rows');
    } catch {
      if (run === this.#run) this.#startAgain();
    }
  }

  /** @param {boolean} paused */
  pause(paused) {
    this.paused = paused;
    if (!paused) this.#applySoon();
    this.#emit('paused');
  }

  /** Takes a change that an answer already told us, before the event for it comes. @param {Summary} exchange */
  update(exchange) {
    if (!this.#byId.has(exchange.id)) return;
    this.#replace(exchange);
    this.#emit('changed', new Map([[exchange.id, exchange]]));
    this.#emit('rows');
  }

  /** @param {import('./api.js').Page} page */
  #start(page) {
    this.rows = page.exchanges;
    this.#byId = new Map(page.exchanges.map((exchange) => [exchange.id, exchange]));
    this.total = page.total;
    this.matched = page.matched ?? page.exchanges.length;
    this.#version = page.version;
    this.#generation = page.generation;
    this.#oldestLoaded = page.next ?? 0;
    this.#incoming.clear();
    this.#listen();
    this.#emit('filter');
    this.#emit('rows');
  }

  /** @param {import('./api.js').Page} page */
  #append(page) {
    for (const exchange of page.exchanges) {
      if (this.#byId.has(exchange.id)) continue;
      this.rows.push(exchange);
      this.#byId.set(exchange.id, exchange);
    }
    this.#oldestLoaded = page.next ?? 0;
    this.#emit('rows');
  }

  /** @param {unknown} error */
  #refused(error) {
    if (error instanceof ApiError && error.status === 400) {
      this.filterError = error;
      this.#emit('filter');
      // A wrong filter in the URL must not leave the page empty, nor one typed while older pages came leave those out.
      if (!this.#events) this.#load('', FIRST_PAGE);
      else this.#loadOlder();
      return;
    }
    this.#startAgain();
  }

  #startAgain() {
    this.#lost();
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#load(this.filter, FIRST_PAGE), 1000);
  }

  #listen() {
    this.#events?.close();
    const events = new EventSource(eventsPath(this.taken, this.#version));
    this.#events = events;
    /** @param {string} type @param {(data: any) => void} handle */
    const on = (type, handle) => events.addEventListener(type, (event) => {
      if (this.#events === events) handle(JSON.parse(event.data));
    });
    on('hello', ({ version, generation }) => {
      this.#connected();
      // Another history than the one shown: what comes now would not fit to it.
      if (generation !== this.#generation || version < this.#version) this.#reload();
    });
    on('exchange', (change) => {
      this.#incoming.set(change.exchange.id, change);
      if (this.paused) this.#emit('paused');
      else this.#applySoon();
    });
    on('status', (status) => this.#takeStatus(status));
    on('reset', () => this.#reload());
    events.addEventListener('error', () => {
      if (this.#events !== events) return;
      this.#lost();
      // The browser tries again by itself unless the answer was not a stream.
      if (events.readyState !== EventSource.CLOSED) return;
      clearTimeout(this.#retry);
      this.#retry = setTimeout(() => this.#reload(), 2000);
    });
  }

  #connected() {
    if (this.connection === 'loaded') return;
    this.connection = 'loaded';
    this.#emit('connection');
  }

  #lost() {
    if (this.connection === 'lost') return;
    this.connection = 'lost';
    this.#emit('connection');
  }

  async loadStatus() {
    this.#takeStatus(await getStatus());
  }

  /** @param {Status} status */
  #takeStatus(status) {
    setToken(status.token);
    this.status = status;
    this.total = status.history.count;
    this.#emit('status');
    this.#emit('rows');
  }

  // Many events become one change of the page. A hidden page gets no frames, and a full queue costs little there.
  #applySoon() {
    if (this.#frame) return;
    const apply = () => {
      this.#frame = 0;
      if (!this.paused) this.#apply();
    };
    this.#frame = document.hidden ? setTimeout(apply, 500) : requestAnimationFrame(apply);
  }

  #apply() {
    const changed = new Map();
    for (const { exchange, matches } of this.#incoming.values()) {
      this.#version = Math.max(this.#version, exchange.version);
      const known = this.#byId.get(exchange.id);
      if (known && known.version >= exchange.version) continue;
      changed.set(exchange.id, exchange);
      if (known && matches) this.#replace(exchange);
      else if (known) this.#remove(exchange);
      // What lies below the part that is loaded comes with its page.
      else if (matches && exchange.seq > this.#oldestLoaded) this.#insert(exchange);
    }
    this.#incoming.clear();
    if (changed.size === 0) return;
    this.#emit('changed', changed);
    this.#emit('rows');
  }

  /** @param {Summary} exchange */
  #insert(exchange) {
    this.rows.splice(this.#position(exchange.seq), 0, exchange);
    this.#byId.set(exchange.id, exchange);
    this.matched += 1;
  }

  /** @param {Summary} exchange */
  #replace(exchange) {
    this.rows[this.#position(exchange.seq)] = exchange;
    this.#byId.set(exchange.id, exchange);
  }

  /** @param {Summary} exchange */
  #remove(exchange) {
    this.rows.splice(this.#position(exchange.seq), 1);
    this.#byId.delete(exchange.id);
    this.matched -= 1;
  }

  /** The index of this seq in `rows`, or where it would stand. @param {number} seq */
  #position(seq) {
    let low = 0;
    let high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].seq > seq) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** @param {string} type @param {unknown} [detail] */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

// @ts-check
// The relay's status page: it asks the admin API every few seconds and shows what that says. It asks, and changes nothing.
// Whatever is shown is an attacker's text: there are text nodes and harmless attributes here, and no HTML is ever parsed.
'use strict';

/** @typedef {{ text: string, is?: string, at?: string }} Piece a text with its class, or the time that it tells */
/** @typedef {string | Piece | null | undefined | false} Part */
/** @typedef {string | number | null} Next where the rest of a list begins */
/**
 * What a list of the API is, and how it is shown.
 * @typedef {object} What
 * @property {string} [from] the parameter that asks for what comes after `next`; without it there are no parts
 * @property {number} [step] so many rows at first, and with each click on more
 * @property {(item: any) => string} key
 * @property {(item: any) => Part[][]} cells one for each column
 * @property {() => boolean} [whole] whether all items are asked for, since `pick` leaves some of them out
 * @property {(items: any[]) => any[]} [pick]
 */

const EVERY = 5000;
const PATIENCE = 10_000;
/** Items of one answer at most, and rows of one list. */
const LARGEST = 500;
const MOST = 2000;
const KEPT = 'hookway-relay-token';

/** @param {string} id */
function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}
const field = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (byId(id));

// ── how things are written ──────────────────────────────────────────────────────────────────────────────────────────

/** What the relay's clock is ahead of ours. */
let ahead = 0;
const now = () => Date.now() + ahead;
/** 14:02:07 */
const clock = (/** @type {Date} */ date) => date.toLocaleTimeString('en-GB');
const day = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });
const dayAndYear = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric' });
/** 4 812, with a narrow no-break space. */
const count = (/** @type {number} */ n) => String(n).replace(/\B(?=(\d{3})+$)/g, '\u202f');
const plural = (/** @type {number} */ n, /** @type {string} */ noun) => `${count(n)} ${noun}${n === 1 ? '' : 's'}`;

/** Today's time, or the day. @param {string} iso @returns {Piece} */
function when(iso) {
  const date = new Date(iso);
  const today = new Date(now());
  if (date.toDateString() === today.toDateString()) return { text: clock(date), at: iso };
  if (date.getFullYear() === today.getFullYear()) return { text: `${day.format(date)} ${clock(date).slice(0, 5)}`, at: iso };
  return { text: dayAndYear.format(date), at: iso };
}

/** @param {number} ms */
function duration(ms) {
  if (ms < 9.95) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 119_500) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_170_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} days`;
}

const age = (/** @type {string} */ iso) => duration(Math.max(1000, Math.abs(now() - Date.parse(iso))));
/** How long ago, or how long until. @param {string} iso @returns {Piece} */
const ago = (iso) => ({ text: Date.parse(iso) > now() ? `in ${age(iso)}` : `${age(iso)} ago`, at: iso });

/** @param {number} n */
function bytes(n) {
  if (n < 1000) return `${n} B`;
  const [unit, name] = n < 999_500 ? [1e3, 'kB'] : n < 999_500_000 ? [1e6, 'MB'] : [1e9, 'GB'];
  return `${Number((n / unit).toFixed(n / unit < 9.95 ? 1 : 0))} ${name}`;
}

/** The first few of many. @param {string[]} all */
const few = (all, most = 3) => all.slice(0, most).join(', ') + (all.length > most ? ` +${count(all.length - most)}` : '');

/** @param {any} protection @returns {Part[]} */
function protection({ allow, deny, users, paths, rate, max_body: max }) {
  const parts = [
    allow.length > 0 && `only from ${few(allow)}`, deny.length > 0 && `not from ${few(deny)}`,
    users.length > 0 && `password of ${few(users)}`, paths.length > 0 && `only ${few(paths)}`,
    rate && (rate === 'off' ? 'no rate limit' : `at most ${rate}`), max !== null && `bodies up to ${bytes(max)}`,
  ].filter(Boolean);
  return [parts.length ? parts.join('; ') : quiet('none')];
}

const sentence = (/** @type {string} */ text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
/** @param {string} text @returns {Piece} */
const quiet = (text) => ({ text, is: 'note' });
/** A number that somebody should look at, unless it is none. @param {number} n @returns {Part} */
const alarming = (n) => (n > 0 ? { text: count(n), is: 'alarm' } : quiet('0'));
const calm = (/** @type {number} */ n) => (n > 0 ? count(n) : quiet('0'));

// ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** What each element shows. @type {WeakMap<Element, string>} */
const drawn = new WeakMap();

/** Shows this in the element, which is left alone if it does so already. @param {Element} element @param {Part[]} parts */
function draw(element, parts) {
  const key = JSON.stringify(parts);
  if (drawn.get(element) === key) return;
  drawn.set(element, key);
  element.replaceChildren(...parts.flatMap((part, index) => (part ? [index ? ' ' : '', node(part)] : [])));
}

/** @param {string | Piece} part */
function node(part) {
  if (typeof part === 'string') return document.createTextNode(part);
  const element = document.createElement(part.at ? 'time' : 'span');
  if (part.at) {
    element.setAttribute('datetime', part.at);
    element.title = `${dayAndYear.format(new Date(part.at))}, ${clock(new Date(part.at))}`;
  }
  if (part.is) element.className = part.is;
  element.textContent = part.text;
  return element;
}

/** A list of the API in its table: so many rows, by their keys, and a button for more of them. */
class List {
  /** @type {any[]} */
  #items = [];
  /** @type {Next} */
  #next = null;
  #round = 0;
  #isLoaded = false;
  /** @type {Map<string, HTMLTableRowElement>} */
  #rows = new Map();

  /** @param {string} name the section's id, and the last word of the path @param {What} what */
  constructor(name, { from, step = 50, key, cells, whole = () => false, pick = (items) => items }) {
    this.name = name;
    this.what = { from, step, key, cells, whole, pick };
    this.wanted = step;
    const table = /** @type {HTMLTableElement} */ (this.part('table'));
    this.table = table;
    this.body = table.tBodies[0];
    this.heads = [...table.rows[0].cells];
    this.more = this.part('.more');
    this.more.addEventListener('click', () => this.#grow());
  }

  /** @param {string} selector */
  part(selector) {
    return /** @type {HTMLElement} */ (byId(this.name).querySelector(selector));
  }

  /** Asks for as much as is shown, and shows it. */
  async load() {
    const round = (this.#round += 1);
    const { from, whole } = this.what;
    const wanted = whole() ? MOST : Math.min(this.wanted, MOST);
    const items = [];
    /** @type {Next} */
    let next = null;
    do {
      const query = new URLSearchParams();
      if (from) query.set('limit', String(Math.min(LARGEST, wanted - items.length)));
      if (from && next !== null) query.set(from, String(next));
      /** @type {{ items: any[], next: Next }} */
      const part = await ask(from ? `${this.name}?${query}` : this.name);
      items.push(...part.items);
      next = part.next;
    } while (next !== null && items.length < wanted);
    if (round !== this.#round) return;
    [this.#items, this.#next, this.#isLoaded] = [items, next, true];
    this.draw();
  }

  async #grow() {
    const before = this.#rows.size;
    this.wanted += this.what.step;
    await this.load().catch(trouble);
    const first = this.body.rows[before]?.cells[0];
    if (!this.more.hidden || !first) return;
    // The button has gone, and focus must not go with it.
    first.tabIndex = -1;
    first.focus();
  }

  /** Whether more of it is there to be asked for. */
  get isPart() {
    return this.#next !== null && this.#items.length < MOST;
  }

  draw() {
    const { key, pick } = this.what;
    const picked = pick(this.#items);
    const shown = picked.slice(0, this.wanted);
    const keys = new Set(shown.map(key));
    for (const [known, row] of this.#rows) {
      if (keys.has(known)) continue;
      row.remove();
      this.#rows.delete(known);
    }
    shown.forEach((item, at) => this.#drawRow(item, at));
    const isCut = this.#next !== null && !this.isPart;
    const isFiltered = this.part('.none') !== null && picked.length < this.#items.length;
    this.table.hidden = shown.length === 0;
    this.part('.empty').hidden = shown.length > 0 || isFiltered || !this.#isLoaded;
    if (this.part('.none')) this.part('.none').hidden = shown.length > 0 || !isFiltered;
    this.more.hidden = picked.length === shown.length && !this.isPart;
    const number = this.more.hidden ? count(shown.length) : `first ${count(shown.length)}`;
    draw(this.part('.count'), [isFiltered ? `${number} of ${count(this.#items.length)}` : number]);
    draw(this.part('.rest'), isCut ? [`This page looks at the first ${count(MOST)}; GET /api/${this.name} has them all.`] : []);
  }

  /** @param {any} item @param {number} at */
  #drawRow(item, at) {
    const key = this.what.key(item);
    const row = this.#rows.get(key) ?? this.#newRow();
    this.#rows.set(key, row);
    if (this.body.rows[at] !== row) this.body.insertBefore(row, this.body.rows[at] ?? null);
    this.what.cells(item).forEach((parts, column) => draw(row.cells[column], parts));
  }

  #newRow() {
    const row = document.createElement('tr');
    this.heads.forEach((head, column) => {
      const cell = document.createElement(column ? 'td' : 'th');
      if (!column) cell.setAttribute('scope', 'row');
      cell.dataset.label = head.textContent ?? '';
      cell.className = head.className;
      row.append(cell);
    });
    return row;
  }

  /** Forgets what was shown. */
  clear() {
    this.#round += 1;
    [this.#items, this.#next, this.#isLoaded, this.wanted] = [[], null, false, this.what.step];
    this.draw();
  }
}

// ── the parts of the page ───────────────────────────────────────────────────────────────────────────────────────────

const filter = () => field('filter').value.trim().toLowerCase();

const endpoints = new List('endpoints', {
  from: 'after',
  key: (item) => item.name,
  cells: (item) => [
    [{ text: item.name, is: 'name' }, { text: [item.url, ...item.domains].join(' '), is: 'mono' }], [item.owner], [calm(item.clients)],
    [calm(item.waiting)], [alarming(item.dead_letters)], protection(item.protection),
    [item.clients > 0 ? { text: 'connected', is: 'up' } : ago(item.last_seen_at)],
  ],
  whole: () => filter() !== '',
  pick: (items) => items.filter(({ name, owner, domains }) => [name, owner, ...domains].some((text) => text.toLowerCase().includes(filter()))),
});

const lists = [endpoints, new List('sessions', {
  from: 'after',
  key: (item) => item.id,
  cells: (item) => [
    [{ text: item.id, is: 'mono' }], [item.owner], [item.endpoints.length ? few(item.endpoints, 8) : quiet('none')], [{ text: item.remote, is: 'mono' }],
    [item.transport === 'quic' ? 'QUIC' : 'HTTP/2'], [duration(item.rtt_ms)], [when(item.since), quiet(age(item.since))],
  ],
}), new List('queue', {
  from: 'after',
  step: 20,
  key: (item) => item.endpoint,
  cells: (item) => [
    [{ text: item.endpoint, is: 'name' }], [calm(item.depth)], [item.depth ? bytes(item.bytes) : quiet('–')],
    [item.depth ? duration(item.oldest_s * 1000) : quiet('–')], [alarming(item.dead)],
  ],
  whole: () => true,
  pick: (items) => items.filter(({ depth, dead }) => depth || dead).sort((a, b) => b.oldest_s - a.oldest_s || b.dead - a.dead),
}), new List('certificates', {
  key: (item) => `${item.directory} ${item.names.join(' ')}`,
  cells: (item) => [
    [{ text: item.names.join(' '), is: 'mono' }], [item.issuer ?? quiet('none yet')],
    item.not_after ? [when(item.not_after), { ...ago(item.not_after), is: 'note' }] : [quiet('not there yet')], [when(item.renew_at)],
    item.failures ? [{ text: plural(item.failures, 'failure'), is: 'badge bad' }, item.last_error] : [quiet('none')],
  ],
}), new List('audit', {
  from: 'before',
  step: 25,
  key: (item) => String(item.seq),
  cells: (item) => [
    [when(item.at)], [item.actor], [quiet(item.via)], [{ text: item.action, is: 'mono' }, item.refused && { text: 'refused', is: 'badge bad' }],
    [item.target && { text: item.target, is: 'mono' }], [item.detail],
  ],
})];

/** Label, number, what more there is to say, class. @param {any} status @returns {[string, string, Part, string?][]} */
function figures({ sessions, endpoints: names, tokens, queue, certificate }) {
  const ends = certificate?.not_after;
  return [
    ['Clients connected', count(sessions), null], ['Endpoints', count(names), null], ['Valid tokens', count(tokens), null],
    ['Waiting', count(queue.waiting), queue.waiting ? bytes(queue.bytes) : null],
    ['Oldest waiting', queue.waiting ? duration(queue.oldest_s * 1000) : '–', queue.waiting ? null : 'nothing waits'],
    ['Dead letters', count(queue.dead_letters), queue.dead_letters ? 'hookway-relay queue dead-letters' : null, queue.dead_letters ? 'alarm' : ''],
    !certificate ? ['Certificate', '–', 'of the relay’s own CA']
      : !ends ? ['Certificate', 'missing', certificate.name, 'alarm']
        : ['Certificate', ago(ends).text, `${certificate.ends_soon ? 'ends soon: ' : ''}${certificate.name}`, certificate.ends_soon ? 'alarm' : ''],
  ];
}

/** @param {any} status */
function drawStatus(status) {
  draw(byId('domain'), [status.domain]);
  document.querySelectorAll('.relay').forEach((element) => draw(element, [status.domain]));
  const health = status.well ? { text: '● well', is: 'badge good' } : { text: `▲ ${plural(status.problems.length, 'problem')}`, is: 'badge bad' };
  draw(byId('health'), [health, status.draining && { text: 'draining: senders are sent elsewhere', is: 'badge warn' }]);
  draw(byId('problems'), status.problems.map((/** @type {string} */ text) => ({ text: sentence(text), is: 'problem' })));
  draw(byId('about'), [`${status.version}, up since`, when(status.started_at)]);
  document.title = `${status.well ? '' : '▲ '}${status.domain} – Hookway relay`;
  figures(status).forEach(([label, value, more, is], at) => {
    const figure = byId('figures').children[at] ?? byId('figures').appendChild(document.createElement('div'));
    const [name, number] = figure.children.length ? figure.children : ['dt', 'dd'].map((tag) => figure.appendChild(document.createElement(tag)));
    draw(name, [label]);
    draw(number, [{ text: value, is: `value ${is ?? ''}` }, typeof more === 'string' && quiet(more)]);
  });
}

// ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────────

let token = sessionStorage.getItem(KEPT) ?? '';
let paused = false;
let timer = 0;
let round = 0;
let updated = '';

/** Why there is no answer. `status` is 0 where the relay cannot be reached. */
class Trouble extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}
/** The answer is to a token that has been forgotten since. */
class Stale extends Error {}

/** @param {string} path @returns {Promise<any>} */
async function ask(path) {
  const asked = token;
  const headers = { authorization: `Bearer ${asked}` };
  const fetched = fetch(`/api/${path}`, { headers, cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
  const { status, value } = await fetched.then(
    async (answer) => ({ status: answer.status, value: await answer.json().catch(() => null) }),
    () => ({ status: 0, value: { error: 'the relay cannot be reached' } }),
  );
  if (token !== asked) throw new Stale();
  if (status !== 200 || !value) throw new Trouble(status, String(value?.error ?? `the relay answered ${status}`));
  return value;
}

/** Asks for everything; of several at once the last one counts. */
async function refresh() {
  const mine = (round += 1);
  clearTimeout(timer);
  try {
    // The token is tried once: wrong ones are counted.
    const status = await ask('status');
    ahead = Date.parse(status.now) - Date.now();
    enter();
    await Promise.all(lists.map((list) => list.load()));
    drawStatus(status);
    updated = clock(new Date());
    drawUpdated();
  } catch (error) {
    trouble(error);
  } finally {
    if (mine === round && token && !paused && !document.hidden) timer = setTimeout(refresh, EVERY);
  }
}

/** @param {unknown} error */
function trouble(error) {
  if (error instanceof Stale) return;
  if (!(error instanceof Trouble)) throw error;
  const isTried = !sessionStorage.getItem(KEPT);
  if (isTried) return leave(sentence(error.message));
  if (error.status === 401 || error.status === 403) return leave(`This token is no longer taken: ${error.message}.`);
  draw(byId('health'), [{ text: error.status ? '✕ no answer' : '✕ not reached', is: 'badge bad' }]);
  const from = updated && `; what is shown is from ${updated}`;
  draw(byId('problems'), [{ text: `${sentence(error.message + from)} The page keeps trying.`, is: 'problem' }]);
  document.title = '▲ Hookway relay';
}

function drawUpdated() {
  draw(byId('updated'), [updated && `${paused ? 'paused at' : 'updated'} ${updated}`]);
}

/** The token is good: shows the relay. */
function enter() {
  if (!byId('status').hidden) return;
  sessionStorage.setItem(KEPT, token);
  if (byId('login').contains(document.activeElement)) byId('main').focus();
  show(true);
}

/** Forgets the token and all that it gave, and says why. */
function leave(why = '') {
  token = '';
  round += 1;
  clearTimeout(timer);
  sessionStorage.removeItem(KEPT);
  [ahead, updated] = [0, ''];
  setPaused(false);
  field('filter').value = '';
  lists.forEach((list) => list.clear());
  for (const id of ['domain', 'health', 'problems', 'about', 'figures']) draw(byId(id), []);
  document.title = 'Hookway relay';
  show(false);
  draw(byId('login-error'), [why]);
  field('token').setAttribute('aria-invalid', String(why !== ''));
  field('token').focus();
}

/** @param {boolean} isIn */
function show(isIn) {
  if (isIn) field('token').value = '';
  byId('login').hidden = isIn;
  for (const id of ['status', 'domain', 'controls']) byId(id).hidden = !isIn;
}

/** @param {boolean} value */
function setPaused(value) {
  paused = value;
  byId('pause').setAttribute('aria-pressed', String(value));
  drawUpdated();
}

byId('login').addEventListener('submit', (event) => {
  event.preventDefault();
  const given = field('token').value.trim();
  // What is no token at all is not worth a question, nor fit for a header.
  if (!/^[\x21-\x7e]+$/.test(given)) return leave('That is no token: tokens begin with hwt_.');
  token = given;
  draw(byId('login-error'), []);
  refresh();
});
byId('forget').addEventListener('click', () => leave());
byId('pause').addEventListener('click', () => {
  setPaused(!paused);
  clearTimeout(timer);
  if (!paused) refresh();
});
byId('filter').addEventListener('input', () => {
  endpoints.draw();
  if (endpoints.isPart) endpoints.load().catch(trouble);
});
byId('clear').addEventListener('click', () => {
  field('filter').value = '';
  endpoints.draw();
  field('filter').focus();
});
document.addEventListener('visibilitychange', () => {
  clearTimeout(timer);
  if (!document.hidden && token && !paused) refresh();
});

if (token) {
  byId('controls').hidden = false;
  refresh();
} else {
  show(false);
  field('token').focus();
}

// @ts-check
// Dead letters: a button in the header while there are any, and a dialog that tells which, why, and tries them again.

import { getDeadLetters, retryDeadLetters } from './api.js';
import { button, byId, fill, h, setText } from './dom.js';
import { say, sayError } from './notice.js';
import * as format from './format.js';

/** @import { DeadLetter, DeadLetters } from './api.js' */
/** @import { Exchanges } from './exchanges.js' */
/** @typedef {{ ids: string[] } | { all: true }} Which */
/** @typedef {(endpoint: string, which: Which) => void} Retry */

/** @param {{ exchanges: Exchanges }} options */
export function deadLetters({ exchanges }) {
  const opener = byId('dead');
  const view = new DeadView(opener);
  let counts = '';
  opener.addEventListener('click', () => view.open());
  exchanges.addEventListener('status', () => {
    const all = (exchanges.status?.urls ?? []).map((url) => url.dead_letters);
    if (counts === String(all)) return;
    counts = String(all);
    const total = all.reduce((sum, count) => sum + count, 0);
    const focused = document.activeElement === opener;
    setText(opener, total ? format.plural(total, 'dead letter') : '');
    opener.hidden = total === 0;
    if (focused && opener.hidden) byId('list').focus();
    view.changed();
  });
}

class DeadView {
  #opener;
  #close = h('button', { type: 'submit' }, 'Close');
  #content = h('div', { class: 'dead-content' });
  #dialog = h('dialog', { class: 'dead', 'aria-labelledby': 'dead-title', close: () => this.#closed() },
    h('form', { method: 'dialog' }, h('div', { class: 'diff-title' }, h('h2', { id: 'dead-title' }, 'Dead letters'), this.#close)),
    h('p', { class: 'note' }, 'Your app failed these, or they waited too long: the relay tries them no more, and keeps them for 14 days unless it is set otherwise.'),
    this.#content);
  /** @type {DeadLetters[]} */
  #endpoints = [];
  /** What was asked before is not shown after what is newer. */
  #run = 0;

  /** @param {HTMLElement} opener */
  constructor(opener) {
    this.#opener = opener;
  }

  open() {
    fill(this.#content, h('p', { class: 'note' }, 'Loading…'));
    // What is outside of a modal dialog is neither above it nor read out.
    this.#dialog.append(byId('notice'));
    document.body.append(this.#dialog);
    this.#dialog.showModal();
    this.#load();
  }

  /** There are more or fewer than before. */
  changed() {
    if (this.#dialog.open) this.#load();
  }

  #closed() {
    document.body.append(byId('notice'));
    this.#dialog.remove();
    if (this.#opener.hidden) byId('list').focus();
  }

  async #load() {
    const run = ++this.#run;
    try {
      const { endpoints } = await getDeadLetters();
      if (run === this.#run) this.#show(endpoints);
    } catch (error) {
      if (run !== this.#run) return;
      const message = error instanceof Error ? error.message : String(error);
      this.#fill(h('p', { class: 'warning', role: 'alert' }, message), button('Load again', () => this.#load(), { value: 'load' }));
    }
  }

  #retry = async (/** @type {string} */ endpoint, /** @type {Which} */ which) => {
    try {
      const after = await retryDeadLetters(endpoint, which);
      this.#run += 1;
      say(after.retried ? `Trying ${format.plural(after.retried, 'dead letter')} again` : 'That is no dead letter any more');
      this.#show(this.#endpoints.map((before) => (before.endpoint === endpoint ? after : before)));
    } catch (error) {
      sayError(error);
    }
  };

  /** @param {DeadLetters[]} endpoints */
  #show(endpoints) {
    this.#endpoints = endpoints;
    const some = endpoints.filter(({ total }) => total > 0);
    this.#fill(...some.map((one) => endpointView(one, this.#retry)), some.length === 0 && h('p', {}, 'None are left.'));
  }

  /** The focus stays with its letter, or goes to the one that has taken its place. @param {import('./dom.js').Child[]} content */
  #fill(...content) {
    const buttons = () => [...this.#content.querySelectorAll('button')];
    const letters = () => buttons().filter((one) => one.closest('li'));
    const focused = buttons().find((one) => one === document.activeElement);
    const at = focused ? letters().indexOf(focused) : -1;
    fill(this.#content, ...content);
    if (focused) (buttons().find((one) => one.value === focused.value) ?? letters()[Math.min(at, letters().length - 1)] ?? this.#close).focus();
  }
}

/** @param {DeadLetters} of @param {Retry} retry */
function endpointView({ endpoint, total, letters }, retry) {
  return h('section', { 'aria-label': endpoint },
    h('div', { class: 'section-title' },
      h('h3', {}, endpoint),
      h('span', { class: 'note' }, letters.length < total ? `the newest ${format.count(letters.length)} of ${format.count(total)}` : format.count(total)),
      button('Try all again', () => retry(endpoint, { all: true }), { value: endpoint, 'aria-label': `Try all again: ${endpoint}` })),
    h('ul', { class: 'letters' }, ...letters.map((letter) => letterView(letter, () => retry(endpoint, { ids: [letter.id] })))));
}

/** @param {DeadLetter} letter @param {() => void} retry */
function letterView({ id, method, path, received_at: at, attempts, last, bytes, listener }, retry) {
  const name = `${method} ${path}`;
  const facts = [`${format.otherDay(at)} ${format.clock(at)}`, format.plural(attempts, 'attempt'), format.bytes(bytes), listener && `listener ${listener}`];
  return h('li', {},
    h('div', {},
      h('p', { class: 'mono', title: name }, name),
      h('p', { class: 'note', title: `Received ${format.fullTime(at)}` }, facts.filter(Boolean).join(' · ')),
      h('p', { class: 'warning', title: last }, last ?? 'It waited too long')),
    button('Try again', retry, { value: id, 'aria-label': `Try again: ${name}` }));
}

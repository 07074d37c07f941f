// @ts-check
// The right-hand pane: one exchange with its tabs, or the diff of two, or the editor.

import { deleteExchange, getCurl, getDiff, getExchange, pinExchange, replayExchange, replyBodyPath, requestBodyPath } from './api.js';
import { attemptsView, timingView } from './attempts.js';
import { bodyView } from './body.js';
import { diffView } from './diff.js';
import { button, fill, h } from './dom.js';
import { editor } from './editor.js';
import { item, menu } from './menu.js';
import { headersView, noReply, replyBody } from './message.js';
import { ask, copy, say, sayError } from './notice.js';
import { facts, signature } from './overview.js';
import { TABS } from './route.js';
import { clearMarks } from './search.js';
import { newMemory } from './tree.js';
import * as format from './format.js';

/** @import { Attempt, Detail, Summary } from './api.js' */
/** @import { Exchanges } from './exchanges.js' */
/** @import { Tab } from './route.js' */

/** @typedef {{ open: (id: string) => void, close: () => void, showTab: (tab: Tab) => void, showDiff: (a: string, b: string) => void, endDiff: () => void }} Actions */

export class DetailPane {
  /** @type {string | null} what is open */
  id = null;
  /** @type {string | null} A of a diff, while B is being chosen */
  diffFrom = null;
  /** @type {Tab} */
  #tab = 'overview';
  /** @type {string | null} */
  #diff = null;
  /** @type {Detail | null} */
  #detail = null;
  /** @type {'exchange' | 'diff' | 'editor' | 'none'} */
  #shows = 'none';
  /** The load that is under way, which an action waits for: a key may come right after the selection. */
  #ready = Promise.resolve();
  /** What was opened and closed in this exchange's trees. */
  #memory = newMemory();
  #run = 0;
  #timer = 0;

  /** @param {{ root: HTMLElement, exchanges: Exchanges, actions: Actions }} options */
  constructor({ root, exchanges, actions }) {
    this.root = root;
    this.exchanges = exchanges;
    this.actions = actions;
    exchanges.addEventListener('changed', (event) => this.#changed(/** @type {CustomEvent} */ (event).detail));
  }

  /** @param {{ id: string | null, tab: Tab, diff: string | null }} what */
  show({ id, tab, diff }) {
    const same = id === this.id && diff === this.#diff;
    const turned = tab !== this.#tab;
    this.id = id;
    this.#tab = tab;
    this.#diff = diff;
    if (!id) this.#none();
    else if (!same || this.#shows === 'none') this.#ready = this.#load();
    // Drawn again without need, an open menu would close under whoever is in it.
    else if (this.#shows === 'exchange' && turned) this.#draw();
  }

  /** The heading takes the focus, so that a screen reader starts there. */
  focus() {
    (this.root.querySelector('h2') ?? this.root).focus();
  }

  /** Leaves the editor, the diff, or the choice for a diff. @returns {boolean} whether there was something to leave */
  back() {
    if (this.diffFrom) {
      this.diffFrom = null;
      this.#draw();
      return true;
    }
    if (this.#shows === 'editor') {
      this.#draw();
      this.focus();
      return true;
    }
    if (this.#shows === 'diff') {
      this.actions.endDiff();
      return true;
    }
    return false;
  }

  async replay() {
    if (!await this.#replayable()) return;
    const { summary } = /** @type {Detail} */ (this.#detail);
    say('Replaying…');
    try {
      const made = await replayExchange(summary.id, {});
      say(`Replayed: ${[format.outcome(made.summary), format.duration(made.summary.duration_ms), made.summary.resigned && 're-signed'].filter(Boolean).join(', ')}`);
      this.actions.open(made.summary.id);
    } catch (error) {
      sayError(error);
    }
  }

  async edit() {
    if (this.#shows === 'editor' || !await this.#replayable()) return;
    const { id } = /** @type {Detail} */ (this.#detail).summary;
    try {
      const whole = await getExchange(id, true);
      if (id !== this.id) return;
      clearMarks();
      this.#shows = 'editor';
      fill(this.root, editor(whole, { close: () => this.back(), open: this.actions.open }));
      this.root.scrollTop = 0;
      /** @type {HTMLElement | null} */ (this.root.querySelector('#edit-body') ?? this.root.querySelector('#edit-path'))?.focus({ preventScroll: true });
    } catch (error) {
      sayError(error);
    }
  }

  async copyCurl(secrets = false) {
    const { id } = this;
    if (!id) return;
    try {
      const command = await getCurl(id, secrets);
      // A binary or long body is not in the command: curl reads it from the file that Download makes. A text that ends like
      // this would stand in quotes.
      const file = `${id}.bin`;
      const then = command.endsWith(` --data-binary @${file}`) ? `. It reads ${file}: download the request body into the folder where you run it.` : '';
      await copy(command, secrets ? 'curl command with secrets' : 'curl command', then);
    } catch (error) {
      sayError(error);
    }
  }

  async pin() {
    await this.#ready;
    if (!this.#detail) return;
    const { id, pinned } = this.#detail.summary;
    try {
      const summary = await pinExchange(id, !pinned);
      say(summary.pinned ? 'Pinned: it stays when the history is cleared' : 'No longer pinned');
      this.exchanges.update(summary);
      if (this.#detail?.summary.id === id) {
        this.#detail.summary = summary;
        if (this.#shows === 'exchange') this.#draw();
      }
    } catch (error) {
      sayError(error);
    }
  }

  /** The first time chooses A; with another exchange open the second time shows the diff. */
  diff() {
    if (!this.id) return;
    if (!this.diffFrom) this.diffFrom = this.id;
    else if (this.diffFrom === this.id) this.diffFrom = null;
    else {
      const from = this.diffFrom;
      this.diffFrom = null;
      say('');
      this.actions.showDiff(from, this.id);
      return;
    }
    this.#draw();
    if (this.diffFrom) say('Select another exchange and press d again');
  }

  async #replayable() {
    await this.#ready;
    if (!this.#detail || this.#detail.summary.id !== this.id) return false;
    if (!this.#detail.can_replay) say(`It can't be replayed: ${this.#detail.why_not}`, 'bad');
    return this.#detail.can_replay;
  }

  /** @param {Map<string, Summary>} changed */
  #changed(changed) {
    if (!this.id || !changed.has(this.id) || this.#shows !== 'exchange') return;
    if ((changed.get(this.id)?.version ?? 0) <= (this.#detail?.summary.version ?? 0)) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (this.#shows === 'exchange') this.#ready = this.#load();
    }, 150);
  }

  #none() {
    this.#run += 1;
    this.#shows = 'none';
    this.#detail = null;
    fill(this.root, h('div', { class: 'hint' }, h('p', {}, 'Select an exchange to see it here.'), h('p', { class: 'note' }, h('kbd', {}, 'j'), ' ', h('kbd', {}, 'k'), ' move, ', h('kbd', {}, 'Enter'), ' opens, ', h('kbd', {}, '?'), ' shows all keys.')));
  }

  async #load() {
    const run = ++this.#run;
    const id = /** @type {string} */ (this.id);
    this.root.setAttribute('aria-busy', 'true');
    try {
      if (this.#diff) {
        const [a, b] = [this.#diff, id];
        const diff = await getDiff(a, b);
        if (run !== this.#run) return;
        this.#shows = 'diff';
        clearMarks();
        fill(this.root, diffView(diff, { swap: () => this.actions.showDiff(b, a), close: this.actions.endDiff, open: this.actions.open }));
        this.root.scrollTop = 0;
        return;
      }
      const detail = await getExchange(id);
      if (run !== this.#run) return;
      const another = this.#detail?.summary.id !== detail.summary.id;
      this.#detail = detail;
      if (another) this.#memory = newMemory();
      this.#draw();
      if (another) this.root.scrollTop = 0;
    } catch (error) {
      if (run !== this.#run) return;
      this.#shows = 'none';
      this.#detail = null;
      fill(this.root, h('div', { class: 'hint' }, h('h2', { tabindex: -1 }, 'Not there'), h('p', {}, error instanceof Error ? error.message : ''), button('Close', this.actions.close)));
    } finally {
      if (run === this.#run) this.root.removeAttribute('aria-busy');
    }
  }

  /** Draws the exchange again and gives the focus back to what had it. */
  #draw() {
    const detail = this.#detail;
    if (!detail) return;
    const focused = this.root.contains(document.activeElement) ? document.activeElement?.id : '';
    const scroll = this.root.scrollTop;
    this.#shows = 'exchange';
    clearMarks();
    fill(this.root, this.#title(detail), this.diffFrom && this.#choosing(this.diffFrom), this.#tabs(detail),
      h('div', { id: 'panel', role: 'tabpanel', 'aria-labelledby': `tab-${this.#tab}`, tabindex: 0 }, ...this.#panel(detail)));
    this.root.scrollTop = scroll;
    if (focused) document.getElementById(focused)?.focus();
  }

  /** @param {Detail} detail */
  #title({ summary, can_replay: canReplay, why_not: whyNot }) {
    const blocked = canReplay ? {} : { 'aria-disabled': 'true', title: whyNot };
    const key = (/** @type {string} */ name) => h('kbd', { 'aria-hidden': 'true' }, name);
    return h('div', { class: 'detail-title' },
      h('div', { class: 'title-line' },
        button('Back', this.actions.close, { id: 'back' }),
        h('h2', { tabindex: -1 }, h('span', { class: 'method' }, summary.method), ' ', summary.path),
        h('span', { class: `status tone-${format.tone(summary)}` }, format.outcome(summary))),
      h('p', { class: 'title-facts' }, summary.event_type && h('span', { class: 'event' }, summary.event_type), signature(summary)),
      h('div', { class: 'title-actions', role: 'group', 'aria-label': 'Actions' },
        button('Replay', () => this.replay(), { id: 'replay', ...blocked }, key('r')),
        button('Edit & resend', () => this.edit(), { id: 'edit', ...blocked }, key('e')),
        button('Copy curl', () => this.copyCurl(), { id: 'curl' }, key('c')),
        button('Diff', () => this.diff(), { id: 'diff', 'aria-pressed': String(this.diffFrom !== null) }, key('d')),
        button(summary.pinned ? 'Unpin' : 'Pin', () => this.pin(), { id: 'pin' }, key('p')),
        menu({ id: 'more-menu', label: 'More', content: () => this.#more(summary) })));
  }

  /** @param {Summary} summary */
  #more(summary) {
    const last = this.#detail?.attempts.findLast((attempt) => attempt.reply);
    const remove = async () => {
      const yes = await ask({ title: 'Delete this exchange?', text: `${summary.method} ${summary.path} of ${format.clock(summary.received_at)} is deleted from the history on this machine. It can't be undone.`, confirm: 'Delete' });
      if (!yes) return;
      await deleteExchange(summary.id).then(() => {
        say('Deleted');
        this.actions.close();
      }, sayError);
    };
    return [
      item('Copy hookway replay command', () => copy(`hookway replay ${format.shellWord(summary.id)}`, 'Command')),
      item('Copy curl with secrets', () => this.copyCurl(true)),
      item('Copy id', () => copy(summary.id, 'Id')),
      h('a', { class: 'item', href: requestBodyPath(summary.id), download: '' }, 'Download request body'),
      last ? h('a', { class: 'item', href: replyBodyPath(summary.id, last.number), download: '' }, 'Download response body') : null,
      item('Delete…', remove, { class: 'item danger-text' }),
    ];
  }

  /** @param {string} from */
  #choosing(from) {
    const a = this.exchanges.get(from);
    const previous = this.#previousOfPath();
    return h('div', { class: 'choosing', role: 'group', 'aria-label': 'Choose what to compare' },
      h('p', {}, from === this.id ? 'A is this exchange. ' : `A is ${a ? `${a.method} ${a.path} of ${format.clock(a.received_at)}` : from}. `,
        from === this.id ? 'Select another and press ' : 'Compare it with this one: ', h('kbd', {}, 'd')),
      from !== this.id && button('Compare', () => this.diff()),
      from === this.id && previous && button('Previous of the same path', () => {
        this.diffFrom = null;
        this.actions.showDiff(previous.id, from);
      }),
      button('Cancel', () => this.back()));
  }

  #previousOfPath() {
    const { rows } = this.exchanges;
    const at = this.id ? this.exchanges.indexOf(this.id) : -1;
    const plain = (/** @type {Summary} */ row) => `${row.method} ${row.path.split('?')[0]}`;
    return at < 0 ? undefined : rows.slice(at + 1).find((row) => plain(row) === plain(rows[at]));
  }

  /** @param {Detail} detail */
  #tabs(detail) {
    const names = { overview: 'Overview', request: 'Request', response: 'Response', attempts: `Attempts (${detail.attempts.length})`, timing: 'Timing' };
    const tabs = TABS.map((tab) => h('button', {
      type: 'button', role: 'tab', id: `tab-${tab}`, 'aria-selected': String(tab === this.#tab), 'aria-controls': 'panel', tabindex: tab === this.#tab ? 0 : -1,
      click: () => this.actions.showTab(tab),
    }, names[tab]));
    return h('div', { role: 'tablist', 'aria-label': 'Parts of the exchange', keydown: (/** @type {KeyboardEvent} */ event) => {
      const at = TABS.indexOf(this.#tab);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: TABS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const tab = TABS[(to + TABS.length) % TABS.length];
      tabs[TABS.indexOf(tab)].focus();
      this.actions.showTab(tab);
    } }, ...tabs);
  }

  /** @param {Detail} detail @returns {(Element | null)[]} */
  #panel(detail) {
    const { summary, request, attempts } = detail;
    const last = attempts.findLast((attempt) => attempt.reply) ?? attempts.at(-1);
    if (this.#tab === 'attempts') return [attemptsView(summary, attempts)];
    if (this.#tab === 'timing') return [timingView(detail)];
    const requestBody = () => bodyView(request.body, { name: 'Request body', download: request.body.kind === 'empty' ? undefined : requestBodyPath(summary.id), memory: this.#memory });
    if (this.#tab === 'request') {
      return [
        headersView(request.headers, { title: 'Request headers', reveal: async (at) => (await this.#secrets()).request.headers[at]?.value }),
        requestBody(),
        headersView(request.trailers, { title: 'Request trailers', reveal: async (at) => (await this.#secrets()).request.trailers[at]?.value })];
    }
    if (this.#tab === 'response') return this.#response(summary, last);
    return [facts(detail, this.actions.open), requestBody(), ...(last?.reply ? [replyBody(summary, last, last.reply, this.#memory)] : [noReply(summary, last)])];
  }

  /** @param {Summary} summary @param {Attempt | undefined} last */
  #response(summary, last) {
    if (!last?.reply) return [noReply(summary, last)];
    const whole = async () => (await this.#secrets()).attempts.find((attempt) => attempt.number === last.number)?.reply;
    return [
      headersView(last.reply.headers, { title: 'Response headers', reveal: async (at) => (await whole())?.headers[at]?.value }),
      replyBody(summary, last, last.reply, this.#memory),
      headersView(last.reply.trailers, { title: 'Response trailers', reveal: async (at) => (await whole())?.trailers[at]?.value })];
  }

  /** Asked for only when a row is revealed, and not kept. */
  #secrets() {
    return getExchange(/** @type {string} */ (this.id), true);
  }
}

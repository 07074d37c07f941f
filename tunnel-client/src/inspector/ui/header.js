// @ts-check
// The top of the page: the URL to give to a provider, whether the tunnel and the app are up, and the page's own switches.

import { button, byId, fill, h } from './dom.js';
import { item, menu } from './menu.js';
import { copy } from './notice.js';
import * as format from './format.js';

/** @import { Session, Status, Target } from './api.js' */

export class Header {
  #pause = button('Pause', () => this.pause(), { id: 'pause', 'aria-pressed': 'false' });
  /** What each part shows. @type {Map<string, string>} */
  #shown = new Map();

  /** @param {{ pause: () => void, theme: () => void, help: () => void }} actions */
  constructor({ pause, theme, help }) {
    this.pause = pause;
    byId('controls').append(this.#pause,
      button('Theme', theme, { id: 'theme', title: 'Light or dark (t)' }),
      button('?', help, { id: 'help-button', 'aria-label': 'Help', title: 'Help (?)' }));
  }

  /** @param {boolean} paused @param {number} waiting */
  showPaused(paused, waiting) {
    this.#pause.setAttribute('aria-pressed', String(paused));
    this.#pause.textContent = paused ? (waiting ? `Resume, ${format.count(waiting)} waiting` : 'Resume') : 'Pause';
  }

  /** @param {Status} status @param {boolean} lost whether hookway itself no longer answers */
  show(status, lost) {
    this.#fill('urls', [status.urls], () => urls(status));
    this.#fill('session', [status.session, status.mode, lost], () => [lost ? state('down', 'hookway has ended') : session(status)]);
    this.#fill('targets', [status.targets, lost], () => [targets(status.targets, lost)]);
  }

  /** A part stays as it is, with a menu that is open, while what it shows does. @param {string} id @param {unknown} of @param {() => import('./dom.js').Child[]} make */
  #fill(id, of, make) {
    const shown = JSON.stringify(of);
    if (this.#shown.get(id) === shown) return;
    this.#shown.set(id, shown);
    fill(byId(id), ...make());
  }
}

/** @param {Status} status */
function urls(status) {
  const [first, ...others] = status.urls;
  if (!first) return [];
  const more = [...first.more, ...others.flatMap(({ url, more }) => [url, ...more])];
  return [
    h('code', { class: 'url', id: 'url', title: first.url }, first.url),
    button('Copy', () => copy(first.url, 'URL'), { id: 'copy-url', 'aria-label': 'Copy the URL' }),
    more.length ? menu({
      id: 'url-menu', label: `+${more.length}`, name: `+${more.length} more URLs`,
      content: () => [h('p', { class: 'menu-title' }, 'Copy a URL'), ...[first.url, ...more].map((url) => item(url, () => copy(url, 'URL')))],
    }) : null,
  ];
}

/** @param {Status} status */
function session({ mode, session }) {
  if (mode === 'stored' || !session) return state('unknown', 'stored history, no tunnel');
  if (session.state === 'up') return state('up', ['live', session.rtt_ms === null ? '' : format.duration(session.rtt_ms), (session.transport ?? '').toUpperCase()].filter(Boolean).join(' · '), `Connected to ${session.relay}`);
  if (session.state === 'connecting') return state('unknown', 'connecting…', session.relay);
  return state('down', 'tunnel down', session.reason ?? '');
}

/** @param {Target[]} all @param {boolean} lost */
function targets(all, lost) {
  if (all.length === 0) return null;
  const worst = all.find((target) => target.state === 'down') ?? all[0];
  const text = `${format.withoutScheme(worst.target)} ${lost ? 'unknown' : worst.state}`;
  const shown = state(lost ? 'unknown' : worst.state, text, 'Your app');
  if (all.length === 1) return shown;
  return h('span', {}, shown, ' ', menu({
    id: 'target-menu', label: `+${all.length - 1}`, name: `+${all.length - 1} more targets`,
    content: () => [h('table', { class: 'targets' }, h('tbody', {}, ...all.map((target) => h('tr', {},
      h('td', {}, [target.endpoint, target.prefix].filter(Boolean).join(' ') || 'everything else'), h('td', {}, target.target), h('td', {}, state(target.state, target.state))))))],
  }));
}

/** A shape as well as a colour: a full disc is up, a ring is unknown, a cross is down. @param {'up' | 'down' | 'unknown'} is @param {string} text @param {string} [title] */
function state(is, text, title) {
  const mark = { up: '●', down: '✕', unknown: '○' }[is];
  return h('span', { class: `state ${is}`, title }, h('span', { class: 'mark', 'aria-hidden': 'true' }, mark), ' ', text);
}

/** The line that says what is wrong and what to do, or nothing. @param {Status | null} status @param {boolean} lost */
export function banners(status, lost) {
  /** @type {HTMLElement[]} */
  const all = [];
  const banner = (/** @type {import('./dom.js').Child[]} */ ...text) => all.push(h('p', { class: 'banner' }, ...text));
  if (lost) banner('hookway has ended; reconnecting… ', h('span', { class: 'note' }, 'What is shown here stays until it is back.'));
  if (!status || lost) return all;
  const session = /** @type {Session | null} */ (status.session);
  if (session?.state === 'down') banner(`The relay ${session.relay} can't be reached${session.reason ? `: ${session.reason}` : ''}. hookway keeps trying.`);
  const down = status.targets.filter((target) => target.state === 'down');
  if (down.length) banner(`Nothing is listening on ${down.map((target) => target.target).join(', ')}. Start your app, or forward elsewhere: `, command('hookway 8080'));
  if (status.history.problem) banner(`History: ${status.history.problem}`);
  else if (!status.history.recording) banner('History is off, so new exchanges are not kept. Start hookway without --no-store to see them here.');
  return all;
}

/** A command with a button that copies it. @param {string} text */
export function command(text) {
  return h('span', { class: 'command' }, h('code', {}, text), button('Copy', () => copy(text, 'Command'), { 'aria-label': `Copy ${text}` }));
}

// @ts-check
// Single keys. They never act while a field has the focus or with Ctrl, Meta or Alt, which belong to the browser.

import { h } from './dom.js';
import { KEYS as FILTER_KEYS } from './suggestions.js';

/** @type {[string, string][]} */
const HELP = [
  ['j k', 'next, previous exchange'], ['g G', 'newest, oldest'], ['Enter', 'open'], ['Esc', 'close, back to the list'], ['/', 'filter'], ['u', 'next failed'],
  ['r', 'replay'], ['e', 'edit & resend'], ['c', 'copy as curl'], ['d', 'diff: once for A, once more for B'], ['p', 'pin'],
  ['1 – 5', 'tabs'], ['t', 'light or dark'], ['?', 'this help'],
];

/** @param {Record<string, (event: KeyboardEvent) => void>} actions by `event.key` */
export function listenForKeys(actions) {
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target instanceof Element ? event.target : null;
    if (target?.closest('input, textarea, select, [contenteditable], dialog')) return;
    if (document.querySelector('dialog[open], :popover-open')) return;
    // Enter on a button or link is theirs.
    if (event.key === 'Enter' && target?.closest('button, a, summary')) return;
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action(event);
  });
}

export function showHelp() {
  const rows = (/** @type {[string, string][]} */ all) => all.map(([key, text]) => h('tr', {}, h('th', { scope: 'row' }, ...key.split(' ').map((part) => (part === '–' ? ' – ' : h('kbd', {}, part)))), h('td', {}, text)));
  const dialog = h('dialog', { class: 'help', 'aria-labelledby': 'help-title', close: () => dialog.remove() },
    h('form', { method: 'dialog' },
      h('div', { class: 'diff-title' }, h('h2', { id: 'help-title' }, 'Keys and filter'), h('button', { type: 'submit' }, 'Close'))),
    h('div', { class: 'help-columns' },
      h('table', {}, h('tbody', {}, ...rows(HELP))),
      h('div', {},
        h('p', {}, 'Terms are separated by blanks and all must hold. ', h('code', {}, '-term'), ' is its opposite; values with blanks go in quotes; a bare word is looked for in path, headers and body.'),
        h('table', {}, h('tbody', {}, ...FILTER_KEYS.map(([key, text]) => h('tr', {}, h('th', { scope: 'row' }, h('code', {}, key)), h('td', {}, text))))))));
  document.body.append(dialog);
  dialog.showModal();
}

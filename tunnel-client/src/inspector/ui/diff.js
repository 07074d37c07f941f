// @ts-check
// What differs between two exchanges, by sections, as the server compared them.

import { button, h } from './dom.js';
import * as format from './format.js';

/** @import { Diff, FieldChange, LineChange, Section, Summary } from './api.js' */

const SIGNS = { add: '+', remove: '−', change: '~', same: ' ', gap: ' ' };
const WORDS = { add: 'added', remove: 'removed', change: 'changed', same: '', gap: '' };

/**
 * @param {Diff} diff
 * @param {{ swap?: () => void, close?: () => void, open?: (id: string) => void }} actions
 */
export function diffView(diff, { swap, close, open }) {
  const changed = diff.sections.filter((section) => section.changes.length > 0);
  const unchanged = diff.sections.filter((section) => section.changes.length === 0).map((section) => section.name);
  return h('div', { class: 'diff' },
    h('div', { class: 'diff-title' },
      h('h2', { tabindex: -1 }, 'Diff'),
      h('div', { class: 'actions' }, swap && button('Swap', swap), close && button('Close', close, { title: 'Esc' }))),
    h('table', { class: 'sides' }, h('tbody', {}, side('A', diff.a, open), side('B', diff.b, open))),
    diff.same || changed.length === 0 ? h('p', {}, 'No difference.') : null,
    ...changed.map(sectionView),
    unchanged.length > 0 && changed.length > 0 ? h('p', { class: 'note' }, `The same: ${unchanged.join(', ')}.`) : null,
    ignored(diff.sections));
}

/** @param {string} letter @param {Summary} summary @param {((id: string) => void) | undefined} open */
function side(letter, summary, open) {
  return h('tr', {},
    h('th', { scope: 'row' }, h('span', { class: letter === 'A' ? 'side removed' : 'side added' }, `${SIGNS[letter === 'A' ? 'remove' : 'add']} ${letter}`)),
    h('td', {}, format.clock(summary.received_at)),
    h('td', { class: 'mono' }, `${summary.method} ${summary.path}`),
    h('td', { class: `status tone-${format.tone(summary)}` }, format.outcome(summary)),
    h('td', {}, open ? button('Open', () => open(summary.id), { 'aria-label': `Open ${letter}` }) : null));
}

/** @param {Section} section */
function sectionView(section) {
  return h('section', { 'aria-label': section.name },
    h('h3', {}, section.name[0].toUpperCase() + section.name.slice(1)),
    section.kind === 'text' ? linesView(/** @type {LineChange[]} */ (section.changes)) : fieldsView(/** @type {FieldChange[]} */ (section.changes)));
}

/** @param {FieldChange[]} changes */
function fieldsView(changes) {
  const sign = (/** @type {'add' | 'remove'} */ op, /** @type {string | null} */ text) =>
    text === null ? null : h(op === 'add' ? 'ins' : 'del', {}, h('span', { class: 'sign', 'aria-hidden': 'true' }, SIGNS[op]), text);
  return h('table', { class: 'changes' },
    h('colgroup', {}, h('col', { class: 'name' }), h('col')),
    h('thead', { class: 'visually-hidden' }, h('tr', {}, h('th', { scope: 'col' }, 'Where'), h('th', { scope: 'col' }, 'Change'))),
    h('tbody', {}, ...changes.map(({ op, path, a, b }) => h('tr', {},
      h('th', { scope: 'row' }, path, h('span', { class: 'note' }, ` ${WORDS[op]}`)),
      h('td', {}, sign('remove', a), sign('add', b))))));
}

/** @param {LineChange[]} changes */
function linesView(changes) {
  return h('div', { class: 'lines mono' }, ...changes.map(({ op, line }) => {
    const text = [h('span', { class: 'sign', 'aria-hidden': 'true' }, SIGNS[op]), op === 'gap' ? line || '…' : line];
    if (op === 'add') return h('ins', {}, ...text);
    if (op === 'remove') return h('del', {}, ...text);
    return h('div', { class: op }, ...text);
  }));
}

/** @param {Section[]} sections */
function ignored(sections) {
  const fields = [...new Set(sections.flatMap((section) => section.ignored))];
  return fields.length ? h('p', { class: 'note' }, `Ignored because they always differ: ${fields.join(', ')}.`) : null;
}

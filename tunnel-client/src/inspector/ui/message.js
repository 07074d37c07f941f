// @ts-check
// A request or a reply as it came: its headers in order, with duplicates, then its body.

import { replyBodyPath } from './api.js';
import { bodyView } from './body.js';
import { button, fill, h } from './dom.js';
import { copy, sayError } from './notice.js';
import * as format from './format.js';

/** @import { Attempt, Header, Reply, Summary } from './api.js' */
/** @import { Memory } from './tree.js' */

/**
 * @param {Header[]} headers
 * @param {{ title: string, reveal: (index: number) => Promise<string | undefined> }} options `reveal` asks for the one value
 */
export function headersView(headers, { title, reveal }) {
  if (headers.length === 0) return null;
  return h('section', { class: 'headers-section', 'aria-label': title },
    h('div', { class: 'section-title' }, h('h3', {}, title), h('span', { class: 'note' }, format.count(headers.length))),
    h('table', { class: 'headers' },
      h('colgroup', {}, h('col', { class: 'name' }), h('col'), h('col', { class: 'actions' })),
      h('thead', { class: 'visually-hidden' }, h('tr', {}, h('th', { scope: 'col' }, 'Name'), h('th', { scope: 'col' }, 'Value'), h('th', { scope: 'col' }, 'Actions'))),
      h('tbody', {}, ...headers.map((header, index) => headerRow(header, () => reveal(index))))));
}

/** @param {Header} header @param {() => Promise<string | undefined>} reveal */
function headerRow(header, reveal) {
  const value = h('td', { class: header.secret ? 'secret' : null }, header.value);
  const copyButton = () => button('Copy', () => copy(value.textContent ?? '', header.name), { 'aria-label': `Copy ${header.name}` });
  const actions = h('td', { class: 'row-actions' });
  if (header.secret) {
    const show = button('Reveal', async () => {
      try {
        value.textContent = (await reveal()) ?? header.value;
        fill(actions, copyButton());
        actions.querySelector('button')?.focus();
      } catch (error) {
        sayError(error);
      }
    }, { 'aria-label': `Reveal ${header.name}` });
    actions.append(show);
  } else {
    actions.append(copyButton());
  }
  return h('tr', {}, h('th', { scope: 'row' }, header.name), value, actions);
}

/** @param {Summary} summary @param {Attempt} attempt @param {Reply} reply @param {Memory} memory */
export const replyBody = (summary, attempt, reply, memory) =>
  bodyView(reply.body, { name: 'Response body', download: reply.body.kind === 'empty' ? undefined : replyBodyPath(summary.id, attempt.number), memory });

/** @param {Summary} summary @param {Attempt | undefined} attempt */
export function noReply({ state }, attempt) {
  const waiting = attempt ? attempt.state === 'pending' : state === 'pending';
  const text = waiting ? 'Waiting for your app to answer…' : !attempt ? 'Not handed to your app yet.' : attempt.message ?? `There is no response: ${attempt.error ?? 'the app gave none'}.`;
  return h('section', { class: 'body', 'aria-label': 'Response' }, h('div', { class: 'section-title' }, h('h3', {}, 'Response')), h('p', { class: attempt?.error ? 'warning' : 'note' }, text));
}

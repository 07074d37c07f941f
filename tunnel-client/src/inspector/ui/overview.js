// @ts-check
// What is worth knowing first of an exchange: whether its signature is good, and the facts.

import { button, h } from './dom.js';
import * as format from './format.js';

/** @import { Detail, Summary } from './api.js' */

/** @param {Summary} summary */
export function signature({ signature, provider, signature_detail: detail }) {
  const name = provider ? `${provider} signature` : 'signature';
  if (signature === 'ok') return h('span', { class: 'signature good' }, `✓ ${name}`, detail && h('span', { class: 'note' }, `, ${detail}`));
  if (signature === 'bad') return h('span', { class: 'signature bad' }, `✕ bad ${name}`, detail && h('span', { class: 'why' }, `: ${detail}`));
  return null;
}

/** @param {Detail} detail @param {(id: string) => void} open */
export function facts({ summary, http, attempts }, open) {
  const link = (/** @type {string} */ id) => button(format.shortId(id), () => open(id), { class: 'link', title: id });
  const last = attempts.at(-1);
  /** @type {[string, import('./dom.js').Child][]} */
  const rows = [
    ['Received', `${format.fullTime(summary.received_at)}, from ${summary.remote}, HTTP/${http}`],
    ['Delivered to', last?.url],
    ['Answer', h('span', {}, h('span', { class: `status tone-${format.tone(summary)}` }, format.outcome(summary)), ` ${[format.duration(summary.duration_ms), summary.attempts > 1 ? `${summary.attempts} attempts` : ''].filter(Boolean).join(', ')}`)],
    ['Problem', summary.ok ? null : last?.message],
    ['Queued', summary.queued_ms ? `${format.duration(summary.queued_ms)}, while it could not be delivered` : null],
    ['Re-signed', summary.resigned ? 'signed afresh with the current time before it was handed over' : null],
    ['Replay of', summary.replay_of && h('span', {}, link(summary.replay_of), summary.edited ? ' edited' : '')],
    ['Duplicate of', summary.duplicate_of && link(summary.duplicate_of)],
    ['Endpoint', summary.endpoint],
    ['Id', h('span', { class: 'mono' }, summary.id)],
  ];
  return h('dl', { class: 'facts' }, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

// @ts-check
// What is worth knowing first of an exchange: whether its signature is good, and the facts.

import { button, h } from './dom.js';
import * as format from './format.js';

/** @import { Detail, Summary } from './api.js' */

/** @param {Summary} summary */
export function signature({ signature, provider, signature_detail: detail, signature_secret: secret }) {
  const name = provider ? `${provider} signature` : 'signature';
  if (signature === 'ok') return h('span', { class: 'signature good' }, `✓ ${name}`, secret && `, made with ${secret}`);
  if (signature === 'bad') return h('span', { class: 'signature bad' }, `✕ bad ${name}`, detail && ': ', ...sentence(detail));
  if (!provider) return null;
  // The sentence may begin with these words itself.
  return h('span', { class: 'signature note' }, `${name} `, !detail?.startsWith('not checked') && `not checked${detail ? ': ' : ''}`, ...sentence(detail));
}

/** A sentence; what of a command is in it is selected by one click. @param {string | null} text */
function sentence(text) {
  const command = text?.match(/--verify \S+|hookway [^…:]+$/);
  if (!text || !command) return [text];
  const { index: at = 0, 0: words } = command;
  return [text.slice(0, at), h('code', { class: 'pick' }, words), text.slice(at + words.length)];
}

/** @param {Detail} detail @param {(id: string) => void} open */
export function facts({ summary, http, attempts }, open) {
  const link = (/** @type {string} */ id) => button(format.shortId(id), () => open(id), { class: 'link', title: id });
  const last = attempts.at(-1);
  const late = format.overDeadline(summary);
  /** @type {[string, import('./dom.js').Child][]} */
  const rows = [
    ['Received', `${format.fullTime(summary.received_at)}, from ${summary.remote}, HTTP/${http}`],
    ['Delivered to', last?.url],
    ['Answer', h('span', {}, h('span', { class: `status tone-${format.tone(summary)}` }, format.outcome(summary)), ` ${[format.duration(summary.duration_ms), summary.attempts > 1 ? `${summary.attempts} attempts` : ''].filter(Boolean).join(', ')}`,
      late && h('span', { class: 'warning' }, `, longer than the ${format.duration(summary.deadline_ms)} that ${summary.provider ?? 'the sender'} waits`))],
    ['Sender had', summary.acked_ms !== null && `202 from hookway after ${format.duration(summary.acked_ms)} (--breakpoint), not the app’s answer`],
    ['Problem', summary.ok ? null : last?.message],
    ['Queued', summary.queued_ms ? `${format.duration(summary.queued_ms)}, while it could not be delivered` : null],
    ['Provider', summary.provider],
    ['Event', summary.event_type],
    ['Event id', summary.event_id && h('span', { class: 'mono' }, summary.event_id)],
    // A replay is kept as it was sent, a late delivery as it came.
    ['Re-signed', summary.resigned && (summary.replay_of ? 'signed afresh at the time of sending; the headers here are those that were sent' : 'the app had it with a signature of the time of sending; the headers here are the original’s')],
    ['Replay of', summary.replay_of && h('span', {}, link(summary.replay_of), summary.edited ? ' edited' : '')],
    ['Duplicate of', summary.duplicate_of && link(summary.duplicate_of)],
    ['Endpoint', summary.endpoint],
    ['Id', h('span', { class: 'mono' }, summary.id)],
  ];
  return h('dl', { class: 'facts' }, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

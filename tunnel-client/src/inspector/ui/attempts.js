// @ts-check
// Every try to hand the request to the app, and where its time went.

import { h } from './dom.js';
import * as format from './format.js';

/** @import { Attempt, Detail, Summary } from './api.js' */

/** @param {Summary} summary @param {Attempt[]} attempts */
export function attemptsView({ state }, attempts) {
  if (attempts.length === 0) return h('p', { class: 'note' }, state === 'pending' ? 'The first attempt is under way.' : 'Not handed to your app yet.');
  return h('ol', { class: 'attempts' }, ...attempts.map((attempt) => h('li', {},
    h('p', { class: 'attempt-line' },
      h('strong', {}, `Attempt ${attempt.number}`),
      h('span', { class: `status tone-${attempt.state === 'pending' ? 'wait' : format.resultTone(attempt.status, attempt.error)}` }, format.result(attempt)),
      h('span', {}, format.duration(attempt.duration_ms)),
      h('span', { class: 'note', title: format.fullTime(attempt.at) }, format.clock(attempt.at))),
    h('p', { class: 'mono' }, attempt.url),
    attempt.message && h('p', { class: 'warning' }, attempt.message),
    attempt.next_try_at && h('p', {}, `Next try at ${format.clock(attempt.next_try_at)}`))));
}

/** @typedef {{ name: string, from: number, ms: number, note?: string }} Span */

/** @param {Detail} detail */
export function timingView({ timings, summary }) {
  const spans = spansOf(timings);
  const whole = Math.max(1, ...spans.map((span) => span.from + span.ms));
  return h('div', { class: 'timing' },
    h('p', {}, `Received by the relay at ${format.fullTime(timings.relay_received_at)}, by this machine at ${format.fullTime(timings.client_received_at)}.`),
    spans.length === 0 && h('p', { class: 'note' }, 'Nothing is measured yet.'),
    h('table', {},
      h('thead', { class: 'visually-hidden' }, h('tr', {}, h('th', { scope: 'col' }, 'Step'), h('th', { scope: 'col' }, 'Time'), h('th', { scope: 'col' }, 'Share'))),
      h('tbody', {}, ...spans.map((span) => h('tr', {}, h('th', { scope: 'row' }, span.name), h('td', { class: 'number' }, format.duration(span.ms)), h('td', { class: 'bar-cell' }, bar(span, whole)), h('td', { class: 'note' }, span.note ?? ''))))),
    deadlineView(timings, summary),
    timings.relay_to_client_ms !== null && timings.relay_to_client_ms < 0 && h('p', { class: 'note' }, 'Relay to here is negative because the two clocks differ.'));
}

/** How much was used of the time that the provider waits. @param {import('./api.js').Timings} timings @param {Summary} summary */
function deadlineView({ deadline_ms: deadline, acked_ms: acked, done_ms: done }, summary) {
  const answer = acked ?? done;
  if (answer === null || (deadline === null && acked === null)) return null;
  const late = deadline !== null && answer > deadline;
  const app = done === null ? 'is still at work' : `${summary.status === null ? 'failed' : 'answered'} after ${format.duration(done)}`;
  return h('div', { class: `deadline ${late ? 'warning' : ''}` },
    deadline !== null && h('p', {}, h('strong', {}, `${format.duration(answer)} of ${format.duration(deadline)}`),
      h('span', { class: 'note' }, ` that ${summary.provider ?? 'the sender'} waits for an answer`), late && h('strong', {}, ': would time out')),
    acked !== null && h('p', {}, `202 sent by hookway after ${format.duration(acked)} (--breakpoint); the app ${app}`),
    deadline !== null && bar({ from: 0, ms: answer }, Math.max(deadline, answer), deadline));
}

/** @param {import('./api.js').Timings} timings @returns {Span[]} */
function spansOf(timings) {
  /** @type {Span[]} */
  const spans = [];
  const transit = timings.relay_to_client_ms;
  if (transit !== null) spans.push({ name: 'Relay to here', from: 0, ms: transit });
  let from = Math.max(0, transit ?? 0);
  if (timings.queued_ms) {
    spans.push({ name: 'Queued', from, ms: timings.queued_ms });
    from += timings.queued_ms;
  }
  const { connect_ms: connect, first_byte_ms: first, done_ms: done } = timings;
  if (first === null && done === null) return spans;
  spans.push({ name: 'Connect', from, ms: connect ?? 0, note: connect === null ? 'a kept connection' : undefined });
  if (first !== null) spans.push({ name: 'First byte', from: from + (connect ?? 0), ms: Math.max(0, first - (connect ?? 0)), note: 'your app at work' });
  if (done !== null) spans.push({ name: first === null ? 'Until it failed' : 'Body', from: from + (first ?? connect ?? 0), ms: Math.max(0, done - (first ?? connect ?? 0)) });
  return spans;
}

/** @param {{ from: number, ms: number }} span @param {number} whole @param {number} [limit] where a mark stands */
function bar({ from, ms }, whole, limit) {
  const percent = (/** @type {number} */ part) => `${(Math.max(0, part) / whole) * 100}%`;
  const fill = h('span', { class: 'bar' });
  fill.style.left = percent(from);
  fill.style.width = percent(Math.max(ms, whole / 250));
  const mark = limit !== undefined && h('span', { class: 'limit' });
  if (mark) mark.style.left = percent(limit);
  return h('span', { class: 'track', 'aria-hidden': 'true' }, fill, mark);
}

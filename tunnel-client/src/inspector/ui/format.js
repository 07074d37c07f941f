// @ts-check
// How numbers, times and states are written, the same everywhere.

/** @import { Summary, Attempt } from './api.js' */

const two = (/** @type {number} */ n) => String(n).padStart(2, '0');
const dayFormat = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short' });

/** 14:02:07 in local time. @param {string | number} time */
export function clock(time) {
  const date = new Date(time);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** "20 Nov" when it was not today, else nothing. @param {string} time */
export function otherDay(time) {
  const date = new Date(time);
  return date.toDateString() === new Date().toDateString() ? '' : dayFormat.format(date);
}

/** @param {string | number} time */
export function fullTime(time) {
  const date = new Date(time);
  const millis = String(date.getMilliseconds()).padStart(3, '0');
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(time)}.${millis}`;
}

/** @param {number | null | undefined} ms */
export function duration(ms) {
  if (ms === null || ms === undefined) return '';
  const size = Math.abs(ms);
  if (size < 9.95) return `${Number(ms.toFixed(1))} ms`;
  if (size < 999.5) return `${Math.round(ms)} ms`;
  if (size < 119_500) return `${Number((ms / 1000).toFixed(size < 9950 ? 1 : 0))} s`;
  if (size < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  if (size < 172_800_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} days`;
}

/** "6.1 s of 5 s" where the provider does not wait that long and hookway did not answer in the app's place. @param {Summary} summary */
export function overDeadline({ duration_ms: took, deadline_ms: deadline, acked_ms: acked }) {
  if (took === null || deadline === null || acked !== null || took <= deadline) return '';
  return `${duration(took)} of ${duration(deadline)}`;
}

/** @param {number} count */
export function bytes(count) {
  if (count < 1000) return `${count} B`;
  if (count < 999_500) return `${Number((count / 1000).toFixed(count < 9950 ? 1 : 0))} kB`;
  return `${Number((count / 1_000_000).toFixed(count < 9_950_000 ? 1 : 0))} MB`;
}

/** 4 812, with a narrow no-break space. @param {number} n */
export const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, '\u202f');

/** "1 exchange", "4 812 exchanges". @param {number} n @param {string} noun */
export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? '' : 's'}`;

/** The status column: "200", "ERR refused", "pending". @param {Summary} summary */
export function outcome(summary) {
  if (summary.state !== 'done') return summary.state === 'dead' ? 'dead letter' : summary.state;
  return result(summary);
}

/** @param {Summary | Attempt} of */
export function result({ status, error, state }) {
  if (status !== null && !error) return String(status);
  if (status !== null) return `${status} ${error}`;
  if (error) return `ERR ${error}`;
  return state;
}

/** The class that colours a state. The word beside it says the same. @param {Summary} summary */
export function tone(summary) {
  if (summary.state === 'pending') return 'wait';
  if (summary.state === 'queued') return 'warn';
  if (summary.state === 'dead') return 'bad';
  return resultTone(summary.status, summary.error);
}

/** @param {number | null} status @param {string | null} error */
export function resultTone(status, error) {
  if (error || status === null || status >= 400) return 'bad';
  return status >= 300 ? 'warn' : 'good';
}

/** Whether it failed, as the filter's is:failed and the key u mean it. @param {Summary} summary */
export const failed = (summary) => summary.state === 'dead' || (summary.state === 'done' && !summary.ok);

/** "JSON, 2.1 kB" for what no provider is known of. @param {Summary} summary */
export function contentType({ content_type: type, bytes: size }) {
  if (size === 0) return 'no body';
  const name = (type ?? '').split(';')[0].trim().replace(/^.*\//, '').replace(/^x-www-form-urlencoded$/, 'form').replace(/^octet-stream$/, 'binary');
  return [name, bytes(size)].filter(Boolean).join(', ');
}

/** @param {string} id */
export const shortId = (id) => `${id.slice(0, 8)}…${id.slice(-4)}`;

/** The scheme says little in a narrow header. @param {string} url */
export const withoutScheme = (url) => url.replace(/^https?:\/\//, '').replace(/\/$/, '');

/** A word in single quotes for a POSIX shell, quoted only if it has to be. @param {string} word */
export const shellWord = (word) => (/^[\w./:@%+=-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

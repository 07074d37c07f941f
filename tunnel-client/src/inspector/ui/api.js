// @ts-check
// The inspector's HTTP API: its types, and one function a call.

/** @typedef {{ state: 'up' | 'down' | 'connecting', relay: string, transport: string | null, reason: string | null, rtt_ms: number | null }} Session */
/** @typedef {{ endpoint: string, url: string, more: string[], dead_letters: number }} EndpointUrl */
/** @typedef {{ endpoint: string | null, prefix: string, target: string, state: 'up' | 'down' | 'unknown' }} Target */
/** @typedef {{ count: number, bytes: number, max_count: number, max_age_s: number, max_bytes: number, path: string, problem: string | null, recording: boolean, generation: number }} History */
/** @typedef {{ version: string, token: string, mode: 'live' | 'stored', session: Session | null, urls: EndpointUrl[], targets: Target[], history: History }} Status */

/**
 * @typedef {object} Summary
 * @property {string} id
 * @property {number} seq orders by arrival
 * @property {number} version grows with every change of any exchange
 * @property {string} endpoint
 * @property {string} method
 * @property {string} path with the query
 * @property {string} remote
 * @property {string} received_at
 * @property {'done' | 'pending' | 'queued' | 'dead'} state
 * @property {number | null} status
 * @property {string | null} error
 * @property {boolean} ok
 * @property {number | null} duration_ms
 * @property {number} bytes
 * @property {number} reply_bytes
 * @property {number} attempts
 * @property {string | null} content_type
 * @property {string | null} provider
 * @property {string | null} event_type as the provider names it
 * @property {string | null} event_id
 * @property {'ok' | 'bad' | 'none'} signature
 * @property {string | null} signature_detail a sentence: why it is bad, or what would check it
 * @property {string | null} signature_secret where the secret is from that made it
 * @property {boolean} resigned
 * @property {string | null} replay_of
 * @property {boolean} edited
 * @property {string | null} duplicate_of
 * @property {number | null} deadline_ms how long the provider waits for an answer
 * @property {number | null} acked_ms when hookway answered in the app's place
 * @property {number | null} queued_ms
 * @property {boolean} pinned
 */

/** @typedef {{ name: string, value: string, secret: boolean }} Header */
/** @typedef {{ line: number, column: number, offset: number, message: string }} JsonError */
/** @typedef {{ name: string | null, file_name: string | null, headers: Header[], body: Body }} Part */

/**
 * @typedef {object} Body
 * @property {number} size
 * @property {number} kept less than `size`: the body was cut
 * @property {string | null} content_type
 * @property {string[]} encodings
 * @property {number | null} inflated_size
 * @property {boolean} inflated_cut
 * @property {string | null} encoding_error
 * @property {'empty' | 'json' | 'form' | 'multipart' | 'xml' | 'text' | 'image' | 'binary'} kind
 * @property {string | null} charset
 * @property {string | null} text
 * @property {boolean} text_cut
 * @property {JsonError | null} json_error
 * @property {{ name: string, value: string }[] | null} fields
 * @property {Part[] | null} parts
 * @property {string | null} image a data: URL that the server made
 * @property {string | null} base64
 * @property {boolean} base64_cut
 */

/** @typedef {{ status: number, headers: Header[], trailers: Header[], body: Body }} Reply */
/** @typedef {{ number: number, at: string, url: string, state: 'done' | 'pending', status: number | null, error: string | null, message: string | null, connect_ms: number | null, first_byte_ms: number | null, duration_ms: number | null, next_try_at?: string | null, reply: Reply | null }} Attempt */
/** @typedef {{ relay_received_at: string, client_received_at: string, relay_to_client_ms: number | null, queued_ms: number | null, connect_ms: number | null, first_byte_ms: number | null, done_ms: number | null, deadline_ms: number | null, acked_ms: number | null }} Timings */
/** @typedef {{ method: string, path: string, headers: Header[], trailers: Header[], body: Body }} Request */
/** @typedef {{ summary: Summary, http: string, request: Request, attempts: Attempt[], timings: Timings, can_replay: boolean, why_not: string | null }} Detail */
/** @typedef {{ exchanges: Summary[], total: number, matched: number | null, next: number | null, generation: number, version: number }} Page */
/** @typedef {{ op: 'add' | 'remove' | 'change', path: string, a: string | null, b: string | null }} FieldChange */
/** @typedef {{ op: 'same' | 'remove' | 'add' | 'gap', line: string }} LineChange */
/** @typedef {{ name: string, kind: 'fields' | 'json' | 'text' | 'bytes', changes: (FieldChange | LineChange)[], ignored: string[] }} Section */
/** @typedef {{ a: Summary, b: Summary, same: boolean, sections: Section[] }} Diff */
/** @typedef {{ id: string, method: string, path: string, received_at: string, dead_since: string, attempts: number, last: string | null, bytes: number, listener: string | null }} DeadLetter */
/** @typedef {{ endpoint: string, total: number, retried: number, letters: DeadLetter[] }} DeadLetters the newest, of `total` */
/** @typedef {{ method?: string, path?: string, headers?: { name: string, value: string }[], body?: { text: string } | { base64: string }, target?: string, resign?: boolean }} Replay */

/** What the server said no with; `at` and `length` say where in a filter. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {number} [at] @param {number} [length] */
  constructor(status, message, at, length) {
    super(message);
    this.status = status;
    this.at = at;
    this.length = length ?? 0;
  }
}

// State changes carry this token, which another site's page cannot read. It changes with every run of hookway.
let token = '';

/** @param {string} value */
export function setToken(value) {
  token = value;
}

/** @returns {Promise<Status>} */
export async function getStatus() {
  const status = await json('GET', '/api/status');
  setToken(status.token);
  return status;
}

/** @param {{ filter: string, before?: number | null, limit: number }} query @returns {Promise<Page>} */
export const listExchanges = ({ filter, before, limit }) => json('GET', `/api/exchanges?${query({ filter, before, limit })}`);

/** @param {string} id @param {boolean} [secrets] @returns {Promise<Detail>} */
export const getExchange = (id, secrets) => json('GET', `${exchangePath(id)}?${query({ secrets })}`);

/** @param {string} id */
export const deleteExchange = (id) => json('DELETE', exchangePath(id));

/** The empty filter, which takes all but the pinned, has to be said. @param {string} filter @returns {Promise<{ deleted: number }>} */
export const deleteExchanges = (filter) => json('DELETE', `/api/exchanges?${new URLSearchParams({ filter })}`);

/** @param {string} id @param {boolean} pinned @returns {Promise<Summary>} */
export const pinExchange = (id, pinned) => json('PUT', `${exchangePath(id)}/pin`, { pinned });

/** @param {string} id @param {Replay} replay @returns {Promise<Detail>} */
export const replayExchange = (id, replay) => json('POST', `${exchangePath(id)}/replay`, replay);

/** @returns {Promise<{ endpoints: DeadLetters[] }>} */
export const getDeadLetters = () => json('GET', '/api/dead-letters');

/** @param {string} endpoint @param {{ ids: string[] } | { all: true }} which @returns {Promise<DeadLetters>} those that are left */
export const retryDeadLetters = (endpoint, which) => json('POST', '/api/dead-letters/retry', { endpoint, ...which });

/** @param {string} a @param {string} b @returns {Promise<Diff>} */
export const getDiff = (a, b) => json('GET', `/api/diff?${query({ a, b })}`);

/** @param {string} id @param {boolean} secrets @returns {Promise<string>} */
export const getCurl = async (id, secrets) => (await call('GET', `${exchangePath(id)}/curl?${query({ secrets })}`)).text();

/** @param {string} id */
export const requestBodyPath = (id) => `${exchangePath(id)}/request/body`;

/** @param {string} id @param {number} attempt */
export const replyBodyPath = (id, attempt) => `${exchangePath(id)}/attempts/${attempt}/reply/body`;

/** @param {{ format: 'har' | 'jsonl', filter: string, secrets: boolean }} options */
export const exportPath = ({ format, filter, secrets }) => `/api/export?${query({ format, filter, secrets })}`;

/** @param {string} filter @param {number} after */
export const eventsPath = (filter, after) => `/api/events?${query({ filter, after })}`;

/** @param {string} id */
const exchangePath = (id) => `/api/exchanges/${encodeURIComponent(id)}`;

/** @param {Record<string, string | number | boolean | null | undefined>} values */
function query(values) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value || value === 0) params.set(name, String(value));
  return params;
}

/** @param {string} method @param {string} path @param {unknown} [body] @returns {Promise<any>} */
async function json(method, path, body) {
  const response = await call(method, path, body);
  return response.status === 204 ? null : response.json();
}

/** @param {string} method @param {string} path @param {unknown} [body] */
async function call(method, path, body) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (method !== 'GET') headers['Hookway-Token'] = token;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) }).catch(() => {
    throw new ApiError(0, 'hookway does not answer; is it still running?');
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: null }));
  throw new ApiError(response.status, error?.message ?? `hookway answered ${response.status}`, error?.at, error?.length);
}

// @ts-check
// Edit & resend: what is typed is kept whatever happens, and the result stands beside the original with their diff.

import { getDiff, replayExchange } from './api.js';
import { bodyView } from './body.js';
import { diffView } from './diff.js';
import { button, fill, h, setText } from './dom.js';
import { JsonSyntaxError, parseJson, prettyJson } from './json.js';
import { say } from './notice.js';
import { signature } from './overview.js';
import * as format from './format.js';

/** @import { Detail, Replay, Summary } from './api.js' */

/**
 * @param {Detail} original with its secrets, so that no mask is sent
 * @param {{ close: () => void, open: (id: string) => void }} actions
 */
export function editor(original, { close, open }) {
  const { request, summary } = original;
  const method = h('input', { id: 'edit-method', value: request.method, list: 'methods', spellcheck: 'false', autocomplete: 'off' });
  const path = h('input', { id: 'edit-path', value: request.path, spellcheck: 'false', autocomplete: 'off' });
  const target = h('input', { id: 'edit-target', placeholder: `as the original: ${originOf(original)}`, spellcheck: 'false', autocomplete: 'off', inputmode: 'url' });
  const headers = headersEditor(request.headers);
  const body = bodyEditor(original);
  const sign = signBox(summary);
  const problem = h('p', { class: 'warning', role: 'alert' });
  const result = h('div', { class: 'result' });
  const send = h('button', { type: 'submit', class: 'primary' }, 'Send');

  /** Only what was changed; everything left out is byte for byte as in the original. */
  const changes = () => {
    /** @type {Replay} */
    const replay = {};
    if (method.value.trim() !== request.method) replay.method = method.value.trim();
    if (path.value !== request.path) replay.path = path.value;
    if (target.value.trim()) replay.target = target.value.trim();
    const edited = headers.value();
    if (JSON.stringify(edited) !== JSON.stringify(request.headers.map(({ name, value }) => ({ name, value })))) replay.headers = edited;
    const changed = body.value();
    if (changed) replay.body = changed;
    if (sign.refused()) replay.resign = false;
    return replay;
  };
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (send.disabled) return;
    send.disabled = true;
    setText(problem, '');
    setText(send, 'Sending…');
    try {
      const made = await replayExchange(summary.id, changes());
      say(`Sent: ${format.outcome(made.summary)}${made.summary.resigned ? ', re-signed' : ''}`);
      fill(result, ...await resultView(original, made, open));
      result.scrollIntoView({ block: 'nearest' });
    } catch (error) {
      setText(problem, `Not sent: ${error instanceof Error ? error.message : error}`);
    } finally {
      send.disabled = false;
      setText(send, 'Send');
    }
  };

  return h('form', { class: 'editor', 'aria-labelledby': 'edit-title', submit },
    h('div', { class: 'diff-title' },
      h('h2', { id: 'edit-title', tabindex: -1 }, 'Edit & resend'),
      h('div', { class: 'actions' }, button('Close', close, { title: 'Esc' }))),
    h('datalist', { id: 'methods' }, ...['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS'].map((value) => h('option', { value }))),
    h('div', { class: 'edit-line' }, field('Method', method), field('Path', path)),
    field('Send to', target),
    headers.element,
    body.element,
    h('div', { class: 'send-line' }, sign.element, send),
    problem,
    result);
}

/** @param {string} label @param {HTMLElement} input */
const field = (label, input) => h('div', { class: 'field' }, h('label', { for: input.id }, label), input);

/** @param {Detail} detail */
function originOf({ attempts }) {
  const url = attempts.at(-1)?.url;
  return url && URL.canParse(url) ? new URL(url).origin : 'the configured target';
}

/** @param {{ name: string, value: string }[]} headers */
function headersEditor(headers) {
  const rows = h('div', { class: 'header-rows' });
  const add = (name = '', value = '', /** @type {Element | null} */ after = null) => {
    const nameInput = h('input', { value: name, 'aria-label': 'Header name', spellcheck: 'false', autocomplete: 'off', class: 'header-name' });
    const valueInput = h('input', { value, 'aria-label': 'Header value', spellcheck: 'false', autocomplete: 'off', class: 'header-value' });
    const row = h('div', { class: 'header-row' }, nameInput, valueInput,
      button('Duplicate', () => add(nameInput.value, valueInput.value, row).focus(), { 'aria-label': 'Duplicate this header' }),
      button('Remove', () => {
        const next = row.nextElementSibling ?? row.previousElementSibling;
        row.remove();
        (next?.querySelector('input') ?? more).focus();
      }, { 'aria-label': 'Remove this header' }));
    if (after) after.after(row);
    else rows.append(row);
    return nameInput;
  };
  const more = button('Add a header', () => add().focus());
  for (const { name, value } of headers) add(name, value);
  return {
    element: h('details', { class: 'edit-headers' }, h('summary', {}, `Headers (${headers.length})`), rows, more),
    value: () => [...rows.children].map((row) => {
      const [name, value] = row.querySelectorAll('input');
      return { name: name.value.trim(), value: value.value };
    }).filter(({ name }) => name !== ''),
  };
}

/** @param {Detail} original */
function bodyEditor({ request: { body } }) {
  /** @type {{ base64: string } | null} */
  let picked = null;
  const note = h('p', { class: 'note', role: 'status' });
  const file = h('input', { type: 'file', id: 'edit-file', change: async () => {
    const chosen = file.files?.[0];
    picked = chosen ? { base64: toBase64(new Uint8Array(await chosen.arrayBuffer())) } : null;
    setText(note, chosen ? `Sends the ${format.bytes(chosen.size)} of this file.` : asItWas);
  } });
  const asItWas = body.kind === 'empty' ? 'There is no body.' : `The body (${format.bytes(body.size)}) is sent byte for byte as it was, unless you pick a file.`;
  const pick = h('div', { class: 'field' }, h('label', { for: 'edit-file' }, 'Body from a file'), file, note);
  const textual = body.kind === 'empty' || (body.text !== null && body.encodings.length === 0 && !body.text_cut && body.kind !== 'multipart');
  if (!textual) {
    setText(note, asItWas);
    return { element: pick, value: () => picked };
  }
  const text = body.text ?? '';
  const area = h('textarea', { id: 'edit-body', rows: rowsFor(text), spellcheck: 'false' });
  area.value = text;
  // A text area turns \r\n into \n: what was not touched must still be sent as it was.
  const untouched = area.value;
  const check = () => setText(note, body.kind === 'json' ? jsonNote(area.value) : '');
  area.addEventListener('input', check);
  check();
  const pretty = body.kind === 'json' && button('Format', () => {
    try {
      area.value = prettyJson(parseJson(area.value)).text;
      area.rows = rowsFor(area.value);
    } catch {
      // The note below says where it is wrong.
    }
    check();
  });
  return {
    element: h('div', { class: 'field' }, h('div', { class: 'label-line' }, h('label', { for: 'edit-body' }, 'Body'), pretty), area, note),
    value: () => (area.value === untouched ? null : { text: area.value }),
  };
}

/**
 * Whether it is signed afresh, or why not. Where no provider is known there is nothing to sign.
 * @param {Summary} summary
 */
function signBox({ provider, signature, signature_secret: secret }) {
  const good = signature === 'ok';
  const box = h('input', { type: 'checkbox', id: 'edit-sign', checked: good, disabled: !good, 'aria-describedby': 'edit-sign-note' });
  const why = signature === 'bad' ? 'the original’s signature was not good' : 'no secret is known for the original’s signature';
  const note = good ? `with the time of sending${secret ? ` and ${secret}` : ''}` : `not done: ${why}`;
  return {
    element: provider && h('div', { class: 'sign' }, h('label', {}, box, 'Sign afresh'), ' ', h('span', { class: 'note', id: 'edit-sign-note' }, note)),
    // What the box says holds, whatever secrets are known by now.
    refused: () => provider !== null && !box.checked,
  };
}

/** As high as the text needs, within reason. @param {string} text */
const rowsFor = (text) => Math.min(22, Math.max(4, text.split('\n').length + Math.floor(text.length / 90)));

/** @param {string} text */
function jsonNote(text) {
  try {
    parseJson(text);
    return 'Valid JSON';
  } catch (error) {
    if (!(error instanceof JsonSyntaxError)) throw error;
    return `Not valid JSON: line ${error.line}, column ${error.column}: ${error.message}. It can be sent all the same.`;
  }
}

/** @param {Uint8Array} bytes */
function toBase64(bytes) {
  let binary = '';
  for (let at = 0; at < bytes.length; at += 32_768) binary += String.fromCharCode(...bytes.subarray(at, at + 32_768));
  return btoa(binary);
}

/** @param {Detail} original @param {Detail} made @param {(id: string) => void} open */
async function resultView(original, made, open) {
  const compared = await getDiff(original.summary.id, made.summary.id).catch(() => null);
  return [
    h('div', { class: 'beside' }, replyCard('Original reply', original), replyCard('New reply', made, () => open(made.summary.id))),
    compared && diffView(compared, {}),
  ];
}

/** @param {string} title @param {Detail} detail @param {() => void} [open] */
function replyCard(title, { summary, attempts }, open) {
  const last = attempts.at(-1);
  return h('section', { class: 'card', 'aria-label': title },
    h('div', { class: 'section-title' }, h('h3', {}, title),
      h('span', { class: `status tone-${format.tone(summary)}` }, format.outcome(summary)),
      h('span', { class: 'note' }, format.duration(summary.duration_ms)),
      summary.resigned && h('span', { class: 'badge' }, 're-signed'),
      open && button('Open', open, { 'aria-label': 'Open the new exchange' })),
    open && h('p', {}, signature(summary)),
    last?.message && h('p', { class: 'warning' }, last.message),
    last?.reply ? bodyView(last.reply.body, { name: `${title} body` }) : h('p', { class: 'note' }, 'No reply.'));
}

// @ts-check
// A body in the views that suit its kind, with search, copy and download.

import { button, fill, h } from './dom.js';
import { hexDump } from './hex.js';
import { parseJson, prettyJson } from './json.js';
import { copy } from './notice.js';
import { findText, searchField } from './search.js';
import { textView } from './text.js';
import { jsonTree, newMemory, partOf } from './tree.js';
import { prettyXml } from './xml.js';
import * as format from './format.js';

/** @import { Body, Part } from './api.js' */
/** @import { Memory } from './tree.js' */

/** @typedef {{ element: Element, find?: (query: string) => import('./search.js').Match[], tools?: HTMLElement[] }} View */

const NAMES = { json: 'JSON', form: 'Form', multipart: 'Multipart', xml: 'XML', text: 'Text', image: 'Image', binary: 'Binary', empty: 'Empty' };

/** The view that was chosen last, so that going from one exchange to the next keeps it. */
let preferred = '';

/**
 * @param {Body} body
 * @param {{ name: string, download?: string, memory?: Memory }} options `name` as in "Request body"; `download` is an API path;
 *   `memory` is where the bodies of one exchange keep what is open in their trees
 */
export function bodyView(body, { name, download, memory = newMemory() }) {
  if (body.kind === 'empty') return h('section', { class: 'body', 'aria-label': name }, title(name, body), h('p', { class: 'note' }, 'Empty.'));
  const views = viewsOf(body, partOf(memory, name));
  const names = Object.keys(views);
  const content = h('div', { class: 'body-content' });
  const tools = h('span', { class: 'view-tools' });
  /** @type {View} */
  let shown = { element: content };
  const { field, search } = searchField({
    root: content,
    find: (query) => (shown.find ? shown.find(query) : findText(shown.element, query).map((range) => () => range)),
  });
  const show = (/** @type {string} */ view) => {
    shown = views[view]();
    fill(content, shown.element);
    fill(tools, ...(shown.tools ?? []));
    for (const choice of choices) choice.setAttribute('aria-pressed', String(choice.textContent === view));
    search();
  };
  const choices = names.map((view) => button(view, () => {
    preferred = view;
    show(view);
  }, { 'aria-pressed': 'false' }));
  const text = body.text;
  const section = h('section', { class: 'body', 'aria-label': name },
    title(name, body),
    h('div', { class: 'body-bar' },
      h('span', { class: 'segmented', role: 'group', 'aria-label': `View of the ${name.toLowerCase()}` }, ...choices),
      tools, field,
      h('span', { class: 'actions' },
        text !== null && button('Copy', () => copy(text, 'Body'), { 'aria-label': `Copy the ${name.toLowerCase()}` }),
        download && h('a', { class: 'button', href: download, download: '' }, 'Download', h('span', { class: 'visually-hidden' }, ` the ${name.toLowerCase()}`)))),
    content);
  show(names.includes(preferred) && !body.json_error ? preferred : names[0]);
  return section;
}

/** @param {string} name @param {Body} body */
function title(name, body) {
  const facts = [body.kind === 'empty' ? null : NAMES[body.kind], format.bytes(body.size)];
  if (body.encodings.length && body.inflated_size !== null) {
    facts[1] = `inflated from ${body.encodings.join(', ')}, ${format.bytes(body.size)} → ${format.bytes(body.inflated_size)}`;
  }
  /** @type {string[]} */
  const warnings = [];
  if (body.kept < body.size) warnings.push(`Only the first ${format.bytes(body.kept)} of ${format.bytes(body.size)} were kept.`);
  if (body.inflated_cut) warnings.push('It was larger still when inflated; the rest is left out here.');
  if (body.text_cut) warnings.push('The text is cut here. Download it to see the rest.');
  if (body.encoding_error) warnings.push(`The content encoding is wrong: ${body.encoding_error}. The bytes are shown as they came.`);
  if (body.json_error) warnings.push(`Not valid JSON: line ${body.json_error.line}, column ${body.json_error.column}: ${body.json_error.message}.`);
  return h('div', { class: 'section-title' },
    h('h3', {}, name), h('span', { class: 'note' }, facts.filter(Boolean).join(', ')),
    ...warnings.map((warning) => h('p', { class: 'warning' }, warning)));
}

/** @param {Body} body @param {Memory} memory @returns {Record<string, () => View>} the first is the one to start with */
function viewsOf(body, memory) {
  /** @type {Record<string, () => View>} */
  const views = {};
  const { text, fields, parts, image, base64 } = body;
  if (body.kind === 'json' && text !== null && !body.json_error && !body.text_cut) {
    views.Tree = () => treeView(text, memory);
    views.Pretty = () => prettyView(text);
  }
  if (fields) views.Fields = () => ({ element: fieldsView(fields) });
  if (parts) views.Parts = () => ({ element: partsView(parts, memory) });
  if (image?.startsWith('data:image/')) views.Image = () => ({ element: h('div', { class: 'image' }, h('img', { src: image, alt: 'The body as an image' })) });
  if (body.kind === 'xml' && text !== null) views.Pretty = () => ({ element: textView(prettyXml(text)) });
  if (text !== null) views.Raw = () => ({ element: textView(text, { error: body.json_error }) });
  if (base64 !== null) views.Hex = () => ({ element: h('div', {}, body.base64_cut && h('p', { class: 'note' }, 'The first 256 KiB.'), hexView(base64)) });
  return views;
}

/** @param {string} base64 */
function hexView(base64) {
  const view = textView(hexDump(base64));
  view.classList.add('hex');
  return view;
}

/** @param {string} text @param {Memory} memory @returns {View} */
function treeView(text, memory) {
  // The server found it valid; should this reader disagree, the raw text still serves.
  try {
    const tree = jsonTree(parseJson(text), memory);
    return { element: tree.element, find: tree.find, tools: [button('Expand all', tree.openAll), button('Collapse', tree.closeAll)] };
  } catch {
    return { element: textView(text) };
  }
}

/** @param {string} text @returns {View} */
function prettyView(text) {
  try {
    const { text: pretty, tokens } = prettyJson(parseJson(text));
    return { element: textView(pretty, { tokens }) };
  } catch {
    return { element: textView(text) };
  }
}

/** @param {{ name: string, value: string }[]} fields */
function fieldsView(fields) {
  return h('table', { class: 'headers' },
    h('colgroup', {}, h('col', { class: 'name' }), h('col')),
    h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Field'), h('th', { scope: 'col' }, 'Value'))),
    h('tbody', {}, ...fields.map(({ name, value }) => h('tr', {}, h('th', { scope: 'row' }, name), h('td', {}, value)))));
}

/** @param {Part[]} parts @param {Memory} memory */
function partsView(parts, memory) {
  return h('div', { class: 'parts' }, ...parts.map((part, index) => h('div', { class: 'part' },
    h('p', { class: 'part-name' }, h('strong', {}, part.name ?? `part ${index + 1}`), part.file_name !== null && h('span', { class: 'note' }, ` file ${part.file_name}`), part.body.content_type && h('span', { class: 'note' }, ` ${part.body.content_type}`)),
    bodyView(part.body, { name: `Part ${index + 1}`, memory }))));
}

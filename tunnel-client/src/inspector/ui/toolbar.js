// @ts-check
// What can be done with all the exchanges that the filter shows: export them, clear them.

import { deleteExchanges, exportPath } from './api.js';
import { byId, h } from './dom.js';
import { item, menu } from './menu.js';
import { ask, say, sayError } from './notice.js';
import * as format from './format.js';

/** @import { Exchanges } from './exchanges.js' */

/** @param {{ exchanges: Exchanges }} options */
export function toolbar({ exchanges }) {
  byId('toolbar').append(
    menu({ id: 'export-menu', label: 'Export', content: () => exportMenu(exchanges) }),
    menu({ id: 'clear-menu', label: 'Clear', content: () => clearMenu(exchanges) }));
}

/** @param {Exchanges} exchanges */
function exportMenu(exchanges) {
  const { taken: filter, matched } = exchanges;
  const secrets = h('input', { type: 'checkbox', change: () => point() });
  const link = (/** @type {string} */ text) => h('a', { class: 'item', download: '' }, text);
  const har = link('HAR 1.2');
  const jsonl = link('JSON lines');
  const point = () => {
    har.setAttribute('href', exportPath({ format: 'har', filter, secrets: secrets.checked }));
    jsonl.setAttribute('href', exportPath({ format: 'jsonl', filter, secrets: secrets.checked }));
  };
  point();
  return [
    h('p', { class: 'menu-title' }, `Export ${format.plural(matched, 'exchange')}${filter ? ' that the filter shows' : ''}`),
    har, jsonl, h('label', { class: 'item' }, secrets, ' With secrets (tokens, cookies, signatures)'),
  ];
}

/** @param {Exchanges} exchanges */
function clearMenu(exchanges) {
  const { taken: filter, matched, total } = exchanges;
  const clear = async (/** @type {string} */ what, /** @type {string} */ expression) => {
    const yes = await ask({ title: 'Clear the history?', text: `This deletes ${what} from the history on this machine. Pinned ones stay. It can't be undone.`, confirm: 'Delete' });
    if (!yes) return;
    try {
      const { deleted } = await deleteExchanges(expression);
      say(`${format.plural(deleted, 'exchange')} deleted`);
    } catch (error) {
      sayError(error);
    }
  };
  return [
    h('p', { class: 'menu-title' }, 'Pinned exchanges stay'),
    filter ? item(`Delete the ${format.count(matched)} that the filter shows…`, () => clear(`the ${format.plural(matched, 'exchange')} that the filter shows`, filter)) : null,
    item(`Delete all ${format.count(total)}…`, () => clear(`all ${format.plural(total, 'exchange')}`, '')),
  ];
}

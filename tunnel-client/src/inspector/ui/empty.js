// @ts-check
// What the list says when there is nothing in it: why, and the next step.

import { button, h } from './dom.js';
import { command } from './header.js';
import * as format from './format.js';

/** @import { Exchanges } from './exchanges.js' */

/** @param {Exchanges} exchanges @param {{ clearFilter: () => void }} actions @returns {HTMLElement[]} */
export function emptyView({ taken: filter, total, status, connection }, { clearFilter }) {
  if (!status || connection === 'loading') return [h('p', { class: 'note' }, 'Loading…')];
  if (filter && total > 0) {
    return [h('h2', {}, 'Nothing matches'), h('p', {}, `The filter hides all ${format.plural(total, 'exchange')}.`), button('Clear filter', clearFilter)];
  }
  if (!status.history.recording) {
    return [h('h2', {}, 'History is off'), h('p', {}, 'Webhooks are forwarded but not kept. Start hookway without --no-store to see them here.')];
  }
  if (status.mode === 'stored') {
    return [h('h2', {}, 'The history is empty'), h('p', {}, 'Start a tunnel and send a webhook through it:'), h('p', {}, command('hookway dev 3000'))];
  }
  if (status.session && status.session.state === 'down') {
    return [h('h2', {}, 'The relay can’t be reached'), h('p', {}, status.session.reason ? `${status.session.reason}. ` : '', 'hookway keeps trying.')];
  }
  const url = status.urls[0]?.url ?? '';
  return [
    h('h2', {}, 'Ready for the first webhook'),
    h('p', {}, 'Give this URL to the provider:'), h('p', {}, command(url)),
    h('p', {}, 'Or try it from a terminal, with a sample webhook or with anything:'), h('p', {}, command(`hookway send github --to ${format.shellWord(`${url}/github`)}`)),
    h('p', {}, command(`curl -d '{"hello":"world"}' ${format.shellWord(url)}`)),
  ];
}

// @ts-check
// What is on the screen is in the URL's query, so that reload, back and a shared link work.

export const TABS = /** @type {const} */ (['overview', 'request', 'response', 'attempts', 'timing']);
/** @typedef {typeof TABS[number]} Tab */
/** @typedef {{ filter: string, id: string | null, tab: Tab, diff: string | null }} Route `diff` is the id that the open exchange is compared with */

// Browsers refuse more than a hundred changes of the URL in half a minute, which a key held down would make.
const PAUSE = 350;
let written = -PAUSE;
let timer = 0;
let write = () => {};

/** @returns {Route} */
export function readRoute() {
  clearTimeout(timer);
  timer = 0;
  const query = new URLSearchParams(location.search);
  return {
    filter: query.get('filter') ?? '',
    id: query.get('id'),
    tab: TABS.find((tab) => tab === query.get('tab')) ?? 'overview',
    diff: query.get('diff'),
  };
}

/**
 * @param {Route} route
 * @param {boolean} push whether Back should come back to what was there before
 */
export function writeRoute({ filter, id, tab, diff }, push) {
  const query = new URLSearchParams();
  if (filter) query.set('filter', filter);
  if (id) query.set('id', id);
  if (id && tab !== 'overview') query.set('tab', tab);
  if (id && diff) query.set('diff', diff);
  const search = query.size ? `?${query}` : '';
  clearTimeout(timer);
  // What Back comes to is the page as it was left.
  if (timer && push) write();
  timer = 0;
  write = () => {
    timer = 0;
    if (search === location.search) return;
    written = performance.now();
    history[push ? 'pushState' : 'replaceState'](null, '', `${location.pathname}${search}`);
  };
  const wait = written + PAUSE - performance.now();
  if (push || wait <= 0) write();
  else timer = setTimeout(write, wait);
}

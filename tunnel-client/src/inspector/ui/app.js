// @ts-check
// Starts the page and holds what belongs to all of it: which exchange is open, the URL, the keys.

import { deadLetters } from './dead.js';
import { DetailPane } from './detail.js';
import { byId, fill, setText } from './dom.js';
import { emptyView } from './empty.js';
import { Exchanges } from './exchanges.js';
import { FilterBar } from './filter.js';
import { Header, banners } from './header.js';
import { listenForKeys, showHelp } from './keys.js';
import { List } from './list.js';
import { say, sayError } from './notice.js';
import { TABS, readRoute, writeRoute } from './route.js';
import { splitter } from './splitter.js';
import { toggleTheme } from './theme.js';
import { Timeline } from './timeline.js';
import { toolbar } from './toolbar.js';

/** @import { Route } from './route.js' */

// As in style.css: below this width the detail takes the place of the list.
const oneColumn = matchMedia('(max-width: 719px)');

const exchanges = new Exchanges();
let route = readRoute();
let unread = 0;

const header = new Header({
  pause: () => exchanges.pause(!exchanges.paused),
  theme: () => say(toggleTheme() === 'dark' ? 'Dark theme' : 'Light theme'),
  help: showHelp,
});
const list = new List({ exchanges, box: byId('list'), fresh: byId('fresh'), select, open });
const detail = new DetailPane({
  root: byId('detail'),
  exchanges,
  actions: {
    open,
    close,
    showTab: (tab) => go({ tab }, false),
    showDiff: (a, b) => go({ id: b, diff: a }, true),
    endDiff: () => go({ diff: null }, false),
  },
});
const filterBar = new FilterBar({
  exchanges,
  change: (filter) => {
    go({ filter }, false);
    exchanges.setFilter(filter);
    list.scrollToTop();
  },
  leave: () => byId('list').focus(),
});
const timeline = new Timeline({
  root: byId('timeline'),
  exchanges,
  select: (since, until) => filterBar.replaceTerms([`since:${since}`, `until:${until}`]),
  jump: (time) => {
    const row = exchanges.rows.find((exchange) => Date.parse(exchange.received_at) <= time);
    if (row) select(row.id);
  },
});
toolbar({ exchanges });
deadLetters({ exchanges });
splitter(byId('splitter'), byId('main'));

exchanges.addEventListener('rows', () => {
  list.update();
  timeline.update();
  showEmpty();
  showTitle();
  header.showPaused(exchanges.paused, exchanges.waiting);
});
exchanges.addEventListener('paused', () => header.showPaused(exchanges.paused, exchanges.waiting));
exchanges.addEventListener('filter', showEmpty);
for (const type of ['status', 'connection']) exchanges.addEventListener(type, showStatus);
exchanges.addEventListener('changed', (event) => {
  if (!document.hidden) return;
  for (const exchange of /** @type {CustomEvent} */ (event).detail.values()) if (exchange.state !== 'pending') unread += 1;
  showTitle();
});
document.addEventListener('visibilitychange', () => {
  unread = 0;
  showTitle();
});
addEventListener('popstate', () => {
  const before = route.filter;
  route = readRoute();
  show();
  filterBar.set(route.filter);
  if (route.filter !== before) exchanges.setFilter(route.filter);
});
oneColumn.addEventListener('change', show);

listenForKeys({
  j: () => list.move(1),
  k: () => list.move(-1),
  g: () => list.moveTo('first'),
  G: () => list.moveTo('last'),
  Enter: () => list.selected && open(list.selected),
  Escape: escape,
  '/': () => {
    if (oneColumn.matches && route.id) close();
    filterBar.focus();
  },
  r: () => onSelected(() => detail.replay()),
  e: () => onSelected(() => detail.edit()),
  c: () => onSelected(() => detail.copyCurl()),
  d: () => onSelected(() => detail.diff()),
  p: () => onSelected(() => detail.pin()),
  u: () => list.moveToFailed() || say('Nothing that is loaded here has failed'),
  t: () => say(toggleTheme() === 'dark' ? 'Dark theme' : 'Light theme'),
  '?': showHelp,
  ...Object.fromEntries(TABS.map((tab, index) => [String(index + 1), () => route.id && go({ tab }, false)])),
});

start();

async function start() {
  filterBar.set(route.filter);
  list.setSelected(route.id, false);
  show();
  await Promise.all([exchanges.setFilter(route.filter), exchanges.loadStatus().catch(sayError)]);
  filterBar.update();
  if (route.id) list.setSelected(route.id);
}

/** Shows another part of the page and says so in the URL. @param {Partial<Route>} change @param {boolean} push */
function go(change, push) {
  route = { ...route, ...change };
  writeRoute(route, push);
  show();
}

function show() {
  document.body.dataset.open = String(route.id !== null);
  if (route.id && route.id !== list.selected) list.setSelected(route.id);
  detail.show(route);
  showEmpty();
  showTitle();
}

/** Moves the selection; with two columns what is selected is shown. @param {string} id */
function select(id) {
  list.setSelected(id);
  if (!oneColumn.matches || route.id) go({ id, diff: null }, false);
}

/** @param {string} id */
function open(id) {
  const inList = document.activeElement === byId('list');
  list.setSelected(id);
  go({ id, diff: null }, id !== route.id);
  if (oneColumn.matches || !inList) detail.focus();
}

function close() {
  go({ id: null, diff: null }, false);
  byId('list').focus();
}

function escape() {
  if (detail.back()) return;
  if (byId('detail').contains(document.activeElement) && !oneColumn.matches) byId('list').focus();
  else close();
}

/** The single-letter actions need an open exchange. @param {() => void} action */
function onSelected(action) {
  if (route.id) action();
  else if (list.selected) {
    open(list.selected);
    say('Opened; press the key again');
  } else say('Select an exchange first');
}

function showStatus() {
  const lost = exchanges.connection === 'lost';
  const all = banners(exchanges.status, lost);
  if (byId('banners').textContent !== all.map((banner) => banner.textContent).join('')) fill(byId('banners'), ...all);
  byId('banners').hidden = all.length === 0;
  if (exchanges.status) header.show(exchanges.status, lost);
  showEmpty();
}

function showEmpty() {
  const empty = exchanges.rows.length === 0;
  byId('empty').hidden = !empty;
  byId('list').hidden = empty;
  document.body.dataset.bare = String(empty && !exchanges.taken && route.id === null);
  if (!empty) return;
  const view = emptyView(exchanges, { clearFilter: () => filterBar.take('') });
  if (byId('empty').textContent !== view.map((node) => node.textContent).join('')) fill(byId('empty'), ...view);
}

function showTitle() {
  const opened = route.id ? exchanges.get(route.id) : undefined;
  const name = opened ? `${opened.method} ${opened.path} · Hookway` : 'Hookway';
  setText(document.head.querySelector('title') ?? document.head, unread ? `(${unread}) ${name}` : name);
}

// @ts-check
// JSON as a tree. Children are made when their parent is opened, and more than a hundred come in groups of a hundred, so
// a body of a million nodes costs nothing until one looks.

import { button, h } from './dom.js';
import { MOST, findText, rangeOf } from './search.js';
import * as format from './format.js';

/** @import { JsonNode } from './json.js' */
/** @import { Match } from './search.js' */

const OPEN_AT_FIRST = 150;
const OPEN_AT_MOST = 3000;
const GROUP = 100;
const LONG = 2000;

/**
 * An object or array, or a group of its children.
 * @typedef {{ item: HTMLElement, to: number, open: (opened: boolean) => void, reveal: (index: number) => void }} Branch
 */
/**
 * What was opened or closed by hand, for the tree that is drawn next in the place of this one. Null is neither.
 * @typedef {{ opened: boolean | null, parts: Map<string, Memory> }} Memory
 */
/** @typedef {{ branches: Map<JsonNode, Branch>, rows: Map<JsonNode, HTMLElement>, byMemory: Map<Memory, Branch>, byHand: boolean }} Made what was made so far */

/** @returns {Memory} */
export const newMemory = () => ({ opened: null, parts: new Map() });

/** @param {Memory} memory @param {string} name */
export function partOf({ parts }, name) {
  const part = parts.get(name) ?? newMemory();
  parts.set(name, part);
  return part;
}

/** @param {JsonNode} root @param {Memory} memory */
export function jsonTree(root, memory) {
  /** @type {Made} */
  const made = { branches: new Map(), rows: new Map(), byMemory: new Map(), byHand: false };
  const element = h('ul', { class: 'tree mono' }, makeNode(root, null, made, false, memory));
  openFirst(root, made, OPEN_AT_FIRST);
  restore(memory, made);
  made.byHand = true;
  return {
    element,
    openAll: () => openFirst(root, made, OPEN_AT_MOST),
    closeAll: () => {
      for (const [node, branch] of made.branches) branch.open(node === root);
    },
    find: (/** @type {string} */ query) => find(root, query, made),
  };
}

/**
 * @param {JsonNode} node
 * @param {number | null} index its place in an array
 * @param {Made} made
 * @param {boolean} repeated whether an earlier sibling has the same key
 * @param {Memory} memory of this node
 * @returns {HTMLElement}
 */
function makeNode(node, index, made, repeated, memory) {
  const name = node.key !== null ? h('span', { class: 'json-key' }, node.key) : index !== null && h('span', { class: 'json-index' }, index);
  const label = [name, name && h('span', { class: 'colon' }, ': '), repeated && h('span', { class: 'badge warn' }, 'same key again')];
  if (node.items.length === 0) {
    const row = h('div', { class: 'tree-row' }, ...label, ...scalar(node));
    made.rows.set(node, row);
    return h('li', {}, row);
  }
  const [left, right] = node.type === 'object' ? '{}' : '[]';
  const count = format.plural(node.items.length, node.type === 'object' ? 'key' : 'item');
  const branch = makeBranch({ node, from: 0, to: node.items.length, made, repeats: repeatedKeys(node), memory },
    ...label, `${left} `, h('span', { class: 'note' }, count), ` ${right}`);
  made.branches.set(node, branch);
  made.rows.set(node, /** @type {HTMLElement} */ (branch.item.firstElementChild));
  return branch.item;
}

/**
 * @param {{ node: JsonNode, from: number, to: number, made: Made, repeats: Set<number>, memory: Memory }} part the children of a node that are in here
 * @param {...import('./dom.js').Child} label
 * @returns {Branch}
 */
function makeBranch({ node, from, to, made, repeats, memory }, ...label) {
  const children = h('ul', { hidden: true });
  /** @type {Branch[]} */
  const groups = [];
  const build = () => {
    const size = groupSize(to - from);
    for (let at = from; at < to; at += size) {
      if (size === 1) {
        const child = node.items[at];
        // By key, for a next reply may have more of them.
        const name = child.key === null || repeats.has(at) ? String(at) : child.key;
        children.append(makeNode(child, node.type === 'array' ? at : null, made, repeats.has(at), partOf(memory, name)));
        continue;
      }
      const end = Math.min(to, at + size);
      const name = `${at} … ${end - 1}`;
      const group = makeBranch({ node, from: at, to: end, made, repeats, memory: partOf(memory, name) }, h('span', { class: 'json-index' }, name));
      groups.push(group);
      children.append(group.item);
    }
  };
  const open = (/** @type {boolean} */ opened) => {
    if (opened !== children.hidden) return;
    if (made.byHand) memory.opened = opened;
    if (opened && !children.firstChild) build();
    toggle.setAttribute('aria-expanded', String(opened));
    children.hidden = !opened;
  };
  const reveal = (/** @type {number} */ index) => {
    open(true);
    groups.find((group) => index < group.to)?.reveal(index);
  };
  const toggle = h('button', { type: 'button', class: 'toggle', 'aria-expanded': 'false', click: () => open(toggle.getAttribute('aria-expanded') !== 'true') }, ...label);
  const branch = { item: h('li', {}, h('div', { class: 'tree-row' }, toggle), children), to, open, reveal };
  made.byMemory.set(memory, branch);
  return branch;
}

/** 1, 100, 10 000…: the smallest that leaves at most a hundred groups. @param {number} count */
function groupSize(count) {
  let size = 1;
  while (count > size * GROUP) size *= GROUP;
  return size;
}

/** @param {JsonNode} node */
function repeatedKeys({ items }) {
  const seen = new Set();
  const repeats = new Set();
  items.forEach(({ key }, index) => {
    if (key !== null && seen.has(key)) repeats.add(index);
    seen.add(key);
  });
  return repeats;
}

/** @param {JsonNode} node */
function scalar(node) {
  if (node.type === 'object' || node.type === 'array') return [node.type === 'object' ? '{ }' : '[ ]'];
  const value = h('span', { class: `json-${node.type}` }, node.text.slice(0, LONG));
  if (node.text.length <= LONG) {
    const time = timeOf(node);
    return [value, time && h('span', { class: 'note time-note' }, time)];
  }
  const more = button(`Show all ${format.count(node.text.length)} characters`, () => {
    value.textContent = node.text;
    more.remove();
  }, { class: 'more' });
  return [value, more];
}

/** Seconds or milliseconds of the epoch, if the key speaks of a time. @param {JsonNode} node */
function timeOf(node) {
  if (node.type !== 'number' || !/(time|created|updated|date|expires?|stamp|_at|_ts|^"ts)"$/i.test(node.key ?? '')) return null;
  if (/^\d{10}$/.test(node.text)) return format.fullTime(Number(node.text) * 1000).slice(0, 19);
  return /^\d{13}$/.test(node.text) ? format.fullTime(Number(node.text)) : null;
}

/** Opens level by level until so many rows are there. @param {JsonNode} root @param {Made} made @param {number} rows */
function openFirst(root, made, rows) {
  const queue = [root];
  for (let at = 0; at < queue.length && rows > 0; at += 1) {
    const children = queue[at].items.slice(0, GROUP);
    if (children.length > rows && at > 0) continue;
    made.branches.get(queue[at])?.reveal(0);
    rows -= children.length;
    queue.push(...children.filter((child) => child.items.length > 0));
  }
}

/** Opens and closes what was opened and closed by hand before; parents first, for they make their children. @param {Memory} top @param {Made} made */
function restore(top, made) {
  const queue = [top];
  for (const memory of queue) {
    const branch = made.byMemory.get(memory);
    if (branch && memory.opened !== null) {
      // What was closed had been open before, and so what is in it is made too.
      branch.open(true);
      branch.open(memory.opened);
    }
    queue.push(...memory.parts.values());
  }
}

/** Looks through all nodes, but opens only those that one goes to. @param {JsonNode} root @param {string} query @param {Made} made @returns {Match[]} */
function find(root, query, made) {
  const wanted = query.toLowerCase();
  /** @type {Match[]} */
  const matches = [];
  const stack = [root];
  for (let node = stack.pop(); node && matches.length < MOST; node = stack.pop()) {
    const found = node;
    if (node.key?.toLowerCase().includes(wanted) || node.text.toLowerCase().includes(wanted)) {
      matches.push(() => {
        reveal(found, made);
        const row = /** @type {HTMLElement} */ (made.rows.get(found));
        // Not there if it is in the part of a long text that is not shown.
        return findText(row, query)[0] ?? rangeOf(row, 0, row.childNodes.length);
      });
    }
    for (let at = node.items.length - 1; at >= 0; at -= 1) stack.push(node.items[at]);
  }
  return matches;
}

/** Opens what a node is in, from the top. @param {JsonNode} node @param {Made} made */
function reveal(node, made) {
  const path = [];
  for (let child = node; child.parent; child = child.parent) path.unshift(child);
  for (const child of path) {
    const parent = /** @type {JsonNode} */ (child.parent);
    made.branches.get(parent)?.reveal(parent.items.indexOf(child));
  }
}

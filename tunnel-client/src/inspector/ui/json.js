// @ts-check
// A JSON reader that keeps what JSON.parse loses: numbers as they were written (ids above 2^53), duplicate keys, order.
// It uses no recursion, so that a body of a million brackets cannot overflow the stack.

/**
 * @typedef {object} JsonNode
 * @property {'object' | 'array' | 'string' | 'number' | 'literal'} type
 * @property {string | null} key as written, with its quotes
 * @property {string} text as written, for what is not an object or array
 * @property {JsonNode[]} items
 * @property {JsonNode | null} parent
 */

const STRING = /"[^"\\\u0000-\u001f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\u0000-\u001f]*)*"/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const LITERAL = /true|false|null/y;

/** What has no children shares this. @type {JsonNode[]} */
const NONE = [];

export class JsonSyntaxError extends Error {
  /** @param {string} text @param {number} offset @param {string} message */
  constructor(text, offset, message) {
    super(message);
    const before = text.slice(0, offset);
    this.offset = offset;
    this.line = before.split('\n').length;
    this.column = offset - before.lastIndexOf('\n');
  }
}

/**
 * @param {string} text
 * @returns {JsonNode}
 * @throws {JsonSyntaxError}
 */
export function parseJson(text) {
  let at = 0;
  const take = (/** @type {RegExp} */ pattern) => {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match) at += match[0].length;
    return match ? match[0] : null;
  };
  const skipSpace = () => {
    for (let code = text.charCodeAt(at); code === 32 || code === 10 || code === 13 || code === 9; code = text.charCodeAt(at)) at += 1;
  };
  const fail = (/** @type {string} */ message) => {
    throw new JsonSyntaxError(text, at, at >= text.length ? `${message}, but the text ends here` : message);
  };

  /** @type {JsonNode | null} the object or array we are in */
  let parent = null;
  for (;;) {
    skipSpace();
    let key = null;
    if (parent?.type === 'object') {
      key = take(STRING) ?? fail('expected a key in double quotes');
      skipSpace();
      if (text[at] !== ':') fail('expected `:`');
      at += 1;
      skipSpace();
    }
    const node = value(key, parent);
    parent?.items.push(node);
    if (node.type === 'object' || node.type === 'array') {
      skipSpace();
      if (text[at] !== closer(node)) {
        parent = node;
        continue;
      }
      at += 1;
    }
    // A value is complete: close what ends here, or go on after a comma.
    for (;;) {
      skipSpace();
      if (!parent) {
        if (at < text.length) fail('expected nothing more after the value');
        return node.parent ? root(node) : node;
      }
      if (text[at] === ',') {
        at += 1;
        break;
      }
      if (text[at] !== closer(parent)) fail(`expected \`,\` or \`${closer(parent)}\``);
      at += 1;
      parent = parent.parent;
    }
  }

  /** @param {string | null} key @param {JsonNode | null} parent @returns {JsonNode} */
  function value(key, parent) {
    const first = text[at];
    if (first === '{' || first === '[') {
      at += 1;
      return { type: first === '{' ? 'object' : 'array', key, text: '', items: [], parent };
    }
    if (first === '"') return { type: 'string', key, text: take(STRING) ?? fail('this string is not well formed'), items: NONE, parent };
    const number = take(NUMBER);
    if (number !== null) return { type: 'number', key, text: number, items: NONE, parent };
    return { type: 'literal', key, text: take(LITERAL) ?? fail('expected a value'), items: NONE, parent };
  }
}

/** @param {JsonNode} node */
const closer = (node) => (node.type === 'object' ? '}' : ']');

/** @param {JsonNode} node */
function root(node) {
  while (node.parent) node = node.parent;
  return node;
}

/** @typedef {{ type: 'key' | 'string' | 'number' | 'literal', start: number, end: number }} Token */

/**
 * The same JSON with line breaks, and where its tokens stand, for colours.
 * @param {JsonNode} top
 * @returns {{ text: string, tokens: Token[] }}
 */
export function prettyJson(top) {
  /** @type {string[]} */
  const out = [];
  /** @type {Token[]} */
  const tokens = [];
  let length = 0;
  const put = (/** @type {string} */ text, /** @type {Token['type'] | undefined} */ type = undefined) => {
    if (type) tokens.push({ type, start: length, end: length + text.length });
    out.push(text);
    length += text.length;
  };
  // Deeper levels are not indented further: a million brackets would make half a trillion blanks.
  const line = (/** @type {number} */ depth) => put(`\n${'  '.repeat(Math.min(depth, 100))}`);
  /** @type {{ node: JsonNode, next: number }[]} */
  const open = [];
  /** @type {JsonNode | null} */
  let node = top;
  while (node) {
    if (node.key !== null) {
      put(node.key, 'key');
      put(': ');
    }
    if (node.type === 'object' || node.type === 'array') {
      put(node.type === 'object' ? '{' : '[');
      if (node.items.length === 0) put(closer(node));
      else open.push({ node, next: 0 });
    } else {
      put(node.text, node.type);
    }
    node = null;
    while (open.length > 0 && !node) {
      const top = open[open.length - 1];
      if (top.next < top.node.items.length) {
        if (top.next > 0) put(',');
        line(open.length);
        node = top.node.items[top.next++];
      } else {
        open.pop();
        line(open.length);
        put(closer(top.node));
      }
    }
  }
  return { text: out.join(''), tokens };
}

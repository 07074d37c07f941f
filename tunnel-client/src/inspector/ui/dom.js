// @ts-check
// The only place that makes elements. Everything that came from outside is an attacker's text, so there are text nodes
// and harmless attributes here and nothing else: no HTML is ever parsed.

/** @typedef {Node | string | number | null | undefined | false} Child */
/** @typedef {Record<string, string | number | boolean | null | undefined | ((event: any) => void)>} Props */

const SVG = 'http://www.w3.org/2000/svg';
const FORBIDDEN = /^(on|style$|srcdoc$|action$|formaction$|ping$)/i;

/**
 * Makes an element. A function is a listener for the event of that name; `true` is an empty attribute; `false`, `null` and
 * `undefined` leave the attribute out.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Props} [props]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  apply(element, props);
  append(element, children);
  return element;
}

/**
 * Makes an SVG element.
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Props} [props]
 * @param {...Child} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  apply(element, props);
  append(element, children);
  return /** @type {SVGElementTagNameMap[K]} */ (element);
}

/**
 * A button with a visible name, which is its accessible name too.
 * @param {string} label
 * @param {(event: MouseEvent) => void} click
 * @param {Props} [props]
 * @param {...Child} more
 */
export function button(label, click, props = {}, ...more) {
  return h('button', { type: 'button', click, ...props }, label, ...more);
}

/**
 * Replaces everything inside an element.
 * @param {Element} parent
 * @param {...Child} children
 */
export function fill(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
}

/**
 * Sets a text only when it differs, so that a screen reader is not told the same thing twice and layout is left alone.
 * @param {Node} node
 * @param {string} text
 */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * The element of index.html with this id.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}

/** @param {Element} element @param {Props} props */
function apply(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name, value);
    else setAttribute(element, name, value === true ? '' : String(value));
  }
}

/** @param {Element} element @param {string} name @param {string} value */
function setAttribute(element, name, value) {
  const safe = name === 'href' ? value.startsWith('/api/') : name === 'src' ? value.startsWith('data:image/') : !FORBIDDEN.test(name);
  if (!safe) throw new Error(`the attribute ${name} is not allowed here`);
  element.setAttribute(name, value);
}

/** @param {Element} parent @param {Child[]} children */
function append(parent, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}

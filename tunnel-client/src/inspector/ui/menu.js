// @ts-check
// A button that opens a small panel under it. The browser's popover closes it on Esc and on a click elsewhere.

import { button, h } from './dom.js';

/**
 * @param {{ id: string, label: string, name?: string, class?: string, content: () => (Node | null)[] }} options
 *   `content` is asked for each time the panel opens
 */
export function menu({ id, label, name, content, class: className = '' }) {
  const panel = h('div', { id, class: 'menu', popover: 'auto', role: 'group', 'aria-label': name ?? label });
  const opener = h('button', { type: 'button', class: `opener ${className}`, 'aria-label': name, popovertarget: id, 'aria-haspopup': 'true' },
    label, h('span', { class: 'caret', 'aria-hidden': 'true' }, ' ▾'));
  panel.addEventListener('beforetoggle', (event) => {
    if (event.newState !== 'open') return;
    panel.replaceChildren(...content().filter((node) => node !== null));
  });
  panel.addEventListener('toggle', (event) => {
    if (event.newState !== 'open') return;
    const anchor = opener.getBoundingClientRect();
    const left = Math.max(8, Math.min(anchor.left, innerWidth - panel.offsetWidth - 8));
    panel.style.left = `${left}px`;
    panel.style.top = `${Math.max(8, Math.min(anchor.bottom + 4, innerHeight - panel.offsetHeight - 8))}px`;
    focusable(panel)[0]?.focus();
  });
  panel.addEventListener('keydown', (event) => {
    const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
    if (!step) return;
    const all = focusable(panel);
    const next = all.indexOf(/** @type {HTMLElement} */ (document.activeElement)) + step;
    all[(next + all.length) % all.length]?.focus();
    event.preventDefault();
  });
  return h('span', { class: 'menu-holder' }, opener, panel);
}

/**
 * A line of a menu, which closes it.
 * @param {string} label
 * @param {() => void} click
 * @param {import('./dom.js').Props} [props]
 */
export function item(label, click, props = {}) {
  const line = button(label, () => {
    /** @type {HTMLElement | null} */ (line.closest('[popover]'))?.hidePopover();
    click();
  }, { class: 'item', ...props });
  return line;
}

/** @param {HTMLElement} panel @returns {HTMLElement[]} */
const focusable = (panel) => [...panel.querySelectorAll('a, button, input')].filter((e) => e instanceof HTMLElement);

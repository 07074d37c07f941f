// @ts-check
// What the page says to the user: a polite status line, a question before something is lost, and the clipboard.

import { byId, fill, h } from './dom.js';

let timer = 0;

/**
 * Says something for a few seconds, to eyes and to screen readers. Nothing to say ends what was said.
 * @param {string} text
 * @param {'plain' | 'bad'} [tone]
 */
export function say(text, tone = 'plain') {
  const region = byId('notice');
  clearTimeout(timer);
  fill(region, text && h('span', { class: `notice-text ${tone}` }, text));
  // What is bad or long takes longer to read.
  timer = setTimeout(() => region.replaceChildren(), tone === 'bad' || text.length > 80 ? 8000 : 4000);
}

/** @param {unknown} error */
export function sayError(error) {
  say(error instanceof Error ? error.message : String(error), 'bad');
}

/** @param {string} text @param {string} what the thing copied, as in "URL" @param {string} [then] what is to be done before it is of use */
export async function copy(text, what, then = '') {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied${then}`);
  } catch {
    say('The browser does not let this page write to the clipboard', 'bad');
  }
}

/**
 * Asks before something is lost.
 * @param {{ title: string, text: string, confirm: string }} question
 * @returns {Promise<boolean>}
 */
export function ask({ title, text, confirm }) {
  const yes = h('button', { type: 'submit', value: 'yes', class: 'danger' }, confirm);
  const dialog = h('dialog', { class: 'ask', 'aria-labelledby': 'ask-title', 'aria-describedby': 'ask-text' },
    h('form', { method: 'dialog' },
      h('h2', { id: 'ask-title' }, title),
      h('p', { id: 'ask-text' }, text),
      h('div', { class: 'actions' }, h('button', { type: 'submit', value: 'no' }, 'Cancel'), yes)));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(dialog.returnValue === 'yes');
    });
  });
}

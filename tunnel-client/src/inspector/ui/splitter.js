// @ts-check
// The bar between list and detail, moved by pointer or arrow keys and remembered.

const KEY = 'hookway-list-width';

/** @param {HTMLElement} bar @param {HTMLElement} main */
export function splitter(bar, main) {
  let percent = 0;
  const set = (/** @type {number} */ value) => {
    percent = Math.round(Math.max(20, Math.min(70, value)));
    main.style.setProperty('--list-width', `${percent}%`);
    bar.setAttribute('aria-valuenow', String(percent));
    localStorage.setItem(KEY, String(percent));
  };
  set(Number(localStorage.getItem(KEY)) || 42);
  bar.addEventListener('pointerdown', (event) => bar.setPointerCapture(event.pointerId));
  bar.addEventListener('pointermove', (event) => {
    if (bar.hasPointerCapture(event.pointerId)) set((event.clientX / main.clientWidth) * 100);
  });
  bar.addEventListener('dblclick', () => set(42));
  bar.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
    if (!step) return;
    set(percent + step);
    event.preventDefault();
  });
}

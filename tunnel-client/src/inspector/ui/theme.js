// @ts-check
// Light or dark: the system's choice until the user makes one. Loaded first and blocking, so that the page never flashes.

const KEY = 'hookway-theme';
const system = matchMedia('(prefers-color-scheme: dark)');

/** @returns {'light' | 'dark'} */
export function theme() {
  const chosen = localStorage.getItem(KEY);
  if (chosen === 'light' || chosen === 'dark') return chosen;
  return system.matches ? 'dark' : 'light';
}

export function toggleTheme() {
  localStorage.setItem(KEY, theme() === 'dark' ? 'light' : 'dark');
  show();
  return theme();
}

function show() {
  document.documentElement.dataset.theme = theme();
}

system.addEventListener('change', show);
show();

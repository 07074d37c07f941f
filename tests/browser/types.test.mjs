// What can be said of the page without a browser: its types are right, and it never parses HTML or runs text.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { UI } from './world.mjs';

const files = fs.readdirSync(UI);
const read = (/** @type {string} */ name) => fs.readFileSync(path.join(UI, name), 'utf8');
const script = files.filter((name) => name.endsWith('.js'));

test('its types are right', async () => {
  const tsc = fileURLToPath(new URL('../node_modules/typescript/bin/tsc', import.meta.url));
  const project = fileURLToPath(new URL('tsconfig.json', import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [tsc, '--noEmit', '-p', project], { timeout: 120_000 }).catch((error) => error);
  assert.equal(stdout, '');
});

test('every script asks for that check', () => {
  assert.ok(script.length > 20);
  assert.deepEqual(script.filter((name) => !read(name).startsWith('// @ts-check\n')), []);
});

test('nothing in it parses HTML or runs text', () => {
  const forbidden = /\b(?:innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|parseHTMLUnsafe|createContextualFragment|DOMParser|srcdoc)\b|document\s*\.\s*write|\beval\s*\(|\bnew\s+Function\b|\bFunction\s*\(|set(?:Timeout|Interval)\s*\(\s*['"`]|javascript:|\bimport\s*\(/;
  // Comments may speak of them, and the list of what dom.js refuses names one.
  const code = (/** @type {string} */ text) => text.replaceAll(/\/\*[^]*?\*\/|^\s*\/\/.*$|^const FORBIDDEN = .*$/gm, '');
  assert.deepEqual(files.filter((name) => forbidden.test(code(read(name)))), []);
});

test('no markup in it has a style or a handler, and nothing is loaded from elsewhere', () => {
  for (const name of files.filter((file) => /\.(html|svg)$/.test(file))) {
    assert.doesNotMatch(read(name), /\s(?:style|on\w+)\s*=/i, name);
    assert.doesNotMatch(read(name), /<(?:script|style)(?![^>]*\ssrc=)[^>]*>[^<]/i, name);
    assert.doesNotMatch(read(name), /(?:src|href)="(?!\/)/i, name);
  }
  for (const name of files.filter((file) => file.endsWith('.css'))) assert.doesNotMatch(read(name), /@import|url\(/i, name);
  for (const name of script) {
    assert.doesNotMatch(read(name), /\bsetAttribute\(\s*['"](?:style|on\w+)['"]|\bfrom\s+['"](?!\.\/)/i, name);
  }
});

test('every file of it is used', () => {
  const all = files.map(read).join('\n');
  const entry = new Set(['index.html']);
  assert.deepEqual(files.filter((name) => !entry.has(name) && !all.includes(`/${name}`)), []);
});

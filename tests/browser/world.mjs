// What the browser tests stand on: the built `hookway`, a real app behind it, a sender, and Debian's Chromium.
//
//     const world = await World.start();
//     await world.send({ path: '/stripe', headers: [['content-type', 'application/json']], body: '{}' });
//     const page = await world.open(t);              // fails the test on any console error, CSP report, dialog, foreign request
//
// Nothing here sleeps for a fixed time: a wait is for a condition, under a deadline. Only processes started here end here.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

export const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url));
export const UI = path.join(REPOSITORY, 'tunnel-client/src/inspector/ui');
export const SHOTS = path.join(REPOSITORY, 'target/browser');
export const HOOKWAY = process.env.HOOKWAY_BIN ?? path.join(REPOSITORY, 'target/debug/hookway');
export const HOOKWAY_RELAY = process.env.HOOKWAY_RELAY_BIN ?? path.join(REPOSITORY, 'target/debug/hookway-relay');
const AXE = fs.readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const DEADLINE = 20_000;
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];

export const WIDE = { width: 1280, height: 800 };

/** Waits until the condition gives something true, and returns that. */
export async function eventually(condition, what, deadline = DEADLINE) {
  const end = Date.now() + deadline;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert.ok(Date.now() < end, `${what} did not come true within ${deadline / 1000} s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// ── the programs ────────────────────────────────────────────────────────────────────────────────────────────────────

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

/** A started `hookway` or relay, with the JSON lines that it prints. */
export class Program {
  events = [];
  errors = '';

  constructor(words, folder, env, program = HOOKWAY) {
    this.child = spawn(program, words, { cwd: folder, env, stdio: ['ignore', 'pipe', 'pipe'] });
    running.add(this.child);
    this.exit = new Promise((resolve) => this.child.once('exit', resolve)).then(() => running.delete(this.child));
    let rest = '';
    this.child.stdout.setEncoding('utf8').on('data', (text) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      this.events.push(...lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line)));
    });
    this.child.stderr.setEncoding('utf8').on('data', (text) => (this.errors += text));
  }

  event(kind) {
    return eventually(() => {
      assert.equal(this.child.exitCode, null, `hookway ended: ${this.errors}`);
      return this.events.find(({ event }) => event === kind);
    }, `hookway's event ${kind}; it wrote ${JSON.stringify(this.events)} and ${this.errors}`);
  }

  async end(signal = 'SIGTERM') {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill(signal);
    const late = setTimeout(() => this.child.kill('SIGKILL'), 10_000);
    await this.exit;
    clearTimeout(late);
  }
}

export function environment(folder) {
  return { PATH: process.env.PATH, HOME: folder, XDG_CONFIG_HOME: `${folder}/config`, XDG_DATA_HOME: `${folder}/data`, XDG_STATE_HOME: `${folder}/state`, RUST_BACKTRACE: '1' };
}

/** Runs a program to its end; its standard output. */
export function run(program, words, { folder, input = '', env = environment(folder) }) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, words, { cwd: folder, env, stdio: ['pipe', 'pipe', 'pipe'], timeout: 120_000 });
    running.add(child);
    let out = '';
    let errors = '';
    child.stdout.setEncoding('utf8').on('data', (text) => (out += text));
    child.stderr.setEncoding('utf8').on('data', (text) => (errors += text));
    child.once('error', reject);
    child.once('close', (code) => {
      running.delete(child);
      if (code === 0) resolve(out);
      else reject(new Error(`${program} ${words.join(' ')} ended with ${code}: ${errors}`));
    });
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  });
}

/** The developer's app: it keeps what arrived, and `answer` says what it replies. */
export class App {
  seen = [];
  port = 0;
  answer = () => ({ status: 200, headers: ['content-type', 'application/json'], body: '{"received":true}' });

  async start() {
    this.server = http.createServer({ maxHeaderSize: 256 * 1024 }, (request, response) => {
      const chunks = [];
      request.on('data', (chunk) => chunks.push(chunk));
      request.on('end', async () => {
        const seen = { method: request.method, path: request.url, headers: pairs(request.rawHeaders), body: Buffer.concat(chunks) };
        this.seen.push(seen);
        const { status = 200, headers = [], body = '' } = await this.answer(seen);
        response.writeHead(status, headers);
        response.end(body);
      });
    });
    await new Promise((resolve, reject) => this.server.once('error', reject).listen(this.port, '127.0.0.1', resolve));
    this.port = this.server.address().port;
    return this;
  }

  async stop() {
    const closed = new Promise((resolve) => this.server.close(resolve));
    this.server.closeAllConnections();
    await closed;
  }

  /** The request that comes after those seen so far. */
  next() {
    const before = this.seen.length;
    return eventually(() => this.seen[before], 'the next request at the app');
  }
}

const pairs = (flat) => Array.from({ length: flat.length / 2 }, (_, at) => [flat[2 * at], flat[2 * at + 1]]);

/** The values of a header in what the app saw, in order. */
export const values = ({ headers }, name) => headers.filter(([is]) => is.toLowerCase() === name).map(([, value]) => value);

// ── the world ───────────────────────────────────────────────────────────────────────────────────────────────────────

let browser;

export async function startBrowser(more = []) {
  browser ??= await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', ...more],
  });
  return browser;
}

export async function endBrowser() {
  await browser?.close();
  browser = undefined;
}

/** A folder, an app in it, and `hookway dev`, `hookway inspect` or a relay and `hookway` in front. */
export class World {
  #contexts = new Set();

  /**
   * `stored`: lines that `hookway requests import` reads before the start; `secrets`: variables of the environment;
   * `relay`: flags of a relay of its own, in the mode `tunnel`.
   */
  static async start({ mode = 'dev', words = [], relay = [], stored = [], ports = {}, secrets = {} } = {}) {
    const world = new World();
    world.folder = fs.mkdtempSync(path.join(os.tmpdir(), 'hookway-browser-'));
    world.env = { ...environment(world.folder), ...secrets };
    world.app = await Object.assign(new App(), { port: ports.app ?? 0 }).start();
    if (stored.length) await world.import(stored);
    const app = String(world.app.port);
    const command = {
      inspect: () => ['inspect'],
      dev: () => ['dev', app, '--http', `127.0.0.1:${ports.http ?? 0}`, '--https', `127.0.0.1:${ports.https ?? 0}`],
      tunnel: async () => [app, ...(await world.#startRelay(relay))],
    };
    world.words = [...(await command[mode]()), '--json', '--inspect', `127.0.0.1:${ports.inspect ?? 0}`, ...words];
    await world.startHookway();
    return world;
  }

  /** A relay with plain HTTP for senders; the words with which `hookway` finds it. */
  async #startRelay(flags) {
    const data = path.join(this.folder, 'relay');
    const command = ['run', '--domain', 'localhost', '--data-dir', data, '--tls', 'self-signed', '--http-serve', '--json'];
    const listeners = ['--https', '--http', '--admin'].flatMap((listener) => [listener, '127.0.0.1:0']);
    this.relay = new Program([...command, ...listeners, '--rate', 'off', ...flags], this.folder, this.env, HOOKWAY_RELAY);
    const { http, https, ca } = await this.relay.event('ready');
    this.port = Number(http.split(':').pop());
    const made = await run(HOOKWAY_RELAY, ['token', 'create', '--name', 'ci', '--data-dir', data, '--json'], { folder: this.folder });
    this.env.HOOKWAY_TOKEN = JSON.parse(made).token;
    return ['--relay', `127.0.0.1:${https.split(':').pop()}`, '--relay-ca', ca, '-n', 'demo'];
  }

  async startHookway() {
    this.hookway = new Program(this.words, this.folder, this.env);
    this.ready = await this.hookway.event('ready');
    this.inspector = this.ready.inspector;
    if (this.ready.http) this.port = Number(new URL(this.ready.http).port);
    if (this.words[0] !== 'inspect') await this.hookway.event('session');
  }

  /** Ends hookway and starts it again with its inspector on the same port. */
  async restart() {
    await this.hookway.end();
    this.words[this.words.indexOf('--inspect') + 1] = new URL(this.inspector).host;
    await this.startHookway();
  }

  async import(lines) {
    const file = path.join(this.folder, 'import.jsonl');
    fs.writeFileSync(file, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
    await this.command('requests', 'import', file);
  }

  /** What `hookway requests export` writes. */
  export(...words) {
    return this.command('requests', 'export', ...words);
  }

  /** Another `hookway` in the same folder, to its end; its standard output. */
  command(...words) {
    return run(HOOKWAY, words, { folder: this.folder, env: this.env });
  }

  /** Sends a webhook; every byte of its head is as given. */
  send({ method = 'POST', path: target = '/', headers = [], body = '' } = {}) {
    const bytes = Buffer.from(body);
    const head = [`${method} ${target} HTTP/1.1`, `Host: demo.localhost:${this.port}`, ...headers.map(([name, value]) => `${name}: ${value}`), `Content-Length: ${bytes.length}`, 'Connection: close', '', ''];
    return new Promise((resolve, reject) => {
      const socket = net.connect(this.port, '127.0.0.1', () => socket.write(Buffer.concat([Buffer.from(head.join('\r\n')), bytes])));
      const chunks = [];
      socket.setTimeout(DEADLINE, () => socket.destroy(new Error('no answer from the relay')));
      socket.on('data', (chunk) => chunks.push(chunk));
      socket.on('error', reject);
      socket.on('close', () => {
        const answer = Buffer.concat(chunks).toString('latin1');
        resolve({ status: Number(answer.split(' ')[1]), text: answer });
      });
    });
  }

  /** Sends JSON. */
  sendJson(target, value, headers = []) {
    return this.send({ path: target, headers: [['content-type', 'application/json'], ...headers], body: JSON.stringify(value) });
  }

  async api(target, options) {
    const response = await fetch(this.inspector + target, options);
    assert.ok(response.ok, `${target}: ${response.status}`);
    return response.json();
  }

  exchanges(filter = '') {
    return this.api(`/api/exchanges?${new URLSearchParams({ filter, limit: '2000' })}`).then(({ exchanges }) => exchanges);
  }

  /** Opens the inspector. What it must never do fails the test at its end, but for console errors that `expected` names. */
  async open(t, { query = '', theme = 'light', size = WIDE, scale = 1, expected = [], context: more = {}, before, ready = true } = {}) {
    await startBrowser();
    const context = await browser.newContext({ viewport: size, deviceScaleFactor: scale, colorScheme: theme, reducedMotion: 'reduce', permissions: ['clipboard-read', 'clipboard-write'], ...more });
    context.setDefaultTimeout(DEADLINE);
    const page = await context.newPage();
    const faults = await watch(context, this.inspector, expected);
    await before?.(page);
    this.#contexts.add(context);
    t.after(async () => {
      await this.#close(context);
      assert.deepEqual(faults, [], 'what the page must never do');
    });
    await page.goto(`${this.inspector}/${query}`);
    if (ready) await page.locator('#session .state').waitFor();
    return Object.assign(page, { faults });
  }

  /** Before what it shows ends, so that it does not see that. */
  async #close(context) {
    if (this.#contexts.delete(context)) await context.close();
  }

  async end() {
    for (const context of this.#contexts) await this.#close(context);
    await this.hookway.end();
    await this.relay?.end();
    await this.app.stop().catch(() => {});
    fs.rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Collects what a page must never do. */
export async function watch(context, origin, expected = []) {
  const faults = [];
  await context.exposeBinding('reportFault', (_, text) => faults.push(text));
  await context.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => window.reportFault(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
  });
  context.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !expected.some((pattern) => pattern.test(message.text()))) faults.push(`console: ${message.text()}`);
  });
  context.on('weberror', (error) => faults.push(`error: ${error.error().stack}`));
  context.on('dialog', (dialog) => {
    faults.push(`dialog: ${dialog.message()}`);
    dialog.dismiss().catch(() => {});
  });
  context.on('request', (request) => {
    const url = new URL(request.url());
    if (url.protocol !== 'data:' && url.protocol !== 'blob:' && url.origin !== origin) faults.push(`request: ${request.url()}`);
  });
  return faults;
}

/** Console errors that the browser itself writes when a server is away or says no. */
export const NETWORK_ERRORS = /Failed to load resource: (net::ERR_|the server responded with a status of)/;

// ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** No rule of axe is broken, and nothing sticks out at the side. */
export async function assertAccessible(page, name, runOnly = { type: 'tag', values: RULES }) {
  const broken = await page.evaluate(async ([source, only]) => {
    if (!window.axe) (0, eval)(source);
    const { violations } = await window.axe.run(document, { resultTypes: ['violations'], runOnly: only });
    return violations.flatMap(({ id, nodes }) => nodes.slice(0, 4).map(({ target, failureSummary }) => `${id}: ${target.join(' ')}: ${failureSummary}`));
  }, [AXE, runOnly]);
  assert.deepEqual(broken, [], `axe on ${name}`);
  const { scroll, width } = await page.evaluate(() => ({ scroll: document.documentElement.scrollWidth, width: innerWidth }));
  assert.ok(scroll <= width, `${name} is ${scroll} px wide in a window of ${width}`);
}

export async function shot(page, name) {
  fs.mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: path.join(SHOTS, `${name}.png`) });
}

/** A picture, and all rules of axe. */
export async function lookOnce(page, name) {
  await shot(page, name);
  await assertAccessible(page, name);
}

/** A picture in each theme, and axe: all of its rules, and in the second theme those that are about colour. */
export async function look(page, name) {
  await lookOnce(page, `${name}-light`);
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.locator('html[data-theme=dark]').waitFor();
  await shot(page, `${name}-dark`);
  await assertAccessible(page, `${name}, dark`, { type: 'rule', values: ['color-contrast', 'link-in-text-block'] });
  await page.emulateMedia({ colorScheme: 'light' });
  await page.locator('html[data-theme=light]').waitFor();
}

// ── the page's parts ────────────────────────────────────────────────────────────────────────────────────────────────

export const row = (page, text) => page.locator('#list [role=option]:not([hidden])').filter({ hasText: text });
export const selected = (page) => page.locator('#list [role=option][aria-selected=true]:not([hidden])');
export const heading = (page) => page.locator('#detail h2');

/** Opens the exchange with this text in its row, and waits until it is drawn. */
export async function openRow(page, text) {
  await row(page, text).first().click();
  await heading(page).filter({ hasText: text }).waitFor();
}

/** The list shows this many exchanges. */
export async function count(page, n) {
  // The count comes with the state, the rows by themselves; a key that is pressed before there are rows does nothing.
  const there = (/** @type {number} */ n) =>
    document.getElementById('count').textContent.replace(/\u202f/g, '').startsWith(`${n} `) &&
    Number(document.querySelector('#list [role=option]:not([hidden])')?.ariaSetSize ?? 0) >= Math.min(n, 200);
  await page.waitForFunction(there, n, { timeout: DEADLINE });
}

/** All of them are in the list, not only the first page that came. */
export async function complete(page, n) {
  await page.waitForFunction((all) => document.querySelector('#list [role=option]:not([hidden])')?.ariaSetSize === all, String(n), { timeout: DEADLINE });
}

/** The notice says this. */
export const notice = (page, text) => page.locator('#notice').filter({ hasText: text }).waitFor({ timeout: DEADLINE });

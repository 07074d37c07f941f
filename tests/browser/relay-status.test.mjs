// The relay's status page, of real relays with real tokens, clients and deliveries: what it says in every state, that it
// changes nothing, and pictures to look at.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { App, HOOKWAY, HOOKWAY_RELAY, NETWORK_ERRORS, Program, REPOSITORY, SHOTS, WIDE, assertAccessible, endBrowser, environment, eventually, lookOnce, run, shot, startBrowser, watch } from './world.mjs';

const UI = path.join(REPOSITORY, 'relay-server/src/admin/ui');
const OPENAPI = JSON.parse(fs.readFileSync(path.join(REPOSITORY, 'relay-server/src/admin/openapi.json'), 'utf8'));
const KEPT = 'hookway-relay-token';
const PHONE = { width: 390, height: 844 };
/** Markup that would run if it were ever parsed. */
const MARKUP = '<img src=x onerror=alert(1)><script>alert(2)</script>';

/** A relay with an admin listener, and what is started beside it. */
class Relay {
  #programs = [];

  static async start(flags = []) {
    const relay = new Relay();
    relay.folder = fs.mkdtempSync(path.join(os.tmpdir(), 'hookway-status-'));
    relay.data = path.join(relay.folder, 'relay');
    relay.env = environment(relay.folder);
    relay.flags = flags;
    await relay.run();
    return relay;
  }

  async run(admin = '127.0.0.1:0') {
    const words = ['run', '--domain', 'hooks.test', '--data-dir', this.data, '--json', '--https', '127.0.0.1:0', '--http', '127.0.0.1:0', '--http-serve', '--admin', admin];
    this.program = new Program([...words, ...this.flags], this.folder, this.env, HOOKWAY_RELAY);
    this.ready = await this.program.event('ready');
    this.origin = `http://${this.ready.admin}`;
  }

  /** A subcommand on its store; the last line of its answer. */
  async command(...words) {
    const out = await run(HOOKWAY_RELAY, [...words, '--data-dir', this.data, '--json'], { folder: this.folder, env: this.env });
    return JSON.parse(out.trim().split('\n').pop());
  }

  /** A new token, to be used, and its id. */
  token(name, scope = 'client') {
    return this.command('token', 'create', '--name', name, '--scope', scope);
  }

  /** Asks the API; the answer's status, and what it says. */
  async api(token, target, method = 'GET', body = undefined) {
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
    const answer = await fetch(`${this.origin}/api/${target}`, { method, headers, body });
    return { status: answer.status, ...(await answer.json()) };
  }

  /** A client that serves this endpoint. */
  async client(name, token, target) {
    const folder = path.join(this.folder, `client-${this.#programs.length}`);
    fs.mkdirSync(folder);
    const words = [target, '-n', name, '--relay', `127.0.0.1:${this.ready.https.split(':').pop()}`, '--relay-ca', this.ready.ca, '--no-inspect', '--json'];
    const client = new Program(words, folder, { ...environment(folder), HOOKWAY_TOKEN: token }, HOOKWAY);
    this.#programs.push(client);
    await client.event('ready');
    return client;
  }

  /** A webhook to an endpoint; the status that its sender sees. */
  send(name, target, body) {
    return new Promise((resolve, reject) => {
      const headers = { host: `${name}.hooks.test`, 'content-length': body.length };
      const request = http.request(`http://${this.ready.http}${target}`, { method: 'POST', headers, agent: false }, (answer) => resolve(answer.resume().statusCode));
      request.on('error', reject).end(body);
    });
  }

  /** Opens the page, with a token that it has already if one is given. At its end nothing must have gone wrong or been changed. */
  async open(t, { token = '', theme = 'light', size = WIDE, expected = [], before = async () => {} } = {}) {
    const browser = await startBrowser();
    const context = await browser.newContext({ viewport: size, colorScheme: theme, reducedMotion: 'reduce' });
    context.setDefaultTimeout(20_000);
    const faults = await watch(context, this.origin, expected);
    context.on('request', (request) => request.method() === 'GET' || faults.push(`${request.method()} ${request.url()}`));
    t.after(async () => {
      await context.close();
      assert.deepEqual(faults, [], 'what the page must never do');
    });
    const page = await context.newPage();
    await before(page);
    await page.goto(this.origin);
    if (token) await enter(page, token);
    return page;
  }

  async end() {
    for (const program of this.#programs) await program.end();
    await this.program.end();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }
}

// ── the page's parts ────────────────────────────────────────────────────────────────────────────────────────────────

const input = (page) => page.getByLabel('Admin API token');
const table = (page, name) => page.getByRole('table', { name });
const rows = (page, name) => table(page, name).locator('tbody tr');
const rowOf = (page, name, text) => rows(page, name).filter({ hasText: text });
const texts = async (locator) => (await locator.allTextContents()).map((text) => text.replace(/\s+/g, ' ').trim());
const cells = (row) => texts(row.locator('th, td'));
const says = (page, text) => page.locator('#login-error').filter({ hasText: text }).waitFor();
const kept = (page) => page.evaluate(() => ({ session: { ...sessionStorage }, local: { ...localStorage }, cookie: document.cookie }));

async function give(page, token) {
  await input(page).fill(token);
  await page.getByRole('button', { name: 'Show status' }).click();
}

async function enter(page, token) {
  await give(page, token);
  await page.locator('#updated').filter({ hasText: /^updated \d\d:\d\d:\d\d$/ }).waitFor();
}

/** Has the page ask again, as it does when its tab comes to the front. */
const nudge = (page) => page.evaluate(() => document.dispatchEvent(new Event('visibilitychange')));

async function figure(page, name) {
  const all = await page.locator('#figures > div').evaluateAll((figures) => figures.map(({ children: [label, value] }) => [label.textContent, value.textContent]));
  return Object.fromEntries(all)[name];
}

/** A picture of all of the page, and axe, in both themes and on a phone. */
async function look(page, name) {
  const whole = async (more) => {
    fs.mkdirSync(SHOTS, { recursive: true });
    await page.screenshot({ path: path.join(SHOTS, `relay-status-${name}${more}.png`), fullPage: true });
    await assertAccessible(page, `${name}${more}`);
  };
  await whole('-light');
  await page.emulateMedia({ colorScheme: 'dark' });
  await whole('-dark');
  await page.setViewportSize(PHONE);
  await whole('-dark-phone');
  await page.emulateMedia({ colorScheme: 'light' });
  await whole('-phone');
  await page.setViewportSize({ width: 320, height: 640 });
  await assertAccessible(page, `${name}, 320 px`);
  await page.setViewportSize(WIDE);
}

after(endBrowser);

// ── tests ───────────────────────────────────────────────────────────────────────────────────────────────────────────

describe('a relay that nobody uses yet', () => {
  let relay;
  let token;
  let client;
  before(async () => {
    relay = await Relay.start();
    token = (await relay.token('ops', 'read')).token;
    client = (await relay.token('ann')).token;
  });
  after(() => relay?.end());

  test('its page asks for a token, says how to make one, and shows nothing else', async (t) => {
    const page = await relay.open(t);
    await input(page).waitFor();
    assert.equal(await input(page).getAttribute('type'), 'password');
    assert.ok(await input(page).evaluate((element) => element === document.activeElement));
    await page.getByText('hookway-relay token create --name NAME --scope read').waitFor();
    assert.equal(await page.getByRole('table').count(), 0);
    assert.equal(await page.getByRole('button').count(), 1);
    assert.doesNotMatch(await page.locator('body').innerText(), /hooks\.test/);
    await look(page, 'login');
  });

  test('a wrong token, a client’s token and what is no token are each told so, and not kept', async (t) => {
    const page = await relay.open(t, { expected: [NETWORK_ERRORS] });
    await give(page, `hwt_${'A'.repeat(43)}`);
    await says(page, 'The token is unknown, expired or revoked.');
    assert.equal(await input(page).getAttribute('aria-invalid'), 'true');
    await lookOnce(page, 'relay-status-wrong-token');
    await give(page, client);
    await says(page, 'This token is a client\'s; make one with --scope admin or read.');
    await give(page, 'hwt_„quoted“');
    await says(page, 'That is no token');
    await give(page, '');
    await says(page, 'That is no token');
    assert.deepEqual(await kept(page), { session: {}, local: {}, cookie: '' });
    assert.equal(await page.getByRole('table').count(), 0);
    await give(page, ` ${token} `);
    await page.locator('#health').getByText('well').waitFor();
    assert.equal(await page.locator('#login-error').textContent(), '');
  });

  test('every empty list says the next step', async (t) => {
    const page = await relay.open(t, { token });
    assert.equal(await page.locator('#domain').textContent(), 'hooks.test');
    for (const step of ['hookway login hooks.test', 'hookway doctor --relay hooks.test', 'hookway-relay queue list', '--tls acme']) await page.getByText(step).waitFor();
    assert.equal(await figure(page, 'Clients connected'), '0');
    assert.equal(await figure(page, 'Valid tokens'), '2');
    assert.match(await figure(page, 'Certificate'), /own CA/);
    assert.equal(await page.getByRole('button', { name: /More|Older/ }).count(), 0);
    await look(page, 'empty');
  });

  test('the token is in sessionStorage alone, lasts over a reload, and is forgotten with all that it showed', async (t) => {
    const page = await relay.open(t, { token });
    assert.deepEqual(await kept(page), { session: { [KEPT]: token }, local: {}, cookie: '' });
    assert.equal(await page.locator('#token').inputValue(), '');
    await page.reload();
    await page.locator('#updated').filter({ hasText: 'updated' }).waitFor();
    await page.getByRole('button', { name: 'Forget token' }).click();
    await input(page).waitFor();
    assert.deepEqual(await kept(page), { session: {}, local: {}, cookie: '' });
    assert.doesNotMatch(await page.locator('body').innerText(), /hooks\.test|well/);
    assert.equal(await page.locator('tbody tr, #figures > div > *').filter({ hasText: /\S/ }).count(), 0);
    await page.reload();
    await input(page).waitFor();
  });

  test('the keyboard is enough', async (t) => {
    const page = await relay.open(t);
    await input(page).waitFor();
    await page.keyboard.type(token);
    await page.keyboard.press('Enter');
    await page.locator('#updated').filter({ hasText: 'updated' }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
    const reached = [];
    for (const key of ['Tab', 'Shift+Tab', 'Shift+Tab']) {
      await page.keyboard.press(key);
      reached.push(await page.evaluate(() => document.activeElement.id));
    }
    assert.deepEqual(reached, ['filter', 'forget', 'pause']);
    await page.keyboard.press('Enter');
    await page.locator('#updated').filter({ hasText: /^paused at/ }).waitFor();
  });

  test('a token that is revoked meanwhile ends it, and it says so', async (t) => {
    const made = await relay.token('leaver', 'read');
    const page = await relay.open(t, { token: made.token, expected: [NETWORK_ERRORS] });
    await page.locator('#filter').focus();
    await relay.command('token', 'revoke', made.id);
    // By its own clock: no later than with the next refresh.
    await says(page, 'This token is no longer taken: the token is unknown, expired or revoked.');
    assert.deepEqual((await kept(page)).session, {});
    assert.equal(await page.evaluate(() => document.activeElement.id), 'token');
    assert.equal(await page.getByRole('table').count(), 0);
    await lookOnce(page, 'relay-status-revoked');
  });
});

describe('a relay at work', () => {
  let relay;
  let app;
  let tokens;
  before(async () => {
    relay = await Relay.start(['--queue-retention', '10s']);
    app = await new App().start();
    const [read, admin, ann, bob] = await Promise.all([relay.token('ops', 'read'), relay.token('root', 'admin'), relay.token('ann'), relay.token('bob')]);
    tokens = { read: read.token, admin: admin.token, ann: ann.token, bob: bob.token };
    await relay.client('billing', tokens.ann, String(app.port));
    await relay.client('ci-7', tokens.bob, String(app.port));
  });
  after(async () => {
    await relay?.end();
    await app?.stop();
  });

  test('all that the API says is there, for a token that may only look', async (t) => {
    await relay.api(tokens.admin, 'endpoints/billing/protection', 'PUT', JSON.stringify({ allow: ['github', '192.0.2.0/24'], users: ['ann:a-long-password'], paths: ['/github'], rate: '10/s', max_body: 1_000_000 }));
    const page = await relay.open(t, { token: tokens.read });
    const status = await relay.api(tokens.read, 'status');
    const said = await page.locator('#header').textContent();
    for (const part of [status.domain, status.version, 'up since', '● well']) assert.ok(said.includes(part), `${part} in ${said}`);
    assert.equal(await figure(page, 'Clients connected'), '2');
    assert.equal(await figure(page, 'Endpoints'), '2');
    assert.equal(await figure(page, 'Valid tokens'), '4');

    const { url } = await relay.api(tokens.read, 'endpoints/billing');
    assert.deepEqual(await cells(rowOf(page, 'Endpoints', 'billing')), [`billing ${url}`, 'ann', '1', '0', '0', 'only from github, 192.0.2.0/24; password of ann; only /github; at most 10/s; bodies up to 1 MB', 'connected']);
    assert.equal((await cells(rowOf(page, 'Endpoints', 'ci-7')))[5], 'none');
    const { items: [session] } = await relay.api(tokens.read, 'sessions');
    const shown = await cells(rowOf(page, 'Sessions', session.id));
    assert.deepEqual(shown.slice(0, 5), [session.id, session.owner, session.endpoints.join(', '), session.remote, session.transport === 'quic' ? 'QUIC' : 'HTTP/2']);
    assert.match(shown[5], /^[\d.]+ m?s$/);
    assert.match(shown[6], /^\d\d:\d\d:\d\d \d+ s/);
    assert.match((await cells(rowOf(page, 'Audit log', 'endpoint.protect'))).join('|'), /^\d\d:\d\d:\d\d\|root\|api\|endpoint\.protect\|billing\|.*github/);
    // For a screen reader, all of them are tables with a name, and each row has its head.
    for (const name of ['Endpoints', 'Sessions', 'Audit log']) {
      const kinds = await table(page, name).evaluate((element) => [...element.querySelectorAll('th')].map((head) => head.scope));
      assert.ok(kinds.every((scope) => scope === 'col' || scope === 'row') && kinds.includes('row') && kinds.includes('col'), name);
    }
    await look(page, 'at-work');
  });

  test('what waits is shown, and is a dead letter when it has waited too long', async (t) => {
    const client = await relay.client('shop', tokens.ann, String(app.port));
    const page = await relay.open(t, { token: tokens.read });
    await rowOf(page, 'Endpoints', 'shop').filter({ hasText: 'connected' }).waitFor();
    await client.end();
    await eventually(async () => (await relay.api(tokens.read, 'endpoints/shop')).clients === 0, 'the client is away');
    const body = 'x'.repeat(3000);
    assert.equal(await relay.send('shop', '/orders', body), 202);
    await nudge(page);
    await rowOf(page, 'Waiting', 'shop').waitFor();
    const [name, depth, bytes, oldest, dead] = await cells(rowOf(page, 'Waiting', 'shop'));
    assert.deepEqual([name, depth, dead], ['shop', '1', '0']);
    assert.match(`${bytes} ${oldest}`, /^3(\.\d)? kB [\d.]+ m?s$/);
    // The sums are made anew now and then.
    await page.locator('#figures > div').filter({ hasText: /^Waiting1 3(\.\d)? kB$/ }).waitFor();
    assert.match((await cells(rowOf(page, 'Endpoints', 'shop')))[6], /^\d+ s ago$/);
    // Those of which nothing waits are not in the list.
    assert.equal(await rows(page, 'Waiting').count(), 1);
    await page.waitForFunction(() => document.querySelector('#queue tbody tr td:last-child').textContent === '1');
    await page.locator('#figures > div').filter({ hasText: /^Dead letters1 hookway-relay queue dead-letters$/ }).waitFor();
    assert.equal((await cells(rowOf(page, 'Endpoints', 'shop')))[4], '1');
    await look(page, 'dead-letter');
  });

  test('refreshes keep the filter, the focus, the selection and every row that did not change', async (t) => {
    const page = await relay.open(t, { token: tokens.read });
    await page.locator('#filter').pressSequentially('BILL');
    await rowOf(page, 'Endpoints', 'ci-7').waitFor({ state: 'detached' });
    assert.match(await page.locator('#endpoints .count').textContent(), /^1 of \d$/);
    await page.evaluate(() => {
      const name = document.querySelector('#endpoints tbody .name');
      Object.assign(window, { name_: name, audit: document.querySelector('#audit tbody tr'), changes: [] });
      new MutationObserver((records) => window.changes.push(...records.map(({ target }) => target.className || target.nodeName))).observe(document.querySelector('#endpoints table'), { subtree: true, childList: true, characterData: true });
      document.getElementById('filter').setSelectionRange(1, 3);
    });
    for (let times = 0; times < 2; times += 1) {
      const before = await page.locator('#updated').textContent();
      await page.waitForFunction((text) => document.getElementById('updated').textContent !== text, before);
    }
    const after = await page.evaluate(() => {
      const { activeElement: focused } = document;
      return { id: focused.id, value: focused.value, selection: [focused.selectionStart, focused.selectionEnd], same: window.name_.isConnected && window.audit === document.querySelector('#audit tbody tr'), changes: window.changes };
    });
    assert.deepEqual(after, { id: 'filter', value: 'BILL', selection: [1, 3], same: true, changes: [] });

    await page.locator('#filter').fill('nothing like it');
    await page.getByText('No endpoint matches the filter.').waitFor();
    await lookOnce(page, 'relay-status-no-match');
    await page.getByRole('button', { name: 'Clear filter' }).click();
    await rowOf(page, 'Endpoints', 'ci-7').waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), 'filter');
    // What is new comes by itself.
    await relay.client('late', tokens.bob, String(app.port));
    await rowOf(page, 'Endpoints', 'late').waitFor();
  });

  test('it asks nothing while its tab is hidden or it is paused', async (t) => {
    const page = await relay.open(t, {
      before: async (page) => {
        await page.clock.install();
        await page.addInitScript(() => {
          const { fetch } = window;
          Object.assign(window, { asked: 0, fetch: (...what) => fetch(...what, (window.asked += 1)) });
        });
      },
    });
    await enter(page, tokens.read);
    const hide = (hidden) => page.evaluate((value) => {
      Object.defineProperty(document, 'hidden', { get: () => value, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }, hidden);
    /** How often it asks in this time. */
    const during = async (seconds) => {
      const before = await page.evaluate(() => window.asked);
      await page.clock.runFor(seconds * 1000);
      return (await page.evaluate(() => window.asked)) - before;
    };
    const updates = async (change) => {
      const before = await page.locator('#updated').textContent();
      await change();
      await page.waitForFunction((text) => document.getElementById('updated').textContent !== text, before);
    };
    await updates(async () => assert.ok((await during(6)) > 0));
    await hide(true);
    assert.equal(await during(60), 0);
    await updates(() => hide(false));
    await updates(() => page.getByRole('button', { name: 'Pause' }).click());
    assert.match(await page.locator('#updated').textContent(), /^paused at \d\d:/);
    assert.equal(await during(60), 0);
    await updates(() => page.getByRole('button', { name: 'Pause' }).click());
    assert.match(await page.locator('#updated').textContent(), /^updated \d\d:/);
  });

  test('a long list comes in parts, which stay over refreshes', async (t) => {
    for (let at = 0; at < 60; at += 1) assert.equal((await relay.api(tokens.admin, 'tokens', 'POST', JSON.stringify({ name: `many-${at}` }))).status, 201);
    const page = await relay.open(t, { token: tokens.read });
    const shown = (n) => page.waitForFunction((all) => document.querySelectorAll('#audit tbody tr').length === all, n);
    await shown(25);
    assert.equal(await page.locator('#audit .count').textContent(), 'first 25');
    const more = page.getByRole('button', { name: 'Older lines' });
    await more.click();
    await shown(50);
    assert.ok(await more.evaluate((element) => element === document.activeElement));
    const before = await page.locator('#updated').textContent();
    await page.waitForFunction((text) => document.getElementById('updated').textContent !== text, before);
    await shown(50);
    await more.focus();
    while (await more.isVisible()) {
      const had = await rows(page, 'Audit log').count();
      await page.keyboard.press('Enter');
      await page.waitForFunction((all) => document.querySelectorAll('#audit tbody tr').length > all, had);
    }
    const { items } = await relay.api(tokens.read, 'audit?limit=500');
    await shown(items.length);
    assert.equal(await page.locator('#audit .count').textContent(), String(items.length));
    // The button is gone; whoever pressed it goes on with what came.
    assert.equal(await page.evaluate(() => document.activeElement.tagName), 'TH');
  });

  test('of very many endpoints it looks at the first 2000, and says so', async (t) => {
    const [model] = usualDay().endpoints;
    const all = Array.from({ length: 2600 }, (_, at) => ({ ...model, name: `e-${String(at).padStart(4, '0')}`, owner: at === 1900 ? 'zoe' : 'ann', domains: [] }));
    const page = await relay.open(t, {
      token: tokens.read,
      before: (page) => page.route('**/api/endpoints?*', (route) => {
        const { after, limit } = Object.fromEntries(new URL(route.request().url()).searchParams);
        const rest = all.filter(({ name }) => !after || name > after);
        const items = rest.slice(0, Number(limit));
        return route.fulfill({ json: { items, next: rest.length > items.length ? items.at(-1).name : null } });
      }),
    });
    assert.equal(await page.locator('#endpoints .count').textContent(), 'first 50');
    await page.locator('#filter').fill('zoe');
    await rowOf(page, 'Endpoints', 'e-1900').waitFor();
    assert.equal((await page.locator('#endpoints .count').textContent()).replace('\u202f', ''), '1 of 2000');
    assert.match(await page.locator('#endpoints .rest').textContent(), /first 2\u202f000; GET \/api\/endpoints has them all/);
    await page.locator('#filter').fill('e-2500');
    await page.getByText('No endpoint matches the filter.').waitFor();
    await page.getByRole('button', { name: 'Clear filter' }).click();
    await page.waitForFunction(() => document.querySelectorAll('#endpoints tbody tr').length === 50);
  });

  test('markup from outside is text, whoever wrote it', async (t) => {
    // Refused calls are noted with what they asked for.
    assert.equal((await relay.api(tokens.admin, `endpoints/${encodeURIComponent(MARKUP)}`, 'DELETE')).status, 404);
    assert.equal((await relay.api(tokens.admin, 'tokens', 'POST', JSON.stringify({ name: 'x', [MARKUP]: 1 }))).status, 422);
    assert.equal((await relay.api(tokens.read, '%3Cimg%20src=x%20onerror=alert(1)%3E', 'POST')).status, 403);
    const page = await relay.open(t, { token: tokens.read });
    const line = rowOf(page, 'Audit log', `there is no endpoint \`${MARKUP}\``);
    await line.waitFor();
    assert.equal(await line.getByText('refused', { exact: true }).count(), 1);
    // Of a body, what is wanted is noted, and never what stood there.
    await rowOf(page, 'Audit log', '422: the body cannot be used: expected one of').waitFor();
    assert.equal(await rowOf(page, 'Audit log', 'POST /api/%3Cimg%20src=x%20onerror=alert(1)%3E').count(), 1);
    assert.equal(await page.locator('body img, body script').count(), 0);
    await look(page, 'refused');
  });

  test('nor does any other field of the API become markup', async (t) => {
    const hostile = (value) => {
      if (typeof value === 'string') return /^\d{4}-\d\d-\d\dT/.test(value) ? value : MARKUP;
      if (Array.isArray(value)) return value.map(hostile);
      return value && typeof value === 'object' ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, hostile(inner)])) : value;
    };
    const page = await relay.open(t, { token: tokens.read, before: (page) => madeUp(page, hostile, ['wrong']) });
    await page.locator('#problems').getByText(MARKUP).waitFor();
    assert.equal(await page.locator('body img, body script, body a').count(), 0);
    for (const name of ['Endpoints', 'Sessions', 'Waiting', 'Certificates', 'Audit log']) assert.ok(await rowOf(page, name, MARKUP).count(), name);
    await look(page, 'hostile');
  });
});

describe('a relay that is not well', () => {
  let relay;
  let admin;
  before(async () => {
    // Nothing listens there.
    relay = await Relay.start(['--tls', 'acme', '--acme-directory', 'https://127.0.0.1:1/directory', '--acme-email', 'ops@hooks.test']);
    admin = (await relay.token('root', 'admin')).token;
  });
  after(() => relay?.end());

  test('says what is wrong, and that it is draining', async (t) => {
    await eventually(async () => (await relay.api(admin, 'certificates')).items[0]?.failures > 0, 'an order that failed');
    await relay.api(admin, 'drain', 'PUT');
    const page = await relay.open(t, { token: admin });
    await page.locator('#health').getByText('▲ 1 problem').waitFor();
    await page.locator('#health').getByText('draining').waitFor();
    await page.getByRole('status').filter({ hasText: /Certificate: none for hooks\.test \*\.hooks\.test yet: the CA cannot be reached/ }).waitFor();
    assert.match(await figure(page, 'Certificate'), /^missing hooks\.test/);
    assert.match(await page.title(), /▲/);
    const shown = await cells(rows(page, 'Certificates'));
    assert.deepEqual(shown.slice(0, 3), ['hooks.test *.hooks.test', 'none yet', 'not there yet']);
    assert.match(shown[4], /^\d+ failures? the CA cannot be reached/);
    await look(page, 'problems');
  });

  test('that has gone: the page says so, keeps what it knew, and goes on without a reload when the relay is back', async (t) => {
    const page = await relay.open(t, { token: admin, expected: [NETWORK_ERRORS] });
    await relay.program.end();
    await page.locator('#health').getByText('✕ not reached').waitFor();
    await page.getByRole('status').filter({ hasText: /^The relay cannot be reached; what is shown is from \d\d:\d\d:\d\d\. The page keeps trying\.$/ }).waitFor();
    assert.equal(await page.locator('#domain').textContent(), 'hooks.test');
    assert.ok(await rows(page, 'Audit log').count());
    await look(page, 'away');
    await relay.run(relay.ready.admin);
    await page.locator('#health').getByText('problem').waitFor();
    assert.doesNotMatch(await page.locator('#problems').textContent(), /reached;/);
  });
});

// ── made up ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const NONE = { allow: [], deny: [], users: [], paths: [], rate: null, max_body: null };

/** A relay of a company on a usual day. */
function usualDay() {
  const at = (seconds) => new Date(Date.now() + seconds * 1000).toISOString();
  const DAY = 86_400;
  const endpoint = (name, owner, more = {}) => ({
    name, url: `https://${name}.hooks.example.com`, owner, created_at: at(-90 * DAY), last_seen_at: at(-40), clients: 1, domains: [], waiting: 0, dead_letters: 0, protection: NONE, ...more,
  });
  const session = (id, owner, endpoints, remote, rtt, since, transport = 'quic') => ({ id: `ses_01m81${id}`, owner, token: 'tok_9j9xvbvt00s1', remote, transport, since: at(-since), rtt_ms: rtt, endpoints });
  const line = (seq, ago, actor, via, action, target, detail, refused = false) => ({ seq, at: at(-ago), actor, via, action, target, detail, refused });
  const certificate = (names, ends, more = {}) => ({ names, directory: 'https://acme-v02.api.letsencrypt.org/directory', issuer: 'Let’s Encrypt E8', not_after: at(ends * DAY), renew_at: at((ends - 30) * DAY), asked_at: at((ends - 90) * DAY), failures: 0, last_error: null, ...more });
  return {
    status: {
      version: '0.1.0', domain: 'hooks.example.com', started_at: at(-8 * DAY), now: at(0), well: true, problems: [], draining: false, sessions: 4, endpoints: 6, tokens: 9,
      queue: { waiting: 38, bytes: 214_600, oldest_s: 1260, dead_letters: 2 }, certificate: { name: '*.hooks.example.com', not_after: at(61 * DAY), ends_soon: false },
    },
    endpoints: [
      endpoint('billing', 'ann', { domains: ['hooks.acme.dev'], protection: { ...NONE, allow: ['stripe', 'github'], rate: '50/s' } }),
      endpoint('ci-main', 'ci', { clients: 2, protection: { ...NONE, allow: ['github'], paths: ['/github'] } }),
      endpoint('crm', 'jonas', { clients: 0, last_seen_at: at(-1260), waiting: 36 }),
      endpoint('docs-preview', 'mei', { protection: { ...NONE, users: ['mei', 'jonas'], max_body: 1_000_000 } }),
      endpoint('shop-orders', 'ann'),
      endpoint('sms', 'mei', { clients: 0, last_seen_at: at(-5400), waiting: 2, dead_letters: 2 }),
    ],
    sessions: [
      session('gs8kfeabt0m8kbs5b9b67', 'ann', ['billing', 'shop-orders'], '198.51.100.24:55703', 18.4, 7260),
      session('gs8n8efrthmbm70jedgx0', 'ci', ['ci-main'], '203.0.113.80:37992', 3.1, 8 * DAY),
      session('gs8ndewntf4jwwkbv46ph', 'ci', ['ci-main'], '203.0.113.81:57349', 3.3, 8 * DAY),
      session('h02q7d9xv8n1c5t6ryem4', 'mei', ['docs-preview'], '[2001:db8:4f::17]:49210', 42, 1900, 'h2'),
    ],
    queue: [
      { endpoint: 'crm', depth: 36, bytes: 203_400, oldest_s: 1260, dead: 0 },
      { endpoint: 'sms', depth: 2, bytes: 11_200, oldest_s: 640, dead: 2 },
      { endpoint: 'billing', depth: 0, bytes: 0, oldest_s: 0, dead: 0 },
    ],
    certificates: [
      certificate(['hooks.example.com', '*.hooks.example.com'], 61),
      certificate(['hooks.acme.dev'], 0, { issuer: null, not_after: null, renew_at: at(1500), failures: 2, last_error: 'hooks.acme.dev has no address that leads here' }),
    ],
    audit: [
      line(412, 95, 'ops', 'api', 'token.create', 'ci', 'tok_rptcqqmkcjwn, for ci-*'),
      line(411, 340, 'dashboard', 'api', 'api', 'POST /api/deliveries/retry', '403: this token may look, and change nothing; make one with --scope admin', true),
      line(410, 1900, 'mei', 'client', 'endpoint.claim', 'docs-preview', ''),
      line(409, 7000, 'root', 'cli', 'endpoint.protect', 'billing', 'allow stripe github, rate 50/s'),
      line(407, 2 * DAY, '203.0.113.9', 'api', 'api', 'GET /api/status', '401: the token is unknown, expired or revoked', true),
    ],
  };
}

/** Answers the page's questions with the usual day, changed or not. */
async function madeUp(page, change = (value) => value, problems = []) {
  const { status, ...lists } = usualDay();
  const answers = { status: change({ ...status, well: problems.length === 0, problems }) };
  for (const [name, items] of Object.entries(lists)) answers[name] = { items: items.map(change), next: null };
  await page.route('**/api/*', (route) => route.fulfill({ json: answers[new URL(route.request().url()).pathname.split('/').pop()] }));
}

describe('the picture', () => {
  let relay;
  before(async () => (relay = await Relay.start()));
  after(() => relay?.end());

  test('is of answers as the API gives them', () => {
    const { status, ...lists } = usualDay();
    const { schemas } = OPENAPI.components;
    const fits = (value, schema) => assert.deepEqual(Object.keys(value).sort(), [...schema.required].sort());
    fits(status, schemas.Status);
    const kinds = { endpoints: 'Endpoint', sessions: 'Session', queue: 'Queue', certificates: 'Certificate', audit: 'Line' };
    for (const [name, items] of Object.entries(lists)) items.forEach((item) => fits(item, schemas[kinds[name]]));
  });

  test('of a usual day', async (t) => {
    const page = await relay.open(t, { token: 'hwt_any', before: (page) => madeUp(page), size: { width: 1280, height: 1190 } });
    await page.evaluate(() => document.activeElement.blur());
    await page.mouse.move(0, 0);
    await shot(page, 'relay-status');
    const made = path.join(SHOTS, 'relay-status.png');
    assert.ok(fs.statSync(made).size < 200_000, `${fs.statSync(made).size} bytes`);
    if (process.env.UPDATE_PICTURES === '1') fs.copyFileSync(made, fileURLToPath(new URL('pictures/relay-status.png', import.meta.url)));
    await look(page, 'usual-day');
  });
});

describe('its files', () => {
  const read = (name) => fs.readFileSync(path.join(UI, name), 'utf8');

  test('have right types', async () => {
    const tsc = fileURLToPath(new URL('../node_modules/typescript/bin/tsc', import.meta.url));
    const project = JSON.parse(fs.readFileSync(new URL('tsconfig.json', import.meta.url), 'utf8'));
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'hookway-types-'));
    fs.writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions: { ...project.compilerOptions, moduleDetection: 'force' }, files: [path.join(UI, 'status.js')] }));
    const { stdout } = await promisify(execFile)(process.execPath, [tsc, '-p', folder], { timeout: 120_000 }).catch((error) => error);
    fs.rmSync(folder, { recursive: true });
    assert.equal(stdout, '');
  });

  test('parse no HTML, run no text, and load nothing from elsewhere', () => {
    assert.ok(read('status.js').startsWith('// @ts-check\n'));
    assert.doesNotMatch(read('status.js'), /innerHTML|outerHTML|insertAdjacentHTML|DOMParser|createContextualFragment|document\.write|\beval\b|new Function|\bimport\b/);
    assert.doesNotMatch(read('index.html'), /\s(?:style|on\w+)\s*=|(?:src|href)="(?!\/)/i);
    assert.doesNotMatch(read('status.css'), /@import|url\(/);
  });
});

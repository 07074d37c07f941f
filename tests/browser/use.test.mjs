// Everything that one does with the page, by keyboard where there is a key, with the app's own eyes on what arrives.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { NETWORK_ERRORS, World, count, endBrowser, eventually, heading, notice, openRow, row, run, selected, values } from './world.mjs';

const EVERY_BYTE = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
const SECRET = 'Bearer sk_live_51H';

let world;
before(async () => {
  world = await World.start();
  world.app.answer = ({ path }) => ({ status: path.includes('bad') ? 500 : 200, headers: ['content-type', 'application/json'], body: '{"received":true}' });
});
after(() => world?.end());
after(endBrowser);

const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());
const clear = (page) => page.evaluate(() => navigator.clipboard.writeText(''));
const isSelected = (page, path) => selected(page).filter({ hasText: path }).waitFor();
/** The fields of a head without those that hookway adds to a replay, and without where a connection comes from. */
const fields = ({ headers }) => headers.filter(([name]) => !/^(hookway-|connection$)/i.test(name)).map(([name, value]) => `${name.toLowerCase()}: ${value}`);

describe('by keyboard alone', () => {
  before(async () => {
    for (const path of ['/k/1', '/k/2-bad', '/k/3', '/k/4-bad', '/k/5']) await world.sendJson(path, { path });
  });

  test('j, k, g, G, u and the arrows move, Enter opens, Esc goes back', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/k/' });
    await count(page, 5);
    for (const [key, path] of [['j', '/k/5'], ['j', '/k/4-bad'], ['j', '/k/3'], ['k', '/k/4-bad'], ['G', '/k/1'], ['j', '/k/1'], ['g', '/k/5'], ['k', '/k/5'], ['u', '/k/4-bad'], ['u', '/k/2-bad'], ['u', '/k/4-bad']]) {
      await page.keyboard.press(key);
      await isSelected(page, path);
      await heading(page).filter({ hasText: path }).waitFor();
    }
    await page.locator('#list').focus();
    for (const [key, path] of [['ArrowDown', '/k/3'], ['End', '/k/1'], ['ArrowUp', '/k/2-bad'], ['Home', '/k/5'], ['PageDown', '/k/1']]) {
      await page.keyboard.press(key);
      await isSelected(page, path);
    }
    await page.keyboard.press('g');
    await page.keyboard.press('Escape');
    await page.getByText('Select an exchange to see it here.').waitFor();
    await page.keyboard.press('Enter');
    await heading(page).filter({ hasText: '/k/5' }).waitFor();
    // The one that is selected is the one that a screen reader is told of.
    const active = await page.locator('#list').getAttribute('aria-activedescendant');
    assert.match(await page.locator(`#${active}`).textContent(), /\/k\/5/);
  });

  test('1 to 5 choose the tab, t the theme, ? the help', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/k/' });
    await count(page, 5);
    await page.keyboard.press('j');
    await heading(page).waitFor();
    for (const [at, tab] of ['overview', 'request', 'response', 'attempts', 'timing'].entries()) {
      await page.keyboard.press(String(at + 1));
      await page.locator(`#tab-${tab}[aria-selected=true]`).waitFor();
    }
    await page.locator('#tab-timing').focus();
    await page.keyboard.press('ArrowRight');
    await page.locator('#tab-overview[aria-selected=true]:focus').waitFor();
    await page.keyboard.press('t');
    await page.locator('html[data-theme=dark]').waitFor();
    await page.reload();
    await page.locator('html[data-theme=dark]').waitFor();
    await page.keyboard.press('t');
    await page.locator('html[data-theme=light]').waitFor();
    await page.keyboard.press('?');
    await page.getByRole('dialog', { name: 'Keys and filter' }).waitFor();
    await page.keyboard.press('Escape');
    await page.locator('dialog').waitFor({ state: 'detached' });
  });

  test('keys do nothing while a field, a menu or a question has the focus, or with Ctrl', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/k/' });
    await count(page, 5);
    await page.keyboard.press('j');
    await heading(page).waitFor();
    const arrived = world.app.seen.length;
    await page.keyboard.press('/');
    await page.locator('#filter:focus').waitFor();
    await page.keyboard.press('End');
    await page.keyboard.type(' rpdetc?12');
    assert.match(await page.locator('#filter').inputValue(), / rpdetc\?12$/);
    await page.keyboard.press('Escape');
    await page.locator('#filter:not(:focus)').waitFor();
    await page.keyboard.press('e');
    await page.locator('#edit-body:focus').waitFor();
    await page.keyboard.type('rpd?');
    await page.locator('dialog').waitFor({ state: 'detached' });
    await page.keyboard.press('Escape');
    await page.locator('#edit-body').focus();
    await page.getByRole('button', { name: 'Close', exact: true }).click();
    await page.locator('[popovertarget=more-menu]').click();
    await page.keyboard.press('r');
    await page.keyboard.press('Escape');
    await page.keyboard.press('Control+p').catch(() => {});
    await page.keyboard.press('Control+d');
    await page.locator('.choosing').waitFor({ state: 'detached' });
    assert.equal(world.app.seen.length, arrived);
    assert.deepEqual((await world.exchanges('is:pinned')).length, 0);
    assert.equal(await page.locator('html').getAttribute('data-theme'), 'light');
  });

  test('everything can be reached with Tab', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/k/' });
    await count(page, 5);
    await page.keyboard.press('j');
    await heading(page).waitFor();
    await page.evaluate(() => document.activeElement.blur());
    const reached = new Set();
    for (let step = 0; step < 80; step += 1) {
      await page.keyboard.press('Tab');
      reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
    }
    for (const id of ['copy-url', 'pause', 'theme', 'help-button', 'filter', 'list', 'splitter', 'replay', 'edit', 'curl', 'diff', 'pin', 'tab-overview', 'panel']) assert.ok(reached.has(id), `${id} is not among ${[...reached]}`);
  });
});

describe('a replay', () => {
  test('arrives at the app byte for byte, and shows up with its badge', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/replay' });
    await world.send({ method: 'PUT', path: '/replay/a%2Fb//c?x=1&&y=%20&z', headers: [['Content-Type', 'application/octet-stream'], ['X-Twice', 'one'], ['X-Twice', 'two'], ['X-Latin', 'caf\u00e9'], ['Authorization', SECRET]], body: EVERY_BYTE });
    const first = world.app.seen.at(-1);
    await row(page, '/replay').waitFor();
    await page.keyboard.press('j');
    const next = world.app.next();
    await page.keyboard.press('r');
    const second = await next;
    assert.equal(second.method, 'PUT');
    assert.equal(second.path, first.path);
    assert.deepEqual(second.body, EVERY_BYTE);
    assert.deepEqual(fields(second).sort(), fields(first).sort());
    await row(page, 'replay').filter({ has: page.locator('.badge', { hasText: /^replay$/ }) }).waitFor();
    await notice(page, 'Replayed: 200');
    await count(page, 2);
    await page.locator('.facts').getByText('Replay of').waitFor();
    // From the copy back to what it was made of.
    const [copy, original] = await world.exchanges('path:/replay');
    assert.equal(copy.replay_of, original.id);
    await page.locator('.facts button.link').click();
    await page.waitForURL(`**id=${original.id}*`);
  });

  test('of a body that was not kept whole is refused with the reason', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/huge' });
    await world.send({ path: '/huge', body: Buffer.alloc(3 << 20, 'x') });
    await row(page, '/huge').waitFor();
    await openRow(page, '/huge');
    const arrived = world.app.seen.length;
    await page.keyboard.press('r');
    await notice(page, "It can't be replayed");
    await page.keyboard.press('e');
    await notice(page, "It can't be replayed");
    assert.equal(await page.locator('#replay').getAttribute('aria-disabled'), 'true');
    await page.getByText(/Only the first .* were kept/).first().waitFor();
    assert.equal(world.app.seen.length, arrived);
  });

  test('while the app is down says so, and the page goes on', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/replay-down' });
    await world.sendJson('/replay-down', {});
    await row(page, '/replay-down').waitFor();
    await world.app.stop();
    t.after(() => world.app.start());
    await page.keyboard.press('j');
    await page.keyboard.press('r');
    await notice(page, 'ERR refused');
    await row(page, 'ERR refused').waitFor();
  });
});

describe('edit & resend', () => {
  test('sends what was changed and leaves the rest as it was; result and diff stand beside', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/edit' });
    await world.sendJson('/edit/one?a=1', { amount: 42, text: 'ä€😀' }, [['authorization', SECRET], ['x-twice', 'one'], ['x-twice', 'two']]);
    await row(page, '/edit').waitFor();
    await page.keyboard.press('j');
    await page.keyboard.press('e');
    await page.locator('#edit-body:focus').waitFor();
    await page.locator('#edit-method').fill('PATCH');
    await page.locator('#edit-path').fill('/edit/two?a=2&b=%2F');
    await page.locator('.edit-headers summary').click();
    // By their place: what an input holds is no attribute.
    const at = await page.getByLabel('Header name').evaluateAll((inputs) => inputs.map((input) => input.value).lastIndexOf('x-twice'));
    await page.getByLabel('Header value').nth(at).fill('three');
    await page.getByRole('button', { name: 'Add a header' }).click();
    await page.getByLabel('Header name').last().fill('X-Added');
    await page.getByLabel('Header value').last().fill('by hand');
    await page.locator('#edit-body').fill('{"amount": 43}');
    await page.getByText('Valid JSON').waitFor();
    const next = world.app.next();
    await page.getByRole('button', { name: 'Send', exact: true }).click();
    const seen = await next;
    assert.equal(seen.method, 'PATCH');
    assert.equal(seen.path, '/edit/two?a=2&b=%2F');
    assert.equal(seen.body.toString(), '{"amount": 43}');
    assert.deepEqual(values(seen, 'x-twice'), ['one', 'three']);
    assert.deepEqual(values(seen, 'x-added'), ['by hand']);
    assert.deepEqual(values(seen, 'authorization'), [SECRET]);
    assert.deepEqual(values(seen, 'content-length'), ['14']);
    await page.getByRole('region', { name: 'Original reply', exact: true }).waitFor();
    await page.getByRole('region', { name: 'New reply', exact: true }).waitFor();
    const diff = page.locator('.result .diff');
    await diff.getByText('$.amount').waitFor();
    for (const text of ['42', '43', 'PATCH', '/edit/two?a=2&b=%2F', 'by hand']) await diff.getByText(text, { exact: false }).first().waitFor();
    await page.getByRole('button', { name: 'Open the new exchange' }).click();
    await heading(page).filter({ hasText: 'PATCH /edit/two' }).waitFor();
    await row(page, '/edit/two').locator('.badge', { hasText: 'edited' }).waitFor();
  });

  test('of what was not touched sends the very same bytes, line ends and all', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/crlf' });
    const body = '{"a": 1,\r\n\r\n  "b":\t2}\r\n';
    await world.send({ path: '/crlf', headers: [['content-type', 'application/json']], body });
    await row(page, '/crlf').waitFor();
    await page.keyboard.press('j');
    await page.keyboard.press('e');
    await page.locator('#edit-path').fill('/crlf?again');
    const next = world.app.next();
    await page.keyboard.press('Enter');
    assert.equal((await next).body.toString(), body);
  });

  test('of a binary body takes another from a file', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/binary' });
    await world.send({ path: '/binary', headers: [['content-type', 'application/octet-stream']], body: EVERY_BYTE });
    await row(page, '/binary').waitFor();
    await page.keyboard.press('j');
    await page.keyboard.press('e');
    await page.getByText('is sent byte for byte as it was').waitFor();
    const other = Buffer.from([...EVERY_BYTE].reverse());
    await page.locator('#edit-file').setInputFiles({ name: 'other.bin', mimeType: 'application/octet-stream', buffer: other });
    await page.getByText('Sends the 256 B of this file.').waitFor();
    const next = world.app.next();
    await page.getByRole('button', { name: 'Send', exact: true }).click();
    assert.deepEqual((await next).body, other);
  });

  test('keeps what was typed when it can not be sent, and says why', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/kept', expected: [NETWORK_ERRORS] });
    await world.sendJson('/kept', {});
    await row(page, '/kept').waitFor();
    await page.keyboard.press('j');
    await page.keyboard.press('e');
    await page.locator('#edit-path').fill('no slash');
    await page.locator('#edit-body').fill('typed');
    await page.getByRole('button', { name: 'Send', exact: true }).click();
    await page.getByRole('alert').filter({ hasText: 'Not sent: ' }).waitFor();
    assert.equal(await page.locator('#edit-path').inputValue(), 'no slash');
    assert.equal(await page.locator('#edit-body').inputValue(), 'typed');
  });
});

describe('secrets', () => {
  test('are masked until one is revealed, and copied only then', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/secret' });
    await world.sendJson('/secret?token=tok_1&plain=2', {}, [['authorization', SECRET], ['cookie', 'session=s3cr3t']]);
    await openRow(page, '/secret');
    await page.keyboard.press('2');
    const table = page.getByRole('region', { name: 'Request headers' });
    await table.waitFor();
    assert.doesNotMatch(await page.content(), /sk_live|s3cr3t|tok_1/);
    await page.getByRole('button', { name: 'Reveal authorization' }).click();
    await table.getByText(SECRET).waitFor();
    await page.getByRole('button', { name: 'Copy authorization' }).click();
    await notice(page, 'authorization copied');
    assert.equal(await clipboard(page), SECRET);
    assert.doesNotMatch(await page.content(), /s3cr3t/);
    // Another exchange and back: masked again.
    await page.keyboard.press('1');
    await page.keyboard.press('2');
    await page.getByRole('button', { name: 'Reveal authorization' }).waitFor();
    assert.doesNotMatch(await page.content(), /sk_live/);
  });
});

describe('copy as curl', () => {
  /** Copies the command by key or menu, gives it to sh, and returns what the app then sees. */
  async function copied(page, how) {
    await clear(page);
    await how();
    const command = await eventually(() => clipboard(page), 'a command on the clipboard');
    const next = world.app.next();
    await run('/bin/sh', ['-c', command], { folder: world.folder });
    return { command, seen: await next };
  }
  const withSecrets = (page) => async () => {
    await page.locator('[popovertarget=more-menu]').click();
    await page.getByRole('button', { name: 'Copy curl with secrets' }).click();
  };

  for (const [name, request] of Object.entries({
    'a JSON webhook with quotes': { path: "/curl/json?a='b'&c=$HOME", headers: [['content-type', 'application/json'], ['x-quote', `it's "$HOME" \`id\` !x`], ['authorization', SECRET]], body: `{"it's": "a \\"quote\\" $HOME \`id\` @file"}` },
    'a body that begins with @': { path: '/curl/at', headers: [['content-type', 'text/plain']], body: '@/etc/passwd\nline two\n' },
    'a binary body': { path: '/curl/binary', headers: [['content-type', 'application/octet-stream']], body: EVERY_BYTE },
    'no body': { method: 'DELETE', path: '/curl/none/[1-3]{a,b}/../x', headers: [['x-empty', '']] },
  })) {
    test(`${name}: sh makes the same request of it`, async (t) => {
      const page = await world.open(t, { query: `?filter=path:${encodeURIComponent(request.path.slice(0, 9))}` });
      await world.send(request);
      const first = world.app.seen.at(-1);
      await row(page, request.path.slice(0, 9)).waitFor();
      await page.keyboard.press('j');
      await heading(page).waitFor();
      if (request.body === EVERY_BYTE) {
        // The command reads such a body from the file that Download makes.
        const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'Download the request body' }).click()]);
        await file.saveAs(join(world.folder, file.suggestedFilename()));
      }
      const { seen } = await copied(page, withSecrets(page));
      assert.equal(seen.method, first.method);
      assert.equal(seen.path, first.path);
      assert.deepEqual(seen.body, first.body);
      const wanted = (/** @type {any} */ of) => fields(of).filter((field) => !/^content-length: 0$|^transfer-encoding/.test(field)).sort();
      assert.deepEqual(wanted(seen), wanted(first));
    });
  }

  test('says which file it reads, where there is one', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/curl-file' });
    await world.send({ path: '/curl-file/binary', body: EVERY_BYTE });
    await world.send({ path: '/curl-file/text', body: 'curl --data-binary @file.bin' });
    await count(page, 2);
    const [{ id }] = await world.exchanges('path:/curl-file/binary');
    await openRow(page, '/curl-file/binary');
    await clear(page);
    await page.keyboard.press('c');
    await notice(page, `curl command copied. It reads ${id}.bin: download the request body into the folder where you run it.`);
    assert.ok((await clipboard(page)).endsWith(`@${id}.bin`));
    const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'Download the request body' }).click()]);
    assert.equal(file.suggestedFilename(), `${id}.bin`);
    await openRow(page, '/curl-file/text');
    await page.keyboard.press('c');
    await notice(page, /^curl command copied$/);
  });

  test('by the key c has masks in the place of secrets', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/curl/json' });
    await row(page, '/curl/json').first().waitFor();
    await page.keyboard.press('j');
    await heading(page).waitFor();
    const { command } = await copied(page, () => page.keyboard.press('c'));
    assert.doesNotMatch(command, /sk_live/);
    assert.match(command, /authorization: ••••/);
  });
});

describe('diff', () => {
  test('d once for A and once more for B; both ends open, and they swap', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/diff' });
    await world.sendJson('/diff/a', { id: 1, keep: true, list: [1, 2, 3] });
    await world.sendJson('/diff/b', { id: 2, keep: true, list: [1, 3] });
    await count(page, 2);
    await page.keyboard.press('j');
    await heading(page).filter({ hasText: '/diff/b' }).waitFor();
    await page.keyboard.press('d');
    await notice(page, 'Select another exchange and press d again');
    await page.keyboard.press('j');
    await heading(page).filter({ hasText: '/diff/a' }).waitFor();
    await page.keyboard.press('d');
    await heading(page).filter({ hasText: /^Diff$/ }).waitFor();
    await page.locator('.diff').getByText('$.id').waitFor();
    assert.match(await page.locator('.diff').textContent(), /Ignored because they always differ/);
    const { search } = new URL(page.url());
    await page.getByRole('button', { name: 'Swap' }).click();
    await page.waitForFunction((before) => location.search !== before, search);
    await page.reload();
    await heading(page).filter({ hasText: /^Diff$/ }).waitFor();
    await page.getByRole('button', { name: 'Open A' }).click();
    await heading(page).filter({ hasText: '/diff/' }).waitFor();
    await page.goBack();
    await heading(page).filter({ hasText: /^Diff$/ }).waitFor();
    await page.keyboard.press('Escape');
    await heading(page).filter({ hasText: '/diff/' }).waitFor();
  });
});

describe('a JSON tree', () => {
  const VALUE = { first: { a: { b: 1 } }, second: { c: [1, 2] }, many: Array.from({ length: 250 }, (_, at) => ({ at })) };
  const toggle = (page, name, label) => page.getByRole('region', { name }).locator('.toggle').filter({ hasText: label });
  const opened = async (/** @type {any} */ button) => (await button.getAttribute('aria-expanded')) === 'true';
  // The second is inside the first.
  const NODES = ['"first"', '"a"', '"second"', '100 … 199'];
  const states = (page) => Promise.all(NODES.map((label) => opened(toggle(page, 'Request body', label))));

  test('stays as it was opened and closed by hand while its exchange changes; another starts anew', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/tree' });
    let answer;
    const before = world.app.answer;
    world.app.answer = () => new Promise((resolve) => (answer = resolve));
    t.after(() => (world.app.answer = before));
    const sent = world.sendJson('/tree/1', VALUE);
    await row(page, 'pending').waitFor();
    await openRow(page, '/tree/1');
    const initial = [true, true, true, false];
    assert.deepEqual(await states(page), initial);
    for (const label of ['"a"', '"first"', '"second"', '100 … 199']) await toggle(page, 'Request body', label).click();
    const changed = [false, false, false, true];
    assert.deepEqual(await states(page), changed);

    // It is over.
    await eventually(() => answer, 'the request at the app');
    answer({ status: 200, headers: ['content-type', 'application/json'], body: '{"reply": {"x": 1}, "rest": {"y": 1}}' });
    await sent;
    await toggle(page, 'Response body', '"reply"').click();
    assert.deepEqual(await states(page), changed);

    // It is pinned.
    await page.keyboard.press('p');
    await page.locator('#pin').filter({ hasText: 'Unpin' }).waitFor();
    assert.deepEqual(await states(page), changed);
    assert.equal(await opened(toggle(page, 'Response body', '"reply"')), false);

    // It has a new attempt with another reply.
    const [{ id }] = await world.exchanges('path:/tree/1');
    await page.route(({ pathname }) => pathname === `/api/exchanges/${id}`, async (route) => {
      const detail = await (await route.fetch()).json();
      const [attempt] = detail.attempts;
      const text = '{"new": {"z": 1}, "reply": {"x": 2}, "rest": {"y": 2}}';
      detail.attempts.push({ ...attempt, number: 2, reply: { ...attempt.reply, body: { ...attempt.reply.body, size: text.length, kept: text.length, text } } });
      await route.fulfill({ json: detail });
    });
    const other = await world.open(t, { query: `?id=${id}` });
    await other.locator('#pin').filter({ hasText: 'Unpin' }).click();
    await toggle(page, 'Response body', '"new"').waitFor();
    assert.deepEqual(await states(page), changed);
    const replies = ['"new"', '"reply"', '"rest"'].map((label) => opened(toggle(page, 'Response body', label)));
    assert.deepEqual(await Promise.all(replies), [true, false, true]);
    await page.unrouteAll();

    // Another one, and back.
    world.app.answer = before;
    await world.sendJson('/tree/2', VALUE);
    await openRow(page, '/tree/2');
    assert.deepEqual(await states(page), initial);
    await openRow(page, '/tree/1');
    assert.deepEqual(await states(page), initial);
  });
});

describe('the address bar', () => {
  test('keeps filter, exchange and tab through reload, Back and Forward', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/k/' });
    await count(page, 5);
    await openRow(page, '/k/3');
    await page.locator('#tab-timing').click();
    await openRow(page, '/k/5');
    await page.goBack();
    await heading(page).filter({ hasText: '/k/3' }).waitFor();
    await page.goForward();
    await heading(page).filter({ hasText: '/k/5' }).waitFor();
    await isSelected(page, '/k/5');
    await page.reload();
    await heading(page).filter({ hasText: '/k/5' }).waitFor();
    await page.locator('#tab-timing[aria-selected=true]').waitFor();
    await count(page, 5);
    assert.equal(await page.locator('#filter').inputValue(), 'path:/k/');
    assert.match(await page.title(), /POST \/k\/5/);
  });

  test('says so when what it names is not there', async (t) => {
    const page = await world.open(t, { query: '?id=req_01M7Z098PSE409PZM0G0YG4696', expected: [NETWORK_ERRORS] });
    await heading(page).filter({ hasText: 'Not there' }).waitFor();
    await page.locator('#detail').getByRole('button', { name: 'Close' }).click();
    assert.equal(new URL(page.url()).search, '');
  });
});

describe('live', () => {
  test('a slow answer is pending first, and changes in place', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/slow' });
    let answer;
    const before = world.app.answer;
    world.app.answer = () => new Promise((resolve) => (answer = () => resolve({ status: 202, body: 'at last' })));
    t.after(() => (world.app.answer = before));
    const sent = world.sendJson('/slow', {});
    await row(page, 'pending').waitFor();
    await openRow(page, '/slow');
    await page.locator('#detail').getByText('Waiting for your app to answer').waitFor();
    await eventually(() => answer, 'the request at the app');
    answer();
    await sent;
    await row(page, '202').waitFor();
    await page.locator('#detail').getByText('at last').waitFor();
    await count(page, 1);
  });

  test('pause holds back what comes, and Resume shows it', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/paused' });
    await page.getByText('Nothing matches').waitFor();
    await page.locator('#pause').click();
    await world.sendJson('/paused/1', {});
    await world.sendJson('/paused/2', {});
    await page.locator('#pause').filter({ hasText: 'Resume, 2 waiting' }).waitFor();
    assert.equal(await row(page, '/paused').count(), 0);
    await page.locator('#pause').click();
    await count(page, 2);
    assert.deepEqual(await page.locator('#list [role=option]:not([hidden]) .path').allTextContents(), ['/paused/2', '/paused/1']);
  });

  test('the list stays put when scrolled, and says how many came', async (t) => {
    for (let at = 0; at < 60; at += 1) await world.sendJson(`/many/${at}`, {});
    const page = await world.open(t, { query: '?filter=path:/many' });
    await count(page, 60);
    await page.locator('#list').evaluate((list) => (list.scrollTop = 20 * 44 + 10));
    const top = () => page.locator('#list').evaluate((list) => {
      const { top, left } = list.getBoundingClientRect();
      const shown = document.elementFromPoint(left + 50, top + 20).closest('[role=option]');
      return `${shown.querySelector('.path').textContent} at ${Math.round(shown.getBoundingClientRect().top - top)}`;
    });
    await page.waitForFunction(() => document.querySelector('#list [role=option]:not([hidden]) .path').textContent !== '/many/59');
    const before = await top();
    for (let at = 60; at < 63; at += 1) await world.sendJson(`/many/${at}`, {});
    await page.getByRole('button', { name: '3 new' }).waitFor();
    assert.equal(await top(), before);
    await page.getByRole('button', { name: '3 new' }).click();
    await page.waitForFunction(() => document.getElementById('list').scrollTop === 0);
    await row(page, '/many/62').waitFor();
    await page.locator('#fresh').waitFor({ state: 'hidden' });
  });

  test('a gap in the events is filled, each exchange once', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/gap', expected: [NETWORK_ERRORS] });
    await world.sendJson('/gap/before', {});
    await row(page, '/gap/before').waitFor();
    await world.hookway.end();
    await page.locator('#banners').filter({ hasText: 'has ended' }).waitFor();
    await world.restart();
    await Promise.all(Array.from({ length: 20 }, (_, at) => world.sendJson(`/gap/${at}`, {})));
    await page.locator('#banners').waitFor({ state: 'hidden' });
    await count(page, 21);
    await world.sendJson('/gap/after', {});
    await count(page, 22);
    await page.locator('#list').evaluate((list) => list.focus());
    const found = new Set();
    for (let at = 0; at < 22; at += 1) {
      await page.keyboard.press('j');
      found.add(await page.waitForFunction((n) => {
        const option = document.querySelector('#list [aria-selected=true]:not([hidden])');
        return option?.ariaPosInSet === String(n) && option.querySelector('.path').textContent;
      }, at + 1).then((handle) => handle.jsonValue()));
    }
    assert.equal(found.size, 22);
    assert.equal((await world.exchanges('path:/gap')).length, 22);
  });

  test('two tabs see each other\'s changes', async (t) => {
    await world.sendJson('/tabs', {});
    const one = await world.open(t, { query: '?filter=path:/tabs' });
    const two = await world.open(t, { query: '?filter=path:/tabs' });
    await count(one, 1);
    await count(two, 1);
    await one.keyboard.press('j');
    await one.keyboard.press('p');
    await row(two, '/tabs').locator('.badge', { hasText: 'pinned' }).waitFor();
    await two.keyboard.press('j');
    await two.locator('#pin').filter({ hasText: 'Unpin' }).waitFor();
    await two.keyboard.press('r');
    await count(one, 2);
    await row(one, '/tabs').locator('.badge', { hasText: 'replay' }).waitFor();
  });
});

describe('the history', () => {
  test('is exported as HAR and JSON lines, of what the filter shows, masked unless ticked', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/secret' });
    await count(page, 1);
    const download = async (/** @type {string} */ name, secrets = false) => {
      await page.locator('[popovertarget=export-menu]').click();
      if (secrets) await page.getByLabel('With secrets').check();
      const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name }).click()]);
      await page.keyboard.press('Escape');
      return fs.readFileSync(await file.path(), 'utf8');
    };
    const har = JSON.parse(await download('HAR 1.2'));
    assert.equal(har.log.version, '1.2');
    assert.equal(har.log.entries.length, 1);
    assert.match(har.log.entries[0].request.url, /\/secret\?/);
    assert.doesNotMatch(JSON.stringify(har), /sk_live|s3cr3t|tok_1/);
    const masked = (await download('JSON lines')).trim().split('\n').map((line) => JSON.parse(line));
    assert.equal(masked.length, 1);
    assert.doesNotMatch(JSON.stringify(masked), /sk_live|s3cr3t|tok_1/);
    const whole = (await download('JSON lines', true)).trim().split('\n').map((line) => JSON.parse(line));
    assert.match(JSON.stringify(whole), /sk_live.*s3cr3t/);
    assert.match(JSON.stringify(JSON.parse(await download('HAR 1.2', true))), /sk_live/);
  });

  test('bodies are downloaded as they came', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/binary+-is:replay' });
    await count(page, 1);
    await page.keyboard.press('j');
    await heading(page).waitFor();
    const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'Download the request body' }).click()]);
    assert.deepEqual(fs.readFileSync(await file.path()), EVERY_BYTE);
  });

  test('one is deleted after a question, and the next can be opened', async (t) => {
    await world.sendJson('/delete/1', {});
    await world.sendJson('/delete/2', {});
    const page = await world.open(t, { query: '?filter=path:/delete' });
    await count(page, 2);
    await openRow(page, '/delete/1');
    const remove = async () => {
      await page.locator('[popovertarget=more-menu]').click();
      await page.getByRole('button', { name: 'Delete…' }).click();
      await page.getByRole('dialog', { name: 'Delete this exchange?' }).waitFor();
    };
    await remove();
    await page.keyboard.press('Escape');
    await page.locator('dialog').waitFor({ state: 'detached' });
    await count(page, 2);
    await remove();
    await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
    await notice(page, 'Deleted');
    await count(page, 1);
    await openRow(page, '/delete/2');
    assert.equal((await world.exchanges('path:/delete')).length, 1);
  });

  test('is cleared of what the filter shows, then of all but the pinned', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/many' });
    await count(page, 63);
    await page.keyboard.press('j');
    await heading(page).waitFor();
    await page.keyboard.press('p');
    await row(page, 'pinned').waitFor();
    const clearHistory = async (/** @type {RegExp} */ name) => {
      await page.locator('[popovertarget=clear-menu]').click();
      await page.getByRole('button', { name }).click();
      await page.getByRole('dialog', { name: 'Clear the history?' }).getByRole('button', { name: 'Delete' }).click();
    };
    const others = (await world.exchanges('-path:/many')).length;
    await clearHistory(/^Delete the 63 that the filter shows/);
    await notice(page, '62 exchanges deleted');
    await count(page, 1);
    assert.equal((await world.exchanges('-path:/many')).length, others);
    await page.locator('#filter').fill('');
    await count(page, others + 1);
    await clearHistory(/^Delete all/);
    await eventually(async () => (await world.exchanges()).every(({ pinned }) => pinned), 'all but the pinned gone');
    await count(page, (await world.exchanges()).length);
  });
});

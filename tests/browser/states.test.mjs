// Every state that the page can be in, in both themes: what it says, that axe finds nothing, and a picture to look at.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { NETWORK_ERRORS, World, count, endBrowser, eventually, heading, look, lookOnce, notice, openRow, row } from './world.mjs';

const SIZES = {
  'a window of 640×900': { name: '640x900', size: { width: 640, height: 900 } },
  'a window of 320×640': { name: '320x640', size: { width: 320, height: 640 } },
  '200 % zoom of 1280×800': { name: 'zoomed', size: { width: 640, height: 400 }, scale: 2 },
};

after(endBrowser);

describe('with an empty history', () => {
  let world;
  before(async () => (world = await World.start()));
  after(() => world?.end());

  test('it shows the URL and two commands that try it', async (t) => {
    const page = await world.open(t);
    await page.getByRole('heading', { name: 'Ready for the first webhook' }).waitFor();
    const url = `http://demo.localhost:${world.port}`;
    assert.equal(await page.locator('#url').textContent(), url);
    assert.match(await page.locator('#empty').textContent(), new RegExp(`curl -d '\\{"hello":"world"\\}' ${url}`));
    assert.match(await page.locator('#session').textContent(), /live.*QUIC/);
    assert.match(await page.locator('#empty').textContent(), new RegExp(`hookway send github --to ${url}/github`));
    assert.doesNotMatch(await page.locator('body').textContent(), /hookway doctor|dead letter/i);
    await page.locator('#copy-url').click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), url);
    await notice(page, 'URL copied');
    await look(page, 'empty');
  });

  for (const [size, options] of Object.entries(SIZES)) {
    test(`it fits into ${size}`, async (t) => {
      const page = await world.open(t, options);
      await page.getByRole('heading', { name: 'Ready for the first webhook' }).waitFor();
      await lookOnce(page, `empty-${options.name}`);
    });
  }

  test('a delivery appears without a reload, and the title counts while the page is hidden', async (t) => {
    const page = await world.open(t);
    await page.getByRole('heading', { name: 'Ready for the first webhook' }).waitFor();
    await world.sendJson('/first', { hello: 'world' });
    await row(page, '/first').waitFor();
    assert.equal(await row(page, '/first').locator('.status').textContent(), '200');
    await count(page, 1);
    await page.evaluate(() => {
      Object.defineProperty(document, 'hidden', { get: () => true, configurable: true });
    });
    await world.sendJson('/second', {});
    await page.waitForFunction(() => document.title === '(1) Hookway');
  });
});

describe('when something is down', () => {
  let world;
  before(async () => (world = await World.start()));
  after(() => world?.end());

  test('the app', async (t) => {
    const page = await world.open(t);
    await world.app.stop();
    await world.sendJson('/into-nothing', {});
    await page.locator('#banners').filter({ hasText: `Nothing is listening on http://localhost:${world.app.port}` }).waitFor();
    await row(page, 'ERR refused').first().waitFor();
    assert.match(await page.locator('#targets').textContent(), /down/);
    await openRow(page, '/into-nothing');
    await page.locator('#detail').getByText('nothing answers at').first().waitFor();
    await look(page, 'app-down');
    await world.app.start();
    await world.sendJson('/again', {});
    await page.locator('#banners').waitFor({ state: 'hidden' });
    await page.locator('#targets .state.up').waitFor();
    // It was kept for the app, and its row tells what came of it.
    await eventually(() => world.app.seen.some(({ path }) => path === '/into-nothing'), 'the delivery that waited');
    await row(page, '/into-nothing').filter({ hasNotText: 'ERR refused' }).waitFor();
  });

  test('hookway itself, and back on the same port', async (t) => {
    const page = await world.open(t, { expected: [NETWORK_ERRORS] });
    const before = await world.exchanges();
    await count(page, before.length);
    await world.hookway.end();
    await page.locator('#banners').filter({ hasText: 'hookway has ended; reconnecting' }).waitFor();
    assert.match(await page.locator('#session').textContent(), /hookway has ended/);
    await row(page, before[0].path).first().waitFor();
    await look(page, 'hookway-down');
    await world.restart();
    await page.locator('#banners').waitFor({ state: 'hidden' });
    await page.locator('#session .state.up').waitFor();
    await world.sendJson('/after-restart', {});
    await row(page, '/after-restart').first().waitFor();
    await count(page, before.length + 1);
    // The token is another one now; a change must still be taken.
    await openRow(page, '/after-restart');
    await page.keyboard.press('p');
    await notice(page, 'Pinned');
  });
});

describe('with a filter', () => {
  let world;
  before(async () => {
    world = await World.start();
    await world.sendJson('/stripe/webhook', { id: 'evt_1' });
    await world.sendJson('/github', { id: 2 });
  });
  after(() => world?.end());

  test('that hides all, it says so and offers the way back', async (t) => {
    const page = await world.open(t, { query: '?filter=status%3A5xx' });
    await page.getByRole('heading', { name: 'Nothing matches' }).waitFor();
    assert.equal(await page.locator('#count').textContent(), '0 of 2');
    await look(page, 'filter-hides-all');
    await page.locator('#empty').getByRole('button', { name: 'Clear filter' }).click();
    await row(page, '/github').waitFor();
    assert.equal(new URL(page.url()).search, '');
  });

  test('that is wrong, the place is underlined and the reason given', async (t) => {
    const page = await world.open(t, { expected: [NETWORK_ERRORS] });
    await page.locator('#filter').fill('path:/stripe* stauts:200');
    await page.locator('#filter-error').filter({ hasText: 'stauts' }).waitFor();
    assert.equal(await page.locator('#filter').getAttribute('aria-invalid'), 'true');
    await row(page, '/github').waitFor();
    const mark = await page.locator('#filter-mark').boundingBox();
    const input = await page.locator('#filter').boundingBox();
    assert.ok(mark.x > input.x + 60 && mark.width > 20 && mark.x + mark.width < input.x + input.width, JSON.stringify({ mark, input }));
    await look(page, 'filter-wrong');
    await page.locator('#filter').fill('path:/stripe* status:200');
    await page.locator('#filter-error').filter({ hasText: /^$/ }).waitFor({ state: 'attached' });
    await count(page, 1);
  });

  test('suggestions and chips lead the way', async (t) => {
    const page = await world.open(t);
    await count(page, 2);
    await page.locator('#filter').click();
    await page.locator('#suggestions').waitFor();
    await look(page, 'filter-suggestions');
    await page.keyboard.type('path:');
    await page.getByRole('option', { name: 'path:/stripe/webhook' }).click();
    await page.locator('#chips').getByText('path:/stripe/webhook').waitFor();
    await count(page, 1);
    await page.getByRole('button', { name: 'Remove path:/stripe/webhook' }).click();
    await count(page, 2);
  });

  test('every suggestion and every quick chip is one that the server takes', async (t) => {
    const page = await world.open(t);
    await count(page, 2);
    const quick = await page.locator('#chips button').evaluateAll((all) => all.map((chip) => chip.title));
    assert.ok(quick.length >= 4);
    for (const filter of quick) await world.exchanges(filter);
    await page.locator('#filter').click();
    const keys = await page.locator('#suggestions code').allTextContents();
    for (const key of keys) {
      await page.locator('#filter').fill(key);
      for (const filter of await page.locator('#suggestions code').allTextContents()) if (filter !== key) await world.exchanges(filter);
    }
    await page.locator('#filter').fill('');
    await page.locator('#help-button').click();
    const examples = await page.locator('dialog.help code').allTextContents();
    assert.deepEqual(examples.filter((code) => keys.includes(code)).sort(), keys.sort());
  });
});

describe('with the history off', () => {
  let world;
  before(async () => (world = await World.start({ words: ['--no-store'] })));
  after(() => world?.end());

  test('it says so and still shows the URL', async (t) => {
    const page = await world.open(t);
    await page.getByRole('heading', { name: 'History is off' }).waitFor();
    await page.locator('#banners').filter({ hasText: 'without --no-store' }).waitFor();
    await world.sendJson('/unseen', {});
    assert.equal(await page.locator('#url').textContent(), `http://demo.localhost:${world.port}`);
    await look(page, 'history-off');
  });
});

describe('over a stored history', () => {
  test('it shows what is there, without a tunnel', async (t) => {
    const line = { endpoint: 'billing', received_at: '2026-11-20T09:00:00Z', request: { method: 'PUT', path: '/stored', headers: [['content-type', 'text/plain']], body: { bytes: 'kept' } } };
    const world = await World.start({ mode: 'inspect', stored: [line] });
    t.after(() => world?.end());
    const page = await world.open(t);
    await page.locator('#session').filter({ hasText: 'stored history, no tunnel' }).waitFor();
    await openRow(page, '/stored');
    await look(page, 'stored');
  });

  test('that is empty, it says how to begin', async (t) => {
    const world = await World.start({ mode: 'inspect' });
    t.after(() => world?.end());
    const page = await world.open(t);
    await page.getByRole('heading', { name: 'The history is empty' }).waitFor();
    await look(page, 'stored-empty');
  });
});

describe('one exchange', () => {
  let world;
  const order = { id: 'evt_1', type: 'charge.succeeded', created: 1_795_000_000, data: { object: { id: 'ch_3', amount: 4200, currency: 'eur', paid: true, refunded: null, lines: [{ sku: 'a' }, { sku: 'b' }] } } };
  before(async () => {
    world = await World.start();
    world.app.answer = ({ path }) => (path.startsWith('/fails')
      ? { status: 500, headers: ['content-type', 'text/plain'], body: 'TypeError: undefined is not an object\n    at charge (/app/billing.js:12:7)\n' }
      : { status: 200, headers: ['content-type', 'application/json', 'set-cookie', 'a=1', 'set-cookie', 'b=2'], body: '{"received":true,"id":"evt_1"}' });
    const headers = [['authorization', 'Bearer sk_live_1'], ['stripe-signature', 't=1,v1=abc'], ['user-agent', 'Stripe/1.0 (+https://stripe.com/docs/webhooks)'], ['x-twice', 'one'], ['x-twice', 'two']];
    await world.sendJson('/stripe/webhook?livemode=true&api_key=k', order, headers);
    await world.sendJson('/stripe/webhook?livemode=true&api_key=k', { ...order, id: 'evt_2', data: { object: { ...order.data.object, amount: 4300 } } }, headers);
    await world.sendJson('/fails/here', { broken: true });
    await world.send({ path: '/broken-json', headers: [['content-type', 'application/json']], body: '{"a": 1,\n "b": }\n' });
    await world.send({ path: '/form', headers: [['content-type', 'application/x-www-form-urlencoded']], body: 'name=J%C3%BCrgen&token=x&empty=' });
    await world.send({ path: '/long/' + 'a-very-long-segment-'.repeat(30), headers: [['x-long', 'word'.repeat(400)]], body: 'x'.repeat(5000) });
    const boundary = 'X-B';
    await world.send({ path: '/multipart', headers: [['content-type', `multipart/form-data; boundary=${boundary}`]],
      body: `--${boundary}\r\ncontent-disposition: form-data; name="note"\r\n\r\nhello\r\n--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.json"\r\ncontent-type: application/json\r\n\r\n{"in":"a file"}\r\n--${boundary}--\r\n` });
    await world.send({ path: '/xml', headers: [['content-type', 'application/xml']], body: '<order id="1"><line sku="a">2</line><line sku="b"/></order>' });
    await world.send({ path: '/pixel', headers: [['content-type', 'image/png']], body: Buffer.from('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==', 'base64') });
  });
  after(() => world?.end());

  test('in each of its tabs', async (t) => {
    const page = await world.open(t);
    await openRow(page, '/stripe/webhook');
    const tabs = ['overview', 'request', 'response', 'attempts', 'timing'];
    for (const [at, tab] of tabs.entries()) {
      await page.keyboard.press(String(at + 1));
      await page.locator(`#tab-${tab}[aria-selected=true]`).waitFor();
      await look(page, `tab-${tab}`);
    }
    await page.keyboard.press('2');
    const names = await page.getByRole('region', { name: 'Request headers' }).locator('tbody th').allTextContents();
    assert.equal(names.filter((header) => header === 'x-twice').length, 2);
    await page.keyboard.press('3');
    assert.equal(await page.getByRole('region', { name: 'Response headers' }).getByRole('row', { name: 'set-cookie' }).count(), 2);
    assert.equal(await page.locator('.badge').filter({ hasText: 'sig' }).count(), 0);
  });

  test('with every kind of body', async (t) => {
    const page = await world.open(t);
    await count(page, 9);
    for (const path of ['/fails/here', '/broken-json', '/form', '/long/', '/multipart', '/xml', '/pixel']) {
      await openRow(page, path);
      const views = page.getByRole('group', { name: 'View of the request body' }).getByRole('button');
      for (const view of await views.allTextContents()) {
        await views.getByText(view, { exact: true }).click();
        await page.locator('[aria-pressed=true]').filter({ hasText: view }).first().waitFor();
      }
      await views.first().click();
      await look(page, `body-${path.split('/')[1]}`);
    }
  });

  test('being edited, and its result beside it', async (t) => {
    const page = await world.open(t);
    await openRow(page, '/stripe/webhook');
    await page.locator('#edit').click();
    await page.locator('.edit-headers summary').click();
    await look(page, 'editor');
    const body = page.locator('#edit-body');
    await body.fill((await body.inputValue()).replace('4300', '9900'));
    await page.getByRole('button', { name: 'Send', exact: true }).click();
    await page.getByRole('region', { name: 'New reply', exact: true }).waitFor();
    await page.locator('.result .diff').waitFor();
    await look(page, 'editor-result');
    await page.keyboard.press('Escape');
  });

  test('compared with another', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/stripe+-is:replay' });
    await count(page, 2);
    await page.keyboard.press('j');
    await heading(page).waitFor();
    await page.locator('#diff').click();
    await page.locator('.choosing').waitFor();
    await look(page, 'diff-choosing');
    await page.getByRole('button', { name: 'Previous of the same path' }).click();
    await page.locator('.diff').getByText('$.data.object.amount').waitFor();
    await look(page, 'diff');
  });

  test('with help, menus and a question open', async (t) => {
    const page = await world.open(t);
    await openRow(page, '/stripe/webhook');
    await page.keyboard.press('?');
    await page.locator('dialog.help').waitFor();
    await look(page, 'help');
    await page.keyboard.press('Escape');
    for (const menu of ['export-menu', 'clear-menu', 'more-menu', 'url-menu']) {
      await page.locator(`[popovertarget=${menu}]`).click();
      await page.locator(`#${menu}`).waitFor();
      await look(page, menu);
      await page.keyboard.press('Escape');
      await page.locator(`#${menu}`).waitFor({ state: 'hidden' });
    }
    await page.locator('[popovertarget=clear-menu]').click();
    await page.getByRole('button', { name: /^Delete all/ }).click();
    await page.locator('dialog.ask').waitFor();
    await look(page, 'question');
    await page.getByRole('button', { name: 'Cancel' }).click();
    await count(page, (await world.exchanges()).length);
  });

  for (const [size, options] of Object.entries(SIZES)) {
    test(`in ${size}: list, exchange and editor have the whole width`, async (t) => {
      const page = await world.open(t, options);
      const see = (what) => lookOnce(page, `${what}-${options.name}`);
      await see('list');
      await openRow(page, '/fails/here');
      await see('detail');
      await page.locator('#tab-request').click();
      await see('request');
      await page.locator('#edit').click();
      await page.locator('form.editor').waitFor();
      await see('editor');
      await page.locator('form.editor').getByRole('button', { name: 'Close' }).click();
      await page.locator('#back').click();
      await page.locator('#list').waitFor();
      await openRow(page, '/long/');
      await see('long');
      await page.locator('#back').click();
      await page.keyboard.press('?');
      await see('help');
    });
  }
});

// Dead letters, of a relay that gives up after a second and a half: the button that counts them, the dialog that tells why,
// and trying them again.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { plain } from './corpus.mjs';
import { NETWORK_ERRORS, World, endBrowser, eventually, look, lookOnce, notice } from './world.mjs';

/** The app: while it fails, it does so for the paths of the test that runs, so that tests keep out of each other's way. */
const app = {
  failing: false,
  paths: [],
  took: new Set(),
  answer: ({ path }) => {
    if (app.failing && app.paths.includes(path)) return { status: 500, body: 'no' };
    app.took.add(path);
    return { status: 200, body: 'thanks' };
  },
};
const taken = () => eventually(() => app.paths.every((path) => app.took.has(path)), 'all of them at the app');

const opener = (page) => page.locator('#dead');
const dialog = (page) => page.locator('dialog.dead');
const letters = (page) => dialog(page).locator('li');
/** Waits until the dialog lists so many. */
const listed = (page, n) => page.waitForFunction((all) => document.querySelectorAll('dialog.dead li').length === all, n);
const again = (page, name) => dialog(page).getByRole('button', { name, exact: true });

/** Sends these while the app fails, until the relay has given them up. */
async function die(world, requests) {
  Object.assign(app, { failing: true, paths: requests.map(({ path }) => path), took: new Set() });
  for (const request of requests) assert.equal((await world.send(request)).status, 202);
  await eventually(async () => (await world.api('/api/status')).urls[0].dead_letters === requests.length, 'the dead letters');
}

/** Leaves none for the next test. */
async function clear(world) {
  app.failing = false;
  const { token } = await world.api('/api/status');
  const headers = { 'hookway-token': token, 'content-type': 'application/json' };
  await eventually(async () => {
    const { dead_letters: dead } = (await world.api('/api/status')).urls[0];
    if (dead) await world.api('/api/dead-letters/retry', { method: 'POST', headers, body: '{"endpoint":"demo","all":true}' });
    return dead === 0 && app.paths.every((path) => app.took.has(path));
  }, 'no dead letters');
}

after(endBrowser);

describe('dead letters', () => {
  let world;
  before(async () => {
    world = await World.start({ mode: 'tunnel', relay: ['--queue-retention', '1500ms'], words: ['--ack', 'early', '--drain-concurrency', '8'] });
    world.app.answer = app.answer;
  });
  after(() => world?.end());

  test('are counted while there are any, and tried again one by one and all at once', async (t) => {
    const page = await world.open(t);
    await page.getByRole('heading', { name: 'Ready for the first webhook' }).waitFor();
    assert.ok(await opener(page).isHidden());
    await die(world, ['/orders/1', '/orders/2?token=secret', '/orders/3'].map((path) => ({ path, body: 'x'.repeat(3000) })));
    await opener(page).filter({ hasText: /^3 dead letters$/ }).click();
    await listed(page, 3);
    assert.match(await dialog(page).textContent(), /failed.*waited too long.*14 days/);
    assert.match(await letters(page).filter({ hasText: '/orders/3' }).textContent(), /POST \/orders\/3.*\d\d:\d\d:\d\d · \d+ attempts? · 3(\.\d)? kB.*wait/);
    assert.doesNotMatch(await dialog(page).textContent(), /secret|listener/);
    await look(page, 'dead-letters');

    app.failing = false;
    let next = world.app.next();
    await again(page, 'Try again: POST /orders/1').click();
    assert.equal((await next).path, '/orders/1');
    await notice(page, 'Trying 1 dead letter again');
    assert.ok(await page.getByText('Trying 1 dead letter again').isVisible());
    await listed(page, 2);
    await opener(page).filter({ hasText: /^2 dead letters$/ }).waitFor();

    next = world.app.next();
    await again(page, 'Try all again: demo').click();
    await notice(page, 'Trying 2 dead letters again');
    assert.match((await next).path, /^\/orders\/[23]/);
    await dialog(page).getByText('None are left.').waitFor();
    await look(page, 'dead-letters-none');
    await taken();
    await opener(page).waitFor({ state: 'hidden' });
    await page.keyboard.press('Escape');
    await dialog(page).waitFor({ state: 'detached' });
    assert.equal(await page.evaluate(() => document.activeElement.id), 'list');
    // What is said later is said outside of the dialog again.
    await page.keyboard.press('t');
    await notice(page, 'Dark theme');
  });

  test('need no mouse, and the focus stays in its place', async (t) => {
    await die(world, [{ path: '/a' }, { path: '/b' }, { path: '/c' }]);
    t.after(() => clear(world));
    const page = await world.open(t);
    const focused = () => page.evaluate(() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent);
    await opener(page).focus();
    await page.keyboard.press('Enter');
    await listed(page, 3);
    assert.equal(await focused(), 'Close');
    await page.keyboard.press('Escape');
    await dialog(page).waitFor({ state: 'detached' });
    assert.equal(await focused(), '3 dead letters');
    await page.keyboard.press('Enter');
    await listed(page, 3);
    const names = await letters(page).locator('button').evaluateAll((all) => all.map((one) => one.ariaLabel));
    assert.deepEqual(names.toSorted(), ['/a', '/b', '/c'].map((path) => `Try again: POST ${path}`));
    for (let step = 0; step < 3; step += 1) await page.keyboard.press('Tab');
    assert.equal(await focused(), names[1]);
    app.failing = false;
    const next = world.app.next();
    await page.keyboard.press('Enter');
    await listed(page, 2);
    assert.equal((await next).path, names[1].split(' ').pop());
    assert.equal(await focused(), names[2]);
    await opener(page).filter({ hasText: '2 dead letters' }).waitFor();
    // What comes meanwhile comes in, and takes the focus from nobody.
    Object.assign(app, { failing: true, paths: [...app.paths, '/d'] });
    await world.send({ path: '/d' });
    await listed(page, 3);
    assert.equal(await focused(), names[2]);
    app.failing = false;
    for (const left of [2, 1]) {
      await page.keyboard.press('Enter');
      await listed(page, left);
    }
    assert.equal(await focused(), 'Try again: POST /d');
    await page.keyboard.press('Enter');
    await listed(page, 0);
    assert.equal(await focused(), 'Close');
  });

  test('of which there are many: the newest hundred, at any size', async (t) => {
    await die(world, Array.from({ length: 103 }, (_, at) => ({ path: `/many/${at}` })));
    t.after(() => clear(world));
    const page = await world.open(t);
    await opener(page).filter({ hasText: '103 dead letters' }).click();
    await listed(page, 100);
    await dialog(page).getByText('the newest 100 of 103').waitFor();
    await letters(page).last().scrollIntoViewIfNeeded();
    await dialog(page).getByRole('button', { name: 'Close' }).click({ trial: true });
    for (const [name, size] of Object.entries({ '640x400': { width: 640, height: 400 }, '320x640': { width: 320, height: 640 } })) {
      await page.setViewportSize(size);
      // Else a button may be halfway below the title, which stays where it is.
      await dialog(page).evaluate((element) => element.scrollTo(0, 0));
      await lookOnce(page, `dead-letters-${name}`);
    }
    app.failing = false;
    await again(page, 'Try all again: demo').click();
    await notice(page, 'Trying 103 dead letters again');
  });

  test('are text, whatever is in their paths and reasons', async (t) => {
    const texts = plain('http://canary.invalid').slice(0, 30);
    await die(world, [...texts.map((text) => ({ path: `/${encodeURI(text).replaceAll('#', '%23')}` })), { path: `/${'long'.repeat(500)}` }]);
    t.after(() => clear(world));
    const page = await world.open(t);
    // The relay's reasons are its own words; what another relay says may not be.
    const { endpoints } = await world.api('/api/dead-letters');
    const letters = endpoints[0].letters.map((letter, at) => {
      const text = texts[at % texts.length];
      return { ...letter, last: text.repeat(9), listener: text, method: text, path: `${text}${letter.path}` };
    });
    await page.route('**/api/dead-letters', (route) => route.fulfill({ json: { endpoints: [{ ...endpoints[0], endpoint: texts[0], letters }] } }));
    await opener(page).click();
    await listed(page, texts.length + 1);
    assert.equal(await page.evaluate(() => window.__pwned), undefined);
    assert.equal(await dialog(page).locator('h3').textContent(), texts[0]);
    assert.equal(await dialog(page).locator('img, script, svg, iframe, a').count(), 0);
    await look(page, 'dead-letters-hostile');
  });

  test('that cannot be had: it says why, and loads again', async (t) => {
    await die(world, [{ path: '/left' }]);
    t.after(() => clear(world));
    const page = await world.open(t, { expected: [NETWORK_ERRORS] });
    const refuse = (route) => route.fulfill({ status: 503, json: { error: { message: 'the relay does not answer just now' } } });
    await page.route('**/api/dead-letters', refuse);
    await opener(page).click();
    await dialog(page).getByRole('alert').filter({ hasText: 'the relay does not answer just now' }).waitFor();
    await look(page, 'dead-letters-refused');
    const before = await dialog(page).getByRole('alert').elementHandle();
    await dialog(page).getByRole('button', { name: 'Load again' }).press('Enter');
    await before.waitForElementState('hidden');
    assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Load again');
    await page.unroute('**/api/dead-letters', refuse);
    await dialog(page).getByRole('button', { name: 'Load again' }).click();
    await listed(page, 1);
    await page.route('**/api/dead-letters/retry', (route) => route.fulfill({ status: 503, json: { error: { message: 'the relay does not answer just now' } } }));
    await again(page, 'Try again: POST /left').click();
    await notice(page, 'the relay does not answer just now');
    await listed(page, 1);
  });
});

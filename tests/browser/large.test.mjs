// Ten thousand exchanges, a large body and a bomb: all of it can be reached, and what it costs is printed at the end.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { NETWORK_ERRORS, World, complete, count, endBrowser, eventually, heading, notice, openRow, row, selected } from './world.mjs';

const MANY = 10_000;
const FAILED = 20;
const figures = [];
const note = (what, value) => figures.push([what, value]);
const isSelected = (page, path) => selected(page).locator('.path').filter({ hasText: path }).waitFor();

let world;
before(async () => {
  const start = Date.now() - MANY * 1000;
  const lines = Array.from({ length: MANY }, (_, at) => line(at, new Date(start + at * 1000).toISOString()));
  const began = Date.now();
  world = await World.start({ stored: lines, words: ['--history-count', '20000'] });
  note('import of 10 000, and start', `${Date.now() - began} ms`);
});
after(async () => {
  await world.end();
  await endBrowser();
  const width = Math.max(...figures.map(([what]) => what.length));
  console.log(`\n${figures.map(([what, value]) => `  ${what.padEnd(width)}  ${value}`).join('\n')}\n`);
});

/** As `hookway requests export` writes it. */
function line(at, time) {
  const failed = at % (MANY / FAILED) === 7;
  const status = failed ? 503 : 200;
  const body = JSON.stringify({ id: `evt_${at}`, type: ['charge.succeeded', 'invoice.paid', 'push'][at % 3], amount: at, customer: { name: `Customer ${at % 97}`, note: 'n'.repeat(200) } });
  return {
    hookway: 1, endpoint: 'demo', remote: '203.0.113.9', received_at: time,
    request: { method: 'POST', path: `/${['stripe', 'shopify', 'github'][at % 3]}/webhook/${at}`, headers: [['content-type', 'application/json'], ['user-agent', 'Stripe/1.0'], ['stripe-signature', `t=1,v1=${at}`]], body: { bytes: body } },
    attempts: [{ number: 1, at: time, url: `http://localhost:3000/webhook/${at}`, outcome: { state: 'answered', status }, connect_ns: 300_000, first_byte_ns: 9_000_000, duration_ns: (at % 400) * 1_000_000, reply: { status, headers: [['content-type', 'application/json']], body: { bytes: '{"received":true}' } } }],
  };
}

/** Long tasks and frames of what happens in the page from here to `stop`, by Chromium's own observer and frame clock. */
async function measure(page, what, action) {
  await page.evaluate(() => {
    const seen = { tasks: [], worst: 0, frames: 0, last: performance.now(), from: performance.now(), on: true };
    window.seen = seen;
    new PerformanceObserver((list) => seen.tasks.push(...list.getEntries().map((entry) => entry.duration))).observe({ type: 'longtask' });
    const frame = (now) => {
      seen.worst = Math.max(seen.worst, now - seen.last);
      seen.last = now;
      seen.frames += 1;
      if (seen.on) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  });
  await action();
  const { tasks, worst, frames, took } = await page.evaluate(() => {
    const { seen } = window;
    seen.on = false;
    return { ...seen, took: performance.now() - seen.from };
  });
  note(what, `${Math.round(took)} ms, ${frames} frames, longest ${Math.round(worst)} ms, long tasks: ${tasks.length ? tasks.map((ms) => `${Math.round(ms)} ms`).join(', ') : 'none'}`);
}

describe('ten thousand exchanges', () => {
  test('are listed', async (t) => {
    for (const run of ['first load', 'second load']) {
      const page = await world.open(t, { ready: false, before: (page) => page.addInitScript(() => {
        window.marks = { tasks: [] };
        new PerformanceObserver((list) => window.marks.tasks.push(...list.getEntries().map((entry) => Math.round(entry.duration)))).observe({ type: 'longtask', buffered: true });
        const look = () => {
          const first = document.querySelector('#list [role=option]:not([hidden])');
          if (first && !window.marks.rows) window.marks.rows = performance.now();
          if (first?.ariaSetSize === '10000') window.marks.complete = performance.now();
          else requestAnimationFrame(look);
        };
        requestAnimationFrame(look);
      }) });
      await complete(page, MANY);
      const marks = await page.evaluate(() => ({ ...window.marks, paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime }));
      note(run, `first paint ${Math.round(marks.paint)} ms, rows ${Math.round(marks.rows)} ms, complete ${Math.round(marks.complete)} ms, long tasks: ${marks.tasks.length ? marks.tasks.map((ms) => `${ms} ms`).join(', ') : 'none'}`);
    }
  });

  test('can all be scrolled to, with few rows in the document', async (t) => {
    const page = await world.open(t);
    await complete(page, MANY);
    let found;
    await measure(page, 'scrolling through all', async () => {
      found = await page.evaluate(async () => {
        const list = document.getElementById('list');
        const seen = new Set();
        let most = 0;
        for (let top = 0; ; top += list.clientHeight) {
          list.scrollTop = top;
          const rowsNow = () => [...list.querySelectorAll('[role=option]:not([hidden])')];
          const wanted = String(Math.min(Math.ceil((list.scrollTop + list.clientHeight) / 44), 10_000));
          for (let frames = 0; frames < 20; frames += 1) {
            await new Promise(requestAnimationFrame);
            if (rowsNow().some((row) => row.ariaPosInSet === wanted)) break;
          }
          const rows = rowsNow();
          for (const row of rows) seen.add(row.querySelector('.path').textContent);
          most = Math.max(most, list.querySelectorAll('[role=option]').length);
          if (top >= list.scrollHeight) return { most, missing: Array.from({ length: 10_000 }, (_, at) => at).filter((at) => !['stripe', 'shopify', 'github'].some((name) => seen.has(`/${name}/webhook/${at}`))) };
        }
      });
    });
    assert.deepEqual(found.missing, [], 'rows that were never shown');
    assert.ok(found.most < 60, `${found.most} rows in the document`);
    await page.keyboard.press('G');
    await heading(page).filter({ hasText: '/webhook/0' }).waitFor();
    await measure(page, '200 times j', async () => {
      await page.keyboard.press('g');
      for (let at = 0; at < 200; at += 1) await page.keyboard.press('j');
      await heading(page).filter({ hasText: `/webhook/${MANY - 201}` }).waitFor();
    });
    await page.keyboard.press('u');
    await heading(page).filter({ hasText: `/webhook/${MANY - MANY / FAILED + 7}` }).waitFor();
  });

  /** A page to which no older page comes until `more` is called. */
  async function half(t) {
    let more;
    const released = new Promise((resolve) => (more = resolve));
    const page = await world.open(t, { expected: [NETWORK_ERRORS], before: (page) => page.route('**/api/exchanges?*before=*', async (route) => {
      await released;
      await route.continue().catch(() => {});
    }) });
    await complete(page, 200);
    return { page, more };
  }

  test('while they still load, G goes to the real end once it is there, and another key goes elsewhere', async (t) => {
    const { page, more } = await half(t);
    await page.keyboard.press('j');
    await isSelected(page, `/webhook/${MANY - 1}`);
    await page.keyboard.press('G');
    await notice(page, 'Loading the older ones');
    await isSelected(page, `/webhook/${MANY - 1}`);
    more();
    await heading(page).filter({ hasText: /\/webhook\/0$/ }).waitFor();
    await isSelected(page, /\/webhook\/0$/);

    const second = await half(t);
    await second.page.keyboard.press('G');
    await notice(second.page, 'Loading the older ones');
    await second.page.keyboard.press('j');
    await isSelected(second.page, `/webhook/${MANY - 1}`);
    second.more();
    await complete(second.page, MANY);
    await isSelected(second.page, `/webhook/${MANY - 1}`);
  });

  test('while they still load, a filter with a typo keeps none of them out', async (t) => {
    const { page, more } = await half(t);
    await page.locator('#filter').fill('stat:5xx');
    await page.keyboard.press('Enter');
    await page.locator('#filter[aria-invalid=true]').waitFor();
    more();
    await complete(page, MANY);
  });

  test('are filtered', async (t) => {
    const page = await world.open(t);
    await complete(page, MANY);
    for (const [filter, n] of [['status:5xx', FAILED], ['path:/stripe*', 3334], ['body:"Customer 42"', 103], ['evt_9999', 1], ['', MANY]]) {
      await measure(page, `filter ${filter || 'cleared'}`, async () => {
        await page.locator('#filter').fill(filter);
        await page.keyboard.press('Enter');
        await complete(page, n);
      });
      assert.equal(await page.evaluate(() => document.querySelectorAll('#list [role=option]').length < 60), true);
    }
  });

  test('stay live: a hundred more come in', async (t) => {
    const page = await world.open(t);
    await complete(page, MANY);
    await measure(page, '100 deliveries on top', async () => {
      await Promise.all(Array.from({ length: 100 }, (_, at) => world.sendJson(`/live/${at}`, { at })));
      await complete(page, MANY + 100);
      await count(page, MANY + 100);
    });
  });
});

describe('a large body', () => {
  test('of almost 1 MiB of JSON opens in every view, and is searched', async (t) => {
    const items = Array.from({ length: 8000 }, (_, at) => ({ id: `itm_${at}`, price: at, nested: { a: [at, null, true], text: `needle-${at}` } }));
    await world.sendJson('/large/json', { items });
    const page = await world.open(t, { query: '?filter=path:/large/json' });
    await count(page, 1);
    await measure(page, 'body of 1 MB: open', async () => {
      await openRow(page, '/large/json');
      await page.locator('.tree').first().waitFor();
    });
    const body = page.getByRole('region', { name: 'Request body' });
    for (const view of ['Pretty', 'Raw', 'Hex', 'Tree']) {
      await measure(page, `body of 1 MB: ${view}`, async () => {
        await body.getByRole('button', { name: view, exact: true }).click();
        await body.getByRole('button', { name: view, exact: true, pressed: true }).waitFor();
        await page.evaluate(() => new Promise(requestAnimationFrame));
      });
    }
    await measure(page, 'body of 1 MB: search', async () => {
      await body.getByLabel('Search in the body').fill('needle-7777');
      await body.getByText('1 of 1').waitFor();
    });
    await body.locator('.tree').getByText('"needle-7777"').waitFor();
  });

  test('that swells when inflated opens, marked as cut', async (t) => {
    const zeros = Buffer.alloc(64 << 20, '{"a":"');
    const bomb = gzipSync(zeros, { level: 9 });
    assert.ok(bomb.length < 512 * 1024, `${bomb.length} bytes`);
    await world.send({ path: '/large/bomb', headers: [['content-type', 'application/json'], ['content-encoding', 'gzip']], body: bomb });
    const page = await world.open(t, { query: '?filter=path:/large/bomb' });
    await count(page, 1);
    await measure(page, 'gzip bomb: open', async () => {
      await openRow(page, '/large/bomb');
      await page.getByText('It was larger still when inflated').first().waitFor();
    });
    await eventually(() => row(page, '/large/bomb').count(), 'the row');
    const [file] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'Download the request body' }).click()]);
    assert.deepEqual((await import('node:fs')).readFileSync(await file.path()), bomb);
  });
});

// What is known of a delivery as a webhook: its signature, whether it repeats another, whether it was signed afresh or took too
// long. Each state in both themes, then what one does with it.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { plain } from './corpus.mjs';
import { NETWORK_ERRORS, World, count, endBrowser, heading, look, lookOnce, notice, row, values } from './world.mjs';

after(endBrowser);

const idOf = (/** @type {number} */ at) => `req_01M7Z0C${String(at).padStart(19, '0')}`;
const FIRST = idOf(1);
const BAD = 'the body was changed after it was signed (with STRIPE_WEBHOOK_SECRET): it was parsed and written anew, with blanks behind colons and commas; sign the very bytes that are sent, and let no proxy or test tool rewrite them';
const NONE = 'not checked; to check it: hookway … --verify github=GITHUB_WEBHOOK_SECRET';
const MISSING = 'there is no stripe-signature: it was sent by somebody else, or without a secret set at Stripe; see https://docs.stripe.com/webhooks/signatures';
const STRIPE = { provider: 'stripe', event: 'charge.succeeded', event_id: 'evt_1', dedup_id: 'evt_1', signature: 'ok', secret: 'STRIPE_WEBHOOK_SECRET' };
const SLACK = { provider: 'slack', event: 'app_mention', event_id: 'Ev08', signature: 'ok', secret: 'SLACK_SIGNING_SECRET', deadline_ns: 3e9 };

/** Path, what is known of the webhook, how long the app took, and more of the line. */
const STATES = {
  '/ok': [{ ...STRIPE }, 12, { id: FIRST }],
  '/bad': [{ ...STRIPE, event: 'invoice.paid', signature: 'bad', secret: null, detail: BAD }, 14],
  '/none': [{ provider: 'github', event: 'pull_request.opened', event_id: '72d3162e-cc78', signature: 'none', detail: NONE }, 9],
  '/missing': [{ ...STRIPE, signature: 'none', secret: null, detail: MISSING }, 9],
  '/again': [{ ...STRIPE, duplicate_of: FIRST }, 15],
  '/orphan': [{ ...STRIPE, duplicate_of: idOf(999) }, 15],
  '/resigned': [{ ...STRIPE, resigned: true }, 21],
  '/replayed': [{ ...STRIPE, resigned: true }, 21, { replay_of: FIRST }],
  '/in-time': [{ ...SLACK }, 2460],
  '/late': [{ ...SLACK, provider: 'paddle', event: 'transaction.completed', secret: 'PADDLE_WEBHOOK_SECRET', deadline_ns: 5e9 }, 6100],
  '/acked': [{ ...SLACK, acked_ns: 24e8 }, 74_000],
  '/acked-failed': [{ ...SLACK, deadline_ns: null, acked_ns: 8e9 }, 30_000, { failed: true }],
  '/everything': [{ ...SLACK, event: 'a.kind.of.event.whose.name.does.not.end.so.soon.as.one.would.like', duplicate_of: FIRST, resigned: true }, 41_000, { replay_of: FIRST, edited: true, pinned: true }],
};

/** As `hookway requests export` writes it. */
function line(path, [webhook, ms, { failed = false, ...more } = {}], at) {
  const time = new Date(Date.now() + (at - 100) * 1000).toISOString();
  const outcome = failed ? { state: 'failed', failure: 'timeout', short: 'timeout 30s' } : { state: 'answered', status: 200 };
  return {
    hookway: 1, endpoint: 'demo', remote: '203.0.113.9', received_at: time, webhook, ...more,
    request: { method: 'POST', path, headers: [['content-type', 'application/json']], body: { bytes: '{"id":"evt_1"}' } },
    attempts: [{
      number: 1, at: time, url: `http://localhost:3000${path}`, message: failed ? 'the app gave no answer within 30 s' : '', outcome,
      connect_ns: 300_000, first_byte_ns: failed ? null : ms * 1e6 - 400_000, duration_ns: ms * 1e6,
      reply: failed ? null : { status: 200, headers: [['content-type', 'application/json']], body: { bytes: '{"received":true}' } },
    }],
  };
}

const lines = () => Object.entries(STATES).map(([path, state], at) => line(path, state, at));
const badges = (page, path) => row(page, path).first().locator('.badge').allTextContents();
const fact = (page, name) => page.locator('.facts dt').filter({ hasText: new RegExp(`^${name}$`) }).locator('+ dd');
/** Exactly, since one path begins another. */
async function open(page, path) {
  await row(page, path).filter({ has: page.locator('.path').getByText(path, { exact: true }) }).first().click();
  await heading(page).getByText(`POST ${path}`, { exact: true }).waitFor();
}

describe('a webhook', () => {
  let world;
  const all = Object.keys(STATES).length;
  before(async () => (world = await World.start({ stored: lines() })));
  after(() => world?.end());

  test('says in its row what is known of it, in words', async (t) => {
    const page = await world.open(t);
    await count(page, all);
    const expected = {
      '/ok': ['✓sig'], '/bad': ['✕sig'], '/none': [], '/missing': [], '/again': ['✓sig', 'duplicate'], '/resigned': ['✓sig', 're-signed'],
      '/replayed': ['✓sig', 'replay', 're-signed'], '/in-time': ['✓sig'], '/late': ['✓sig', '6.1 s of 5 s'], '/acked-failed': ['✓sig', 'early 202'],
      '/everything': ['pinned', '✓sig', '41 s of 3 s', 'replay', 'edited', 'duplicate', 're-signed'],
    };
    for (const [path, words] of Object.entries(expected)) assert.deepEqual(await badges(page, path), words, path);
    assert.equal(await row(page, '/ok').first().locator('.event').textContent(), 'charge.succeeded');
    await look(page, 'webhook-list');
  });

  /** Path and what its detail must say, and not say. */
  const TITLES = {
    '/ok': [/✓ stripe signature, made with STRIPE_WEBHOOK_SECRET/, /duplicate|re-signed|deadline/i],
    '/bad': [/✕ bad stripe signature: the body was changed after it was signed/, /✓|not checked/],
    '/none': [/github signature not checked; to check it: hookway … --verify github=GITHUB_WEBHOOK_SECRET/, /✓|✕/],
    '/missing': [/stripe signature not checked: there is no stripe-signature/, /✓|✕/],
    '/again': [/✓ stripe signature/, /✕/],
    '/resigned': [/✓ stripe signature/, /✕/],
    '/late': [/✓ paddle signature/, /✕/],
    '/acked': [/✓ slack signature/, /✕/],
    '/everything': [/✓ slack signature/, /✕/],
  };
  for (const [path, [says, never]] of Object.entries(TITLES)) {
    test(`${path}: its title says so`, async (t) => {
      const page = await world.open(t);
      await count(page, all);
      await open(page, path);
      const title = await page.locator('.detail-title').textContent();
      assert.match(title, says);
      assert.doesNotMatch(title, never);
      await look(page, `webhook-${path.slice(1)}`);
    });
  }

  test('has its facts: who, what, which, and what the signature is', async (t) => {
    const page = await world.open(t);
    await count(page, all);
    await open(page, '/ok');
    assert.equal(await fact(page, 'Provider').textContent(), 'stripe');
    assert.equal(await fact(page, 'Event').textContent(), 'charge.succeeded');
    assert.equal(await fact(page, 'Event id').textContent(), 'evt_1');
    await open(page, '/resigned');
    assert.match(await fact(page, 'Re-signed').textContent(), /the app had it with a signature of the time of sending; the headers here are the original/);
    await open(page, '/replayed');
    assert.match(await fact(page, 'Re-signed').textContent(), /signed afresh at the time of sending; the headers here are those that were sent/);
    await open(page, '/late');
    assert.match(await fact(page, 'Answer').textContent(), /200 6\.1 s, longer than the 5 s that paddle waits/);
    await open(page, '/acked');
    assert.match(await fact(page, 'Sender had').textContent(), /202 from hookway after 2\.4 s \(--breakpoint\)/);
  });

  test('that repeats another leads to that, or says that it is gone', async (t) => {
    const page = await world.open(t, { expected: [NETWORK_ERRORS] });
    await count(page, all);
    await open(page, '/again');
    await fact(page, 'Duplicate of').getByRole('button').focus();
    await page.keyboard.press('Enter');
    await page.waitForURL(`**id=${FIRST}*`);
    await heading(page).getByText('POST /ok', { exact: true }).waitFor();
    await open(page, '/orphan');
    await fact(page, 'Duplicate of').getByRole('button').click();
    await heading(page).filter({ hasText: 'Not there' }).waitFor();
    await page.goBack();
    await heading(page).getByText('POST /orphan', { exact: true }).waitFor();
  });

  test('selects the command of its sentence by one click', async (t) => {
    const page = await world.open(t);
    await count(page, all);
    await open(page, '/none');
    await page.locator('.signature .pick').click();
    assert.equal(await page.evaluate(() => getSelection()?.toString()), '--verify github=GITHUB_WEBHOOK_SECRET');
  });

  const TIMING = {
    '/in-time': [/2\.5 s of 3 s that slack waits for an answer$/, false],
    '/late': [/6\.1 s of 5 s that paddle waits for an answer: would time out$/, true],
    '/acked': [/2\.4 s of 3 s that slack waits for an answer202 sent by hookway after 2\.4 s \(--breakpoint\); the app answered after 74 s$/, false],
    '/acked-failed': [/^202 sent by hookway after 8 s \(--breakpoint\); the app failed after 30 s$/, false],
  };
  for (const [path, [says, late]] of Object.entries(TIMING)) {
    test(`${path}: its time against the provider's deadline`, async (t) => {
      const page = await world.open(t, { query: '?tab=timing' });
      await count(page, all);
      await open(page, path);
      await page.keyboard.press('5');
      const deadline = page.locator('.deadline');
      await deadline.waitFor();
      assert.match(await deadline.textContent(), says);
      assert.equal(await page.locator('.deadline.warning').count(), Number(late));
      await look(page, `webhook-timing${path.replace('/', '-')}`);
    });
  }

  test('without a deadline has none in its timing', async (t) => {
    const page = await world.open(t);
    await count(page, all);
    await open(page, '/ok');
    await page.keyboard.press('5');
    await page.locator('.timing').waitFor();
    assert.equal(await page.locator('.deadline').count(), 0);
  });

  for (const [name, size] of Object.entries({ '720x900': { width: 720, height: 900 }, '640x900': { width: 640, height: 900 }, '320x640': { width: 320, height: 640 } })) {
    test(`fits into a window of ${name}`, async (t) => {
      const page = await world.open(t, { size });
      const back = async () => { if (size.width < 720) await page.locator('#back').click(); };
      await count(page, all);
      await lookOnce(page, `webhook-list-${name}`);
      for (const path of ['/bad', '/none', '/everything']) {
        await open(page, path);
        await lookOnce(page, `webhook${path.replace('/', '-')}-${name}`);
        await back();
      }
      await open(page, '/bad');
      await page.locator('#edit').click();
      await page.locator('form.editor').waitFor();
      await lookOnce(page, `webhook-editor-${name}`);
      await page.keyboard.press('Escape');
    });
  }

  test('is found by provider, event and signature, with suggestions from what there is', async (t) => {
    // The list follows what is half typed, too.
    const page = await world.open(t, { expected: [NETWORK_ERRORS] });
    await count(page, all);
    const filter = page.locator('#filter');
    const suggested = () => page.locator('#suggestions code').allTextContents();
    for (const [key, values] of Object.entries({ 'sig:': ['sig:ok', 'sig:bad', 'sig:none'], 'provider:': ['provider:stripe', 'provider:github', 'provider:slack', 'provider:paddle'], 'event:inv': ['event:invoice.paid'], 'is:d': ['is:duplicate'], 'is:r': ['is:replay', 'is:resigned'] })) {
      await filter.fill(key);
      assert.deepEqual((await suggested()).sort(), [...values].sort(), key);
    }
    await filter.fill('provider:');
    await look(page, 'webhook-suggestions');
    for (const [text, n] of Object.entries({ 'sig:bad': 1, 'event:*.paid': 1, 'is:duplicate': 3, 'is:resigned provider:stripe': 2 })) {
      await filter.fill(text);
      await page.keyboard.press('Enter');
      await count(page, n);
    }
  });
});

describe('sign afresh', () => {
  let world;
  before(async () => (world = await World.start({ stored: lines() })));
  after(() => world?.end());

  /** The editor of the exchange, by keyboard, and what Send then asks for. */
  async function edit(t, path) {
    const page = await world.open(t);
    await count(page, (await world.exchanges()).length);
    await open(page, path);
    await page.keyboard.press('e');
    await page.locator('form.editor').waitFor();
    const send = async () => {
      const asked = page.waitForRequest((request) => request.method() === 'POST');
      await page.locator('#edit-path').focus();
      await page.keyboard.press('Enter');
      const body = (await asked).postDataJSON();
      await page.getByRole('region', { name: 'New reply', exact: true }).waitFor();
      return body;
    };
    return { page, box: page.getByLabel('Sign afresh'), send };
  }

  test('is on where the signature was good, and is left out of what is asked for', async (t) => {
    const { page, box, send } = await edit(t, '/ok');
    assert.ok(await box.isChecked());
    await page.getByText('with the time of sending and STRIPE_WEBHOOK_SECRET').waitFor();
    await look(page, 'webhook-editor-ok');
    assert.deepEqual(await send(), {});
  });

  test('is turned off by keyboard, and then nothing is signed', async (t) => {
    const { page, box, send } = await edit(t, '/again');
    await page.locator('#edit-body').focus();
    await page.keyboard.press('Tab');
    assert.ok(await box.evaluate((input) => input === document.activeElement));
    for (const key of ['r', 'd', '?']) await page.keyboard.press(key);
    await page.keyboard.press('Space');
    assert.equal(await box.isChecked(), false);
    assert.deepEqual(await send(), { resign: false });
  });

  for (const [path, why] of Object.entries({ '/bad': 'not done: the original’s signature was not good', '/none': 'not done: no secret is known for the original’s signature' })) {
    test(`is not offered for ${path}, with the reason`, async (t) => {
      const { page, box, send } = await edit(t, path);
      assert.ok(await box.isDisabled());
      assert.equal(await box.isChecked(), false);
      await page.getByText(why).waitFor();
      await look(page, `webhook-editor${path.replace('/', '-')}`);
      assert.deepEqual(await send(), { resign: false });
    });
  }

  test('is not there for what is no webhook', async (t) => {
    await world.sendJson('/plain', {});
    const { page, send } = await edit(t, '/plain');
    assert.equal(await page.getByLabel('Sign afresh').count(), 0);
    assert.deepEqual(await send(), {});
  });
});

describe('a signature that is really checked', () => {
  const RIGHT = 'whsec_right';
  let world;
  let answered = Promise.resolve();
  before(async () => {
    const words = ['--verify', 'stripe=STRIPE_WEBHOOK_SECRET', '--verify', 'slack=SLACK_SIGNING_SECRET', '--breakpoint'];
    world = await World.start({ words, secrets: { STRIPE_WEBHOOK_SECRET: RIGHT, WRONG: 'whsec_wrong', SLACK_SIGNING_SECRET: 'slack' } });
    world.app.answer = async ({ path }) => {
      if (path === '/slack') await answered;
      return { status: 200, headers: ['content-type', 'application/json'], body: '{"received":true}' };
    };
  });
  after(() => world?.end());

  const send = (/** @type {string} */ provider, /** @type {string} */ path, /** @type {string} */ secret) =>
    world.command('send', provider, '--to', `http://localhost:${world.port}${path}`, '--secret-env', secret);
  /** Whether Stripe's own rule takes what the app saw. */
  function isGood(seen) {
    const [, time, made] = values(seen, 'stripe-signature')[0].match(/^t=(\d+),v1=([0-9a-f]+)$/) ?? [];
    return made === createHmac('sha256', RIGHT).update(`${time}.`).update(seen.body).digest('hex');
  }

  test('is good, and stays so through a replay and an edit, unless that is turned off', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/signed' });
    await send('stripe', '/signed', 'STRIPE_WEBHOOK_SECRET');
    await count(page, 1);
    assert.deepEqual(await badges(page, '/signed'), ['✓sig']);
    await page.keyboard.press('j');
    await page.getByText('✓ stripe signature, made with STRIPE_WEBHOOK_SECRET').waitFor();

    let next = world.app.next();
    await page.keyboard.press('r');
    assert.ok(isGood(await next));
    await notice(page, /^Replayed: 200, .*re-signed$/);
    await count(page, 2);
    assert.deepEqual(await badges(page, '/signed'), ['✓sig', 'replay', 're-signed']);

    await page.keyboard.press('e');
    const body = page.locator('#edit-body');
    await body.fill((await body.inputValue()).replace('"type"', '"edited":true,"type"'));
    next = world.app.next();
    await page.getByRole('button', { name: 'Send', exact: true }).click();
    const seen = await next;
    assert.match(seen.body.toString(), /"edited":true/);
    assert.ok(isGood(seen));
    const reply = page.getByRole('region', { name: 'New reply', exact: true });
    await reply.getByText('re-signed').waitFor();
    await reply.getByText('✓ stripe signature').waitFor();
    await look(page, 'webhook-resent');

    await page.getByLabel('Sign afresh').uncheck();
    next = world.app.next();
    await page.getByRole('button', { name: 'Send', exact: true }).click();
    assert.ok(!isGood(await next));
    await reply.getByText('✕ bad stripe signature').waitFor();
    assert.equal(await reply.getByText('re-signed').count(), 0);
    await look(page, 'webhook-resent-unsigned');
  });

  test('is bad where it was made with another secret, says why, and is not made good', async (t) => {
    const page = await world.open(t, { query: '?filter=path:/forged' });
    await send('stripe', '/forged', 'WRONG');
    await count(page, 1);
    assert.deepEqual(await badges(page, '/forged'), ['✕sig']);
    await page.keyboard.press('j');
    await page.getByText(/✕ bad stripe signature: .*STRIPE_WEBHOOK_SECRET/).waitFor();
    await look(page, 'webhook-forged');
    const next = world.app.next();
    await page.keyboard.press('r');
    assert.ok(!isGood(await next));
    await count(page, 2);
    assert.deepEqual(await badges(page, '/forged'), ['✕sig', 'replay']);
  });

  test('of one that is stopped at a breakpoint: the sender has a 202, the page says so when the app has answered', async (t) => {
    let answer = () => {};
    answered = new Promise((resolve) => (answer = resolve));
    const page = await world.open(t, { query: '?filter=path:/slack' });
    // It comes back with the 202.
    const sent = await send('slack', '/slack', 'SLACK_SIGNING_SECRET');
    assert.match(sent, /^202/);
    await row(page, 'pending').waitFor();
    answer();
    await row(page, 'early 202').waitFor();
    await page.keyboard.press('j');
    await page.keyboard.press('5');
    await page.getByText(/202 sent by hookway after .* s \(--breakpoint\); the app answered after /).waitFor();
    await look(page, 'webhook-breakpoint');
  });
});

describe('hostile names', () => {
  let world;
  const texts = [...plain('http://127.0.0.1:9'), 'e'.repeat(200), '\u202etxt.exe', 'a\u0000b', '"quoted" \\', ' '];
  before(async () => {
    const known = (/** @type {string} */ text) => ({ provider: text, event: text, event_id: text, signature: 'bad', detail: text, resigned: true, duplicate_of: FIRST });
    const stored = texts.map((text, at) => line(`/hostile/${at}`, [{ ...known(text), ...(at % 3 ? {} : { signature: 'none' }), ...(at % 3 === 1 ? { signature: 'ok', secret: text } : {}) }, 12], at));
    world = await World.start({ stored });
  });
  after(() => world?.end());

  test('of events, providers and secrets, and hostile sentences, stay text', async (t) => {
    const page = await world.open(t);
    await count(page, texts.length);
    for (const [at, text] of [...texts.entries()].reverse()) {
      await page.keyboard.press('j');
      await heading(page).getByText(`POST /hostile/${at}`, { exact: true }).waitFor();
      const title = await page.locator('.title-facts').evaluate((facts) => facts.textContent);
      assert.ok(title.includes(text), `${at}: ${title}`);
      assert.equal(await fact(page, 'Event').evaluate((dd) => dd.textContent), text);
      assert.equal(await page.locator('#detail :is(script, img, iframe, object, embed, style, link, base, meta, svg, math, video, audio)').count(), 0, text);
      if (at % 7 === 0) {
        await page.keyboard.press('e');
        await page.locator('form.editor').waitFor();
        await page.getByRole('button', { name: 'Close', exact: true }).click();
      }
    }
    assert.equal(await page.evaluate(() => window.__pwned), undefined);
    await look(page, 'webhook-hostile');
  });

  test('that are suggested are filters that the server takes, and find what they name', async (t) => {
    const page = await world.open(t, { expected: [NETWORK_ERRORS] });
    await count(page, texts.length);
    for (const key of ['event:', 'provider:']) {
      await page.locator('#filter').fill(key);
      const suggested = await page.locator('#suggestions code').allTextContents();
      assert.ok(suggested.length >= 10, String(suggested.length));
      for (const filter of suggested) assert.ok((await world.exchanges(filter)).length >= 1, filter);
    }
    await page.locator('#filter').fill('');
  });
});

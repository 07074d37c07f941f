// The two pictures of the README, of the real page over made-up but realistic webhooks. They are always made in
// target/browser; with UPDATE_PICTURES=1 they take the place of those in tests/browser/pictures.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { SHOTS, World, complete, endBrowser, heading, row, shot } from './world.mjs';

const PICTURES = fileURLToPath(new URL('pictures', import.meta.url));

const stripe = (amount, type = 'charge.succeeded', id = 'evt_1QZk2vLkdIwHu7ix') => ({
  id, object: 'event', api_version: '2026-10-29', created: Math.floor(Date.now() / 1000) - 40, type, livemode: false,
  data: { object: { id: 'ch_3QZk2uLkdIwHu7ix1b', amount, currency: 'eur', paid: true, status: 'succeeded', receipt_email: 'ada@example.com', metadata: { order_id: '6735' } } },
  pending_webhooks: 1,
});
const STRIPE = [['user-agent', 'Stripe/1.0 (+https://stripe.com/docs/webhooks)'], ['stripe-signature', '']];
const GITHUB = (event) => [['user-agent', 'GitHub-Hookshot/7d3c1a2'], ['x-github-event', event], ['x-hub-signature-256', '']];
const SHOPIFY = (topic) => [['user-agent', 'Shopify-Captain-Hook'], ['x-shopify-topic', topic], ['x-shopify-hmac-sha256', 'XWmrwMey6OsLMeiZKwP4FppHH3cmAiiJJAweH5Jo4bM=']];

/** What is known of a webhook, by its path and what it says. */
function known(path, headers, content) {
  const named = (name) => headers.find(([is]) => is === name)?.[1] ?? null;
  const of = (provider, event, secret, deadline_ns) => ({ provider, event, signature: 'ok', secret, deadline_ns });
  if (path.startsWith('/stripe')) return { ...of('stripe', content.type, 'STRIPE_WEBHOOK_SECRET', null), event_id: content.id };
  if (path.startsWith('/github')) return of('github', [named('x-github-event'), content.action].filter(Boolean).join('.'), 'GITHUB_WEBHOOK_SECRET', 10e9);
  if (path.startsWith('/shopify')) return of('shopify', named('x-shopify-topic'), 'SHOPIFY_API_SECRET', 5e9);
  if (path.startsWith('/slack')) return of('slack', 'app_mention', 'SLACK_SIGNING_SECRET', 3e9);
  return { provider: 'twilio', event: 'sms', signature: 'none', detail: 'not checked; to check it: hookway … --verify twilio=TWILIO_AUTH_TOKEN' };
}

// What is sent again is checked for real, and signed afresh.
const SECRETS = { STRIPE_WEBHOOK_SECRET: 'whsec_picture', GITHUB_WEBHOOK_SECRET: 'picture' };
const hmac = (/** @type {string} */ secret, /** @type {string} */ text) => createHmac('sha256', secret).update(text).digest('hex');
/** The headers with a good signature in them. */
const signed = (headers, text, time) => headers.map(([name, value]) => {
  if (name === 'stripe-signature') return [name, `t=${time},v1=${hmac(SECRETS.STRIPE_WEBHOOK_SECRET, `${time}.${text}`)}`];
  return [name, name === 'x-hub-signature-256' ? `sha256=${hmac(SECRETS.GITHUB_WEBHOOK_SECRET, text)}` : value];
});

const idOf = (/** @type {number} */ at) => `req_01M7Z0B${String(at).padStart(19, '0')}`;
const ORIGINAL = idOf(99);
const REFUSED = { failure: 'refused', short: 'refused', message: "nothing answers at the local app's address http://localhost:3000: Connection refused (os error 111)" };

/** Seconds ago, path, headers, body, status or failure, milliseconds. */
const HISTORY = [
  [840, '/github', GITHUB('push'), { ref: 'refs/heads/main', commits: [{ id: '9b1c7e2' }] }, 204, 8],
  [822, '/github', GITHUB('check_suite'), { action: 'completed' }, 204, 6],
  [790, '/shopify/orders', SHOPIFY('orders/create'), { id: 820982911946154508, total_price: '403.00' }, 200, 31],
  [745, '/stripe/webhook', STRIPE, stripe(1900, 'payment_intent.created'), 200, 14],
  [744, '/stripe/webhook', STRIPE, stripe(1900, 'charge.succeeded'), 200, 19],
  [690, '/slack/events', [['user-agent', 'Slackbot 1.0 (+https://api.slack.com/robots)'], ['x-slack-signature', 'v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503']], { type: 'event_callback' }, 200, 4],
  [610, '/github', GITHUB('pull_request'), { action: 'opened', number: 128 }, 204, 11],
  [540, '/shopify/orders', SHOPIFY('orders/paid'), { id: 820982911946154508 }, 500, 62],
  [539, '/shopify/orders', SHOPIFY('orders/paid'), { id: 820982911946154508 }, 500, 58],
  [470, '/stripe/webhook', STRIPE, stripe(4200, 'invoice.paid'), REFUSED, 3004],
  [455, '/stripe/webhook', STRIPE, stripe(4200, 'customer.created'), REFUSED, 3003],
  [402, '/stripe/webhook', STRIPE, stripe(4200, 'invoice.paid'), 200, 44, { replay_of: idOf(9) }],
  [350, '/twilio/sms?from=%2B4915112345678', [['user-agent', 'TwilioProxy/1.1'], ['content-type', 'application/x-www-form-urlencoded'], ['x-twilio-signature', 'GvWf1cFY/Q7PnoempGyD5oXAezc=']], 'MessageSid=SM1f0e8ae6ade43cb3c0ce4525424e404f&Body=yes&NumMedia=0', 200, 17],
  [300, '/github', GITHUB('issue_comment'), { action: 'created' }, 204, 9],
  [245, '/shopify/orders', SHOPIFY('orders/updated'), { id: 820982911946154508 }, 200, 26],
  [240, '/shopify/orders', SHOPIFY('fulfillments/create'), { id: 255858046 }, 200, 23],
  [180, '/stripe/webhook', STRIPE, stripe(1250, 'charge.refunded'), 422, 12],
  [121, '/github', GITHUB('push'), { ref: 'refs/heads/retry-queue' }, 204, 7],
  [95, '/stripe/webhook', STRIPE, stripe(4200, 'payment_intent.succeeded'), 200, 16],
  [40, '/stripe/webhook', STRIPE, stripe(4200), 500, 27, { id: ORIGINAL }],
  [12, '/stripe/webhook', STRIPE, stripe(4200), 200, 21, { replay_of: ORIGINAL }],
];

let world;
before(async () => {
  const now = Date.now();
  const free = (await Promise.all([3000, 8080, 8443].map(isFree))).every(Boolean);
  world = await World.start({ stored: HISTORY.map((entry, at) => line(entry, at, now)), ports: free ? { app: 3000, http: 8080, https: 8443 } : {}, words: ['--history-count', '10000', '--verify', 'stripe', '--verify', 'github'], secrets: SECRETS });
  world.app.answer = () => ({ status: 200, headers: ['content-type', 'application/json; charset=utf-8', 'x-request-id', 'f058ebd6-02f7'], body: '{"received":true,"order":"6736","credited":0}' });
  // One that really comes in, so that the page knows the app to be up.
  const run = { action: 'completed', workflow_run: { conclusion: 'success' } };
  await world.sendJson('/github', run, signed(GITHUB('workflow_run'), JSON.stringify(run)));
});
after(() => world?.end());
after(endBrowser);

function isFree(port) {
  return fetch(`http://127.0.0.1:${port}/`, { signal: AbortSignal.timeout(1000) }).then(() => false, (error) => error.cause?.code === 'ECONNREFUSED');
}

function line([ago, target, headers, content, result, ms, more = {}], at, now) {
  const time = (plus = 0) => new Date(now - ago * 1000 + plus).toISOString();
  const text = typeof content === 'string' ? content : JSON.stringify(content);
  const all = [['host', 'demo.localhost:8080'], ['content-type', 'application/json; charset=utf-8'], ...signed(headers, text, Math.floor((now - ago * 1000) / 1000)), ['content-length', String(text.length)]];
  const answered = typeof result === 'number';
  const reply = result === 500 ? ['application/json', '{"error":"order 6735 is locked by another worker"}'] : result === 422 ? ['application/json', '{"error":"no such charge"}'] : result === 204 ? null : ['application/json', '{"received":true}'];
  return {
    hookway: 1, endpoint: 'demo', remote: `54.187.${at}.12`, received_at: time(),
    id: idOf(at),
    ...more,
    webhook: { ...known(target, headers, content), resigned: more.replay_of !== undefined, ...more.webhook },
    request: { method: 'POST', path: target, headers: all.filter(([name], index) => all.findLastIndex(([other]) => other === name) === index), body: { bytes: text } },
    attempts: [{
      number: 1, at: time(1), url: `http://localhost:3000${target}`, message: answered ? '' : result.message,
      outcome: answered ? { state: 'answered', status: result } : { state: 'failed', failure: result.failure, short: result.short },
      connect_ns: answered ? 310_000 : null, first_byte_ns: answered ? ms * 1e6 - 600_000 : null, duration_ns: ms * 1e6,
      reply: answered ? { status: result, headers: [...(reply ? [['content-type', reply[0]]] : []), ['date', new Date(now - ago * 1000).toUTCString()], ['connection', 'keep-alive']], body: { bytes: reply?.[1] ?? '' } } : null,
    }],
  };
}

async function picture(page, name) {
  await page.mouse.move(0, 0);
  await page.locator('#notice .notice-text').waitFor({ state: 'detached' });
  await shot(page, name);
  const made = path.join(SHOTS, `${name}.png`);
  assert.ok(fs.statSync(made).size < 250_000, `${name}.png has ${fs.statSync(made).size} bytes`);
  if (process.env.UPDATE_PICTURES !== '1') return;
  fs.mkdirSync(PICTURES, { recursive: true });
  fs.copyFileSync(made, path.join(PICTURES, `${name}.png`));
}

test('the list, and an exchange that failed', async (t) => {
  const page = await world.open(t);
  await complete(page, HISTORY.length + 1);
  await row(page, '500').filter({ hasText: '/stripe/webhook' }).first().click();
  await heading(page).filter({ hasText: '/stripe/webhook' }).waitFor();
  await page.locator('.tree').first().waitFor();
  await page.locator('#timeline').getByText(`${HISTORY.length + 1} exchanges`).waitFor();
  await picture(page, 'inspector');
});

test('edit & resend, with the diff', async (t) => {
  const page = await world.open(t, { theme: 'dark', query: `?filter=path:/stripe*&id=${ORIGINAL}` });
  await heading(page).filter({ hasText: '/stripe/webhook' }).waitFor();
  await page.locator('#splitter').focus();
  for (let step = 0; step < 4; step += 1) await page.keyboard.press('ArrowLeft');
  await page.locator('#edit').click();
  const body = page.locator('#edit-body');
  await body.fill((await body.inputValue()).replace('"amount":4200', '"amount":0').replace('"order_id":"6735"', '"order_id":"6736"'));
  await page.getByRole('button', { name: 'Send', exact: true }).click();
  await page.locator('.result .diff').waitFor();
  await page.locator('#detail').evaluate((pane) => {
    const area = pane.querySelector('#edit-body');
    pane.scrollTop += area.getBoundingClientRect().top - pane.getBoundingClientRect().top - 34;
  });
  await picture(page, 'resend');
});

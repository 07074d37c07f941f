// A webhook is an attacker's text, and any web page may try to speak to the inspector: nothing runs, nothing is read,
// nothing is sent.

import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, describe, test } from 'node:test';
import { corpus, plain } from './corpus.mjs';
import { NETWORK_ERRORS, World, complete, count, endBrowser, eventually, row, startBrowser } from './world.mjs';

/** A server that nobody may call: what calls it is in `seen`. */
async function listen(answer = (/** @type {any} */ _, response) => response.end()) {
  const seen = [];
  const server = http.createServer((request, response) => {
    seen.push(`${request.method} ${request.headers.host}${request.url}`);
    answer(request, response);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  return { seen, port, origin: `http://127.0.0.1:${port}`, close: () => (server.closeAllConnections(), server.close()) };
}

// evil.example leads here, as a name does whose owner lets it lead to this machine.
before(() => startBrowser(['--host-resolver-rules=MAP evil.example 127.0.0.1']));
after(endBrowser);

describe('hostile text', () => {
  let world;
  let canary;
  let strings;
  before(async () => {
    canary = await listen((_, response) => response.writeHead(200, { 'content-type': 'text/javascript', 'access-control-allow-origin': '*' }).end('top.__pwned=1'));
    strings = corpus(canary.origin);
    world = await World.start({ stored: plain(canary.origin).map(stored) });
    world.app.answer = ({ headers, body }) => echo(headers, body);
    const queue = strings.map((text, at) => webhook(text, at));
    const sender = async () => {
      for (let next = queue.pop(); next; next = queue.pop()) {
        const { status } = await world.send(next.raw);
        // What no request line may hold goes in encoded.
        if (status === 400) assert.notEqual((await world.send(next.encoded)).status, 400, JSON.stringify(next.encoded));
      }
    };
    await Promise.all(Array.from({ length: 6 }, sender));
    await eventually(async () => (await world.exchanges('-endpoint:imported')).length >= strings.length, 'all kept');
  });
  after(async () => {
    await world.end();
    canary.close();
  });

  test('runs where a page takes it for HTML, so that the watch is known to work', async (t) => {
    const browser = await startBrowser();
    const context = await browser.newContext();
    t.after(() => context.close());
    const page = await context.newPage();
    const texts = plain(canary.origin).slice(0, 12);
    const bare = await listen((request, response) => response.writeHead(200, { 'content-type': 'text/html' }).end(`<!doctype html><body>${texts[Number(request.url.slice(1))]}`));
    t.after(bare.close);
    let ran = 0;
    for (const at of texts.keys()) {
      await page.goto(`${bare.origin}/${at}`);
      ran += Number(await page.evaluate(() => Number(window.__pwned ?? 0)));
    }
    assert.ok(ran >= 4, `${ran} ran`);
    await eventually(() => canary.seen.length >= 4, 'calls of the canary');
    canary.seen.length = 0;
  });

  test('runs nowhere in the list, in any tab, in any view of a body, in the editor, in a diff', async (t) => {
    assert.ok(strings.length >= 500, `${strings.length} strings`);
    const all = (await world.exchanges()).length;
    assert.ok((await world.exchanges('provider:github')).length >= 200);
    // Two pages: one from the newest down, one from the oldest up.
    const opened = await Promise.all([['g', 'j'], ['G', 'k']].map(async ([start, step]) => {
      // A small window, since what is drawn costs more than what is tested.
      const page = await world.open(t, { size: { width: 800, height: 320 } });
      await complete(page, all);
      const result = await page.evaluate(openEverything, { all: Math.ceil(all / 2), start, step });
      assert.equal(await page.evaluate(() => window.__pwned), undefined);
      assert.equal(page.frames().length, 1);
      return result;
    }));
    const views = opened.reduce((sum, half) => sum + half.views, 0);
    assert.equal(new Set(opened.flatMap(({ seen }) => seen)).size, all);
    assert.ok(views > all * 8, String(views));
    assert.deepEqual(canary.seen, []);
    t.diagnostic(`${strings.length} strings, ${all} exchanges, ${views} views`);
  });

  test('runs nowhere in the address, the filter, its chips, suggestions and errors, or the title', async (t) => {
    const page = await world.open(t, { expected: [NETWORK_ERRORS] });
    await count(page, (await world.exchanges()).length);
    await page.evaluate(async (texts) => {
      for (const text of texts) {
        for (const query of [{ filter: text }, { filter: `path:"${text}"` }, { id: text, tab: text }, { id: '@1', diff: text }]) {
          history.pushState(null, '', `?${new URLSearchParams(query)}`);
          dispatchEvent(new PopStateEvent('popstate'));
          await new Promise(requestAnimationFrame);
        }
      }
      history.pushState(null, '', '?');
      dispatchEvent(new PopStateEvent('popstate'));
    }, plain(canary.origin));
    await page.locator('#filter').fill('path:');
    await page.locator('#suggestions [role=option]').first().waitFor();
    await page.locator('#filter').fill('');
    await page.goto(`${world.inspector}/?filter=${encodeURIComponent(plain(canary.origin)[3])}&id=${encodeURIComponent(plain(canary.origin)[6])}`);
    await page.locator('#session .state').waitFor();
    assert.equal(await page.evaluate(() => window.__pwned), undefined);
    assert.deepEqual(canary.seen, []);
  });

  test('bodies opened on their own are downloads, not pages', async (t) => {
    const [html] = await world.exchanges('header.content-type:text/html');
    const page = await world.open(t);
    for (const target of [`/api/exchanges/${html.id}/request/body`, `/api/exchanges/${html.id}/attempts/1/reply/body`, '/api/export?format=har', '/api/export?format=jsonl']) {
      const [file] = await Promise.all([page.waitForEvent('download'), page.evaluate((url) => void (location.href = url), target)]);
      assert.ok(await file.path());
      const { headers } = await fetch(world.inspector + target).then(async (response) => (await response.body.cancel(), response));
      assert.match(headers.get('content-disposition'), /^attachment/);
      assert.equal(headers.get('x-content-type-options'), 'nosniff');
      assert.match(headers.get('content-security-policy'), /default-src 'none'/);
    }
    assert.deepEqual(canary.seen, []);
  });
});

// ── the webhooks ────────────────────────────────────────────────────────────────────────────────────────────────────

/** As a header takes it: its bytes, without what ends a line. */
const value = (/** @type {string} */ text) => text.replaceAll(/[\x00-\x08\x0a-\x1f\x7f]/g, ' ').trim();
const name = (/** @type {string} */ text) => `x-${text.replaceAll(/[^\w!#$%&'*+.^`|~-]/g, '').slice(0, 60)}`.toLowerCase();
const xml = (/** @type {string} */ text) => text.replaceAll(']]>', ']] >');

const BODIES = [
  (text) => ['application/json', JSON.stringify({ [text]: text, list: [text, { html: text }], created: 1795000000 })],
  (text) => ['application/x-www-form-urlencoded', `${encodeURIComponent(text)}=${encodeURIComponent(text)}&raw=${text.replaceAll('&', '%26')}`],
  (text) => ['multipart/form-data; boundary=b', [
    `--b\r\ncontent-disposition: form-data; name="${value(text).replaceAll('"', '%22')}"\r\n\r\n${text}\r\n`,
    `--b\r\ncontent-disposition: form-data; name="file"; filename="${value(text).replaceAll('"', '\\"')}.html"\r\ncontent-type: text/html\r\nx-part: ${value(text)}\r\n\r\n${text}\r\n--b--\r\n`].join('')],
  (text) => ['application/xml', `<?xml version="1.0"?><?xml-stylesheet href="javascript:top.__pwned=1"?><!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a b="${text.replaceAll('"', '&quot;')}"><![CDATA[${xml(text)}]]>&e;${text}</a>`],
  (text) => ['text/plain', text],
  (text) => ['text/html; charset=utf-8', `<!doctype html><title>${text}</title><body>${text}`],
  (text) => ['image/svg+xml', `<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40" onload="top.__pwned=1"><script>top.__pwned=1</script>${text}<rect width="40" height="40"/></svg>`],
  (text) => ['application/json', `{"broken": "${text}`],
];

/** The string in every part of a request that can hold it. */
function webhook(text, at) {
  const [type, body] = BODIES[at % BODIES.length](text);
  const headers = [['content-type', type], ['x-text', value(text)], [name(text), value(text)], ['user-agent', value(text)], ['referer', value(text)], ['x-forwarded-for', value(text)], ['cookie', value(text)], ['x-reply-type', type]];
  // With this one it is a webhook, whose event is called so.
  if (at % 2) headers.push(['x-github-event', value(text)]);
  const target = text.replaceAll(/[\s#?]/g, encodeURIComponent);
  const encoded = encodeURIComponent(text);
  const method = ['POST', 'PUT', 'PROPFIND', 'M-SEARCH'][at % 4];
  return {
    raw: { method, path: `/${target}?${target}=${target}`, headers, body },
    encoded: { method, path: `/${encoded}?${encoded}=${encoded}`, headers, body },
  };
}

/** The app says it back, with headers that a page must not follow. */
function echo(headers, body) {
  const of = (/** @type {string} */ wanted) => headers.find(([is]) => is.toLowerCase() === wanted)?.[1] ?? 'text/plain';
  const text = of('x-text');
  return { status: 200 + (body.length % 5) * 75, headers: ['content-type', of('x-reply-type'), 'x-echo', text, name(text), text, 'refresh', `0;url=${text}`, 'link', `<${text}>; rel=preload`, 'location', text, 'set-cookie', text], body };
}

/** What no sender can choose, but an imported file can: addresses, URLs, messages. */
const stored = (text, at) => ({
  endpoint: 'imported', remote: text, received_at: new Date(Date.now() - at * 1000).toISOString(),
  request: { method: "X'!`|~", path: `/imported/${at}?${encodeURIComponent(text)}`, headers: [['x-text', value(text)]], body: { bytes: text }, trailers: [['x-trailer', value(text)]] },
  attempts: [
    { number: 1, at: new Date().toISOString(), url: text, outcome: { state: 'failed', failure: 'refused', short: text }, message: text, duration_ns: 5 },
    { number: 2, at: new Date().toISOString(), url: text, outcome: { state: 'cut', status: 299 }, message: text, duration_ns: 5, reply: { status: 299, headers: [['content-type', text.replaceAll(/[^ -~]/g, '')]], body: { bytes: text }, trailers: [['x-trailer', value(text)]] } },
  ],
});

/** Runs in the page: by its keys and buttons, everything there is to see of every exchange. */
async function openEverything({ all, start, step }) {
  const frame = () => new Promise((resolve) => { setTimeout(resolve, 0); });
  const until = async (condition, what) => {
    for (const end = performance.now() + 20_000; !condition();) {
      if (performance.now() > end) throw new Error(`${what}: ${document.getElementById('detail').textContent.slice(0, 300)}`);
      await frame();
    }
  };
  const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
  const detail = document.getElementById('detail');
  const drawn = () => !detail.hasAttribute('aria-busy');
  const opened = () => [...detail.querySelectorAll('.facts .mono')].at(-1)?.textContent;
  let views = 0;
  let last;
  const seen = new Set();
  for (let at = 0; at < all; at += 1) {
    press(at === 0 ? start : step);
    await until(() => drawn() && opened() && opened() !== last, `exchange ${at}`);
    last = opened();
    seen.add(last);
    for (const tab of ['1', '2', '3', '4', '5']) {
      press(tab);
      views += 1;
      // The overview has both bodies; the other tabs show the same ones in the view that was chosen last.
      for (const group of tab === '1' ? detail.querySelectorAll('#panel .segmented') : []) {
        for (const choice of group.querySelectorAll('button')) {
          choice.click();
          views += 1;
          for (const img of detail.querySelectorAll('#panel img')) await img.decode().catch(() => {});
        }
        group.querySelector('button').click();
      }
      for (const more of detail.querySelectorAll('#panel .view-tools button')) more.click();
      if (tab === '2') {
        const search = detail.querySelector('#panel input[type=search]');
        if (search) {
          search.value = detail.querySelector('h2').textContent.slice(-12);
          search.dispatchEvent(new Event('input'));
        }
        detail.querySelector('#panel button[aria-label^=Reveal]')?.click();
      }
    }
    press('1');
    if (at % 16 === 0) {
      press('e');
      await until(() => detail.querySelector('form.editor'), 'the editor');
      views += 1;
      press('Escape');
      await until(() => detail.querySelector('#panel'), 'the exchange again');
      press('d');
      const compare = [...detail.querySelectorAll('.choosing button')].find((button) => /Previous/.test(button.textContent));
      if (compare) {
        compare.click();
        await until(() => drawn() && detail.querySelector('.diff'), 'the diff');
        views += 1;
      }
      press('Escape');
      await until(() => drawn() && opened() === last, 'the exchange again');
    }
    if (at % 8 === 1) await frame();
  }
  return { seen: [...seen], views };
}

// ── other sites ─────────────────────────────────────────────────────────────────────────────────────────────────────

describe('a page of another origin', () => {
  let world;
  let evil;
  let id;
  before(async () => {
    const serve = (_, response) => response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><title>evil</title><body>evil');
    evil = await listen(serve);
    world = await World.start();
    world.app.answer = () => ({ status: 200, headers: ['content-type', 'text/html'], body: '<!doctype html><title>evil</title><body>evil' });
    await world.sendJson('/secret-order', { secret: 'top-secret-body' });
    [{ id }] = await eventually(async () => (await world.exchanges('path:/secret-order status:200')).length && world.exchanges('path:/secret-order'), 'the exchange');
  });
  after(async () => {
    await world.end();
    evil.close();
  });

  /** Lets the page at this URL attack, and gives what it could read or do. */
  async function attackFrom(t, url, bases, prepare) {
    const { port } = new URL(world.inspector);
    const { token } = await world.api('/api/status');
    const browser = await startBrowser();
    const context = await browser.newContext();
    t.after(() => context.close());
    const page = await context.newPage();
    await prepare?.(page);
    await page.goto(url);
    // The browser may ask the tunnel for an icon.
    const arrived = () => world.app.seen.filter(({ path }) => path === '/secret-order').length;
    const before = await world.exchanges('path:/secret-order');
    const results = [];
    for (const base of bases.map((host) => `http://${host}:${port}`)) {
      results.push(...await page.evaluate(attack, { base, id, token }));
      for (const frame of page.frames().slice(1)) {
        const text = await frame.evaluate(() => document.documentElement.textContent).catch(() => '');
        if (/Hookway|top-secret/.test(text) && !/refused|blocked/.test(text)) results.push(`framed ${base}`);
      }
    }
    assert.deepEqual(results, []);
    assert.equal(arrived(), 1, 'nothing was replayed');
    assert.deepEqual(await world.exchanges('path:/secret-order'), before, 'nothing was changed');
  }
  const hosts = ['127.0.0.1', 'localhost', 'evil.localhost', 'evil.example'];

  for (const host of hosts) {
    test(`at http://${host} on another port reads nothing and replays nothing`, (t) => attackFrom(t, `http://${host}:${evil.port}/`, hosts));
  }

  test("that is the tunnel's own public page reads nothing and replays nothing", async (t) => {
    await attackFrom(t, `http://demo.localhost:${world.port}/evil`, hosts);
  });

  test('whose name was made to lead here (DNS rebinding) reads nothing and replays nothing', async (t) => {
    const { port } = new URL(world.inspector);
    // Its first answer came from its own server; from then on the name leads to the inspector.
    const origin = `http://evil.example:${port}`;
    await attackFrom(t, `${origin}/evil`, ['evil.example', '127.0.0.1'], (page) => page.route(`${origin}/evil`, (route) => route.fulfill({ contentType: 'text/html', body: '<!doctype html><title>evil</title><body>evil' })));
  });

  test('may link to the inspector, which then opens without it', async (t) => {
    const page = await world.open(t);
    await row(page, '/secret-order').waitFor();
    const browser = await startBrowser();
    const context = await browser.newContext();
    t.after(() => context.close());
    const from = await context.newPage();
    await from.goto(`http://evil.example:${evil.port}/`);
    const [opened] = await Promise.all([context.waitForEvent('page'), from.evaluate((url) => void (window.opened = window.open(url)), world.inspector)]);
    await opened.locator('#session .state').waitFor();
    assert.equal(await opened.evaluate(() => window.opener), null);
    assert.equal(await from.evaluate(() => {
      try {
        return window.opened.document.title;
      } catch {
        return 'refused';
      }
    }), 'refused');
  });
});

/** Runs in the other page: all ways to reach an address of which one of another origin could have something. */
async function attack({ base, id, token }) {
  const got = [];
  const read = async (what, promise) => {
    try {
      const response = await promise;
      const text = await response.text();
      if (response.ok || /top-secret|"token"/.test(text)) got.push(`${what}: ${response.status} ${text.slice(0, 80)}`);
    } catch {
      // Refused by the browser.
    }
  };
  const within = (promise) => Promise.race([promise, new Promise((resolve) => { setTimeout(resolve, 1500); })]);
  const element = (tag, props) => within(new Promise((resolve) => {
    const made = Object.assign(document.createElement(tag), props);
    made.onload = () => resolve(tag === 'iframe' || got.push(`${tag} ${made.src || made.href} loaded`));
    made.onerror = resolve;
    document.body.append(made);
  }));
  const form = (target, enctype, fields) => within(new Promise((resolve) => {
    const frame = Object.assign(document.createElement('iframe'), { name: `f${Math.random()}`, onload: resolve });
    const made = Object.assign(document.createElement('form'), { method: 'POST', action: base + target, enctype, target: frame.name });
    for (const [name, value] of Object.entries(fields)) made.append(Object.assign(document.createElement('input'), { name, value }));
    document.body.append(frame, made);
    made.submit();
  }));
  const replay = `/api/exchanges/${id}/replay`;
  const paths = ['/', '/api/status', '/api/exchanges', `/api/exchanges/${id}?secrets=true`, `/api/exchanges/${id}/curl`, `/api/exchanges/${id}/request/body`, '/api/export?format=har', '/api/openapi.json'];
  await Promise.all([
    ...paths.flatMap((path) => [read(`cors ${path}`, fetch(base + path)), read(`no-cors ${path}`, fetch(base + path, { mode: 'no-cors', credentials: 'include' }))]),
    read('replay as text', fetch(base + replay, { method: 'POST', mode: 'no-cors', body: '{}' })),
    read('replay as a form', fetch(base + replay, { method: 'POST', mode: 'no-cors', body: new URLSearchParams({ a: '1' }) })),
    read('replay as JSON', fetch(base + replay, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' })),
    read('replay with the token', fetch(base + replay, { method: 'POST', headers: { 'content-type': 'application/json', 'hookway-token': token }, body: '{}' })),
    read('delete', fetch(`${base}/api/exchanges/${id}`, { method: 'DELETE', headers: { 'hookway-token': token } })),
    read('delete all', fetch(`${base}/api/exchanges`, { method: 'DELETE', headers: { 'hookway-token': token } })),
    read('pin', fetch(`${base}/api/exchanges/${id}/pin`, { method: 'PUT', headers: { 'content-type': 'application/json', 'hookway-token': token }, body: '{"pinned":true}' })),
    within(new Promise((resolve) => {
      const events = new EventSource(`${base}/api/events?after=0`);
      events.onopen = () => resolve(got.push(`events ${base}`));
      events.onerror = () => resolve(events.close());
    })),
    within(new Promise((resolve) => {
      const socket = new WebSocket(`${base.replace('http', 'ws')}/api/events`);
      socket.onopen = () => resolve(got.push(`websocket ${base}`));
      socket.onerror = resolve;
    })),
    element('img', { src: `${base}/favicon.svg` }),
    element('script', { src: `${base}/theme.js` }),
    element('script', { type: 'module', src: `${base}/app.js` }),
    element('script', { src: `${base}/api/status` }),
    element('link', { rel: 'stylesheet', href: `${base}/style.css` }),
    element('iframe', { src: `${base}/` }),
    element('iframe', { src: `${base}/api/exchanges/${id}` }),
    element('object', { data: `${base}/api/status` }).then(() => {}),
    form(replay, 'text/plain', { '{"a":"': '"}' }),
    form(replay, 'application/x-www-form-urlencoded', { 'Hookway-Token': token }),
    form(`/api/exchanges/${id}`, 'multipart/form-data', { _method: 'DELETE', token }),
    navigator.sendBeacon(base + replay, new Blob(['{}'], { type: 'text/plain' })),
  ]);
  for (const frame of document.querySelectorAll('iframe')) {
    try {
      if (frame.contentDocument?.body?.textContent) got.push(`frame ${frame.src}: ${frame.contentDocument.body.textContent.slice(0, 80)}`);
    } catch {
      // Refused by the browser.
    }
  }
  return got;
}

// A HAR export before those who read HAR: the published schema, a browser that is given its answers from it, and the
// import of Chromium's developer tools.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import Ajv from 'ajv';
import schemas from 'har-schema';
import { World, endBrowser, eventually, shot, startBrowser } from './world.mjs';

const DRAFT_06 = createRequire(import.meta.url)('ajv/lib/refs/json-schema-draft-06.json');
const EVERY_BYTE = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
const TEXT = 'Grüße, 🦀 "quoted" \\ \r\n\tline two\n';
const JSON_TEXT = JSON.stringify({ zipped: 'x'.repeat(2000), ä: 1 });

// By path, what the app answers; `plain` is its body without the content encoding.
const ANSWERS = {
  '/page': { headers: { 'Content-Type': 'text/html' }, body: '<!doctype html><title>From the HAR</title>' },
  '/text?a=1&a=%202&b': { headers: { 'Content-Type': 'text/plain; charset=utf-8', 'X-Twice': ['one', 'two'], 'X-Empty': '' }, body: TEXT },
  '/binary': { headers: { 'Content-Type': 'application/octet-stream' }, body: EVERY_BYTE },
  '/gzip': { headers: { 'Content-Type': 'application/json', 'Content-Encoding': 'gzip' }, body: gzipSync(JSON_TEXT), plain: JSON_TEXT },
  '/gzip-binary': { headers: { 'Content-Type': 'image/png', 'Content-Encoding': 'gzip' }, body: gzipSync(EVERY_BYTE), plain: EVERY_BYTE },
  '/empty': { status: 204, headers: { 'X-Reason': 'nothing to say' }, body: '' },
  '/missing': { status: 404, headers: { 'Content-Type': 'application/json' }, body: '{"error":"no such thing"}' },
};
const POSTS = {
  '/post/binary': { type: 'application/octet-stream', body: EVERY_BYTE },
  '/post/json': { type: 'application/json', body: Buffer.from('{"ä": "🦀"}') },
  '/post/form': { type: 'application/x-www-form-urlencoded', body: Buffer.from('a=1&a=%20+2&token=tok_1&empty=') },
};
// Of all that makes an entry unusual. Its body is longer than what is kept.
const ODD = { path: '/odd/[1-3]{a,b}//../%zz?token=tok_1&&=&x', headers: [['cookie', 'a=1; b'], ['x-latin', 'caf\u00e9'], ['authorization', 'Bearer sk_live_1']], body: Buffer.alloc(3 << 20, 'x') };
const ALL = Object.keys({ ...ANSWERS, ...POSTS }).length + 3;
const created = (/** @type {string} */ path) => Buffer.concat([Buffer.from(`created by ${path}: `), EVERY_BYTE]);

let world;
let file;
before(async () => {
  world = await World.start();
  world.app.answer = ({ method, path }) => {
    if (path === '/odd/redirect') return { status: 302, headers: { 'Location': '/elsewhere?token=tok_2', 'Set-Cookie': ['a=1; Path=/; Expires=Wed, 21 Oct 2037 07:28:00 GMT', 'b=2'] } };
    if (method === 'POST') return { status: 201, headers: { 'Content-Type': 'application/x-made' }, body: created(path) };
    const { status = 200, headers, body } = ANSWERS[path];
    return { status, headers, body };
  };
  for (const path of Object.keys(ANSWERS)) await world.send({ method: 'GET', path });
  for (const [path, { type, body }] of Object.entries(POSTS)) await world.send({ path, headers: [['content-type', type]], body });
  await world.send(ODD);
  await world.send({ path: '/odd/redirect' });
  // From here on there is no app: what a browser gets is from the file.
  await world.app.stop();
  await world.send({ path: '/odd/refused' });
  // The history is written a moment after the answer.
  await eventually(async () => (await world.exchanges()).filter(({ state }) => state === 'done').length === ALL, 'all of them in the history');
  file = join(world.folder, 'hookway.har');
  await world.export('--har', '--output', file);
});
after(() => world?.end());
after(endBrowser);

const origin = () => `http://localhost:${world.app.port}`;
const plain = ({ body, plain = body }) => Buffer.from(plain);

describe('the schema of HAR 1.2', () => {
  const ajv = new Ajv({ allErrors: true });
  ajv.addMetaSchema(DRAFT_06);
  ajv.addSchema(Object.values(schemas));
  const errors = (/** @type {any} */ har) => (ajv.validate('har.json#', har) ? [] : ajv.errors.map(({ dataPath, message }) => `${dataPath} ${message}`));

  test('takes what is exported, secrets shown or masked', async () => {
    for (const words of [['--har'], ['--har', '--secrets'], ['--har', '--filter', 'path:/none-of-them']]) {
      const har = JSON.parse(await world.export(...words));
      assert.equal(har.log.entries.length, words.includes('--filter') ? 0 : ALL);
      assert.deepEqual(errors(har), [], words.join(' '));
      // What the importer of Firefox reads without asking whether it is there.
      assert.ok(Array.isArray(har.log.pages));
      for (const { request, startedDateTime, timings } of har.log.entries) {
        assert.ok(URL.canParse(request.url), request.url);
        assert.ok(Date.parse(startedDateTime) > 0, startedDateTime);
        for (const key of ['blocked', 'dns', 'connect', 'ssl', 'send', 'wait', 'receive']) assert.ok(Number.isFinite(timings[key]), key);
      }
    }
  });

  test('refuses what is not HAR', () => {
    const har = JSON.parse(fs.readFileSync(file, 'utf8'));
    delete har.log.entries[0].cache;
    har.log.entries[1].startedDateTime = 'yesterday';
    har.log.entries[2].response.content.size = '3';
    assert.deepEqual([...new Set(errors(har).map((error) => error.split(' ')[0]))], ['.log.entries[0]', '.log.entries[1].startedDateTime', '.log.entries[2].response.content.size']);
  });
});

describe('a browser that has nothing but the file', () => {
  let page;
  before(async () => {
    const context = await (await startBrowser()).newContext();
    await context.routeFromHAR(file, { notFound: 'abort' });
    page = await context.newPage();
    await page.goto(`${origin()}/page`);
    assert.equal(await page.title(), 'From the HAR');
  });
  after(() => page?.context().close());

  /** What a script of the page gets; bytes as numbers, for they go through JSON. */
  const fetched = async (/** @type {string} */ path, /** @type {Record<string, any>} */ options = {}) => {
    const answer = await page.evaluate(async ([url, { body, ...rest }]) => {
      const response = await fetch(url, { ...rest, body: body && new Uint8Array(body) });
      return { status: response.status, headers: [...response.headers], body: [...new Uint8Array(await response.arrayBuffer())] };
    }, [`${origin()}${path}`, { ...options, body: options.body && [...options.body] }]);
    return { status: answer.status, headers: Object.fromEntries(answer.headers), body: Buffer.from(answer.body) };
  };

  for (const [path, answer] of Object.entries(ANSWERS)) {
    test(`gets the answer of ${path}`, async () => {
      const got = await fetched(path);
      assert.equal(got.status, answer.status ?? 200);
      assert.deepEqual(got.body, plain(answer));
      // Of a name that comes twice Playwright passes on the last value.
      for (const [name, value] of Object.entries(answer.headers)) assert.equal(got.headers[name.toLowerCase()], [value].flat().at(-1), name);
    });
  }

  for (const [path, { type, body }] of Object.entries(POSTS)) {
    test(`gets the answer to ${path} for the same body only`, async () => {
      const options = { method: 'POST', headers: { 'content-type': type } };
      const got = await fetched(path, { ...options, body });
      assert.equal(got.status, 201);
      assert.deepEqual(got.body, created(path));
      await assert.rejects(fetched(path, { ...options, body: Buffer.from('another') }), /Failed to fetch/);
    });
  }

  test('gets nothing for what is not in the file', async () => {
    await assert.rejects(fetched('/not-in-it'), /Failed to fetch/);
  });
});

describe('the developer tools of Chromium', () => {
  test('import it', async (t) => {
    const context = await (await startBrowser()).newContext({ viewport: { width: 1280, height: 800 } });
    t.after(() => context.close());
    const page = await context.newPage();
    await page.goto('devtools://devtools/bundled/devtools_app.html');
    await page.getByRole('tab', { name: 'Network', exact: true }).click();
    const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.getByRole('button', { name: /^Import HAR/ }).click()]);
    await chooser.setFiles(file);
    await page.getByText(`${ALL} requests`).waitFor();
    await shot(page, 'har-devtools');

    const imported = await page.evaluate(async () => {
      const { NetworkLog } = await import('./models/logs/logs.js');
      return Promise.all(NetworkLog.NetworkLog.instance().requests().map(async (request) => {
        const content = await request.requestContentData();
        return {
          url: request.url(), method: request.requestMethod, status: request.statusCode, post: await request.requestFormData(),
          headers: request.responseHeaders.map(({ name, value }) => [name.toLowerCase(), value]),
          base64: content.isTextContent ? null : content.base64, text: content.isTextContent ? content.text : null,
          times: [request.startTime, request.responseReceivedTime, request.endTime],
        };
      }));
    });
    assert.equal(imported.length, ALL);
    for (const path of Object.keys({ ...ANSWERS, ...POSTS })) {
      const request = imported.find(({ url }) => url === `${origin()}${path}`);
      assert.ok(request, path);
      const post = POSTS[path];
      const answer = ANSWERS[path] ?? { status: 201, headers: { 'Content-Type': 'application/x-made' }, body: created(path) };
      assert.equal(request.method, post ? 'POST' : 'GET', path);
      assert.equal(request.status, answer.status ?? 200, path);
      assert.deepEqual(request.base64 === null ? Buffer.from(request.text ?? '') : Buffer.from(request.base64, 'base64'), plain(answer), path);
      for (const [name, value] of Object.entries(answer.headers)) {
        assert.deepEqual(request.headers.filter(([is]) => is === name.toLowerCase()).map(([, is]) => is), [value].flat(), `${path}: ${name}`);
      }
      assert.ok(request.times.every((time, at) => time > 1e9 && (at === 0 || time >= request.times[at - 1])), `${path}: ${request.times}`);
    }
    const at = (/** @type {string} */ path) => imported.find(({ url }) => url.includes(path));
    assert.equal(at('/post/json').post, POSTS['/post/json'].body.toString());
    assert.equal(at('/odd/redirect').status, 302);
    assert.equal(at('/odd/refused').status, 0);
  });
});

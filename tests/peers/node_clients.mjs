// Node's own HTTP clients against one URL: https, fetch and http2. One JSON object a line.
// Usage: node node_clients.mjs URL   (NODE_EXTRA_CA_CERTS names the CA; every host is 127.0.0.1)
import dns from "node:dns";
import https from "node:https";
import http2 from "node:http2";
import { createHash, randomBytes } from "node:crypto";

dns.lookup = (_host, options, callback) => {
  const done = callback ?? options;
  if (options.all) done(null, [{ address: "127.0.0.1", family: 4 }]);
  else done(null, "127.0.0.1", 4);
};

const base = process.argv[2];
const body = randomBytes(300_000);
const sha256 = (data) => createHash("sha256").update(data).digest("hex");
const collect = async (stream) => {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
};
const report = (client, status, reply) =>
  console.log(JSON.stringify({ client, status, same: sha256(reply) === sha256(body) }));

async function overHttps(client, headers) {
  const request = https.request(`${base}/echo?by=${client}`, { method: "POST", headers });
  const answered = new Promise((resolve, reject) => {
    request.on("response", resolve);
    request.on("error", reject);
  });
  for (let at = 0; at < body.length; at += 50_000) request.write(body.subarray(at, at + 50_000));
  request.end();
  const response = await answered;
  report(client, response.statusCode, await collect(response));
}

async function overFetch() {
  const response = await fetch(`${base}/echo?by=fetch`, { method: "POST", body });
  report("fetch", response.status, Buffer.from(await response.arrayBuffer()));
}

async function overHttp2() {
  const session = http2.connect(base);
  const stream = session.request({ ":method": "POST", ":path": "/echo?by=http2" });
  const head = new Promise((resolve, reject) => {
    stream.on("response", resolve);
    stream.on("error", reject);
  });
  stream.end(body);
  const headers = await head;
  report("http2", headers[":status"], await collect(stream));
  session.close();
}

await overHttps("https-length", { "content-length": body.length });
await overHttps("https-chunked", { "transfer-encoding": "chunked" });
await overFetch();
await overHttp2();

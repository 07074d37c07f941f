// The `ws` package as WebSocket client of an echoing app. One JSON object a line.
// Usage: node ws_client.mjs wss://HOST:PORT/path CA_FILE   (every host is 127.0.0.1)
import { readFileSync } from "node:fs";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import WebSocket from "ws";

const [url, ca] = process.argv.slice(2);
const lookup = (_host, options, done) =>
  options.all ? done(null, [{ address: "127.0.0.1", family: 4 }]) : done(null, "127.0.0.1", 4);
const socket = new WebSocket(url, ["echo"], { ca: readFileSync(ca), lookup });
const report = (what, value) => console.log(JSON.stringify({ what, value }));

await once(socket, "open");
report("protocol", socket.protocol);

socket.send("grüße ✓");
const [text, textIsBinary] = await once(socket, "message");
report("text", !textIsBinary && text.toString() === "grüße ✓");

const blob = randomBytes(1 << 20);
socket.send(blob);
const [binary, isBinary] = await once(socket, "message");
report("binary", isBinary && blob.equals(binary));

socket.ping("hello");
const [pong] = await once(socket, "pong");
report("pong", pong.toString());

const received = [];
const all = new Promise((resolve) =>
  socket.on("message", (message) => received.push(message.toString()) === 200 && resolve()),
);
for (let n = 0; n < 200; n++) socket.send(`message ${n}`);
await all;
report("in order", received.every((message, n) => message === `message ${n}`));

socket.close(4001, "done here");
const [code, reason] = await once(socket, "close");
report("close", [code, reason.toString()]);

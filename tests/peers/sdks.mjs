// The providers' SDKs for Node. One question a line on stdin, one answer a line on stdout, both JSON:
//   {"do": "sign" | "verify" | "parse", "sdk": "stripe", "secret", "body": base64, "headers": {…}, "url", "now": seconds}
//   {"headers": {…}} | {"ok": true | false | null, "why"} | {"event": …} | {"error": …}
// A null is an abstention: the SDK cannot take such a body (most want UTF-8 text, some refuse an empty one).
// Header names come in lower case, as Node has them. `now` sets the clock that the SDK sees; null leaves it alone.
import { createInterface } from "node:readline";

const say = console.log;
// stdout carries answers only.
console.log = console.info = console.debug = () => {};

let now = null;
const RealDate = Date;
const milliseconds = () => (now === null ? RealDate.now() : Math.round(now * 1000));
globalThis.Date = class extends RealDate {
  constructor(...given) {
    super(...(given.length ? given : [milliseconds()]));
  }
  static now() {
    return milliseconds();
  }
};

/** Thrown where an SDK is not made for a body. */
class Abstains extends Error {}

function text(body) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body);
  } catch {
    throw new Abstains();
  }
}

function someText(body) {
  if (!body.length) throw new Abstains();
  return text(body);
}

/** Form parameters as Express has them: a list where a name is repeated. */
function parameters(body) {
  const found = {};
  for (const [name, value] of new URLSearchParams(text(body))) {
    if (name in found) found[name] = [].concat(found[name], value);
    else found[name] = value;
  }
  return found;
}

const stripe = async () => (await import("stripe")).default.webhooks;
const github = () => import("@octokit/webhooks-methods");
const linear = async (secret) => new (await import("@linear/sdk/webhooks")).LinearWebhookClient(secret);
const paddle = async () => new (await import("@paddle/paddle-node-sdk")).Paddle("unused").webhooks;
const twilio = async () => (await import("twilio/lib/webhooks/webhooks.js")).default;

async function shopify(secret) {
  await import("@shopify/shopify-api/adapters/node");
  const { shopifyApi, ApiVersion, LogSeverity } = await import("@shopify/shopify-api");
  return shopifyApi({
    apiKey: "unused",
    apiSecretKey: secret,
    hostName: "app.example.com",
    apiVersion: Object.values(ApiVersion).at(-1),
    isEmbeddedApp: false,
    logger: { level: LogSeverity.Error },
  }).webhooks;
}

/** Zoom's SDK signs what it has parsed and printed again, so it can only judge a body that comes out the same. */
async function zoom({ secret, body, headers }) {
  const given = text(body);
  let parsed;
  try {
    parsed = JSON.parse(given);
  } catch {
    throw new Abstains();
  }
  if (JSON.stringify(parsed) !== given || typeof parsed?.event !== "string" || typeof parsed.payload !== "object") {
    throw new Abstains();
  }
  const { AwsLambdaReceiver } = await import("@zoom/rivet/meetings");
  const receiver = new AwsLambdaReceiver({ webhooksSecretToken: secret });
  receiver.init({ eventEmitter: { emit: async () => {} } });
  const answer = await receiver.start()({ body: given, headers, isBase64Encoded: false }, {});
  if (answer.statusCode !== 200) throw new Error(answer.body);
  return parsed;
}

const SDKS = {
  stripe: {
    async sign({ secret, body, now }) {
      const header = (await stripe()).generateTestHeaderString({ payload: text(body), secret, timestamp: now });
      return { "Stripe-Signature": header };
    },
    async verify({ secret, body, headers }) {
      return (await stripe()).signature.verifyHeader(someText(body), headers["stripe-signature"], secret, 300);
    },
    async parse({ secret, body, headers }) {
      return (await stripe()).constructEvent(body, headers["stripe-signature"], secret).type;
    },
  },
  github: {
    async sign({ secret, body }) {
      return { "X-Hub-Signature-256": await (await github()).sign(secret, someText(body)) };
    },
    async verify({ secret, body, headers }) {
      return (await github()).verify(secret, someText(body), headers["x-hub-signature-256"]);
    },
  },
  shopify: {
    async verify({ secret, body, headers, url }) {
      const rawRequest = { method: "POST", url, headers };
      const verdict = await (await shopify(secret)).validate({ rawBody: someText(body), rawRequest, rawResponse: {} });
      if (!verdict.valid) throw new Error(JSON.stringify(verdict));
      return true;
    },
    async parse({ secret, body, headers, url }) {
      const rawRequest = { method: "POST", url, headers };
      return (await (await shopify(secret)).validate({ rawBody: someText(body), rawRequest, rawResponse: {} })).topic;
    },
  },
  twilio: {
    async verify({ secret, body, headers, url }) {
      const { validateRequest, validateRequestWithBody } = await twilio();
      const signature = headers["x-twilio-signature"];
      if (url.includes("bodySHA256")) return validateRequestWithBody(secret, signature, url, text(body));
      return validateRequest(secret, signature, url, parameters(body));
    },
  },
  sendgrid: {
    async verify({ secret, body, headers }) {
      const { EventWebhook } = (await import("@sendgrid/eventwebhook")).default;
      const judge = new EventWebhook();
      const signature = headers["x-twilio-email-event-webhook-signature"];
      const timestamp = headers["x-twilio-email-event-webhook-timestamp"];
      return judge.verifySignature(judge.convertPublicKeyToECDSA(secret), text(body), signature, timestamp);
    },
  },
  standardwebhooks: {
    async sign({ secret, body, headers, now }) {
      const { Webhook } = await import("standardwebhooks");
      return { "webhook-signature": new Webhook(secret).sign(headers["webhook-id"], new Date(now * 1000), text(body)) };
    },
    async verify({ secret, body, headers }) {
      const { Webhook } = await import("standardwebhooks");
      new Webhook(secret).verify(text(body), headers, { jsonParse: false });
      return true;
    },
  },
  svix: {
    async verify({ secret, body, headers }) {
      const { Webhook } = await import("svix");
      try {
        new Webhook(secret).verify(text(body), headers);
      } catch (error) {
        if (!(error instanceof SyntaxError)) throw error; // it reads JSON once the signature is good
      }
      return true;
    },
  },
  discord: {
    async verify({ secret, body, headers }) {
      const { verifyKey } = (await import("discord-interactions")).default;
      return verifyKey(body, headers["x-signature-ed25519"], headers["x-signature-timestamp"], secret);
    },
  },
  linear: {
    async verify({ secret, body, headers }) {
      return (await linear(secret)).verify(body, headers["linear-signature"]);
    },
    async parse({ secret, body, headers }) {
      return (await linear(secret)).parseData(body, headers["linear-signature"]).type;
    },
  },
  paddle: {
    async verify({ secret, body, headers }) {
      return (await paddle()).isSignatureValid(text(body), secret, headers["paddle-signature"]);
    },
    async parse({ secret, body, headers }) {
      const event = await (await paddle()).unmarshal(text(body), secret, headers["paddle-signature"]);
      return event.constructor.name === "GenericEvent" ? null : event.eventType;
    },
  },
  zoom: {
    async verify(question) {
      return Boolean(await zoom(question));
    },
    async parse(question) {
      return (await zoom(question)).event;
    },
  },
};

async function answer({ do: what, sdk, body, ...question }) {
  now = question.now ?? null;
  const given = { ...question, body: Buffer.from(body, "base64") };
  try {
    const result = await SDKS[sdk][what](given);
    if (what === "sign") return { headers: result };
    return what === "parse" ? { event: result } : { ok: Boolean(result) };
  } catch (error) {
    if (error instanceof Abstains) return { ok: null };
    return what === "verify" ? { ok: false, why: String(error) } : { error: String(error?.stack ?? error) };
  } finally {
    now = null;
  }
}

for await (const line of createInterface({ input: process.stdin })) say(JSON.stringify(await answer(JSON.parse(line))));

// Imported before an SDK: sends what the SDK means for X to the sandbox, as Python's tests do with an adapter.
// The SDKs themselves are the published ones, with their own hosts, and know nothing of it.

import https from "node:https";
import net from "node:net";

const X = new Set(["api.x.com", "api.twitter.com"]);
const SANDBOX = new URL(process.env.SANDBOX_URL);

function refuseOthers(host) {
  if (!X.has(host)) throw new Error(`${host} is neither X nor the sandbox`);
}

// What node:https is asked for goes over a plain connection: the sandbox is on loopback and speaks HTTP.
class Detour extends https.Agent {
  createConnection(options) {
    refuseOthers(options.host);
    return net.connect(Number(SANDBOX.port), SANDBOX.hostname);
  }
}

https.globalAgent = new Detour();

const fetchAnything = globalThis.fetch;

globalThis.fetch = (address, options) => {
  const url = new URL(address);
  if (url.origin === SANDBOX.origin) return fetchAnything(url, options);
  refuseOthers(url.host);
  return fetchAnything(new URL(url.pathname + url.search, SANDBOX), options);
};

export const ADA = "2244994945";
export const GRACE = "2244994946";
export const POST = "1346889436626259968";
export const DELETED_POST = "1346889436626259969";
export const REDIRECT_URI = "http://127.0.0.1:9/callback";
export const SCOPES = [
  ...["tweet.read", "users.read", "tweet.write", "like.write", "follows.write", "bookmark.write", "media.write"],
  "offline.access",
];
export const CLIENT_ID = process.env.CLIENT_ID;
export const CLIENT_SECRET = process.env.CLIENT_SECRET || undefined;
// Bytes that no text encoding keeps, over three chunks of 100.
export const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, ...Array(256).keys()]);

// Has ada allow what an authorize URL asks for, and returns the parameters of the redirect.
export async function allow(authUrl) {
  const answer = await fetch(`${SANDBOX.origin}/_sandbox/consent`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ auth_url: authUrl, username: "ada", action: "allow" }),
  });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return Object.fromEntries(new URL(body.redirect_to).searchParams);
}

// Returns what a call is refused with; a call that is not refused is a failure.
export async function refusal(call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    return error;
  }
  throw new Error(`not refused: ${JSON.stringify(answer)}`);
}

// Hands the test what the SDK returned, by name.
export function report(answers) {
  console.log(JSON.stringify(answers));
}

// `unary` and `stream` call the service by the Connect protocol with JSON, as on
// https://connectrpc.com/docs/protocol

import { token } from "./session.js";

const PATH = "/treadle.v1.SequenceService/";
const END = 2;

/** An error of a call. */
export class CallError extends Error {
  /**
   * @param {string} code the code in the words of Connect, such as `not_found`
   * @param {string} message the server's sentence
   * @param {boolean} lost whether the connection is lost, so that a later try may succeed
   */
  constructor(code, message, lost = false) {
    super(message);
    this.code = code;
    this.lost = lost;
  }
}

let askForToken = null;
let asking = null;

/** Sets what asks for a token where the server requires one; it resolves once there is one. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

/** Makes a call with one reply. */
export async function unary(method, request, signal) {
  return withToken(async () => {
    const reply = await post(method, "application/json", JSON.stringify(request), signal);
    if (!reply.ok) throw await refusal(reply);
    return await orLost(reply.json(), signal);
  });
}

/** Makes a call with a stream of replies, and yields them. `requests` are sent in one body. */
export async function* stream(method, requests, signal) {
  const body = new Blob(requests.flatMap(envelope));
  const { reader, first } = await withToken(async () => {
    const reply = await post(method, "application/connect+json", body, signal);
    if (!reply.ok) throw await refusal(reply);
    const reader = envelopes(reply.body.getReader(), signal);
    // The server may refuse the call in its first message.
    return { reader, first: await reader.next() };
  });
  try {
    if (!first.done) yield first.value;
    yield* reader;
  } finally {
    await reader.return();
  }
}

async function withToken(call) {
  for (;;) {
    const used = token();
    try {
      return await call();
    } catch (error) {
      if (error.code !== "unauthenticated" || askForToken === null) throw error;
      if (token() !== used) continue;
      // Calls that are refused at the same time ask once.
      asking ??= askForToken(used ? error.message : "").finally(() => {
        asking = null;
      });
      await asking;
    }
  }
}

async function post(method, type, body, signal) {
  const headers = { "Content-Type": type, "Connect-Protocol-Version": "1" };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  const options = { method: "POST", headers, body, signal, cache: "no-store", credentials: "omit" };
  return orLost(fetch(PATH + method, options), signal);
}

async function orLost(promise, signal) {
  try {
    return await promise;
  } catch (error) {
    if (signal?.aborted || error instanceof CallError) throw error;
    throw new CallError("unavailable", "The server cannot be reached.", true);
  }
}

async function refusal(reply) {
  const text = await reply.text().catch(() => "");
  try {
    return callError(JSON.parse(text));
  } catch {
    const codes = { 401: "unauthenticated", 403: "permission_denied", 404: "unimplemented" };
    const code = codes[reply.status] ?? "unknown";
    const lost = [502, 503, 504].includes(reply.status);
    return new CallError(code, `The server answered with HTTP status ${reply.status}.`, lost);
  }
}

function callError(error) {
  if (typeof error?.code !== "string") throw new TypeError("not an error of Connect");
  return new CallError(error.code, error.message ?? error.code, error.code === "unavailable");
}

function envelope(message) {
  const data = new TextEncoder().encode(JSON.stringify(message));
  const head = new DataView(new ArrayBuffer(5));
  head.setUint32(1, data.length);
  return [head.buffer, data];
}

async function* envelopes(reader, signal) {
  let held = new Uint8Array(0);
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const size = held.length < 5 ? 0 : 5 + new DataView(held.buffer, held.byteOffset).getUint32(1);
      if (size && held.length >= size) {
        const message = JSON.parse(decoder.decode(held.subarray(5, size)));
        const last = held[0] & END;
        held = held.subarray(size);
        if (last && message.error) throw callError(message.error);
        if (last) return;
        yield message;
        continue;
      }
      const { done, value } = await orLost(reader.read(), signal);
      if (done) throw new CallError("unavailable", "The connection broke off.", true);
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held);
      joined.set(value, held.length);
      held = joined;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

// Requests to the server that this page came from, and its event streams.

/** What the server answered instead of what was asked for. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const KEY = "headgate.key";
let key = readKey();
let asking = null; // one dialog for all requests that need a key at the same time

function readKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function keepKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // kept in this page's memory only
  }
}

/**
 * A response whose status is 2xx.
 * @param {(refused: boolean) => Promise<string|null>} [askKey] asks for an API key when the
 *   server wants one; without it a 401 is an error like any other
 * @throws {ApiError} on any other status, with the server's own message
 */
export async function request(path, { askKey, body, signal } = {}) {
  for (;;) {
    const headers = {};
    const used = key;
    if (used) headers.Authorization = `Bearer ${used}`;
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
    });
    if (response.ok) return response;
    const error = new ApiError(response.status, await errorText(response));
    if (response.status !== 401 || !askKey) throw error;
    if (key !== used) continue; // given meanwhile
    asking ??= askKey(Boolean(used)).finally(() => (asking = null));
    const given = await asking;
    if (!given) throw error;
    keepKey(given);
  }
}

async function errorText(response) {
  const text = await response.text();
  try {
    const { error, detail } = JSON.parse(text);
    const message = error?.message ?? error ?? detail;
    if (typeof message === "string") return message;
  } catch {
    // not JSON: a proxy's page, say
  }
  return `the server answered ${response.status} ${response.statusText}`.trim();
}

/**
 * The `data` of each event of a text/event-stream response.
 * @param {(text: string) => void} [remark] gets the comments between events
 */
export async function* events(response, remark) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/); // a \r at the end may be half of \r\n
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith(":")) remark?.(line.slice(1).trim());
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * The chunks of one streamed chat completion. While the prompt is read the server says in
 * comments how far it is; `remark` gets them.
 * @throws {ApiError} if the server refuses, fails midway, or goes away before the end
 */
export async function* chat(body, { signal, askKey, remark }) {
  const response = await request("v1/chat/completions", { body, signal, askKey });
  for await (const data of events(response, remark)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(500, chunk.error.message ?? String(chunk.error));
    yield chunk;
  }
  throw new ApiError(0, "the connection closed before the answer's end");
}

/** The name under which the server serves its model. */
export async function modelName(options) {
  const response = await request("v1/models", options);
  return (await response.json()).data[0].id;
}

/**
 * Calls `show(message)` with each message of /live and `state("connected" | "lost" | "locked")`
 * as the connection changes; connects again by itself. Pauses while the page is hidden.
 */
export async function watchLive(show, state) {
  for (let failures = 0; ; failures++) {
    if (document.hidden) await once(document, "visibilitychange");
    const controller = new AbortController();
    const leave = () => document.hidden && controller.abort();
    document.addEventListener("visibilitychange", leave);
    try {
      for await (const data of events(await request("live", { signal: controller.signal }))) {
        failures = 0;
        state("connected");
        show(JSON.parse(data));
      }
      state("lost");
    } catch (error) {
      if (!controller.signal.aborted) state(error.status === 401 ? "locked" : "lost");
    }
    document.removeEventListener("visibilitychange", leave);
    if (!document.hidden) await pause(Math.min(10_000, 1000 * 2 ** failures));
  }
}

const once = (target, event) =>
  new Promise((done) => target.addEventListener(event, done, { once: true }));
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

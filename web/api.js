// The server: JSON requests, streamed completions, and whether it can be reached.

/** status 0: no connection. retryAfter (seconds) and code: from the server, or null. */
export class ApiError extends Error {
  constructor(message, status, retryAfter = null, code = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.code = code;
  }
}

/** Fires "change" when the server becomes or stops being reachable, "key" if the key is wrong. */
export const connection = new EventTarget();
connection.up = null; // whether the server can be reached; null: not known yet

function is(up) {
  if (connection.up === up) return;
  connection.up = up;
  connection.dispatchEvent(new Event("change"));
}

let key = sessionStorage.getItem("bonsai.key") ?? "";

export const hasKey = () => key !== "";

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem("bonsai.key", key);
}

async function send(path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    // relative to the page: behind a proxy the paths may have a prefix
    response = await fetch(`.${path}`, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    is(false);
    throw new ApiError("The server does not answer.", 0);
  }
  is(true);
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  let code = null;
  try {
    const answer = await response.json();
    message = answer.error?.message ?? answer.detail ?? message;
    code = answer.error?.code ?? null;
  } catch {
    // not JSON: the message has only the status
  }
  if (response.status === 401) connection.dispatchEvent(new Event("key"));
  const wait = Number(response.headers.get("Retry-After"));
  throw new ApiError(String(message), response.status, wait > 0 ? wait : null, code);
}

/** GET without a body, else POST; returns the JSON answer. Throws ApiError or an AbortError. */
export async function request(path, body, signal) {
  const response = await send(path, body, signal);
  try {
    return await response.json();
  } catch (e) {
    if (e.name === "AbortError") throw e;
    is(false);
    throw new ApiError("The connection broke.", 0);
  }
}

/**
 * POST with stream: true; calls `each` with every event's data until [DONE].
 * An end without [DONE] is an ApiError with status 0: the connection was lost.
 */
export async function stream(path, body, signal, each) {
  const response = await send(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  while (true) {
    let part;
    try {
      part = await reader.read();
    } catch (e) {
      if (e.name === "AbortError") throw e;
      part = { done: true };
    }
    if (part.done) {
      is(false);
      throw new ApiError("The connection broke.", 0);
    }
    buffer += part.value;
    const events = buffer.split(/\r?\n\r?\n/);
    buffer = events.pop();
    for (const event of events) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data === "") continue;
      const value = JSON.parse(data);
      if (value.error) throw new ApiError(value.error.message ?? "The server failed.", 500);
      each(value);
    }
  }
}

/** Whether the server can be reached. A change is reported to listeners of `connection`. */
export async function ping() {
  try {
    await fetch("./health", { cache: "no-store", signal: AbortSignal.timeout(4000) });
    is(true);
  } catch {
    is(false);
  }
  return connection.up;
}

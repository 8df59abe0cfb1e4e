// HTTP requests to the service. Keys are kept in memory only: after a reload the page asks for them again.

/** The service's address: the page may be offered below a path of a proxy. */
export const SERVICE = new URL("..", import.meta.url);
const ADMIN_PATHS = /^\/(retrain|jobs|corpora|models|preview)\b/;
const keys = { admin: "", api: "" };
let promptForKey = async () => null; // set by keys.js: (kind, message) => the key, or null when the user gives none

/** Whether operators need no key. */
export const isOpen = () => !keys.admin;

/** Set the function that asks the user for a key. */
export function onKeyNeeded(prompt) {
  promptForKey = prompt;
}

/** An error response: `message` is the service's own text, `field` the field of the request that it names, if any. */
export class ServiceError extends Error {
  constructor(status, error, retryAfterS) {
    super(error.message ?? `the service answered ${status}`);
    this.status = status;
    this.code = error.code ?? "";
    this.field = error.field ?? "";
    this.details = error;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * Send a request and return the response when its status is 2xx.
 *
 * A 401 asks the user for a key and sends the request again, unless `mayPrompt` is false.
 */
export async function request(method, path, { body, headers = {}, signal, mayPrompt = true } = {}) {
  const kind = ADMIN_PATHS.test(path) ? "admin" : "api";
  const isJson = body !== undefined && !(body instanceof Blob);
  for (;;) {
    const allHeaders = { ...headers };
    if (keys[kind]) allHeaders.Authorization = `Bearer ${keys[kind]}`;
    if (isJson) allHeaders["Content-Type"] = "application/json";
    const payload = isJson ? JSON.stringify(body) : body;
    const response = await fetch(new URL(path.slice(1), SERVICE), {
      method,
      headers: allHeaders,
      body: payload,
      signal,
    });
    if (response.ok) return response;
    const error = await errorFrom(response);
    const needsKey = error.status === 401 || (error.status === 403 && keys[kind]);
    const key = needsKey && mayPrompt ? await promptForKey(kind, keys[kind] ? error.message : "") : null;
    if (key === null) throw error;
    keys[kind] = key;
  }
}

/** Like `request`, but return the parsed JSON body; null for 204. */
export async function requestJson(method, path, options) {
  const response = await request(method, path, options);
  return response.status === 204 ? null : response.json();
}

async function errorFrom(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // The body is a proxy's error page or was cut off: only the status is known.
  }
  return new ServiceError(response.status, error, retryAfter);
}

/** A random Idempotency-Key. Not crypto.randomUUID: browsers offer that only on HTTPS and localhost. */
export function newIdempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

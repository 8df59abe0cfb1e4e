// Everything that is asked of the service. Keys are kept in memory only: a reload asks for them again.

const OPERATORS = /^\/(retrain|jobs|corpora|models)\b/;
const keys = { admin: "", api: "" };
let askForKey = async () => null; // set by keys.js: (kind, message) => the key, or null when nobody gives one

export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** What the service said was wrong: `message` is its own, `field` what it names, if it names one. */
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

/** A response that is not an error. Thrown: ServiceError; TypeError when the service cannot be reached. */
export async function request(method, path, { body, headers = {}, signal, ask = true } = {}) {
  const kind = OPERATORS.test(path) ? "admin" : "api";
  for (;;) {
    const sent = { ...headers };
    if (keys[kind]) sent.Authorization = `Bearer ${keys[kind]}`;
    const isJson = body !== undefined && !(body instanceof Blob);
    if (isJson) sent["Content-Type"] = "application/json";
    const response = await fetch(path, { method, headers: sent, body: isJson ? JSON.stringify(body) : body, signal });
    if (response.ok) return response;
    const error = await failure(response);
    const needsKey = error.status === 401 || (error.status === 403 && keys[kind]);
    const key = needsKey && ask ? await askForKey(kind, keys[kind] ? error.message : "") : null;
    if (key === null) throw error;
    keys[kind] = key;
  }
}

/** The same, as JSON; null where there is none. */
export async function json(method, path, options) {
  const response = await request(method, path, options);
  return response.status === 204 ? null : response.json();
}

async function failure(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's page, or a body that was cut: the status says what there is to say
  }
  return new ServiceError(response.status, error, retryAfter);
}

/** A value that nobody else sends. Not randomUUID: browsers keep that from pages that came over plain HTTP. */
export function freshKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// HTTP requests to the service. Keys are kept in memory only: after a reload the page asks for them again.

/** The service's address: the page may be offered below a path of a proxy. */
export const SERVICE = new URL("..", import.meta.url);
const ADMIN_PATHS = /^\/(retrain|jobs|corpora|models|preview)\b/;
const keys = { admin: "", api: "" };
let promptForKey = async () => null; // set by keys.js: (kind, message) => the key, or null when the user gives none

export const isOpen = () => !keys.admin;

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
 * A 401 asks the user for a key and sends the request again, unless `mayPrompt` is false. The event "key" says that one
 * was accepted.
 */
export async function request(method, path, { body, headers = {}, signal, mayPrompt = true } = {}) {
	const kind = ADMIN_PATHS.test(path) ? "admin" : "api";
	const isJson = body !== undefined && !(body instanceof Blob);
	for (let isNewKey = false; ; isNewKey = true) {
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
		if (isNewKey && response.status !== 401) dispatchEvent(new Event("key"));
		if (response.ok) return response;
		const error = await errorFrom(response);
		const needsKey = error.status === 401 || (error.status === 403 && keys[kind] && error.code !== "model_not_allowed");
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

/** Run an action; an error response is given to `onError`, whose result is then returned. */
export async function attempt(action, onError) {
	try {
		return await action();
	} catch (error) {
		if (!(error instanceof ServiceError)) throw error;
		return onError(error);
	}
}

async function errorFrom(response) {
	// A body that is a proxy's error page or was cut off says nothing: then only the status is known.
	const { error = {} } = await response.json().catch(() => ({}));
	return new ServiceError(response.status, error, Number(response.headers.get("Retry-After")) || 0);
}

/** A random Idempotency-Key. Not crypto.randomUUID: browsers offer that only on HTTPS and localhost. */
export function newIdempotencyKey() {
	return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

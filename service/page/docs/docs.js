// GET /docs: the OpenAPI document of this service as a page. Nothing is loaded from another host.

import { requestJson, SERVICE } from "./api.js";
import { $, h, setStatus } from "./dom.js";

/** The schema that a reference names; any other schema is returned as it is. */
function resolve(api, schema) {
	const name = schema?.$ref?.split("/").at(-1);
	return name ? api.components.schemas[name] : (schema ?? {});
}

/** A schema's type and limits in words. */
function describeType(api, schema) {
	if (schema.$ref) return schema.$ref.split("/").at(-1);
	if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
	if (schema.const !== undefined) return JSON.stringify(schema.const);
	if (schema.anyOf && !schema.type) return schema.anyOf.map((option) => describeType(api, option)).join(" or ");
	if (schema.type === "array") return `list of ${describeType(api, schema.items ?? {})}`;
	const limits = [
		schema.minimum !== undefined ? `from ${schema.minimum}` : "",
		schema.exclusiveMinimum !== undefined ? `above ${schema.exclusiveMinimum}` : "",
		schema.maximum !== undefined ? `to ${schema.maximum}` : "",
		schema.pattern ? `matching ${schema.pattern}` : "",
	];
	return [schema.type ?? "any", ...limits].filter(Boolean).join(" ");
}

function table(header, rows) {
	const head = h("tr", {}, ...header.map((text) => h("th", { scope: "col" }, text)));
	return h("div", { class: "scroll", tabindex: "0" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows)));
}

/** The fields of a body, a row each. */
function fields(api, schema) {
	const whole = resolve(api, schema);
	const required = new Set(whole.required ?? []);
	const rows = Object.entries(whole.properties ?? {}).map(([name, field]) => {
		const standard = required.has(name) ? "required" : field.default === undefined ? "" : JSON.stringify(field.default);
		const cells = [describeType(api, field), standard, field.description ?? ""].map((text) => h("td", {}, text));
		return h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), ...cells);
	});
	return rows.length ? table(["field", "type", "default", "meaning"], rows) : null;
}

function parameters(api, operation) {
	const rows = (operation.parameters ?? []).map((parameter) =>
		h(
			"tr",
			{},
			h("th", { scope: "row" }, h("code", {}, parameter.name)),
			h("td", {}, parameter.in),
			h("td", {}, describeType(api, parameter.schema)),
			h("td", {}, parameter.description ?? ""),
		),
	);
	return rows.length ? table(["parameter", "in", "type", "meaning"], rows) : null;
}

function example(method, path, content) {
	const [type, { example: value }] = Object.entries(content)[0];
	const data = type === "application/json" ? JSON.stringify(value) : value;
	const command = `curl -X ${method} -H 'Content-Type: ${type}' --data-binary '${data}' ${SERVICE}${path.slice(1)}`;
	return h("pre", {}, command);
}

function answers(operation) {
	const rows = Object.entries(operation.responses).map(([status, answer]) => {
		const value = Object.values(answer.content ?? {})[0]?.example;
		const example = value === undefined ? "" : h("pre", {}, JSON.stringify(value, null, 2));
		return h(
			"tr",
			{},
			h("th", { scope: "row" }, status),
			h("td", {}, answer.description),
			h("td", {}, Object.keys(answer.content ?? {}).join(", ")),
			h("td", {}, example),
		);
	});
	return table(["status", "meaning", "type", "example"], rows);
}

function section(api, method, path, operation) {
	const content = operation.requestBody?.content;
	const name = h("summary", {}, h("code", {}, `${method} ${path}`), ` ${operation.summary}`);
	const parts = [
		parameters(api, operation),
		content ? fields(api, Object.values(content)[0].schema) : null,
		content ? example(method, path, content) : null,
		answers(operation),
	];
	return h("details", { class: "card", id: operation.operationId }, name, ...parts.filter(Boolean));
}

async function show() {
	const api = await requestJson("GET", "/openapi.json", { mayPrompt: false });
	$("#title").textContent = `${api.info.title} API ${api.info.version}`;
	$("#description").textContent = api.info.description;
	for (const { name } of api.tags) {
		$("#operations").append(h("h2", {}, name));
		for (const [path, operations] of Object.entries(api.paths)) {
			for (const [method, operation] of Object.entries(operations)) {
				if (!operation.tags.includes(name)) continue;
				$("#operations").append(section(api, method.toUpperCase(), path, operation));
			}
		}
	}
	const id = location.hash.slice(1);
	const target = id ? document.getElementById(id) : null;
	if (target) {
		target.open = true;
		target.scrollIntoView();
	}
	setStatus($("#docs-status"), "");
}

show().catch((error) => setStatus($("#docs-status"), `The description could not be read: ${error.message}`, true));

// Server-sent events over fetch: EventSource can neither POST nor send a key.

export async function* readEvents(response) {
	const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
	let buffer = "";
	try {
		for (;;) {
			const { value, done } = await reader.read();
			if (done) return;
			buffer += value;
			for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
				const event = parseEvent(buffer.slice(0, end));
				buffer = buffer.slice(end + 2);
				if (event) yield event;
			}
		}
	} finally {
		reader.cancel().catch(() => {}); // closes the connection when the caller stops early
	}
}

function parseEvent(block) {
	const event = { name: "message", id: null, data: null };
	for (const line of block.split("\n")) {
		const colon = line.indexOf(": ");
		const [field, value] = [line.slice(0, colon), line.slice(colon + 2)];
		if (field === "event") event.name = value;
		else if (field === "id") event.id = value;
		else if (field === "data") event.data = JSON.parse(value);
	}
	return event.data === null ? null : event;
}

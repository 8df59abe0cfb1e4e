// The model's arithmetic. Two engines with the same methods and the same bits: WebAssembly with SIMD (step.c), and plain
// JavaScript for browsers without it. Both give what the native stepper gives with int8 weights.

const Arithmetic = (() => {
	const float = new Float64Array(1);
	const word = new Uint32Array(float.buffer); // the low half first: every machine that runs a browser is little-endian

	// x + y rounded to odd: where the sum is inexact, the neighbour whose last bit is 1.
	function addToOdd(x, y) {
		let sum = x + y;
		const yPart = sum - x;
		const error = x - (sum - yPart) + (y - yPart);
		if (error === 0) return sum;
		float[0] = sum;
		if (word[0] & 1) return sum;
		if (error > 0 === sum > 0) word[0] |= 1;
		else {
			if (word[0] === 0) word[1] -= 1;
			word[0] -= 1;
		}
		sum = float[0];
		return sum;
	}

	// x y + z for floats, rounded once: the product is exact in double.
	const fmaFloat = (x, y, z) => Math.fround(addToOdd(x * y, z));

	// a b + c for doubles, rounded once (Boldo and Melquiond, 2008), as in step.c.
	function fma(a, b, c) {
		const splitter = 134217729;
		let aHigh = splitter * a;
		let bHigh = splitter * b;
		aHigh = aHigh - (aHigh - a);
		bHigh = bHigh - (bHigh - b);
		const aLow = a - aHigh;
		const bLow = b - bHigh;
		const product = a * b;
		const productLow = aHigh * bHigh - product + aHigh * bLow + aLow * bHigh + aLow * bLow;
		const lowSum = c + productLow;
		const lowPart = lowSum - c;
		const lowRest = c - (lowSum - lowPart) + (productLow - lowPart);
		const high = product + lowSum;
		const highPart = high - product;
		const highRest = product - (high - highPart) + (lowSum - highPart);
		return high + addToOdd(lowRest, highRest);
	}

	const numerator = [1.331907029e-8, 2.058348036e-5, 3.494034521e-3, 1.337971836e-1, 1].map(Math.fround);
	const denominator = [7.762018868e-7, 3.283092519e-4, 2.587107196e-2, 4.671303332e-1, 1].map(Math.fround);

	// As in model/native/src/kernels/gates.h.
	function tanh(value) {
		const x = Math.min(Math.max(value, -9), 9);
		const u = Math.fround(x * x);
		let p = numerator[0];
		let q = denominator[0];
		for (let i = 1; i < 5; i++) {
			p = fmaFloat(p, u, numerator[i]);
			q = fmaFloat(q, u, denominator[i]);
		}
		return Math.min(Math.max(Math.fround(Math.fround(x * p) / q), -1), 1);
	}
	const sigmoid = (x) => fmaFloat(0.5, tanh(Math.fround(0.5 * x)), 0.5);

	const ln2High = 0.6931471803691238;
	const ln2Low = 1.9082149292705877e-10;
	const series = [479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6].map((n) => 1 / n);

	// As in model/native/src/kernels/sampling.h.
	function exp(x) {
		if (!(x > -708)) return 0;
		const shift = 6755399441055744;
		const n = fma(x, Math.LOG2E, shift) - shift;
		let r = fma(-n, ln2High, x);
		r = fma(-n, ln2Low, r);
		let s = 1 / 6227020800;
		for (const term of series) s = fma(s, r, term);
		s = fma(s, r, 0.5);
		s = fma(s, r, 1);
		s = fma(s, r, 1);
		word[0] = 0;
		word[1] = (n + 1023) << 20;
		return s * float[0];
	}

	function log(x) {
		float[0] = x;
		let n = (word[1] >>> 20) - 1023;
		word[1] = (word[1] & 0xfffff) | 0x3ff00000;
		let m = float[0];
		if (m > Math.SQRT2) {
			m *= 0.5;
			n += 1;
		}
		const s = (m - 1) / (m + 1);
		const z = s * s;
		let t = 1 / 23;
		for (let k = 21; k >= 1; k -= 2) t = fma(t, z, 1 / k);
		return fma(n, ln2High, fma(2 * s, t, n * ln2Low));
	}

	// The random number of a position: SplitMix64 at a counter, keyed by the scrambled seed.
	const mask = (1n << 64n) - 1n;
	function mix(value) {
		let z = value & mask;
		z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
		z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask;
		return z ^ (z >> 31n);
	}
	function randomValue(seed, position) {
		const bits = mix(mix(seed) + BigInt(position + 1) * 0x9e3779b97f4a7c15n);
		return Number(bits >> 11n) / 2 ** 53;
	}

	return { fmaFloat, tanh, sigmoid, exp, log, randomValue };
})();

// The tensors of the payload, in the order in which render.py wrote them.
function readWeights(model, bytes) {
	const { layers, hidden, embed, vocab } = model;
	const outputs = 4 * hidden;
	let at = model.wasm_bytes;
	const planes = bytes.subarray(at, at + 4 * model.floats);
	const raw = new Uint8Array(4 * model.floats);
	for (let plane = 0; plane < 4; plane++)
		for (let i = 0; i < model.floats; i++) raw[4 * i + plane] = planes[plane * model.floats + i];
	const floats = new Float32Array(raw.buffer);
	at += 4 * model.floats;
	const whole = new Int8Array(bytes.buffer, bytes.byteOffset + at);
	let float = 0;
	let int = 0;
	const take = (n) => {
		float += n;
		return floats.subarray(float - n, float);
	};
	const takeInt = (n) => {
		int += n;
		return whole.subarray(int - n, int);
	};
	const first = {
		embedding: take(vocab * embed),
		inputs: take(outputs * embed),
		bias: take(outputs),
		bias2: take(outputs),
	};
	const parts = [];
	for (let layer = 0; layer <= layers; layer++) {
		const rows = layer < layers ? outputs : vocab;
		const segments = layer === 0 || layer === layers ? 1 : 2;
		const scale = take(rows);
		const initial = layer === 0 ? null : take(rows);
		parts.push({ rows, segments, scale, initial, weights: takeInt(rows * segments * hidden) });
	}
	return { first, parts, wasm: bytes.subarray(0, model.wasm_bytes) };
}

// What the first layer makes of a character: a sum in double in the order of the embedding, rounded once.
function fillRow(model, first, id, row) {
	const { embed } = model;
	const vector = first.embedding.subarray(id * embed, (id + 1) * embed);
	for (let output = 0; output < row.length; output++) {
		let sum = first.bias[output] + first.bias2[output];
		const weights = first.inputs.subarray(output * embed, (output + 1) * embed);
		for (let e = 0; e < embed; e++) sum += vector[e] * weights[e];
		row[output] = sum;
	}
}

class WasmEngine {
	static async create(model, weights) {
		const { instance } = await WebAssembly.instantiate(weights.wasm, {});
		return new WasmEngine(model, weights, instance.exports);
	}

	constructor(model, weights, code) {
		const { layers, hidden, vocab } = model;
		this.name = "WebAssembly";
		this.model = model;
		this.first = weights.first;
		this.code = code;
		this.padded = Math.ceil(hidden / 8) * 8;
		if (!code.open(layers, hidden, vocab, model.item_end)) throw new Error("no memory for the model");
		for (const [layer, part] of weights.parts.entries()) {
			const rows = part.rows * part.segments;
			const to = this.allocate(rows * this.padded);
			const bytes = new Int8Array(code.memory.buffer);
			for (let row = 0; row < rows; row++)
				bytes.set(part.weights.subarray(row * hidden, (row + 1) * hidden), to + row * this.padded);
			const scale = this.copy(part.scale);
			const initial = layer === 0 ? this.allocate(4 * vocab * part.rows) : this.copy(part.initial);
			if (layer === 0) this.table = initial;
			code.set_layer(layer, to, scale, initial);
		}
		this.known = new Uint8Array(vocab);
	}

	allocate(bytes) {
		const start = this.code.allocate(bytes);
		if (!start) throw new Error("no memory for the model");
		return start;
	}

	copy(floats) {
		const start = this.allocate(4 * floats.length);
		new Float32Array(this.code.memory.buffer, start, floats.length).set(floats);
		return start;
	}

	reset() {
		this.code.reset();
	}

	step(id) {
		if (!this.known[id]) {
			const size = 4 * this.model.hidden;
			const row = new Float32Array(this.code.memory.buffer, this.table + 4 * id * size, size);
			fillRow(this.model, this.first, id, row);
			this.known[id] = 1;
		}
		this.code.step(id);
	}

	draw(temperature, random) {
		const id = this.code.draw(temperature, random);
		return [id, this.code.logprob()];
	}

	score(id) {
		return this.code.score(id);
	}

	// Gates i f g o, cell and output of a unit, after `step`.
	unit(layer, unit) {
		const at = (start, n) => new Float32Array(this.code.memory.buffer, start, n);
		const gates = at(this.code.gates_of(layer), 4 * this.padded);
		const values = [0, 1, 2, 3].map((gate) => gates[gate * this.padded + unit]);
		return [...values, at(this.code.cell_of(layer), unit + 1)[unit], at(this.code.hidden_of(layer), unit + 1)[unit]];
	}
}

class PlainEngine {
	constructor(model, weights) {
		const { layers, hidden, vocab } = model;
		this.name = "plain JavaScript";
		this.model = model;
		this.weights = weights;
		this.table = new Array(vocab);
		this.sums = Array.from({ length: layers }, () => new Float32Array(4 * hidden));
		this.cells = Array.from({ length: layers }, () => new Float32Array(hidden));
		this.outputs = Array.from({ length: layers }, () => new Float32Array(hidden));
		this.activations = Array.from({ length: layers }, () => new Int16Array(hidden));
		this.logits = new Float32Array(vocab);
		this.odds = new Float64Array(vocab);
	}

	reset() {
		for (const arrays of [this.cells, this.outputs, this.activations]) for (const array of arrays) array.fill(0);
	}

	step(id) {
		const { layers, hidden } = this.model;
		if (id === this.model.item_end) this.reset();
		if (!this.table[id]) {
			this.table[id] = new Float32Array(4 * hidden);
			fillRow(this.model, this.weights.first, id, this.table[id]);
		}
		for (let layer = 0; layer < layers; layer++) {
			const sums = this.sums[layer];
			const own = this.activations[layer];
			const inputs = layer ? [this.activations[layer - 1], own] : [own];
			this.multiply(layer, inputs, layer ? this.weights.parts[layer].initial : this.table[id], sums);
			const cell = this.cells[layer];
			for (let u = 0; u < hidden; u++) {
				const { fmaFloat, sigmoid, tanh } = Arithmetic;
				const written = Math.fround(sigmoid(sums[u]) * tanh(sums[2 * hidden + u]));
				cell[u] = fmaFloat(sigmoid(sums[hidden + u]), cell[u], written);
				const output = Math.fround(sigmoid(sums[3 * hidden + u]) * tanh(cell[u]));
				this.outputs[layer][u] = output;
				// adding 1.5 * 2^52 rounds to a whole number, of two equally near ones the even one
				own[u] = Math.fround(Math.min(Math.max(output, -1), 1) * 127) + 6755399441055744 - 6755399441055744;
			}
		}
		this.multiply(layers, [this.activations[layers - 1]], this.weights.parts[layers].initial, this.logits);
	}

	multiply(layer, inputs, initial, to) {
		const { hidden } = this.model;
		const { rows, scale, weights } = this.weights.parts[layer];
		let w = 0;
		for (let row = 0; row < rows; row++) {
			let sum = 0;
			for (const input of inputs)
				for (let k = 0; k < hidden; k++, w++) sum = (sum + Math.imul(weights[w], input[k])) | 0;
			to[row] = Arithmetic.fmaFloat(Math.fround(sum), scale[row], initial[row]);
		}
	}

	largest() {
		let best = 0;
		for (let i = 1; i < this.logits.length; i++) if (this.logits[i] > this.logits[best]) best = i;
		return best;
	}

	weigh(max, temperature) {
		const n = this.odds.length;
		let sum = 0;
		for (let i = 0; i < n; i++) sum += this.odds[i] = Arithmetic.exp((this.logits[i] - max) / temperature);
		return sum;
	}

	draw(temperature, random) {
		let id = this.largest();
		const max = this.logits[id];
		const sum = this.weigh(max, 1);
		if (temperature > 0) {
			const target = random * (temperature === 1 ? sum : this.weigh(max, temperature));
			let cumulative = 0;
			for (let i = 0; i < this.odds.length; i++) {
				cumulative += this.odds[i];
				if (this.odds[i] > 0) id = i;
				if (cumulative > target) break;
			}
		}
		return [id, Math.fround(this.logits[id] - max - Arithmetic.log(sum))];
	}

	score(id) {
		const max = this.logits[this.largest()];
		return Math.fround(this.logits[id] - max - Arithmetic.log(this.weigh(max, 1)));
	}

	unit(layer, unit) {
		const { hidden } = this.model;
		const sums = this.sums[layer];
		const activate = [Arithmetic.sigmoid, Arithmetic.sigmoid, Arithmetic.tanh, Arithmetic.sigmoid];
		const values = activate.map((gate, n) => gate(sums[n * hidden + unit]));
		return [...values, this.cells[layer][unit], this.outputs[layer][unit]];
	}
}

// Characters of base 85 -> bytes: five characters are four bytes.
function decode85(text, alphabet) {
	const digit = new Uint8Array(128);
	for (let i = 0; i < 85; i++) digit[alphabet.charCodeAt(i)] = i;
	const bytes = new Uint8Array((text.length / 5) * 4);
	for (let at = 0, to = 0; at < text.length; ) {
		let word = 0;
		for (let i = 0; i < 5; i++) word = word * 85 + digit[text.charCodeAt(at++)];
		for (let shift = 24; shift >= 0; shift -= 8) bytes[to++] = (word >>> shift) & 255;
	}
	return bytes;
}

async function inflate(bytes) {
	const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
	return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function createEngine(model, text) {
	const bytes = await inflate(decode85(text, model.alphabet).subarray(0, model.compressed_bytes));
	const weights = readWeights(model, bytes);
	try {
		return await WasmEngine.create(model, weights);
	} catch {
		return new PlainEngine(model, weights); // no WebAssembly here, or none with SIMD
	}
}

export { Arithmetic, createEngine };

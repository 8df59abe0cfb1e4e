"""Put a model into the page: one HTML file with the code, the weights as int8 and the vocabulary.

The page's policy (CSP) allows its own script and style by their hashes, and nothing else: no connection, no image, no
form, no further script. What a model brings, its name and its characters, is JSON in which `<` is escaped, or escaped
text; the script shows it as text only.

The weights are compressed: of floats, the first bytes of all, then the second ones, and so on, since the bytes with the
exponents are alike; then deflate, and base 85 with an alphabet without `<` and `&`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.checkpoints.file_format import Checkpoint
from model.errors import ConfigError
from model.evaluation.protocols import bits
from model.export.rounding import rounded_weights
from model.stepper.cpu.pack_weights import ACTIVATION_SCALE, MAX_INT8_INPUTS

_FOLDER = Path(__file__).parent
_RFC_1924 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_ALPHABET = _RFC_1924.translate(str.maketrans("<>&`", ".,:/"))
_IMPORTS = re.compile(r"^(?:import|export) \{.*\n", re.MULTILINE)  # the page has both files in one script
WASM = _FOLDER / "step.wasm.base64"


def to_page(checkpoint: Checkpoint, name: str) -> bytes:
    """Return a checkpoint as an HTML file.

    Args:
        checkpoint: The model.
        name: What the page calls it.

    Raises:
        ConfigError: The model's cell is no lstm.
    """
    config, vocab = checkpoint.config, checkpoint.vocab
    if config.cell != "lstm":
        raise ConfigError(
            f"the model's cell is {config.cell}", field="format", value="html", expected="onnx or hf: pages run an lstm"
        )
    if 2 * config.n_hidden > MAX_INT8_INPUTS:
        raise ConfigError(field="n_hidden", value=config.n_hidden, expected=f"at most {MAX_INT8_INPUTS // 2}")
    wasm = base64.b64decode(WASM.read_text().partition("\n")[2])
    floats, whole = _tensors(checkpoint)
    compressed = zlib.compress(wasm + _planes(floats) + whole.tobytes(), 9)
    model = {
        "layers": config.n_layers,
        "hidden": config.n_hidden,
        "embed": config.n_embed,
        "vocab": config.vocab_size,
        "characters": vocab.characters,
        "start": vocab.start,
        "item_end": vocab.start if checkpoint.items is not None else -1,
        "normalization": vocab.normalization,
        "wasm_bytes": len(wasm),
        "floats": len(floats),
        "compressed_bytes": len(compressed),
        "alphabet": _ALPHABET,
    }
    description = (
        f"A character-level lstm of {config.n_layers} x {config.n_hidden} units, {config.vocab_size} characters, "
        f"weights of 8 bits; {bits(checkpoint.val_loss):.3f} bits per character on text that it was not trained on "
        f"({checkpoint.val_protocol} protocol). Fingerprint {checkpoint.fingerprint}."
    )
    script = "\n".join(_IMPORTS.sub("", _source(file)) for file in ("engine.js", "page.js"))
    style = _source("page.css")
    parts = {
        "policy": _policy(script, style),
        "title": html.escape(_printable(name)),
        "description": html.escape(description),
        "layers": str(config.n_layers),
        "hidden": str(config.n_hidden),
        "style": style,
        "script": script,
        "model": json.dumps(model).replace("<", "\\u003c"),
        "weights": _base85(compressed),
    }
    # One pass: what a part brings is not looked at again.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _source("page.html"))
    return page.encode()


def _tensors(checkpoint: Checkpoint) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return all floats, and all whole numbers, each in the order in which engine.js takes them."""
    weights = {name: tensor.numpy() for name, tensor in checkpoint.weights.items()}
    rounded = rounded_weights(checkpoint)
    floats = [weights[name] for name in ("embedding.weight", "rnn.weight_ih_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")]
    whole = []
    for layer in range(checkpoint.config.n_layers + 1):
        is_head = layer == checkpoint.config.n_layers
        kinds = ("hh",) if layer == 0 else ("ih", "hh")
        names = ["head.weight"] if is_head else [f"rnn.weight_{kind}_l{layer}" for kind in kinds]
        floats.append((rounded[names[0]].steps / ACTIVATION_SCALE).astype(np.float32))
        if is_head:
            floats.append(weights["head.bias"])
        elif layer:
            biases = [weights[f"rnn.bias_{kind}_l{layer}"].astype(np.float64) for kind in kinds]
            floats.append(np.asarray(biases[0] + biases[1], np.float32))
        whole.append(np.concatenate([rounded[name].whole for name in names], axis=1))
    return np.concatenate([array.ravel() for array in floats]), np.concatenate([array.ravel() for array in whole])


def _planes(floats: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(floats.astype("<f4").view(np.uint8).reshape(-1, 4).T).tobytes()


def _base85(data: bytes) -> str:
    padded = data + bytes(-len(data) % 4)
    return base64.b85encode(padded).decode().translate(str.maketrans(_RFC_1924, _ALPHABET))


def _policy(script: str, style: str) -> str:
    sources = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in
               (("script", script), ("style", style))}  # fmt: skip
    return (
        f"default-src 'none'; script-src 'sha256-{sources['script']}' 'wasm-unsafe-eval'; "
        f"style-src 'sha256-{sources['style']}'; base-uri 'none'; form-action 'none'"
    )


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _source(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")

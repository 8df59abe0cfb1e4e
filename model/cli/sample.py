"""python -m model sample: generate text from a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from model import arguments
from model.checkpoints import file_format
from model.cli import options
from model.cli.lists import sample as items
from model.config import PRECISION_CHOICES
from model.errors import StructuredOutputError
from model.network.penalties import MAX_LOGIT_BIAS
from model.network.sampling import DEFAULT_CHARS, MAX_SEED, SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary

_MAX_CHARS = 10**9


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("prompt", nargs="?", default="", help="the text to continue (default: none)")
    options.add_checkpoint(command.add_argument_group("the model"))
    command.add_argument(
        "--max-chars",
        type=arguments.number(int, 0, _MAX_CHARS),
        help=f"characters to generate (default {DEFAULT_CHARS}); with --items, of the longest item (default: as in "
        "training)",
    )
    sampling = command.add_argument_group("sampling")
    for p in SamplingParams.fields():
        help = f"{p.help} (default {p.default:g})"
        kind = arguments.number(p.type, p.minimum, p.maximum, accepts=p.accepts, expected=p.expected)
        sampling.add_argument("--" + p.name.replace("_", "-"), type=kind, default=p.default, help=help)
    sampling.add_argument(
        "--logit-bias",
        type=_logit_bias,
        default={},
        help="what is added to the logits of characters, as JSON: '{\"e\": -5}' (default: nothing)",
    )
    sampling.add_argument(
        "--seed",
        type=arguments.number(int, 0, MAX_SEED),
        default=0,
        help="the same seed gives the same text (default 0)",
    )
    command.add_argument(
        "--precision",
        type=arguments.one_of(PRECISION_CHOICES),
        default="auto",
        help="of the native stepper's weights: fp32, int8 or auto, as the service chooses (default auto)",
    )
    constraint = command.add_mutually_exclusive_group()
    constraint.add_argument(
        "--regex", help="a regular expression that the generated text matches wholly (default: none)"
    )
    constraint.add_argument(
        "--choice", action="append", help="a text that may be generated; repeat it for others (default: any text)"
    )
    constraint.add_argument(
        "--json-schema", type=_json_schema, help="a JSON schema, or a file with one, for JSON (default: none)"
    )
    items.add_items(command)


def run(args: argparse.Namespace) -> None:
    """Print the prompt and its continuation, character by character."""
    if args.items is None:
        items.refuse_without_items(args)
    loaded = file_format.load(options.chosen_checkpoint(args))
    params = SamplingParams.from_attributes(args)
    if args.items is not None:
        items.print_items(args, loaded, params)
        return
    max_chars = DEFAULT_CHARS if args.max_chars is None else args.max_chars
    automaton = _automaton(args, loaded.vocab, max_chars)
    stepper, _ = choose(loaded.network(), n_slots=1, device="cpu", precision=loaded.weight_precision(args.precision))
    prompt = loaded.vocab.normalize(args.prompt)
    loaded.vocab.encode(prompt + "".join(args.logit_bias))  # an error comes before the first character
    print(prompt, end="")
    bias = args.logit_bias
    for text in write(
        stepper, loaded.vocab, prompt, max_chars, params, args.seed, logit_bias=bias, automaton=automaton
    ):
        print(text, end="", flush=True)
    print()


def _automaton(args: argparse.Namespace, vocab: Vocabulary, max_chars: int) -> Automaton | None:
    """The automaton of the text's constraint, if there is one.

    Raises:
        StructuredOutputError: The constraint cannot be used, or no text of it fits into max_chars.
    """
    kinds = {"regex": args.regex, "choice": args.choice, "json": args.json_schema}
    given = {kind: value for kind, value in kinds.items() if value is not None}
    if not given:
        return None
    automaton = StructuredOutputs.from_dict(given).compile(vocab)
    if max_chars < automaton.shortest:
        expected = f"at least {automaton.shortest}, the length of the shortest text of this constraint"
        raise StructuredOutputError(field="--max-chars", value=max_chars, expected=expected)
    return automaton


def _json_schema(value: str) -> Any:
    """Parse the argument: a JSON object, or the name of a file with one."""
    try:
        schema = json.loads(value if value.lstrip().startswith("{") else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise arguments.unexpected(value, "a JSON object, or the name of a file with one")
    return schema


def _logit_bias(value: str) -> dict[str, float]:
    """Parse the argument: a JSON object of numbers by character."""
    try:
        biases = json.loads(value)
        is_valid = isinstance(biases, dict) and all(
            len(key) == 1 and isinstance(bias, int | float) and abs(bias) <= MAX_LOGIT_BIAS
            for key, bias in biases.items()
        )
    except (ValueError, RecursionError):
        is_valid = False
    if not is_valid:
        expected = f"a JSON object with single characters and numbers from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}"
        raise arguments.unexpected(value, expected)
    return {key: float(bias) for key, bias in biases.items()}

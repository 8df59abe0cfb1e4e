"""python -m model train | sample | score | sweep | plot | info: the trainer job and its neighbours, at a terminal."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from model.checkpoints import file_format, registry
from model.cli import console
from model.config import PRESETS, ModelConfig, TrainConfig
from model.errors import CheckpointError, ConfigError, ModelError
from model.evaluation import protocols
from model.evaluation.dynamic_evaluation import dynamic_loss
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from model.text.corpus import Corpus, read_text
from model.text.default_text import default_text
from model.text.memory_map import corpus_from_file
from model.training.distributed import Distributed, joined, leave
from model.training.loop import fit
from model.training.run_folder import RunFolder, new_folder

_STORE = Path("data/checkpoints")
_SAMPLE_CHARS = 120


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except ModelError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="train | sample | score | sweep | plot | info")

    train = commands.add_parser("train", help="a text in, a checkpoint with the best validation loss out")
    _add_training(train)
    train.add_argument("--no-promote", action="store_true", help="do not make it the model that is served")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped: its folder")
    train.add_argument("--warm-start", type=Path, metavar="CHECKPOINT", help="begin with the weights of this one")
    train.set_defaults(run=_train)

    sweep = commands.add_parser("sweep", help="many short runs over sizes, dropouts and rates; the best is promoted")
    _add_training(sweep, minutes="the budget of the whole sweep (default 10)")
    sweep.add_argument("--runs", type=int, default=10, help="how many runs share the budget (default 10)")
    sweep.add_argument("--study", default="sweep", help="its name: the same name goes on with it (default sweep)")
    sweep.add_argument("--storage", default="", help="a file or a Redis URL, to be shared; default: a file in --out")
    sweep.set_defaults(run=_sweep)

    sample = commands.add_parser("sample", help="write text, the same that the service would")
    sample.add_argument("prompt", nargs="?", default="")
    sample.add_argument("--checkpoint", type=Path, help="default: the promoted one")
    sample.add_argument("--store", type=Path, default=_STORE, help=argparse.SUPPRESS)
    sample.add_argument("--max-chars", type=int, default=500)
    sample.add_argument("--temperature", type=float, default=1.0)
    sample.add_argument("--top-k", type=int, default=0)
    sample.add_argument("--top-p", type=float, default=1.0)
    sample.add_argument("--min-p", type=float, default=0.0)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--precision", choices=["fp32", "int8"], default="fp32", help="of the native stepper's weights")
    sample.set_defaults(run=_sample)

    score = commands.add_parser("score", help="a model's loss on a text, by named protocols")
    score.add_argument("corpus", type=Path, nargs="?", help="a UTF-8 text file; without it, Shakespeare's works")
    score.add_argument("--checkpoint", type=Path, help="default: the promoted one")
    score.add_argument("--store", type=Path, default=_STORE, help=argparse.SUPPRESS)
    score.add_argument("--part", choices=("val", "test", "all"), default="val", help="as the model's run cut it")
    score.add_argument("--protocols", help="a: crops of 256; b: one pass; c: dynamic, slow (default ab)")
    score.add_argument(
        "--precision", choices=["fp32", "int8"], help="by the native stepper, as served with it: (b) only"
    )
    score.set_defaults(run=_score)

    plot = commands.add_parser("plot", help="a run's curves as a picture")
    plot.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    plot.add_argument("--out", type=Path, help="a .svg or .png file (default: curves.svg in the run's folder)")
    plot.set_defaults(run=_plot)

    info = commands.add_parser("info", help="what a checkpoint is and where it came from")
    info.add_argument("checkpoint", type=Path, nargs="?", help="default: the promoted one")
    info.add_argument("--store", type=Path, default=_STORE, help=argparse.SUPPRESS)
    info.set_defaults(run=_info)
    return parser


def _add_training(command: argparse.ArgumentParser, minutes: str = "") -> None:
    command.add_argument("corpus", type=Path, nargs="?", help="a UTF-8 text file; without it, Shakespeare's works")
    command.add_argument("--out", type=Path, help=f"folder of checkpoints (default {_STORE})")
    presets = "; ".join(f"{name}: {' '.join(f'{k} {v}' for k, v in p.items())}" for name, p in PRESETS.items())
    help = f"a starting point; options override it (default quick). {presets}"
    command.add_argument("--preset", choices=PRESETS, help=help)
    command.add_argument("--device", help="cpu or cuda (default cpu)")
    for config in (ModelConfig, TrainConfig):
        for f in fields(config):
            if f.name != "vocab_size":
                kind = {"int": int, "float": float}.get(str(f.type), str)
                help = minutes if minutes and f.name == "minutes" else f"{f.metadata['help']} (default {f.default})"
                command.add_argument("--" + f.name.replace("_", "-"), dest=f.name, type=kind, help=help)


def _train(args: argparse.Namespace) -> None:
    with joined(args.device or "cpu") as (ranks, device):
        _train_as(args, ranks, device)


def _train_as(args: argparse.Namespace, ranks: Distributed, device: str) -> None:
    about, given = _begun(args.resume), _given(args)
    source = args.corpus or (Path(about["corpus"]) if about.get("corpus") else None)
    store = args.out or Path(about.get("store", _STORE))
    config = TrainConfig.from_dict(_only(TrainConfig, given))
    _check_shape(given)
    corpus = _corpus(source, config, store)
    warm = file_format.load(args.warm_start) if args.warm_start else None
    shape = {f.name: getattr(warm.config, f.name) for f in fields(ModelConfig)} if warm else {}
    shape = {**_only(ModelConfig, given), **shape, **_only(ModelConfig, _named(args))}  # a warm start beats a preset
    model = ModelConfig(**{**shape, "vocab_size": len(corpus.vocab)})
    run: Path | None = args.resume or (new_folder(store / "runs") if ranks.leads else None)
    told = {"corpus": str(source.resolve()) if source else None, "store": str(store.resolve())}
    options: dict[str, Any] = {"device": device, "run": run, "resume": bool(args.resume), "warm_start": warm}
    options |= {"ranks": ranks, "about": told, "sample_chars": _SAMPLE_CHARS}
    if not ranks.leads:
        fit(corpus, model, config, store, **options)
        return
    assert run is not None
    with console.training(corpus, model, config) as watch, console.GentleInterrupt(watch) as watching:
        try:
            path = fit(corpus, model, config, store, watch=watching, **options)
        finally:
            if watching.asked:
                console.stopped(run)
    loaded = file_format.load(path)
    if not args.no_promote:
        registry.promote(path)
    looks = [line["val_loss"] for line in RunFolder(run).metrics() if line["val_loss"] is not None]
    console.trained(loaded, path, run=run, best_look=min(looks, default=math.inf), promoted=not args.no_promote)
    if len(corpus.test) and not watching.asked:
        console.scores("test", len(corpus.test) - 1, {"b": protocols.loss(loaded.network(), corpus.test)})


def _begun(resume: Path | None) -> dict[str, Any]:
    return dict(RunFolder(resume).settings().get("about") or {}) if resume else {}


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings: the resumed run's or the preset's, under those that were given."""
    named = _named(args)
    if getattr(args, "resume", None):
        begun = RunFolder(args.resume).settings()
        preset = PRESETS[args.preset] if args.preset else {}
        return {**begun["model"], **begun["train"], **preset, **named}
    return {**PRESETS[args.preset or "quick"], **named}


def _named(args: argparse.Namespace) -> dict[str, Any]:
    return {k: v for k, v in vars(args).items() if v is not None}


def _check_shape(given: dict[str, Any]) -> None:
    """Say what is wrong with the network's settings before a text is read."""
    ModelConfig(vocab_size=2, **_only(ModelConfig, given))


def _corpus(source: Path | None, config: TrainConfig, store: Path) -> Corpus:
    if source is None:
        return Corpus.from_text(default_text(), config)
    with console.encoding() as watch:
        return corpus_from_file(source, config, store / "texts", watch)


def _sweep(args: argparse.Namespace) -> None:
    from model.training.sweep import Sweep  # Optuna takes a second to load: only who sweeps waits for it

    if args.runs < 1:
        raise ConfigError(f"runs: got {args.runs}, expected a whole number from 1")
    given = _given(args)
    minutes = args.minutes or 10.0
    config = TrainConfig.from_dict({**_only(TrainConfig, given), "minutes": minutes})
    store = args.out or _STORE
    _check_shape(given)
    corpus = _corpus(args.corpus, config, store)
    model = ModelConfig(vocab_size=len(corpus.vocab), **_only(ModelConfig, given))
    sweep = Sweep(corpus, model, config, store, study=args.study, storage=args.storage, device=args.device or "cpu")
    path = sweep.run(args.runs, minutes, console.swept)
    registry.promote(path)
    console.leaderboard(sweep.leaderboard())
    _describe(path)


def _sample(args: argparse.Namespace) -> None:
    loaded = file_format.load(args.checkpoint or _promoted(args.store))
    params = SamplingParams(args.temperature, args.top_k, args.top_p, args.min_p)
    stepper, _ = choose(loaded.network(), n_slots=1, device="cpu", precision=args.precision)
    print(args.prompt, end="")
    for text in write(stepper, loaded.vocab, args.prompt, args.max_chars, params, args.seed):
        print(text, end="", flush=True)
    print()


def _score(args: argparse.Namespace) -> None:
    chosen = ("b" if args.precision else "ab") if args.protocols is None else args.protocols
    if not chosen or set(chosen) - set("abc"):
        raise ConfigError(f"protocols: got {chosen!r}, expected letters of a, b and c")
    if args.precision and set(chosen) != {"b"}:
        raise ConfigError(f"protocols: got {chosen!r}, expected b with precision {args.precision}: a stepper reads on")
    loaded = file_format.load(args.checkpoint or _promoted(args.store))
    text = read_text(args.corpus)[0] if args.corpus else default_text()
    cut = {name: loaded.options[name] for name in ("val_fraction", "test_fraction") if name in loaded.options}
    config = TrainConfig.from_dict({**cut, "batch_size": 1, "seq_length": 1})
    whole = Corpus.from_ids(loaded.vocab, loaded.vocab.encode(text), "", config)
    if args.part == "test" and not len(whole.test):
        raise ConfigError("part: got 'test', but the model's run kept no test part (its test_fraction is 0)")
    ids = {"val": whole.val, "test": whole.test, "all": loaded.vocab.encode(text)}[args.part]
    network = loaded.network()
    if args.precision:
        stepper, which = choose(network, n_slots=64, device="cpu", precision=args.precision)
        console.scores(
            f"{args.part}, {which}", len(ids) - 1, {"b": protocols.loss_as_served(stepper, len(loaded.vocab), ids)}
        )
        return
    losses = {"a": lambda: protocols.loss(network, ids, "a"), "b": lambda: protocols.loss(network, ids, "b")}
    losses["c"] = lambda: dynamic_loss(network, ids)
    console.scores(args.part, len(ids) - 1, {p: losses[p]() for p in sorted(set(chosen))})


def _plot(args: argparse.Namespace) -> None:
    from model.evaluation.plots import draw  # matplotlib takes a second to load

    print(draw(args.folder, args.out or args.folder / "curves.svg"))


def _info(args: argparse.Namespace) -> None:
    _describe(args.checkpoint or _promoted(args.store))


def _describe(path: Path) -> None:
    loaded = file_format.load(path)
    console.describe(loaded, path, stepper=choose(loaded.network(), n_slots=1, device="cpu")[1])


def _promoted(store: Path) -> Path:
    path = registry.promoted_path(store)
    if path is None:
        raise CheckpointError(f"{store}: nothing has been promoted; python -m model train makes a model")
    return path


def _only(config: type, given: dict[str, Any]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in fields(config) if f.name in given and f.name != "vocab_size"}


if __name__ == "__main__":
    sys.exit(leave(main()))

"""Molecules of a list model beside those of the MOSES benchmark: `python -m bench.items molecules FOLDER`.

FOLDER is the package `moses` of molsets 0.3.1 (`pip install --no-deps molsets==0.3.1`), whose lists and patterns are
read as data; none of its code runs. The figures need rdkit (`pip install rdkit`). They follow MOSES' definitions:

    valid     molecules that rdkit reads, of all
    unique    different ones, of the valid
    novel     not in the training list, of the different ones
    filters   without a pattern of the medicinal chemistry filters and PAINS, uncommon atoms, charges and large rings
    IntDiv    1 - the mean similarity of two
    SNN       the mean similarity to the nearest molecule of the test list
    Frag      the cosine of the counts of BRICS fragments, and of those of the test list
    Scaf      the same for Bemis-Murcko scaffolds

Similarity is Tanimoto's of Morgan fingerprints, radius 2, 1,024 bits. The Frechet ChemNet distance is not computed: its
network's weights come as a pickle.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoints.file_format import Checkpoint, load
from model.config import ModelConfig, TrainConfig
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.items import LANES, ItemCollector, ItemConstraints, generate_items
from model.text.items.layout import ItemLayout
from model.text.memory_map import read_corpora
from model.training.loop import fit

TRAINING = {"batch_size": 32, "seq_length": 64, "lr": 5e-3, "val_fraction": 0.005, "validations": 6}
N_EMBED = 64
_COMMON_ATOMS = {"C", "N", "S", "O", "F", "Cl", "Br", "H"}
_LARGEST_RING = 7
Facts = tuple[bytes, list[str], str, bool]  # fingerprint, fragments, scaffold, whether it passes the filters


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the benchmark."""
    command.add_argument("folder", type=Path, help="the package moses of molsets 0.3.1")
    command.add_argument("--minutes", type=float, default=15.0)
    command.add_argument("--steps", type=int, default=0, help="a budget in steps instead of minutes")
    command.add_argument("--n-hidden", type=int, default=384)
    command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the training")
    command.add_argument("--samples", type=int, default=10_000)
    command.add_argument("--reference", type=int, default=0, help="test molecules to compare with; 0: all")
    command.add_argument("--out", type=Path, help="keep the checkpoint and the molecules in this folder")
    command.add_argument("--checkpoint", type=Path, help="generate with this model, and train none")
    command.add_argument(
        "--temperatures", type=float, nargs="+", default=[1.0], help="of the generation: a line of figures for each"
    )
    command.add_argument("--sampled", type=Path, help="measure these molecules, one a line, and train nothing")


def run(args: argparse.Namespace, folder: Path) -> None:
    """Train, generate, measure and print; for each temperature a line is JSON."""
    try:
        import rdkit  # noqa: F401 - an extra of this benchmark
    except ImportError:
        raise SystemExit("bench.items molecules needs rdkit: pip install rdkit") from None
    train = args.folder / "dataset" / "data" / "train.csv.gz"
    if args.sampled is not None:
        references = References(_smiles(train), args.folder, args.reference)
        print(json.dumps(references.measure(args.sampled.read_text("utf-8").splitlines())))
        return
    trained: dict[str, Any] = {}
    if args.checkpoint is not None:
        checkpoint = load(args.checkpoint)
    else:
        checkpoint, trained = _train(args, train, args.out or folder)
    references = References(_smiles(train), args.folder, args.reference)
    for temperature in args.temperatures:
        molecules = _generate(checkpoint, args.samples, temperature)
        file = (args.out or folder) / f"molecules-{temperature:g}.smi"
        file.write_text("\n".join(molecules) + "\n", "utf-8")
        print(json.dumps({**trained, "temperature": temperature, **references.measure(molecules)}), flush=True)


def _train(args: argparse.Namespace, train: Path, folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    settings = {**TRAINING, "minutes": args.minutes, "steps": args.steps, "precision": args.precision}
    config = TrainConfig.from_dict(settings)
    layout = ItemLayout("csv", column="SMILES")
    corpus = read_corpora([train], lambda _sizes, _n: config, folder, layout=layout)
    shape = ModelConfig(len(corpus.vocab), n_hidden=args.n_hidden, n_embed=N_EMBED)
    began = time.monotonic()
    checkpoint = load(fit(corpus, shape, config, folder / "run"))
    read = checkpoint.step * config.batch_size * config.seq_length
    result = {
        "minutes": round((time.monotonic() - began) / 60, 2),
        "characters_read": read,
        "epochs": round(read / len(corpus.train), 3),
        "val_loss": round(checkpoint.val_loss, 4),
    }
    print(f"1x{args.n_hidden}, {args.precision}: {result}", flush=True)
    return checkpoint, result


def _generate(checkpoint: Checkpoint, n: int, temperature: float) -> list[str]:
    """Return so many items as they come: neither unique nor novel by choice."""
    assert checkpoint.items is not None
    stepper, _ = choose(checkpoint.network(), n_slots=LANES, device="cpu", precision=checkpoint.weight_precision())
    collector = ItemCollector(ItemConstraints(n, unique=False), checkpoint.items)
    return [
        item.text for item in generate_items(stepper, checkpoint.vocab, collector, SamplingParams(temperature), seed=1)
    ]


def _smiles(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return [row["SMILES"] for row in csv.DictReader(file)]


class References:
    """MOSES' training and test molecules, with which generated ones are compared."""

    def __init__(self, train: list[str], folder: Path, n_test: int) -> None:
        """Take the training molecules; `n_test` of the test list, 0: all, are read when they are needed."""
        self._train, self._folder, self._n_test = set(train), folder, n_test
        self._test: list[Facts] = []

    def measure(self, molecules: list[str]) -> dict[str, float]:
        """Return MOSES' figures of generated molecules, and print them as they are there."""
        from rdkit import Chem, RDLogger

        RDLogger.DisableLog("rdApp.*")
        read = [Chem.MolFromSmiles(smiles) for smiles in molecules]
        valid = [Chem.MolToSmiles(molecule) for molecule in read if molecule is not None and molecule.GetNumAtoms()]
        different = set(valid)
        if not valid:
            raise SystemExit(f"rdkit reads none of the {len(molecules):,} molecules")
        result = {
            "valid": len(valid) / len(molecules),
            "unique": len(different) / len(valid),
            "novel": len(different - self._train) / len(different),
        }
        print(_line(result), flush=True)
        with ProcessPoolExecutor(initializer=_use_filters, initargs=(self._folder,)) as pool:
            generated = list(pool.map(_facts, valid, chunksize=256))
            self._test = self._test or list(pool.map(_facts, self._test_molecules(), chunksize=256))
        own, other = _fingerprints(generated), _fingerprints(self._test)
        fragments = [Counter(f for facts in some for f in facts[1]) for some in (generated, self._test)]
        scaffolds = [Counter(facts[2] for facts in some if facts[2]) for some in (generated, self._test)]
        result |= {
            "filters": float(np.mean([facts[3] for facts in generated])),
            "int_div": 1.0 - _similarity(own, own, "mean"),
            "snn": _similarity(own, other, "max"),
            "frag": _cosine(*fragments),
            "scaf": _cosine(*scaffolds),
        }
        print(_line(result), flush=True)
        return {**{name: round(value, 4) for name, value in result.items()}, "reference": len(self._test)}

    def _test_molecules(self) -> list[str]:
        test = _smiles(self._folder / "dataset" / "data" / "test.csv.gz")
        if not self._n_test:
            return test
        return [test[i] for i in np.random.default_rng(1).permutation(len(test))[: self._n_test]]


def _line(result: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in result.items())


_folder = Path()


def _use_filters(folder: Path) -> None:
    """Tell a worker process where the patterns are."""
    global _folder  # noqa: PLW0603 - a process of a pool has nothing else to keep it in
    _folder = folder


@lru_cache(maxsize=1)
def _patterns(folder: Path) -> list[Any]:
    """The molecules of the patterns: a column `smarts` in both tables."""
    from rdkit import Chem

    smarts: list[str] = []
    with (folder / "metrics" / "mcf.csv").open(encoding="utf-8", newline="") as file:
        smarts += [row["smarts"] for row in csv.DictReader(file)]
    with (folder / "metrics" / "wehi_pains.csv").open(encoding="utf-8", newline="") as file:
        smarts += [row[0].strip() for row in csv.reader(file)]
    return [Chem.MolFromSmarts(pattern) for pattern in smarts]


def _facts(smiles: str) -> Facts:
    """Everything that is counted of one molecule."""
    from rdkit import Chem
    from rdkit.Chem import BRICS, rdFingerprintGenerator
    from rdkit.Chem.Scaffolds import MurckoScaffold

    molecule = Chem.MolFromSmiles(smiles)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    bits = np.packbits(generator.GetFingerprintAsNumPy(molecule).astype(bool)).tobytes()
    fragments = Chem.MolToSmiles(BRICS.BreakBRICSBonds(molecule)).split(".")
    scaffold = MurckoScaffold.GetScaffoldForMol(molecule)
    name = Chem.MolToSmiles(scaffold) if scaffold.GetRingInfo().NumRings() else ""
    return bits, fragments, name, _passes(molecule)


def _passes(molecule: Any) -> bool:
    from rdkit import Chem

    rings = molecule.GetRingInfo().AtomRings()
    if any(len(ring) > _LARGEST_RING for ring in rings):
        return False
    if any(atom.GetFormalCharge() or atom.GetSymbol() not in _COMMON_ATOMS for atom in molecule.GetAtoms()):
        return False
    with_hydrogens = Chem.AddHs(molecule)
    return not any(with_hydrogens.HasSubstructMatch(pattern) for pattern in _patterns(_folder))


def _fingerprints(facts: list[Facts]) -> np.ndarray[Any, np.dtype[np.float32]]:
    packed = np.frombuffer(b"".join(one[0] for one in facts), np.uint8).reshape(len(facts), -1)
    return np.unpackbits(packed, axis=1).astype(np.float32)


def _similarity(own: np.ndarray[Any, Any], other: np.ndarray[Any, Any], of: str) -> float:
    """The mean over `own` of the mean, or the largest, Tanimoto similarity to `other`."""
    sizes, total = other.sum(axis=1), 0.0
    for first in range(0, len(own), 256):
        some = own[first : first + 256]
        best = np.zeros(len(some))
        for begin in range(0, len(other), 1 << 14):
            common = some @ other[begin : begin + (1 << 14)].T
            tanimoto = common / (some.sum(axis=1)[:, None] + sizes[None, begin : begin + (1 << 14)] - common)
            if of == "max":
                best = np.maximum(best, tanimoto.max(axis=1))
            else:
                best += tanimoto.sum(axis=1) / len(other)
        total += float(best.sum())
    return total / len(own)


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    product = sum(one[key] * other[key] for key in one.keys() & other.keys())
    return product / math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))

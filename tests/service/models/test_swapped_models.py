"""Texts of many models that are loaded and evicted at random are those that each model writes alone.

Quick here; `make many-models` has 50 models (MODELS) and more texts of each (MODEL_TEXTS).
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints import registry
from model.checkpoints.names import store_folder
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.cpu import CpuStepper
from model.stepper.generate import write
from service.engine.observer import NullObserver
from service.engine.sequence import SequenceRequest
from service.engine.stream import Chunk, End
from service.errors import Overloaded
from service.models.automaton_cache import CompilationCache
from service.models.loader import ModelLoader
from service.models.named_models import NamedModels
from service.models.stores.model_stores import ModelStores
from tests.conftest import random_checkpoint
from tests.servers import eventually

N_MODELS = int(os.environ.get("MODELS", "8"))
N_TEXTS = N_MODELS * int(os.environ.get("MODEL_TEXTS", "6"))
N_THREADS = 4
PARAMS = SamplingParams(0.9)


def no_device_is_lost() -> None:
    """There is no GPU."""


def with_memory_for_two(root: Path) -> NamedModels:
    """Three models of one shape, m0 to m2."""
    for i in range(3):
        registry.promote(random_checkpoint(n_layers=1, n_hidden=16, seed=i).save(store_folder(root, f"m{i}")))
    load = ModelLoader("cpu", "fp32", 4, 8, 0.002, lambda *_: NullObserver(), CompilationCache(), no_device_is_lost)
    model = load(next(root.rglob("*.safetensors")))
    named = NamedModels(ModelStores(root), load, 2 * model.n_bytes)
    model.retire(lambda _: None)
    return named


@pytest.mark.usefixtures("native_code")
def test_texts_of_many_models_are_those_of_each_alone(tmp_path: Path) -> None:
    """Memory is for five of them, four texts run at a time, and each model comes and goes several times."""
    checkpoints = [random_checkpoint(n_layers=1 + seed % 2, n_hidden=16, seed=seed) for seed in range(N_MODELS)]
    alone = [choose(checkpoint.network(), 1, "cpu")[0] for checkpoint in checkpoints]
    for i, checkpoint in enumerate(checkpoints):
        registry.promote(checkpoint.save(store_folder(tmp_path, f"m{i}")))
    loads = []

    def on_load(n_slots: int, path: Path) -> NullObserver:
        loads.append(n_slots)
        return NullObserver()

    load = ModelLoader("cpu", "fp32", 4, 8, 0.002, on_load, CompilationCache(), no_device_is_lost)
    with_one = load(next(store_folder(tmp_path, "m1").glob("*.safetensors")))
    n_bytes = with_one.n_bytes
    with_one.retire(lambda _: None)
    named = NamedModels(ModelStores(tmp_path), load, (N_THREADS + 1) * n_bytes)
    vocab = checkpoints[0].vocab
    feed = np.array([vocab.start, *vocab.encode("hello ")], np.int32)

    def text_of(seed: int) -> tuple[int, str]:
        i = random.Random(seed).randrange(N_MODELS)
        with named.acquire(f"m{i}") as lease:
            stream = lease.model.engine.submit(SequenceRequest(feed, 0, 80, PARAMS, seed))
            text = ""
            while not isinstance(item := stream.get(60), End):
                assert isinstance(item, Chunk), item
                text += item.text
        assert named.n_bytes <= (N_THREADS + 1) * n_bytes
        return i, text

    with ThreadPoolExecutor(N_THREADS) as threads:
        texts = list(threads.map(text_of, range(N_TEXTS)))
    assert len(loads) > N_MODELS  # some came again
    for seed, (i, text) in enumerate(texts):
        assert text == "".join(write(alone[i], vocab, "hello ", 80, PARAMS, seed=seed)), (seed, i)
    for model in named.loaded():
        model.retire(lambda _: None)


def test_every_place_taken_is_said(tmp_path: Path) -> None:
    """One more model than there is memory for waits for one that is in use, then is refused; those that run stay."""
    named = with_memory_for_two(tmp_path)
    leases = [named.acquire("m0"), named.acquire("m1")]
    with pytest.raises(Overloaded):
        named.acquire("m2")
    assert [lease.model for lease in leases] == named.loaded()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(named.acquire, "m2")
        eventually(lambda: named.n_waiting == 1 or waiting.done())
        leases.pop(0).release()
        leases.append(waiting.result(timeout=30))
    assert [lease.model for lease in leases] == named.loaded()
    for lease in leases:
        lease.release()
    for model in named.loaded():
        model.retire(lambda _: None)


@pytest.mark.usefixtures("native_code")
def test_a_load_waits_for_no_block(tmp_path: Path) -> None:
    """A model is loaded, and another one evicted for it, while a third one runs a block that does not end."""
    named = with_memory_for_two(tmp_path)
    with named.acquire("m0") as running, ThreadPoolExecutor(1) as thread:
        stepper = running.model._stepper
        assert isinstance(stepper, CpuStepper)
        with stepper._lock:  # as a block holds it
            for name in ("m1", "m2"):
                thread.submit(named.acquire, name).result(timeout=30).release()
    for model in named.loaded():
        model.retire(lambda _: None)

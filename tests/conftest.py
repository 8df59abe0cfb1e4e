"""Fixtures that several parts share: a small model, a real Redis, a real service."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import torch
from hypothesis import settings

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig
from model.native.build import BuildError, build
from model.native.library import Unsupported, library_path
from model.network.char_rnn import CharRNN
from model.stepper.cuda import compiler, driver
from model.text.vocab import Vocabulary
from service.store.connect import close, connect
from tests import cuda_emulator
from tests.cuda_emulator import EmulatedGpu
from tests.servers import OUTPUTS, RedisServer, Service, find_secrets

settings.register_profile("quick", max_examples=60, deadline=None)
settings.register_profile("many", max_examples=10_000, deadline=None)
settings.load_profile("quick")
ALPHABET = Vocabulary("\n !'abcdefghijklmnopqrstuvwxyz")


def pytest_configure() -> None:
    """Let torch use one thread: the tests' models are small, and threads would only wait for each other.

    Not by an import: benchmarks import this module, too, and train on all cores.
    """
    torch.set_num_threads(1)


def pytest_report_header() -> str:
    """Say whether the native code of these sources is built: services run on the slow reference stepper without it."""
    try:
        path = library_path()
    except Unsupported as reason:
        return f"native code: {reason}"
    return f"native code: {path.name if path.exists() else 'not built, run python -m model.native.build'}"


def random_checkpoint(
    cell: str = "lstm", n_layers: int = 2, n_hidden: int = 24, seed: int = 0, alphabet: Vocabulary = ALPHABET
) -> Checkpoint:
    """A model of random weights, loud enough that its distributions are far from flat."""
    torch.manual_seed(seed)
    config = ModelConfig(len(alphabet), n_hidden, n_layers, n_embed=8, cell=cell)  # type: ignore[arg-type]
    network = CharRNN(config)
    network.head.weight.data.mul_(12)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return Checkpoint(config, alphabet, weights, 2.5 + seed / 10, 100, 10, 2.5, "0" * 64, {"lr": 0.004})


@pytest.fixture(scope="session", autouse=True)
def _no_secret_is_printed() -> Iterator[None]:
    """Search all that the run's processes have printed for the password that they were given."""
    yield
    result = find_secrets()
    assert not result, f"a process printed the planted secret: see {OUTPUTS}/{result[0]}"
    shutil.rmtree(OUTPUTS)


@pytest.fixture(scope="session")
def native_code() -> None:
    """Our own C, built; where it cannot be, the tests that need it are skipped with the reason."""
    try:
        build()
    except (BuildError, Unsupported) as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    return random_checkpoint()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint) -> Path:
    """A folder of checkpoints in which the small model is promoted."""
    folder = tmp_path_factory.mktemp("checkpoints")
    registry.promote(tiny.save(folder))
    return folder


@pytest.fixture(scope="session")
def emulated_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulated GPU's driver library, to be found with `cuda_emulator.environment`."""
    if cuda_emulator.COMPILER is None:
        pytest.skip("no C++ compiler here: the CUDA kernels cannot be emulated")
    return cuda_emulator.build(tmp_path_factory.mktemp("cuda") / "driver")


@pytest.fixture
def emulated_gpu(emulated_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedGpu]:
    """An emulated GPU for this process; the test fails if a kernel made a forbidden access."""
    monkeypatch.setattr(driver, "LIBRARY", str(emulated_driver))
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(emulated_driver.parent))
    gpu = EmulatedGpu(emulated_driver)
    gc.collect()  # steppers of earlier tests
    gpu.reset()
    yield gpu
    message = gpu.message()
    gpu.reset()
    assert message == ""


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of the session's Redis, whose keys stay."""
    client = connect(redis_server.url)
    yield client
    close(client)


@pytest.fixture
def empty_redis(redis_client: redis.Redis) -> Iterator[redis.Redis]:
    """A client of the session's Redis, which is emptied before the test and after it."""
    redis_client.flushall()
    yield redis_client
    redis_client.flushall()


@pytest.fixture(scope="session")
def service(store: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A real service on a real Redis, for tests that neither stop nor flood it."""
    service = Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url)
    service.start()
    yield service
    service.stop()


ENDLESS_CHARS = 10**8
"""A text of so many characters does not end by itself while a test runs."""


@pytest.fixture(scope="session")
def endless(store: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service whose texts may have ENDLESS_CHARS, for tests of clients that leave."""
    settings = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis_server.url, "MAX_CHARS": str(ENDLESS_CHARS)}
    with Service(**settings) as service:
        yield service

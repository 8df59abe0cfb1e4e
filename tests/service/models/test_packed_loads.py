"""A checkpoint that was loaded and tested once is loaded by its packed form, while what it depends on is the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.checkpoints import file_format, packed_form, registry, self_test
from model.checkpoints.file_format import Checkpoint
from model.errors import CheckpointError
from model.network.sampling import SamplingParams
from model.stepper.generate import write
from service.engine.observer import NullObserver
from service.models.automaton_cache import CompilationCache
from service.models.loaded_model import LoadedModel
from service.models.loader import ModelLoader
from tests.conftest import random_checkpoint
from tests.integration.lists import list_checkpoint

pytestmark = pytest.mark.usefixtures("native_code")


def no_device_is_lost() -> None:
    """There is no GPU."""


class Loads:
    """Loads with a self-test that counts, by a new loader each or by one that knows the files of the loads before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, by_one_loader: bool) -> None:
        self.by_one_loader = by_one_loader
        self.loaders: dict[str, ModelLoader] = {}
        self.n_tests = 0
        verify = self_test.verify_stepper

        def counted(*args: object) -> None:
            self.n_tests += 1
            verify(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(self_test, "verify_stepper", counted)
        self.models: list[LoadedModel] = []

    def load(self, path: Path, precision: str = "fp32", prompt: str = "hello") -> str:
        """Load a checkpoint, and return what it writes."""
        if not self.by_one_loader or precision not in self.loaders:
            self.loaders[precision] = ModelLoader(
                "cpu", precision, 4, 4, 0.02, lambda *_: NullObserver(), CompilationCache(), no_device_is_lost  # type: ignore[arg-type]
            )  # fmt: skip
        model = self.loaders[precision](path)
        self.models.append(model)
        stepper, vocab = model._stepper, model.engine.vocab
        assert stepper is not None
        return "".join(write(stepper, vocab, prompt, 100, SamplingParams(0.9), seed=3))


@pytest.fixture(params=[False, True], ids=["a loader each", "one loader"])
def loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    loads = Loads(monkeypatch, by_one_loader=request.param)
    yield loads
    for model in loads.models:
        model.retire(lambda _: None)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return self_test.record(random_checkpoint(n_hidden=40))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_second_load_writes_the_same_text_without_a_test(
    loads: Loads, checkpoint: Checkpoint, tmp_path: Path, precision: str
) -> None:
    """To the bit, and with the same description."""
    path = checkpoint.save(tmp_path)
    texts = {loads.load(path, precision) for _ in range(3)}
    assert (len(texts), loads.n_tests) == (1, 1)
    assert len({str(model.description) for model in loads.models}) == 1
    assert {model.fingerprint for model in loads.models} == {checkpoint.fingerprint}


def test_a_file_that_is_the_same_is_read_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metadata and its packed form's header; of a list, which may be long, nothing is kept."""
    read, opened = Counter[str](), list[Path]()
    load_without_weights, open_form = file_format.load_without_weights, packed_form._PackedFile.open

    def counted(path: Path) -> tuple[Checkpoint, file_format.CheckpointInfo]:
        read[path.parent.name] += 1
        return load_without_weights(path)

    monkeypatch.setattr(file_format, "load_without_weights", counted)

    def noted(path: Path) -> packed_form._PackedFile:
        opened.append(path)
        return open_form(path)

    monkeypatch.setattr(packed_form._PackedFile, "open", noted)
    loads = Loads(monkeypatch, by_one_loader=True)
    a_list = list_checkpoint()
    for path in (checkpoint.save(tmp_path / "text"), a_list.save(tmp_path / "list")):
        assert len({loads.load(path, prompt="ab") for _ in range(4)}) == 1
    assert (read["text"], read["list"]) == (1, 4)
    assert len(opened) == 4  # each once before it is there, and once when it is verified
    assert loads.models[-1].items is not loads.models[-2].items
    for model in loads.models:
        model.retire(lambda _: None)


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def remove(path: Path) -> None:
    path.unlink()


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_header(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def name_another_type(path: Path) -> None:
    replace_header(path, b'"F32"', b'"F64"')


def name_another_shape(path: Path) -> None:
    replace_header(path, b'"shape":[', b'"shape":[7,')


def name_a_place_past_the_end(path: Path) -> None:
    replace_header(path, b'"data_offsets":[', b'"data_offsets":[9')


def name_no_object(path: Path) -> None:
    replace_header(path, b"{", b"[")


def name_a_long_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def name_another_format(path: Path) -> None:
    replace_header(path, packed_form.FORMAT.encode(), packed_form.FORMAT.encode()[:-1] + b"0")


HEADERS = [name_another_type, name_another_shape, name_a_place_past_the_end, name_no_object, name_a_long_header]


@pytest.mark.parametrize("damage", [flip, truncate, remove, make_empty, name_another_format, *HEADERS])
def test_a_damaged_form_is_not_used(
    loads: Loads, checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The checkpoint is loaded whole and tested; then the form is good again."""
    path = checkpoint.save(tmp_path)
    first = loads.load(path)
    damage(packed_form.packed_path(path, "fp32"))
    assert (loads.load(path), loads.n_tests) == (first, 2)
    assert (loads.load(path), loads.n_tests) == (first, 2)


def test_a_checkpoint_that_was_written_again_is_tested(loads: Loads, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its weights are verified as at the first load; damaged ones are refused, though a packed form is there."""
    path = checkpoint.save(tmp_path)
    loads.load(path)
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    loads.load(path)
    assert loads.n_tests == 2
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 2 * 10**9))
    with pytest.raises(CheckpointError, match="modified"):
        loads.load(path)


def test_a_checkpoint_that_was_replaced_by_one_of_its_size_and_time_is_loaded(
    loads: Loads, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """As tools that set every time to the same one leave it: what was read of the old one is not used."""
    other = self_test.record(random_checkpoint(n_hidden=40, seed=1))
    expected = loads.load(other.save(tmp_path / "other"))
    path = checkpoint.save(tmp_path)
    os.utime(path, (10**9, 10**9))
    assert loads.load(path) != expected
    before = path.stat()
    path.write_bytes(other.save(tmp_path / "other").read_bytes())
    os.utime(path, (10**9, 10**9))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert loads.load(path) == expected
    assert loads.models[-1].description["id"] == other.fingerprint


def test_a_file_that_is_replaced_while_it_is_loaded_does_not_get_the_form_of_the_other(
    loads: Loads, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next load writes the text of the file that is there."""
    other = self_test.record(random_checkpoint(n_hidden=40, seed=1))
    expected = loads.load(other.save(tmp_path / "other"))
    path = checkpoint.save(tmp_path)
    verify = self_test.verify_stepper

    def replaced_meanwhile(*args: object) -> None:
        verify(*args)  # type: ignore[arg-type]
        other.save(tmp_path / "other").replace(path)

    with monkeypatch.context() as patch:
        patch.setattr(self_test, "verify_stepper", replaced_meanwhile)
        assert loads.load(path) != expected
    assert loads.load(path) == expected
    assert loads.models[-1].fingerprint == other.fingerprint


def test_other_code_is_tested(
    loads: Loads, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form that another instruction set has passed says nothing of this one."""
    path = checkpoint.save(tmp_path)
    loads.load(path)
    monkeypatch.setattr(packed_form, "choose_instruction_set", lambda _: "another")
    loads.load(path)
    assert loads.n_tests == 2


def test_forms_go_with_their_checkpoints(loads: Loads, tmp_path: Path) -> None:
    """By retention and by deletion; those of checkpoints that stay, stay."""
    paths = [random_checkpoint(n_layers=1, n_hidden=4, seed=seed).save(tmp_path) for seed in range(4)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (10**9 - age, 10**9 - age))
        loads.load(path)
    registry.promote(paths[3])
    registry.prune(tmp_path, keep=2)
    assert {path.name for path in tmp_path.glob("*.packed")} == {
        packed_form.packed_path(path, "fp32").name for path in paths[2:]
    }
    assert registry.remove(tmp_path, loads.models[1].fingerprint)
    assert [path.name for path in tmp_path.glob("*.packed")] == [packed_form.packed_path(paths[3], "fp32").name]


@pytest.mark.parametrize(("cell", "level"), [("gru", "WARNING"), ("lstm", "INFO")])
def test_the_log_warns_of_the_slowest_stepper(
    loads: Loads, tmp_path: Path, caplog: pytest.LogCaptureFixture, cell: str, level: str
) -> None:
    """With the reason; that a faster one was chosen is information."""
    with caplog.at_level("INFO"):
        loads.load(random_checkpoint(cell).save(tmp_path))
    assert [record.levelname for record in caplog.records if record.message.startswith("stepper: ")] == [level]

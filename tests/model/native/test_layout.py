"""The structures that Python and C share have the same fields at the same places in both."""

from __future__ import annotations

import ctypes
from itertools import takewhile

import numpy as np
import pytest

from model.native.library import (
    BlockArrays,
    ModelArrays,
    OptimizerArrays,
    PassArrays,
    TextsArrays,
    library_path,
    load_library,
)
from model.network.sampling import SAMPLING_DTYPE, SamplingParams, as_batch

pytestmark = pytest.mark.usefixtures("native_code")
Layout = dict[str, tuple[int, int]]  # "structure" or "structure.field" -> offset and size in bytes
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "lh_model": ModelArrays,
    "lh_block": BlockArrays,
    "lh_texts": TextsArrays,
    "lh_pass": PassArrays,
    "lh_optimizer": OptimizerArrays,
}


@pytest.fixture(scope="module")
def layout() -> Layout:
    fields = takewhile(lambda field: field.name, iter(load_library(library_path()).lh_layout()))
    return {field.name.decode(): (field.offset, field.size) for field in fields}


def test_a_row_of_sampling_parameters_is_the_c_structure(layout: Layout) -> None:
    """Every field of SamplingParams, and nothing else, is in sampling_t: by name, in order, place and size."""
    expected: Layout = {"sampling_t": (0, SAMPLING_DTYPE.itemsize)}
    for parameter in SamplingParams.fields():
        assert SAMPLING_DTYPE.fields is not None
        dtype, offset = SAMPLING_DTYPE.fields[parameter.name][:2]
        expected[f"sampling_t.{parameter.name}"] = (offset, dtype.itemsize)
    assert {name: place for name, place in layout.items() if name.startswith("sampling_t")} == expected


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_ctypes_structure_is_the_c_structure(name: str, layout: Layout) -> None:
    """Every field by name, place and size."""
    structure = STRUCTURES[name]
    expected: Layout = {name: (0, ctypes.sizeof(structure))}
    for field, *_ in structure._fields_:
        descriptor = getattr(structure, field)
        expected[f"{name}.{field}"] = (descriptor.offset, descriptor.size)
    assert {key: place for key, place in layout.items() if key.split(".")[0] == name} == expected


def test_a_batch_holds_each_rows_parameters() -> None:
    """What goes in as SamplingParams can be read back, row by row."""
    rows = [SamplingParams(), SamplingParams(0.5, 40, 0.9, 0.05), SamplingParams(0.0, 65536)]
    batch = as_batch(rows)
    assert batch.shape == (3,)
    assert [SamplingParams(*row.tolist()) for row in batch] == rows
    assert as_batch([]).dtype == np.dtype(SAMPLING_DTYPE)

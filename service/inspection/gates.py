"""Inspect the network: its gates while it reads a text, and the units that correlate with simple features of it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation import unit_correlations
from model.network.gates import GateActivations, gate_activations
from service.errors import BadRequest, UnsupportedCell
from service.models.loaded_model import LoadedModel
from service.schemas import InspectRequest

_NAMES = tuple(field.name for field in fields(GateActivations))
_DIGITS = 5
_MAP_DIGITS = 3


def check_inspectable(model: LoadedModel, request: InspectRequest) -> None:
    """Check the request against the served network.

    Raises:
        UnsupportedCell: The network is not an LSTM.
        BadRequest: The layer or a unit does not exist.
        NoModel: The model's file cannot be read.
    """
    config = model.network.get().config
    if config.cell != "lstm":
        raise UnsupportedCell("cell", config.cell, "'lstm': the cells of other types have other gates")
    _check_index("layer", request.layer, config.n_layers)
    for i, unit in enumerate(request.units):
        _check_index(f"units.{i}", unit, config.n_hidden)


def inspect_text(model: LoadedModel, request: InspectRequest, ids: NDArray[np.int32]) -> dict[str, Any]:
    """Return the gates of the requested units, one quantity of all units, and the correlations of units.

    Args:
        model: The served model.
        request: Checked by `check_inspectable`.
        ids: The text, (T,).
    """
    network = model.network.get()
    text = model.engine.vocab.decode(ids)
    with_start = gate_activations(network, [model.engine.vocab.start, *ids.tolist()])
    layers = [GateActivations(*(getattr(layer, name)[1:] for name in _NAMES)) for layer in with_start]
    layer, start = layers[request.layer], with_start[request.layer]
    item_starts = np.flatnonzero(ids == network.item_end) if network.item_end is not None else np.zeros(0, np.int64)
    old_c = with_start[request.layer].c[:-1].copy()  # (T, H): what the forget gate of each character multiplies
    old_c[item_starts] = 0
    answer: dict[str, Any] = {
        "text": text,
        "characters": len(ids),
        "n_layers": network.config.n_layers,
        "n_hidden": network.config.n_hidden,
        "layer": request.layer,
        "item_starts": item_starts.tolist(),
        "units": [
            {
                "unit": unit,
                "start": {name: round(float(getattr(start, name)[0, unit]), _DIGITS) for name in "ch"},
                "old_c": _rounded(old_c[:, unit]),
                **{name: _rounded(getattr(layer, name)[:, unit]) for name in _NAMES},
            }
            for unit in request.units
        ],
        "unit_correlations": _unit_correlations(text, layers),
    }
    if request.map is not None:
        values = getattr(layer, request.map)
        mapped = np.tanh(values) if request.map == "c" else values
        answer["map"] = {"of": request.map, "values": np.round(mapped.T, _MAP_DIGITS).tolist()}  # (H, T)
    return answer


def _unit_correlations(text: str, layers: list[GateActivations]) -> dict[str, Any]:
    """For each feature of a text: its description, and the units whose tanh(c) correlates with it most."""
    cells = [np.tanh(layer.c) for layer in layers]
    return {
        name: {
            "description": description,
            "units": [
                {"layer": layer, "unit": unit, "r": round(r, 4)}
                for layer, unit, r in unit_correlations.rank_units(text, cells, name)
            ],
        }
        for name, (description, _) in unit_correlations.FEATURES.items()
    }


def _rounded(values: NDArray[np.floating]) -> list[float]:
    rounded: list[float] = np.round(values, _DIGITS).tolist()
    return rounded


def _check_index(field: str, value: int, count: int) -> None:
    if value >= count:
        raise BadRequest(field, value, f"0 to {count - 1}")

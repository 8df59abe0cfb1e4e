"""Models of lists with random weights, and servers of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig
from model.evaluation.item_losses import item_losses
from model.network.char_rnn import CharRNN
from model.text.items.layout import ItemLayout
from model.text.items.record import ItemRecord
from model.text.items.splitting import item_hashes
from model.text.vocab import Vocabulary

VOCAB = Vocabulary("\nabc")
VALIDATION = ("a", "ab", "cab", "bb", "acca", "cbabc", "c", "bcab")
TRAINING = ("a", "b", "ca", "abc", "aa")


def list_checkpoint(
    end_bias: float = 1.0, scale: float = 2.0, *, training: Sequence[str] = TRAINING, val_loss: float = 1.5
) -> Checkpoint:
    """A model of a list whose items are short where the bias of the end is large."""
    torch.manual_seed(11)
    config = ModelConfig(len(VOCAB), n_hidden=24, n_embed=8)
    network = CharRNN(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.mul_(scale)
    network.head.bias[0] = end_bias
    network.item_end = VOCAB.start
    ids = VOCAB.encode("".join(VOCAB.end + item for item in VALIDATION))
    losses = item_losses(network, ids, VOCAB.start)
    hashes = np.sort(item_hashes(training))
    record = ItemRecord(ItemLayout("lines"), len(training), len(VALIDATION), 0, 12, train_hashes=hashes)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    checkpoint = Checkpoint(config, VOCAB, weights, val_loss, 100, 10, 1.5, "1" * 64, {"lr": 0.004})
    record = record.with_validation(losses.per_item, losses.statistics())
    return replace(checkpoint, items=record)


def store_of(folder: Path, checkpoint: Checkpoint) -> Path:
    """A folder of checkpoints in which this one is promoted."""
    registry.promote(checkpoint.save(folder))
    return folder


def texts(items: Sequence[dict[str, Any]]) -> list[str]:
    """The texts of items."""
    return [item["text"] for item in items]

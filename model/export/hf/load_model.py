"""Load the model of this folder with PyTorch and safetensors: python load_model.py "a prompt"."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class CharacterModel(nn.Module):
    """Read the ids of a text (T,), and give the logits of each next character (T, V)."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Create the layers."""
        super().__init__()
        self.item_end = config["item_end_id"]  # of a list: the state is zero before this id is read
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config["cell"]]
        self.embedding = nn.Embedding(config["vocab_size"], config["n_embed"])
        self.rnn = rnn(config["n_embed"], config["n_hidden"], config["n_layers"])
        self.head = nn.Linear(config["n_hidden"], config["vocab_size"])

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return the logits and the state after the ids."""
        ends, outputs = (ids == (-1 if self.item_end is None else self.item_end)), []
        for part in torch.tensor_split(ids, torch.where(ends)[0].tolist()):
            if len(part):
                state = None if part[0] == self.item_end else state
                output, state = self.rnn(self.embedding(part), state)
                outputs.append(output)
        return self.head(torch.cat(outputs)), state


def load(folder: Path) -> tuple[CharacterModel, list[str], int]:
    """Return the model, the characters by id, and the id that is read before a text."""
    config, ids = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "vocab.json"))
    model = CharacterModel(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), sorted(ids, key=ids.get), config["start_id"]


@torch.inference_mode()
def write(folder: Path, prompt: str = "", n: int = 500) -> Iterator[str]:
    """Yield the characters that follow a prompt."""
    model, characters, start = load(folder)
    logits, state = model(torch.tensor([start, *map(characters.index, prompt)]))
    for _ in range(n):
        id = torch.multinomial(logits[-1].softmax(-1), 1)
        yield characters[int(id)]
        logits, state = model(id, state)


if __name__ == "__main__":
    print("".join(write(Path(__file__).parent, " ".join(sys.argv[1:]))))

"""The loss of a network on the validation part of a corpus: stateful for a text, by items for a list."""

from __future__ import annotations

from dataclasses import dataclass

from model.evaluation.item_losses import ItemLosses, item_losses
from model.evaluation.protocols import sampled_loss
from model.evaluation.validation_sample import MAX_CHARACTERS
from model.network.char_rnn import CharRNN
from model.text.corpus import Corpus


@dataclass(frozen=True, slots=True)
class ValidationLoss:
    """The loss of a network on the validation part of a corpus, or on a sample of it.

    Attributes:
        per_character: Nats per character.
        characters: How many characters it was measured on.
        items: Of a list, the losses of its items.
    """

    per_character: float
    characters: int
    items: ItemLosses | None = None

    @property
    def per_item(self) -> float | None:
        """Nats per item; None for a text."""
        return None if self.items is None else self.items.per_item


def validation_loss(network: CharRNN, corpus: Corpus, max_characters: int = MAX_CHARACTERS) -> ValidationLoss:
    """Measure a network on a sample of the validation part, by the protocol of the corpus."""
    if corpus.item_end is not None:
        items = item_losses(network, corpus.val, corpus.item_end, max_characters)
        return ValidationLoss(items.per_character, int(items.characters.sum()), items)
    return ValidationLoss(sampled_loss(network, corpus.val, max_characters), min(max_characters, len(corpus.val) - 1))

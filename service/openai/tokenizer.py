"""The tokenizer over HTTP, as evaluation harnesses ask for it: a token is a character of the vocabulary."""

from __future__ import annotations

from typing import Any

from service.errors import BadRequest
from service.models.loaded_model import LoadedModel
from service.models.manager import ModelManager
from service.openai.models import acquire
from service.openai.schemas import DetokenizeRequest, TokenizeRequest


class Tokenizer:
    """Answers /tokenize, /detokenize and /tokenizer_info."""

    def __init__(self, models: ModelManager, max_prompt_chars: int) -> None:
        """Use the vocabularies of `models`; texts are as long as prompts may be."""
        self._models = models
        self._max_chars = max_prompt_chars

    def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """Return the ids of a text, as the model reads it: normalized.

        Raises:
            BadRequest: The text is too long, or has characters that are not in the vocabulary.
            UnknownModel: The model that the request names does not exist.
            NoModel: No model is served.
        """
        if len(request.prompt) > self._max_chars:
            problem = f"got {len(request.prompt)} characters"
            raise BadRequest("prompt", request.prompt, f"at most {self._max_chars} characters", problem=problem)
        with acquire(self._models, request.model) as lease:
            return self._tokenize(request, lease.model)

    def _tokenize(self, request: TokenizeRequest, model: LoadedModel) -> dict[str, Any]:
        ids = model.encode("prompt", model.normalize(request.prompt), request.on_unknown or "error").tolist()
        strings = {"token_strs": list(model.engine.vocab.decode(ids))} if request.return_token_strs else {}
        return {"tokens": ids, "count": len(ids), "max_model_len": self._max_chars, **strings}

    def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        """Return the text of ids.

        Raises:
            BadRequest: An id is not in the vocabulary.
            UnknownModel: The model that the request names does not exist.
            NoModel: No model is served.
        """
        with acquire(self._models, request.model) as lease:
            return {"prompt": decode(lease.model, "tokens", request.tokens)}

    def info(self, name: str | None) -> dict[str, Any]:
        """Describe a model's tokenizer.

        The model reads the newline before the first character of a text, so this is the token that begins a text. It is
        named as the one that ends a text, too: a harness takes an id of 0 for none, and then uses the other one.

        Args:
            name: The model's name or a fingerprint; None: the default one's.

        Raises:
            UnknownModel: The model that the request names does not exist.
            NoModel: No model is served.
        """
        with acquire(self._models, name) as lease:
            vocab = lease.model.engine.vocab
        start = vocab.characters[vocab.start]
        return {
            "tokenizer_class": "CharacterTokenizer",
            "bos_token": start,
            "eos_token": start,
            "pad_token": None,
            "unk_token": None,
            "chat_template": None,
            "vocab_size": len(vocab),
            "vocabulary": vocab.characters,
            "model_max_length": self._max_chars,
        }


def decode(model: LoadedModel, field: str, ids: list[int]) -> str:
    """Return the text of ids that a client sent.

    Raises:
        BadRequest: An id is not in the vocabulary.
    """
    size = len(model.engine.vocab)
    for i, token_id in enumerate(ids):
        if token_id >= size:
            raise BadRequest(f"{field}.{i}", token_id, f"a token id from 0 to {size - 1}")
    return model.engine.vocab.decode(ids)

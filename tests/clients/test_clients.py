"""Programs that others wrote get the texts and the numbers of our own addresses."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from model.cli import main
from tests.servers import ROOT, Service

PYTHON = Path(os.environ.get("CLIENTS_PYTHON", ROOT / ".venv-clients/bin/python"))
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the clients are not installed: make test-clients")
PAYLOAD: dict[str, Any] = {"prompt": "hello", "seed": 7, "temperature": 0.9, "top_p": 0.95}
HELD_OUT = "so it is said\nwho says it's so\nthe first of us is not the last\n" * 12


def run(*arguments: str, **environment: str) -> str:
    """The output of the clients' Python."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **environment}
    done = subprocess.run(
        [str(PYTHON), *arguments],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_langchain(service: Service) -> None:
    """Invoke, batch and stream are the texts of /generate; a stop string ends them."""
    answers = json.loads(run("tests/clients/use_langchain.py", f"{service.url}/v1"))
    own = service.generate(**PAYLOAD, max_chars=30)["text"]
    assert answers["invoke"] == answers["stream"] == answers["batch"][0] == own
    assert answers["batch"][1] == service.generate(**{**PAYLOAD, "prompt": "so it is"}, max_chars=30)["text"]
    assert answers["stop"] == own.partition("e")[0]


def test_llm(service: Service, tmp_path: Path) -> None:
    """The command llm with a completion model in its file of extra models."""
    model = {"model_id": "longhand", "model_name": "longhand", "api_base": f"{service.url}/v1", "completion": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))  # JSON is YAML
    options = ["-o", "max_tokens", "30", "-o", "seed", "7", "-o", "temperature", "0.9", "-o", "top_p", "0.95"]
    for more in ([], ["--no-stream"]):
        text = run("-m", "llm", "-m", "longhand", *options, *more, "--no-log", "hello", LLM_USER_PATH=str(tmp_path))
        assert text.removesuffix("\n") == service.generate(**PAYLOAD, max_chars=30)["text"].removesuffix("\n")


def test_lm_eval(service: Service, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bits per byte of a held-out text: those of /score, and of `python -m model score`, for the same window.

    The harness puts the tokenizer's first token before the text: the newline, which /score then reads as text.
    """
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": HELD_OUT}) + "\n")
    result = json.loads(
        run("tests/clients/use_lm_eval.py", f"{service.url}/v1", str(tmp_path), HF_HOME=str(tmp_path)).splitlines()[-1]
    )
    scored = service.client.post("/score", json={"text": "\n" + HELD_OUT}).json()
    bits = scored["bits_per_character"] * scored["characters"] - scored["surprisal"][0]
    assert result["bits_per_byte,none"] == pytest.approx(bits / len(HELD_OUT), abs=1e-4)
    file = tmp_path / "held_out.txt"
    file.write_text("\n\n" + HELD_OUT)  # the first character of a file is read, and not predicted
    checkpoint = str(next(store.glob("*.safetensors")))
    arguments = ["--checkpoint", checkpoint, "--part", "all", "--protocols", "stateful"]
    assert main(["score", str(file), *arguments], "python -m model") in (0, None)
    printed = re.findall(r"([0-9]+\.[0-9]{3,}) bits", capsys.readouterr().out)
    assert float(printed[0]) == pytest.approx(scored["bits_per_character"], abs=1e-4)

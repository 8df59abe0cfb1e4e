"""A service on a machine whose GPU cannot be used: it comes up on the CPU and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import cuda_emulator
from tests.servers import RedisServer, Service


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("no memory", "not enough GPU memory"),
        ("wrong result", "emulated GPU does not compute what the CPU computes"),
        ("crashes", "the process that tried the GPU ended"),
        ("", "emulated GPU is slower"),
    ],
)
def test_the_service_comes_up_on_the_cpu(
    emulated_driver: Path, store: Path, redis_server: RedisServer, service: Service, fault: str, reason: str
) -> None:
    """With the same text as a service that was never given a GPU."""
    environment = cuda_emulator.environment(emulated_driver, fault)
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, DEVICE="cuda", **environment) as on_gpu:
        ready = on_gpu.client.get("/readyz").json()
        assert ready["stepper"].startswith("cpu-")
        assert f"not on a GPU: {reason}" in ready["stepper_reason"]
        wish = {"prompt": "hello", "max_chars": 40, "seed": 3}
        assert on_gpu.generate(**wish)["text"] == service.generate(**wish)["text"]

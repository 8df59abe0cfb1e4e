"""HOST and PORT: whether a server can listen there, how URLs and gunicorn write them, how this machine reaches them."""

from __future__ import annotations

import errno
import os
import socket

from service.settings import SettingsError

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def reachable_host(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`: wildcards become loopback."""
    return _WILDCARDS.get(host, host)


def host_and_port(host: str, port: int) -> str:
    """Return `host:port` as URLs and gunicorn's `bind` expect it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def service_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches the service."""
    return f"http://{host_and_port(reachable_host(host), port)}"


def check_can_listen(host: str, port: int) -> None:
    """Check that a server could listen there, by binding a socket for a moment.

    Raises:
        SettingsError: It names HOST when the address is not one of this machine's, and PORT when the port is in use or
            reserved.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn: ignore closed connections
            probe.bind(address)
    except OSError as error:
        raise SettingsError(_why(host, port, error)) from error


def _why(host: str, port: int, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.args[-1])
    if error.errno == errno.EADDRINUSE:
        return f"PORT={port}: another program listens on it at {host}; stop it, or choose another port: PORT=8001"
    if error.errno == errno.EACCES:
        return f"PORT={port}: may not be used ({reason}); expected a port from 1024 to 65535"
    return (
        f"HOST={host!r}: cannot be listened on ({reason}); expected an address of this machine, such as 127.0.0.1. "
        "Some shells export HOST: unset it"
    )

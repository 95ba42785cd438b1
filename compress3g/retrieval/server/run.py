"""The process: a socket first, then the encoder, then requests until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import uvicorn

from ...errors import ConfigError
from ..index import Index
from .app import make_app
from .pictures import Pictures
from .reader import Reader

_THREADS = 4
_PATIENCE = 3  # seconds that requests get to end
_WARM = "page"  # a first query, so that the first of a person is not slow


def serve(index: Index, host: str, port: int, *, ready: Callable[[str], None]) -> None:
    """Answers requests until SIGINT or SIGTERM. ready: called with the address, once it is open.

    Raises ConfigError for an address that cannot be used, before anything slow happens.
    """
    with listen(host, port) as listening:
        reader = Reader(index)
        reader.query(_WARM)
        pictures = Pictures(index.path)
        pictures.forget(index.documents)
        pool = ThreadPoolExecutor(_THREADS, "search")
        app = make_app(reader, pictures, pool, hosts=is_local(host))
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, lifespan="off", ws="none",
            server_header=False, timeout_graceful_shutdown=_PATIENCE,
        )  # fmt: skip
        try:
            ready(address(listening))
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            pass  # how one stops it; uvicorn has closed its connections
        finally:
            pool.shutdown(cancel_futures=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that queues connections from now on. Raises ConfigError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except socket.gaierror:
        raise ConfigError(f"--host {host} is no address of this machine") from None
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise ConfigError(f"--host {host} --port {port}: {told}: choose another") from None


def address(listening: socket.socket) -> str:
    """What to type into a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

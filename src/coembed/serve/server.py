"""`coembed serve`: the processes, their one listening socket, and what each of them puts together.

A process is whole by itself: index, encoder, watch over the alias. Several of them accept from one
socket, as the embedded index holds Python's lock while it searches. The first process then only
watches over the others.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from coembed.config import Config
from coembed.errors import ServiceError, UserError
from coembed.index.base import VectorIndex
from coembed.index.opening import open_index
from coembed.serve.limits import LOOPBACK_NAMES, Access
from coembed.services import Services

_LOG = logging.getLogger("coembed.serve")
_BACKLOG = 512
_GRACE_S = 10
_RESTART_WAIT_S = 1.0
_MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, slots=True)
class Options:
    """What `coembed serve` was called with. `insecure`: bind beyond loopback without a key."""

    host: str = "127.0.0.1"
    port: int = 8000
    processes: int = 1
    api_key: str | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """The project's folders: the pool with the media, and where runs leave things."""

    pool: Path
    runs: Path


def run(cfg: Config, *, services: Services, place: Place, options: Options) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises UserError for an address that may not be bound without a key, and ServiceError where it
    cannot be.
    """
    _check_options(options)
    with _bind(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        shown = f"[{options.host}]" if ":" in options.host else options.host
        print(f"serving on http://{shown}:{port}/  (Ctrl-C ends it)", flush=True)
        if options.processes == 1:
            _serve(cfg, services, place, options, listener)
        else:
            with _shared_metrics():
                _supervise(cfg, services, place, options, listener)


@contextmanager
def application(
    cfg: Config,
    *,
    services: Services,
    place: Place,
    access: Access,
    index: VectorIndex | None = None,
) -> Iterator[FastAPI]:
    """The service of one process as an ASGI application, with all that it stands on.

    `index` is used where it is given (and left open), else opened.
    """
    # Only here: `metrics` reads the environment when it is imported.
    from coembed.serve.app import create_app
    from coembed.serve.engine import Engine
    from coembed.serve.keeper import Keeper, Swap
    from coembed.serve.loading import Loader
    from coembed.serve.media import MediaStore
    from coembed.serve.metrics import Metrics

    settings = cfg.serve
    metrics = Metrics()
    opened = index if index is not None else open_index(services, cfg.index)
    loader = Loader(cfg, services, opened, runs=place.runs, metrics=metrics)

    def count(swap: Swap) -> None:
        kind = "warm" if swap.warm else "cold"
        metrics.swaps.labels(kind).inc()
        metrics.swap_seconds.labels(kind).observe(swap.seconds)
        if swap.before is not None:
            metrics.serving(swap.before.named, is_served=False)
        metrics.serving(swap.after.named, is_served=True)

    keeper = Keeper(
        opened,
        alias=cfg.index.collection,
        load=loader.load,
        unload=loader.unload,
        poll_s=settings.poll_s,
        keep_warm=settings.keep_warm,
        on_swap=count,
        on_failing=lambda is_failing: metrics.failing.set(int(is_failing)),
    )
    workers = ThreadPoolExecutor(_num_workers(), thread_name_prefix="work")
    try:
        yield create_app(
            Engine(opened, keeper, settings, metrics, workers),
            keeper,
            MediaStore(place.pool, settings),
            settings=settings,
            access=access,
            metrics=metrics,
            workers=workers,
            on_start=keeper.start,
            on_stop=keeper.stop,
        )
    finally:
        workers.shutdown()
        if index is None:
            opened.close()


def access_of(cfg: Config, options: Options) -> Access:
    """Who may ask: under any name where the service is bound for others, and none are named."""
    named = frozenset(name.lower() for name in cfg.serve.host_names)
    if not named and not _is_loopback(options.host):
        return Access(options.api_key, host_names=None)
    return Access(options.api_key, host_names=LOOPBACK_NAMES | named | {options.host.lower()})


def _check_options(options: Options) -> None:
    if options.processes < 1:
        raise UserError(f"--processes {options.processes}: expected 1 or more")
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port {options.port}: expected 0 to 65535")
    if options.api_key is not None and len(options.api_key) < 16:
        raise UserError(
            f"COEMBED_API_KEY has {len(options.api_key)} characters: it could be guessed",
            hint='take 16 or more, for example from `python -c "import secrets; '
            'print(secrets.token_urlsafe())"`',
        )
    if _is_loopback(options.host) or options.api_key is not None or options.insecure:
        return
    raise UserError(
        f"--host {options.host} lets others than this machine ask, and there is no key",
        hint="set COEMBED_API_KEY to a secret that they have to send; or say --insecure, where "
        "something in front of the service decides who may ask",
    )


def _is_loopback(host: str) -> bool:
    return host in LOOPBACK_NAMES or host.startswith("127.")


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServiceError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.set_inheritable(True)
    except OSError as error:
        listener.close()
        raise ServiceError(
            f"port {port} of {host} cannot be listened on: {error.strerror or error}",
            hint="name another --port; 0 takes any that is free",
        ) from error
    return listener


def _serve(
    cfg: Config, services: Services, place: Place, options: Options, listener: socket.socket
) -> None:
    """One process, until it is told to end."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    _LOG.setLevel(logging.INFO)
    access = access_of(cfg, options)
    with application(cfg, services=services, place=place, access=access) as app:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=cfg.serve.trust_proxy,
            forwarded_allow_ips="*" if cfg.serve.trust_proxy else None,
            timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=64 * 1024,
        )
        # uvicorn closes everything at a signal and then passes it on: SIGTERM, too, is a way to end
        # this and not to break it off.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _shared_metrics() -> Iterator[None]:
    """A folder in which processes add up what they count."""
    folder = tempfile.mkdtemp(prefix="coembed-metrics-")
    os.environ[_MULTIPROC] = folder
    try:
        yield
    finally:
        del os.environ[_MULTIPROC]
        shutil.rmtree(folder, ignore_errors=True)


def _supervise(
    cfg: Config, services: Services, place: Place, options: Options, listener: socket.socket
) -> None:
    """Keep so many processes alive until a signal comes; then end them, and wait for them."""
    # A fresh interpreter each: a fork would take threads' locks along as they happen to be.
    context = multiprocessing.get_context("spawn")
    ending = False

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal ending
        ending = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    children: list[BaseProcess] = []
    try:
        while not ending:
            for child in [child for child in children if not child.is_alive()]:
                children.remove(child)
                _forget(child)
                _LOG.warning("process %s ended (%s); another takes its place", child.pid,
                             child.exitcode)  # fmt: skip
                time.sleep(_RESTART_WAIT_S)
            while len(children) < options.processes and not ending:
                child = context.Process(
                    target=_serve_child, args=(cfg, services, place, options, listener)
                )
                child.start()
                children.append(child)
            time.sleep(0.1)
    finally:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + _GRACE_S + 5
        for child in children:
            child.join(max(0.1, deadline - time.monotonic()))
            if child.is_alive():
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve_child(*arguments: Any) -> None:
    """The whole life of a process of several."""
    # Ctrl-C reaches all of a terminal's processes: the first one tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    _end_with(parent)
    try:
        _serve(*arguments)
    except (ServiceError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended."""
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _forget(child: BaseProcess) -> None:
    """Take the gauges of an ended process out of the metrics."""
    from prometheus_client import multiprocess

    if child.pid is not None:
        mark: Any = multiprocess.mark_process_dead
        mark(child.pid)


def _num_workers() -> int:
    """Threads that wait for the index or read media."""
    return min(16, 4 + (os.cpu_count() or 1))

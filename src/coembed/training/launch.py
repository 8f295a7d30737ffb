"""Starting the processes of a run on this machine, and starting them again after a crash.

torchrun's own agent does it (torch.distributed.elastic), called as a library for three reasons.
Its store listens on the loopback interface alone, where `torchrun --standalone` listens on all of
them and unpickles what it is sent. A mistake of the user's ends the run instead of being tried
again. And the error of a process reaches the caller once, as the exception that it was.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from coembed.errors import CoembedError, UserError, error_type, kind_of
from coembed.files import write_json
from coembed.training.distributed import LAUNCH_ID, LostTouchError

# For a process at fault to be gone before those that lost touch with it, so that it is seen to be
# the first. The agent looks every 0.1 s; a Python full of torch takes a while to end (a guess).
_GRACE_S = 2.0
_LOOPBACK = "127.0.0.1"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # those torchrun handles


def launch(command: Sequence[str], *, num_processes: int, max_restarts: int) -> None:
    """Run `command` in `num_processes` processes, which find their place in torchrun's variables.

    When one of them ends with an error the others are ended and, at most `max_restarts` times, all
    are started again; they go on from their last checkpoint. A signal to this process ends all.

    Raises:
        CoembedError: of the kind that the process at fault left with `leave_error`, or saying how
            it ended.
        KeyboardInterrupt: on SIGINT. SystemExit: on another signal, with 128 + its number.
    """
    with tempfile.TemporaryDirectory(prefix="coembed-train-") as folder, _signals_put_back():
        spec = WorkerSpec(
            role="train",
            local_world_size=num_processes,
            rdzv_handler=_Loopback(),
            entrypoint=command[0],
            args=tuple(command[1:]),
            max_restarts=max_restarts,
        )
        try:
            result = _Agent(spec, DefaultLogsSpecs(log_dir=folder)).run()
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + int(stopped.sigval))
        if result.is_failed():
            raise _error(*_at_fault(result.failures))


def leave_error(error: CoembedError, environ: Mapping[str, str]) -> None:
    """Leave a process's error where torchrun, and `launch`, look for it. The process then ends."""
    if isinstance(error, LostTouchError):
        time.sleep(_GRACE_S)
    file = environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    # `message` is what torchrun reads, in its format; `coembed` what `launch` reads.
    text = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
    own = {
        "kind": kind_of(error), "message": error.message, "hint": error.hint,
        "lost_touch": isinstance(error, LostTouchError),
    }  # fmt: skip
    write_json(Path(file), {"message": text, "coembed": own})


class _Loopback(RendezvousHandler):
    """The meeting of one agent with itself: a store on the loopback interface.

    The processes are clients of this store (`use_agent_store`), so nothing else of torch's listens.
    Every attempt has a new one: in the old one stand the addresses of processes that have ended.
    """

    def get_backend(self) -> str:
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        listener = socket.create_server((_LOOPBACK, 0))
        port = int(listener.getsockname()[1])
        store = TCPStore(
            _LOOPBACK, port, is_master=True, wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )  # fmt: skip
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(_LOOPBACK, port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else could join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return LAUNCH_ID

    def shutdown(self) -> bool:
        return True


class _Agent(LocalElasticAgent):
    """torchrun's agent, which says in plain words what it does, and knows a user's mistake."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs) -> None:
        super().__init__(spec, logs)
        # It reports every start and signal as a warning or an error.
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and self._remaining_restarts:
            rank, failure = _at_fault(result.failures)
            error = _error(rank, failure)
            if isinstance(error, UserError):
                self._remaining_restarts = 0  # it would only be made again
            else:
                limit = self._worker_group.spec.max_restarts
                attempt = limit - self._remaining_restarts + 1
                print(
                    f"{error}\nstarting the training processes again (restart {attempt} of at most "
                    f"{limit})",
                    file=sys.stderr,
                    flush=True,
                )
        return result

    def _shutdown(
        self, death_sig: signal.Signals = signal.SIGTERM, *rest: Any, **known: Any
    ) -> None:
        # Ctrl-C, passed on as it is, would draw a traceback from every process. What else there is
        # to say (a timeout) differs between torch 2.11 and 2.14.
        interrupt = death_sig == signal.SIGINT
        super()._shutdown(signal.SIGTERM if interrupt else death_sig, *rest, **known)


def _at_fault(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure of the process that brought the others down.

    Those that the agent ended itself come last (SIGTERM, SIGKILL after the grace period), those
    that lost touch with another one before them.
    """

    def order(item: tuple[int, ProcessFailure]) -> tuple[int, int, int]:
        rank, failure = item
        said = _said(failure)
        guilt = 0 if said.get("kind") == "user" else 1
        if said.get("lost_touch"):
            guilt = 2
        if not said and failure.exitcode == -signal.SIGTERM:
            guilt = 3
        return guilt, failure.timestamp, rank

    return min(failures.items(), key=order)


def _said(failure: ProcessFailure) -> Mapping[str, Any]:
    """What the process left with `leave_error`; empty where it left nothing."""
    data = failure.error_file_data
    said = data.get("coembed") if isinstance(data, dict) else None
    return said if isinstance(said, dict) else {}


def _error(rank: int, failure: ProcessFailure) -> CoembedError:
    """The error of a process, as the exception that it was."""
    said = _said(failure)
    if said:
        return error_type(said["kind"])(said["message"], hint=said["hint"])
    if failure.exitcode < 0:
        how = f"was ended by {failure.signal_name()}"
        hint = "if that was the kernel for want of memory, lower train.micro_batch_size"
    else:
        how, hint = f"ended with code {failure.exitcode}", "its traceback is above"
    return CoembedError(f"training process {rank} {how}", hint=hint)


@contextmanager
def _signals_put_back() -> Iterator[None]:
    """The agent sets handlers for signals and leaves them."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

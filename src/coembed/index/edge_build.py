"""The building process as the index sees it: start it, tell it what to do, end it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coembed.errors import ServiceError
from coembed.index.base import NO_VECTOR, DamagedError, Point
from coembed.index.edge_shard import MAX_BATCH, Parts, Shape
from coembed.index.edge_wire import pack_points, receive, send, unpack_points

_BUILDER = "coembed.index.edge_builder"


class Build:
    """One load of one collection, in a process of its own. Any thread may use it."""

    def __init__(self, name: str, lock: Path, folder: Path, shape: Shape) -> None:
        self.name = name
        self.folder = folder
        self.shape = shape
        self.num_removed = 0
        self.unfit: str | None = None  # why the generation that it should copy was not fit for it
        self._lock_path = lock
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._guard = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_owed = False  # the reply to a message that was not waited for

    def start(self, *, base: Path | None, wait_s: float) -> bool:
        """Start the process, from a copy of the generation in `base` if it can; True if it did.

        Raises ServiceError if another process builds the same for longer than `wait_s`.
        """
        self._process = self._spawn()
        message = {
            "lock": str(self._lock_path),
            "folder": str(self.folder),
            "shape": self.shape.to_json(),
            "base": base and str(base),
            "wait_s": wait_s,
            "owner": f"process {os.getpid()}: {_command()}",
        }
        try:
            reply, _ = self._ask(message)
        except BaseException:
            self.end()
            raise
        if "locked" in reply:
            self.end()
            raise ServiceError(
                f"collection {self.name!r} is being built by another process ({reply['locked']})",
                hint="wait for it to end, or end it, and run the same command again",
            )
        self.unfit = reply["unfit"]
        return bool(reply["copied"])

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the process from a thread that stays as long as it does.

        The process is killed by the kernel when the thread that started it ends, and the thread
        that asks for a load may be one that comes and goes.
        """
        started = threading.Event()
        result: list[subprocess.Popen[bytes] | BaseException] = []

        def keep() -> None:
            try:
                process = subprocess.Popen(
                    # -P: a file in the current folder must not stand in for a module.
                    [sys.executable, "-P", "-m", _BUILDER, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._said,
                )
            except BaseException as error:
                result.append(error)
                started.set()
                return
            result.append(process)
            started.set()
            process.wait()

        threading.Thread(target=keep, name=f"build {self.name}", daemon=True).start()
        started.wait()
        (process,) = result
        if isinstance(process, BaseException):
            raise process
        return process

    def _ask(
        self, message: Mapping[str, Any], vectors: NDArray[np.float32] = NO_VECTOR
    ) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """Send a message and wait for the reply."""
        with self._guard:
            self._tell(message, vectors)
            return self._hear()

    def _tell(self, message: Mapping[str, Any], vectors: NDArray[np.float32]) -> None:
        """Send a message, when the reply to the last one is there."""
        with self._guard:
            if self._is_owed:
                self._hear()
            try:
                send(self._running().stdin, message, vectors)  # type: ignore[arg-type]
            except BrokenPipeError:
                raise self._died() from None
            except BaseException:
                self._kill()  # half a message is there: no other can follow
                raise
            self._is_owed = True

    def _hear(self) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """Wait for the reply that is owed. Raises what went wrong over there."""
        try:
            answer = receive(self._running().stdout)  # type: ignore[arg-type]
        except BaseException:
            self._kill()  # half a reply was read
            raise
        self._is_owed = False
        if answer is None:
            raise self._died()
        reply, block = answer
        for kind, error in (("damaged", DamagedError), ("failed", ServiceError)):
            if kind in reply:
                raise error(reply[kind], hint=reply["hint"])
        return reply, block

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServiceError(
                f"the load of collection {self.name!r} has ended", hint="begin it again"
            )
        return self._process

    def _died(self) -> ServiceError:
        process = self._running()
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:  # it runs, but what it says is no message
            process.kill()
            code = process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace").strip()
        return ServiceError(
            f"the process that builds collection {self.name!r} {how}"
            + (f": {said.splitlines()[-1][:500]}" if said else ""),
            hint="is there memory and space on the disk for it? Run the same command again: "
            "nothing of it was published",
        )

    def write(self, points: Sequence[Point]) -> None:
        """Write points, those of them that are not there just so.

        Returns while the last of them are being written, so that the next may be read meanwhile;
        what goes wrong with them is raised by the next call.
        """
        for start in range(0, len(points), MAX_BATCH):
            message, vectors = pack_points(points[start : start + MAX_BATCH])
            self._tell({"do": "write", **message}, vectors)

    def remove(self, item_ids: Sequence[str]) -> None:
        """Remove points."""
        for start in range(0, len(item_ids), MAX_BATCH):
            self._ask({"do": "remove", "item_ids": list(item_ids[start : start + MAX_BATCH])})
        self.num_removed += len(item_ids)

    def count(self) -> int:
        """The exact number of points now."""
        return int(self._ask({"do": "count"})[0]["num_points"])

    def retrieve(self, item_ids: Sequence[str]) -> dict[str, Point]:
        """Points that are there now."""
        found = unpack_points(*self._ask({"do": "retrieve", "item_ids": list(item_ids)}))
        return {point.item_id: point for point in found}

    def scroll(self, what: Parts, *, batch_size: int) -> Iterator[list[Point]]:
        """Every point that is there now."""
        after: str | None = None
        while True:
            ask = {
                "do": "scroll",
                "after": after,
                "limit": batch_size,
                "what": asdict(what),
            }
            reply, block = self._ask(ask)
            if points := unpack_points(reply, block):
                yield points
            after = reply["following"]
            if after is None:
                return

    def finish(self, *, is_new: bool) -> int | None:
        """Finish the generation; its number of points, or None if nothing was changed.

        That of a new collection is finished even if it is a copy as it was.

        The process stays, and with it the lock, until `end`.
        """
        reply, _ = self._ask({"do": "finish", "is_new": is_new})
        return None if reply["num_points"] is None else int(reply["num_points"])

    def end(self) -> None:
        """End the process, whatever it is doing. Idempotent."""
        if not self._guard.acquire(timeout=1):
            self._kill()  # another thread waits for what is wanted no more
            self._guard.acquire()
        try:
            process, self._process = self._process, None
            if process is None:
                return
            with suppress(OSError):
                process.stdin and process.stdin.close()
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout and process.stdout.close()
            self._said.close()
        finally:
            self._guard.release()

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.wait()


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])

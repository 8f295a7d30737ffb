"""The process that builds a generation: the only one that ever writes into a shard.

It is a process of its own because Edge never releases Python's interpreter lock: the process that
asks for the load goes on serving, reading and showing its progress meanwhile. It does what it is
told over its standard input, answers on its standard output, and ends with its parent.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from coembed.errors import CoembedError, ServiceError
from coembed.files import disk_errors
from coembed.index.base import NO_VECTOR, DamagedError
from coembed.index.edge_generation import (
    check_files,
    copy_files,
    read_list,
    shard_folder,
    write_list,
)
from coembed.index.edge_lock import lock
from coembed.index.edge_shard import Parts, Shape, Shard
from coembed.index.edge_wire import pack_points, receive, send, unpack_points
from coembed.parent import die_with_parent

_NICER = 5  # searches on the same machine go first
Reply = tuple[dict[str, Any], NDArray[np.float32]]


class Builder:
    """One generation in the making, in the folder `folder`."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self._folder = folder
        self._shape = shape
        self._shared: dict[str, tuple[int, str]] = {}
        self._num_changes = 0
        self._shard: Shard | None = None

    def start(self, base: Path | None) -> Reply:
        """Open an empty shard, or a copy of the generation `base` where that is of the same shape.

        A `base` that is damaged is not copied; the answer then says why.
        """
        why = None
        if base is not None:
            try:
                generation = read_list(base)
                if generation.shape == self._shape:
                    check_files(base, generation)
                    self._shared = copy_files(base, generation, self._folder)
                    self._shard = Shard.load(shard_folder(self._folder), self._shape)
                    return {"copied": True, "unfit": None}, NO_VECTOR
            except DamagedError as error:
                why = error.message
        self._num_changes = 1  # even an empty shard is something new
        self._shard = Shard.create(shard_folder(self._folder), self._shape)
        return {"copied": False, "unfit": why}, NO_VECTOR

    def answer(self, message: Mapping[str, Any], block: NDArray[np.float32]) -> Reply:
        """Do what a message asks."""
        assert self._shard is not None
        match message["do"]:
            case "write":
                self._num_changes += self._shard.write(unpack_points(message, block))
                return {}, NO_VECTOR
            case "remove":
                self._num_changes += self._shard.remove(message["item_ids"])
                return {}, NO_VECTOR
            case "count":
                return {"num_points": self._shard.count()}, NO_VECTOR
            case "retrieve":
                return pack_points(list(self._shard.retrieve(message["item_ids"]).values()))
            case "scroll":
                points, following = self._shard.scroll(
                    message["after"], message["limit"], Parts(**message["what"])
                )
                reply, vectors = pack_points(points)
                return {**reply, "following": following}, vectors
            case "finish":
                return self._finish(is_new=message["is_new"]), NO_VECTOR
        raise AssertionError(f"no such message: {message['do']}")

    def _finish(self, *, is_new: bool) -> dict[str, Any]:
        assert self._shard is not None
        if self._num_changes == 0 and not is_new:
            return {"num_points": None}
        self._shard.settle()
        num_points = self._shard.count()
        self._shard.close()
        self._shard = None
        generation = write_list(self._folder, self._shape, self._shared)
        if generation.num_points != num_points:
            raise ServiceError(
                f"the shard in {self._folder} has {generation.num_points} points after it was "
                f"written, {num_points} before",
                hint="run the same command again; this is a fault of Qdrant Edge or of the disk",
            )
        return {"num_points": num_points}


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until the other side ends."""
    first = receive(requests)
    if first is None:
        return
    message, _ = first
    lock_path, folder = Path(message["lock"]), Path(message["folder"])
    if lock(lock_path, wait_s=message["wait_s"], owner=message["owner"]) is None:
        send(
            replies, {"locked": lock_path.read_text(encoding="utf-8", errors="replace")}, NO_VECTOR
        )
        return
    try:
        # What a killed builder of the same name left.
        shutil.rmtree(folder.parent, ignore_errors=True)
        builder = Builder(folder, Shape(**message["shape"]))
        base = Path(message["base"]) if message["base"] else None
        _reply(replies, folder, lambda: builder.start(base))
        while (request := receive(requests)) is not None:
            _reply(replies, folder, lambda request=request: builder.answer(*request))
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
        lock_path.unlink(missing_ok=True)


def _reply(replies: BinaryIO, folder: Path, work: Any) -> None:
    try:
        with disk_errors(folder):
            reply, vectors = work()
    except CoembedError as error:
        kind = "damaged" if isinstance(error, DamagedError) else "failed"
        reply, vectors = {kind: error.message, "hint": error.hint}, NO_VECTOR
    send(replies, reply, vectors)


def main() -> None:
    """Serve the parent whose process id is the first argument."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return  # it ended before this process could ask to be told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which ends this
    os.nice(_NICER)
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not get between the messages
    with requests, replies:
        serve(requests, replies)


if __name__ == "__main__":
    main()

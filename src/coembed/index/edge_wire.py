"""What the index and its building process say to each other, over a pipe.

A message is a JSON object and a block of float32 vectors, each with its length before it. The two
are the same program on the same machine; nothing is pickled all the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from coembed.index.base import NO_VECTOR, Point

# A mark before the two lengths: what anything else prints there must not be read as a length.
_HEADER = struct.Struct("<8sQQ")
_MARK = b"coembed1"


def send(pipe: BinaryIO, message: Mapping[str, Any], vectors: NDArray[np.float32]) -> None:
    """Write one message with `vectors` of any shape."""
    text = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    block = np.ascontiguousarray(vectors, dtype=np.float32)
    pipe.write(_HEADER.pack(_MARK, len(text), block.nbytes))
    pipe.write(text)
    pipe.write(block.tobytes())
    pipe.flush()


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], NDArray[np.float32]] | None:
    """Read one message and its vectors, flat; None when the other side has ended or says no
    message."""
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    mark, num_text, num_block = _HEADER.unpack(header)
    if mark != _MARK:
        return None
    text, block = pipe.read(num_text), pipe.read(num_block)
    if len(text) < num_text or len(block) < num_block:
        return None
    message = json.loads(text.decode("utf-8", "surrogatepass"))
    return message, np.frombuffer(block, dtype=np.float32)


def pack_points(points: Sequence[Point]) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Points as a message and a block [n, dim]; either all have vectors or none has."""
    message = {
        "item_ids": [point.item_id for point in points],
        "payloads": [dict(point.payload) for point in points],
        "content_hashes": [point.content_hash for point in points],
    }
    return message, np.stack([point.vector for point in points]) if points else NO_VECTOR


def unpack_points(message: Mapping[str, Any], block: NDArray[np.float32]) -> list[Point]:
    """The points of a message."""
    item_ids = message["item_ids"]
    vectors = block.reshape(len(item_ids), -1) if item_ids else block
    rows = zip(item_ids, vectors, message["payloads"], message["content_hashes"], strict=True)
    return [Point(*row) for row in rows]

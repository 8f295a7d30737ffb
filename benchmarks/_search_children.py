"""The processes that the benchmark of search measures: each does one thing, alone, on its core.

    python benchmarks/_search_children.py serve FOLDER PROCESSES CORES
    python benchmarks/_search_children.py noop FOLDER 1 CORES
    python benchmarks/_search_children.py floor|naive FOLDER NUM_ITEMS CORES

`serve` and `noop` say where they listen. `floor` and `naive` read lines of JSON, lists of texts,
and answer each with a line of JSON: milliseconds by part.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from _search_corpus import Bench, open_bench
from pydantic import BaseModel


def main() -> None:
    """Be one of them."""
    what, folder, number, cores = sys.argv[1:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    import torch

    torch.set_num_threads(1)
    bench = open_bench(Path(folder))
    if what == "serve":
        serve(bench, int(number))
    elif what == "noop":
        noop()
    else:
        answer({"floor": floor, "naive": naive}[what](bench, int(number)))


def serve(bench: Bench, processes: int) -> None:
    """`coembed serve`."""
    from coembed.serve.server import Options, run

    run(
        bench.cfg, services=bench.services, place=bench.place,
        options=Options(port=0, processes=processes),
    )  # fmt: skip


class Asked(BaseModel):
    """What the endpoint that does nothing is asked."""

    text: str
    limit: int


def noop() -> None:
    """What FastAPI and uvicorn take for a request and an answer of about the same size."""
    import socket

    import uvicorn
    from fastapi import FastAPI, Response

    app = FastAPI()
    body = json.dumps([{"item_id": "0" * 64, "score": 0.123456}] * 10).encode()

    @app.post("/search")
    async def search(asked: Asked) -> Response:  # noqa: ARG001
        return Response(body, media_type="application/json")

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving on http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(
        sockets=[listener]
    )


Part = dict[str, float]


def floor(bench: Bench, num_items: int) -> Callable[[str], Part]:  # noqa: ARG001
    """The least that a query can cost: the tower cut at the end token, and the bare engine."""
    import numpy as np
    import qdrant_edge as edge
    import torch

    from coembed.index.opening import open_index
    from coembed.models.checkpoint import load_model
    from coembed.models.query_encoder import load_query_encoder

    model, spec = load_model(bench.model)
    loader = spec.loader("text")
    encoder = load_query_encoder(
        bench.model, precision="fp32", cache=bench.root / "runs" / "models", num_threads=1
    )
    index = open_index(bench.services, bench.cfg.index)
    name = index.aliases()["items"]
    found = index.describe(name)
    index.query(name, found.vector_name, encoder.encode("text", ["a"])[0])
    (shard_folder,) = (bench.services.qdrant_path / "collections" / name).glob(
        "**/edge_config.json"
    )
    shard = edge.EdgeShard.load(str(shard_folder.parent))
    ef = bench.cfg.index.search_ef

    def measure(text: str) -> Part:
        marks = [time.perf_counter()]
        tokens = model.trim("text", loader.load([text]))
        marks.append(time.perf_counter())
        with torch.inference_mode():
            wanted = model.embed("text", tokens).numpy()[0]
        marks.append(time.perf_counter())
        vector = encoder.encode("text", [text])[0]
        marks.append(time.perf_counter())
        shard.query(
            edge.QueryRequest(
                limit=11, query=edge.Query.Nearest(vector.tolist(), using=found.vector_name),
                params=edge.SearchParams(hnsw_ef=ef), with_payload=True,
            )
        )  # fmt: skip
        marks.append(time.perf_counter())
        index.query(name, found.vector_name, vector, limit=11)
        marks.append(time.perf_counter())
        parts = ("tokens", "torch", "encode", "engine", "search")
        ms = {part: 1e3 * (b - a) for part, (a, b) in zip(parts, pairwise(marks), strict=True)}
        return ms | {"cosine": float(np.dot(vector, wanted))}

    return measure


def naive(bench: Bench, num_items: int) -> Callable[[str], Part]:
    """What one writes first: torch at the full context, and qdrant-client's local mode."""
    import torch
    from qdrant_client import QdrantClient, models

    from coembed.index.points import read_points
    from coembed.models.checkpoint import load_model

    model, spec = load_model(bench.model)
    loader = spec.loader("text")
    client = QdrantClient(":memory:")
    client.create_collection(
        "items", vectors_config=models.VectorParams(size=spec.embed_dim, distance="Cosine")
    )
    batch: list[Any] = []
    for number, point in enumerate(read_points(bench.embeddings(num_items)), start=1):
        batch.append(
            models.PointStruct(
                id=number, vector=point.vector, payload={"item_id": point.item_id, **point.payload}
            )
        )
        if len(batch) == 1000 or number == num_items:
            client.upsert("items", batch)
            batch = []

    def measure(text: str) -> Part:
        began = time.perf_counter()
        with torch.inference_mode():
            vector = model.embed("text", loader.load([text])).numpy()[0]
        encoded = time.perf_counter()
        client.query_points("items", query=vector, limit=10, with_payload=True)
        done = time.perf_counter()
        return {"encode": 1e3 * (encoded - began), "search": 1e3 * (done - encoded)}

    return measure


def answer(measure: Callable[[str], Part]) -> None:
    """Measure what is asked for, line by line."""
    for text in ("a", "a photo of a red shoe", "blue " * 100):
        measure(text)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps([measure(text) for text in json.loads(line)]), flush=True)


if __name__ == "__main__":
    main()

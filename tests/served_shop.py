"""The search service on small corpora, for tests and for looking at the page.

`serve` runs the application in a thread on a free loopback port. `make_shop` makes a corpus of
drawn things and sounds with a trained model, registered, indexed and promoted: as a script,

    python tests/served_shop.py FOLDER [--port 8000]

makes it in FOLDER (once, about half a minute) and serves it.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from coembed.config import Config, parse_config
from coembed.index.base import VectorIndex
from coembed.serve import server
from coembed.serve.limits import Access
from coembed.services import Services, find_services


@contextmanager
def serve(
    cfg: Config,
    root: Path,
    services: Services,
    *,
    index: VectorIndex | None = None,
    access: Access | None = None,
    port: int = 0,
) -> Iterator[tuple[str, FastAPI]]:
    """The service of the project at `root`: its address, and the application."""
    place = server.Place(pool=root / "data", runs=root / "runs")
    given = access or server.access_of(cfg, server.Options())
    with (
        server.application(cfg, services=services, place=place, access=given, index=index) as app,
        server._bind("127.0.0.1", port) as listener,
    ):
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
        finally:
            running.should_exit = True
            thread.join(timeout=30)


def make_shop(
    root: Path, *, epochs: int = 12, **sections: dict[str, Any]
) -> tuple[Config, Services]:
    """A project at `root` with 300 drawn products and 100 sounds, and one promoted release.

    What is there already is used as it is.
    """
    from evaluated_pairs import THREE_TOWERS, catalogue, sounds, write_pairs

    from coembed.pairs.shards import read_samples
    from coembed.registry.settings import RegisterSettings
    from coembed.registry.store import Registry
    from coembed.stages import embed, evaluate, index, promote, register, train
    from coembed.stages.evaluations import Places

    cfg = parse_config(
        {
            "seed": 1,
            "model": THREE_TOWERS,
            "curate": {},
            "train": {"epochs": epochs, "batch_size": 64, "lr": 3e-3, "num_threads": 1},
            "evaluate": {"split": "val"},
            "embed": {},
            "register": {"model": "shop", "experiment": "tests"},
            "index": {"collection": "shop"},
            "promote": {"metric": "retrieval/text_to_image/recall_at_10", "leakage": "allow"},
            **sections,
        }
    )
    services = find_services(root, {})
    if (root / "runs" / "promote.json").exists():
        return cfg, services
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "pairs").exists():
        write_pairs(
            root / "pairs",
            train=[*catalogue(260, seed=0), *sounds(80, seed=10)],
            val=[*catalogue(40, seed=1), *sounds(20, seed=11)],
        )
    for split in ("train", "val"):
        for sample in read_samples(root / "pairs", split):
            target = root / "data" / sample.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sample.media)
    model, runs, pairs = root / "model", root / "runs", root / "pairs"
    train.run(cfg, root=root, pairs=pairs, out=model, runs=runs)
    evaluate.run(cfg, model=model, pairs=pairs, out=root / "evaluation")
    embed.run(cfg, model=model, pairs=pairs, out=root / "embeddings", runs=runs)
    store = root / "mlflow" / "store"
    store.mkdir(parents=True, exist_ok=True)
    Registry(services.tracking_uri, services.artifact_root, RegisterSettings()).versions()
    version = register.run(
        cfg, services=services, model=model, evaluation=root / "evaluation",
        lineage=register.Lineage("c0ffee" * 6, "d" * 32), out=runs / "register.json",
    ).receipt["version"]  # fmt: skip
    index.run(
        cfg, services=services, embeddings=root / "embeddings", version=version,
        out=runs / "index.json",
    )  # fmt: skip
    promote.run(
        cfg, services=services, places=Places(root / "evaluation", pairs, runs), version=version,
        by="Ada", why="the first", force=True, out=runs / "promote.json",
    )  # fmt: skip
    return cfg, services


def main() -> None:
    """Make and serve."""
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("folder", type=Path)
    reader.add_argument("--port", type=int, default=8000)
    options = reader.parse_args()
    cfg, services = make_shop(options.folder)
    with serve(cfg, options.folder, services, port=options.port) as (address, _):
        print(f"serving on {address}/", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()

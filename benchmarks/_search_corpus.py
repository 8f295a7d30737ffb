"""A model and a corpus for the benchmark of search: what they are like, not what they say.

The model has a text tower of ViT-B-32's size with random weights, so its embeddings mean nothing,
but they cost what real ones cost. The corpus is laid out around them as CLIP's is around its
captions: an item lies near the embedding of the caption that it belongs to, in a cone of its own
(the modality gap, arXiv 2203.02053), with its own deviation, most of it in a few directions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from coembed.config import Config, parse_config
from coembed.embedding.store import vector_column, write_vectors
from coembed.index.release import Layout, Release
from coembed.models.build import build_model
from coembed.models.checkpoint import save_model
from coembed.models.encoder import load_encoder
from coembed.models.settings import ModelSettings
from coembed.serve.server import Place
from coembed.services import Services, find_services

Matrix = NDArray[np.float32]

DIM = 512
# open_clip's ViT-B-32; the picture tower is only there because a model has two.
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
QUICK_TEXT = TEXT | {"width": 64, "heads": 2, "layers": 2}
IMAGE = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}

# Parts of an item: its cone, its caption, its own directions, and what is in no direction.
GAP, MEANING, OWN, NOISE = 0.70, 0.55, 0.40, 0.15
NUM_OWN = 48
PART_ROWS = 10_000

COLOURS = (
    "red", "blue", "green", "black", "white", "yellow", "grey", "pink", "orange", "brown",
    "purple", "beige",
)  # fmt: skip
LOOKS = ("old", "new", "small", "large", "striped", "plain", "shiny", "worn")
THINGS = (
    "shoe", "sneaker", "leather jacket", "wooden chair", "desk lamp", "coffee mug", "guitar",
    "mountain bike", "rain coat", "dress with long sleeves", "backpack", "wrist watch", "teapot",
    "set of kitchen knives", "picture frame", "woollen scarf", "pair of running shoes", "toy bus",
)  # fmt: skip
PLACES = (
    "", "on a table", "in the rain", "seen from above", "in front of a brick wall", "at night",
    "for children", "in a shop window",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The project folder of the benchmark."""

    root: Path
    cfg: Config
    services: Services
    fingerprint: str

    @property
    def place(self) -> Place:
        return Place(self.root / "data", self.root / "runs")

    @property
    def model(self) -> Path:
        return self.root / "runs" / "models" / self.fingerprint

    def embeddings(self, num_items: int) -> Path:
        return self.root / f"embeddings-{num_items}"


def open_bench(root: Path) -> Bench:
    """The project that `make_bench` made."""
    about = json.loads((root / "bench.json").read_text())
    return Bench(root, parse_config(about["params"]), find_services(root, {}), about["fingerprint"])


def make_bench(root: Path, *, quick: bool) -> Bench:
    """A project with the model in it, served with one thread a process."""
    params: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    params["index"] = {"collection": "items"}
    # One client asks as fast as it can; half of the cache is of answers, half of embeddings.
    params["serve"] = {"num_threads": 1, "rate_per_s": 100_000, "burst": 100_000}
    folder = root / "runs" / "models" / "new"
    folder.mkdir(parents=True)
    (root / "data").mkdir()
    architecture = {
        "embed_dim": DIM, "vision_cfg": IMAGE, "text_cfg": QUICK_TEXT if quick else TEXT,
    }  # fmt: skip
    save_model(folder, *build_model(ModelSettings(architecture=architecture), seed=0), {})
    fingerprint = load_encoder(folder, device="cpu", num_threads=1).fingerprint
    folder.rename(folder.with_name(fingerprint))
    (root / "bench.json").write_text(json.dumps({"params": params, "fingerprint": fingerprint}))
    return open_bench(root)


def captions() -> list[str]:
    """Every caption there is, in an order of no meaning."""
    texts = [
        " ".join(word for word in ("a", look, colour, thing, place) if word)
        for look, colour, thing, place in product(LOOKS, COLOURS, THINGS, PLACES)
    ]
    return [texts[at] for at in np.random.default_rng(1).permutation(len(texts))]


def queries(num: int, *, start: int = 0) -> list[str]:
    """Texts as people type them, no two alike, none a caption."""
    texts = (
        " ".join(word for word in (colour, look, thing, place, "" if n < 2 else f"no {n}") if word)
        for n in range(2, 1000)
        for look, colour, thing, place in product(LOOKS, COLOURS, THINGS, PLACES)
    )
    every = np.array(list(islice(texts, len(captions()))))
    return np.random.default_rng(2).permutation(every)[start : start + num].tolist()


def caption_embeddings(bench: Bench, num: int) -> Matrix:
    """Of the first `num` captions, without what is common to all of them: [num, DIM], unit."""
    encoder = load_encoder(bench.model, device="cpu")
    found = encoder.encode_texts(captions()[:num])
    found = found - found.mean(axis=0)
    return unit(found)


def unit(vectors: Matrix) -> Matrix:
    scaled: Matrix = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def make_items(meanings: Matrix, num_items: int, *, seed: int) -> tuple[Matrix, NDArray[np.intp]]:
    """Vectors [num_items, DIM] and the number of each one's caption."""
    fixed = np.random.default_rng(3)  # the cone and the directions are the model's, not the draw's
    gap = unit(fixed.standard_normal(DIM).astype(np.float32))
    directions = unit(fixed.standard_normal((NUM_OWN, DIM)).astype(np.float32))
    generator = np.random.default_rng(seed)
    # Few captions have many items and many have few.
    shares = 1.0 / np.arange(10, len(meanings) + 10)
    belongs = generator.choice(len(meanings), num_items, p=shares / shares.sum())
    own = unit(generator.standard_normal((num_items, NUM_OWN)).astype(np.float32) @ directions)
    noise = unit(generator.standard_normal((num_items, DIM)).astype(np.float32))
    return unit(GAP * gap + MEANING * meanings[belongs] + OWN * own + NOISE * noise), belongs


def item_ids(num: int, *, first: int = 0) -> list[str]:
    return [hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(first, first + num)]


def write_corpus(
    folder: Path, ids: list[str], vectors: Matrix, belongs: NDArray[np.intp], texts: list[str]
) -> None:
    """Parts as `coembed embed` writes them."""
    folder.mkdir()
    for number, start in enumerate(range(0, len(ids), PART_ROWS)):
        rows = slice(start, start + PART_ROWS)
        mine = [texts[at] for at in belongs[rows]]
        attributes = [
            json.dumps({"colour": text.split()[2], "price": len(text) + place % 50})
            for place, text in enumerate(mine)
        ]
        table = pa.table(
            {
                "item_id": ids[rows],
                "vector": vector_column(vectors[rows]),
                "path": [f"images/{item_id[:2]}/{item_id}.jpg" for item_id in ids[rows]],
                "modality": ["image"] * len(mine),
                "captions": [[text] for text in mine],
                "split": ["train"] * len(mine),
                "attributes": attributes,
            }
        )
        write_vectors(folder / f"part-{number:05d}.parquet", table)


def release_of(bench: Bench, num_items: int, *, corpus: str) -> Release:
    """The release of `num_items` items; `corpus` stands for which they are."""
    return Release(
        model="bench",
        version=1,
        fingerprint=bench.fingerprint,
        precision="fp32",
        corpus=hashlib.sha256(corpus.encode()).hexdigest(),
        num_items=num_items,
        dim=DIM,
        columns={"colour": "text", "price": "number"},
        layout=Layout.of(bench.cfg.index),
    )

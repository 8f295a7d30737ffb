"""Does coembed embed a corpus as fast as its tower runs on what lies in memory?

Image towers with random weights, on JPEGs that are drawn here (320 px wide). In one
process, in turns, a round at a time:

- bare: the tower alone, in the same precision and batches, on inputs in memory: the limit;
- ours: the embed stage from shards to parts and receipt, with the model loaded already;
- dataloader: a plain open_clip loop, its transform in a DataLoader with two workers, from files.

The items have no captions: the few hundred texts that a corpus brings along are the same number
whatever its size, and would tell here. clip-retrieval is not among the peers: its pins
(numpy 1, open_clip 2) do not go with ours.

Then a corpus of many small items, of which 1% is replaced: what the second run costs beyond the
encodes.

    python benchmarks/embedding.py [--quick] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _pictures import draw, with_comment
from _report import paired_ratio, report
from open_clip.transform import image_transform
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from coembed.embedding.settings import EmbedSettings
from coembed.files import sha256_bytes, write_receipt
from coembed.models.build import build_model
from coembed.models.encoder import Encoder, Precision
from coembed.models.settings import ModelSettings
from coembed.pairs.shards import ShardWriter
from coembed.stages.embed import embed_corpus
from coembed.types import Sample

SIDE = 320
WORKERS = 2
# As open_clip's ViT-S-32 and ViT-B-32; the text towers, which nothing here reads, are small.
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT-S-32": {"image_size": 224, "layers": 12, "width": 384, "patch_size": 32},
    "ViT-B-32": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "small": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
}


@dataclass(frozen=True)
class Scene:
    """A tower, its precision, and so many items in batches of that size."""

    tower: str
    precision: Precision
    items: int
    batch_size: int


SCENES = (
    Scene("ViT-S-32", "bf16", 512, 64),
    Scene("ViT-S-32", "fp32", 256, 64),
    Scene("ViT-B-32", "bf16", 256, 64),
)
QUICK_SCENES = (Scene("ViT-S-32", "bf16", 48, 16),)
CHANGED, QUICK_CHANGED = 100_000, 2_000


def make_encoder(tower: str, precision: Precision, batch_size: int) -> Encoder:
    """An encoder with random weights."""
    architecture = {"embed_dim": 512, "vision_cfg": TOWERS[tower], "text_cfg": TEXT}
    model, spec = build_model(ModelSettings(architecture=architecture), seed=0)
    return Encoder(model, spec, weights_sha256=f"{tower:0>64}", precision=precision,
                   batch_size=batch_size)  # fmt: skip


def write_pairs(folder: Path, media: list[bytes]) -> Path:
    """Curated pairs of pictures without captions, in the order of their ids as curation has it."""
    items = sorted((sha256_bytes(data), data) for data in media)
    folder.mkdir(parents=True)
    with ShardWriter(folder, "train", max_samples=10_000, max_bytes=1 << 30) as writer:
        for number, (item_id, data) in enumerate(items):
            attributes = {"colour": "red", "price": 1.5 * number}
            writer.write(
                Sample(item_id, "image", f"media/{item_id}.jpg", data, "jpg", (), (), attributes)
            )
    shards = [shard.as_dict() for shard in writer.shards]
    empty = {"num_items": 0, "shards": []}
    splits = {"train": {"num_items": len(items), "shards": shards}, "val": empty, "test": empty}
    write_receipt(folder, {"splits": splits})
    return folder


class Files(Dataset[torch.Tensor]):
    """Image files through open_clip's own transform."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._transform = image_transform(224, is_train=False)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        tensor: torch.Tensor = self._transform(Image.open(self._paths[place]))
        return tensor


class Case:
    """One scene, ready to be measured."""

    def __init__(self, scene: Scene, folder: Path, media: list[bytes]) -> None:
        self.scene, self.folder = scene, folder
        self.encoder = make_encoder(scene.tower, scene.precision, scene.batch_size)
        self.settings = EmbedSettings(batch_size=scene.batch_size, part_size=4 * scene.batch_size)
        self.pairs = write_pairs(folder / "pairs", media)
        self.files = []
        for number, data in enumerate(media):
            self.files.append(folder / f"{number}.jpg")
            self.files[-1].write_bytes(data)
        loader = self.encoder.spec.loader("image")
        self.inputs = [
            loader.to_inputs(loader.load(media[start : start + scene.batch_size]))
            for start in (0, scene.batch_size)
        ]

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        on = self.scene.precision == "bf16"
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            return self.encoder._model.embed("image", inputs).float()

    def bare(self) -> None:
        """The tower on what lies in memory."""
        for number in range(self.scene.items // self.scene.batch_size):
            self._forward(self.inputs[number % 2])

    def ours(self) -> None:
        """The stage, from nothing."""
        runs, out = self.folder / "runs", self.folder / "out"
        shutil.rmtree(runs, ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):
            embed_corpus(self.encoder, self.settings, pairs=self.pairs, out=out, runs=runs)

    def dataloader(self) -> None:
        """A plain loop."""
        batches = DataLoader(
            Files(self.files), batch_size=self.scene.batch_size, num_workers=WORKERS
        )
        found = [self._forward(inputs).numpy() for inputs in batches]
        np.save(self.folder / "plain.npy", np.concatenate(found))


def seconds(run: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_change(num: int, folder: Path) -> dict[str, Any]:
    """A corpus of `num` small items, then with 1% of them replaced."""
    encoder = make_encoder("small", "fp32", 256)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(draw(0, 40))).resize((32, 32)).save(buffer, "JPEG")
    changed = num // 100
    media = [with_comment(buffer.getvalue(), number) for number in range(num + changed)]
    old = write_pairs(folder / "old", media[:num])
    new = write_pairs(folder / "new", media[changed:])
    settings = EmbedSettings(part_size=4096)
    encoding = [0.0]
    plain = Encoder._start

    def timed(*args: Any) -> torch.Tensor | None:
        start = time.perf_counter()
        found = plain(*args)
        encoding[0] += time.perf_counter() - start
        return found

    def embed(pairs: Path) -> tuple[float, float, int]:
        encoding[0] = 0.0
        start, start_cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            result = embed_corpus(
                encoder, settings, pairs=pairs, out=folder / "out", runs=folder / "runs"
            )
        spent = time.perf_counter() - start - encoding[0]
        return spent, time.process_time() - start_cpu, int(result.receipt["changes"]["embedded"])

    Encoder._start = timed  # type: ignore[method-assign]
    try:
        embed(old)
        shutil.rmtree(folder / "out")
        beyond_s, cpu_s, embedded = embed(new)
    finally:
        Encoder._start = plain  # type: ignore[method-assign]
    return {
        "items": num, "replaced": changed, "embedded": embedded,
        "seconds_beyond_the_encodes": round(beyond_s, 2), "processor_seconds": round(cpu_s, 2),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller; not written to results")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 1 if options.quick else options.rounds

    ratios: dict[str, float] = {}
    counts: dict[str, Any] = {"rounds": rounds, "threads": options.threads, "jpeg_px": SIDE}
    table = []
    for scene in QUICK_SCENES if options.quick else SCENES:
        media = [draw(number, SIDE) for number in range(scene.items)]
        with tempfile.TemporaryDirectory() as folder:
            case = Case(scene, Path(folder), media)
            ways = {"bare": case.bare, "ours": case.ours, "dataloader": case.dataloader}
            found: dict[str, list[float]] = {name: [] for name in ways}
            case._forward(case.inputs[0])  # threads, code and workspaces come up
            for number in range(rounds):
                order = list(ways)
                for name in order[number % 3 :] + order[: number % 3]:
                    found[name].append(seconds(ways[name]))
        name = f"{scene.tower}_{scene.precision}"
        ratios[f"{name}_over_bare"] = paired_ratio(found["bare"], found["ours"])
        ratios[f"{name}_over_dataloader"] = paired_ratio(found["dataloader"], found["ours"])
        rates = {way: scene.items / median(times) for way, times in found.items()}
        counts[name] = {
            "items": scene.items,
            "batch_size": scene.batch_size,
            "items_per_s": {way: round(rate, 1) for way, rate in rates.items()},
        }
        table.append([
            name, *(f"{rates[way]:.1f}/s" for way in found),
            f"{ratios[f'{name}_over_bare']:.3f}", f"{ratios[f'{name}_over_dataloader']:.2f}",
        ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        change = measure_change(QUICK_CHANGED if options.quick else CHANGED, Path(folder))
    counts["change"] = change
    ratios["change_share_embedded"] = change["items"] / change["embedded"]
    table.append([
        f"1% of {change['items']:,} replaced", "", f"{change['embedded']:,} embedded", "",
        f"{change['seconds_beyond_the_encodes']:.1f} s beyond", "",
    ])  # fmt: skip
    report(
        "embedding",
        question="embed over the bare tower and over a plain DataLoader loop",
        columns=["tower", "bare", "ours", "DataLoader", "ours / bare", "ours / DataLoader"],
        rows=table,
        ratios=ratios,
        counts=counts,
        packages=["torch", "open_clip_torch", "simplejpeg", "pyarrow"],
        save=not options.quick,
    )


if __name__ == "__main__":
    main()

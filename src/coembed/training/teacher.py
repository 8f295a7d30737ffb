"""The teacher of a distillation: any model whose embeddings the student is to take after."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from coembed.errors import ModelError
from coembed.models.build import build_model
from coembed.models.checkpoint import weights_hash
from coembed.models.encoder import Encoder, load_encoder
from coembed.models.pretrained import MODEL_JSON
from coembed.models.settings import ModelSettings


def open_teacher(name: str, *, root: Path, device: str) -> Encoder:
    """The encoder that `name` stands for: a model directory of coembed below `root` (as `coembed
    fetch` leaves the champion's), or "ARCHITECTURE/TAG" of open_clip, whose tag may be a local
    checkpoint.

    Raises ModelError.
    """
    folder = root / name
    if (folder / MODEL_JSON).is_file():
        return load_encoder(folder, device=device)
    architecture, slash, tag = name.partition("/")
    if not slash or not tag:
        raise ModelError(
            f"train.loss.teacher is {name!r}: no model directory is there",
            hint="name a folder that `coembed fetch` or `coembed train` made, or an open_clip "
            "model with a tag of pretrained weights, as in ViT-B-32/laion2b_s34b_b79k",
        )
    try:
        settings = ModelSettings(architecture=architecture, pretrained=tag)
    except ValidationError as error:
        why = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ModelError(
            f"train.loss.teacher is {name!r}: no model directory is there, and as an open_clip "
            f"model: {why}",
            hint="`coembed fetch` leaves the champion under runs/models",
        ) from None
    model, spec = build_model(settings, seed=0, root=root)
    return Encoder(model, spec, weights_sha256=weights_hash(model.state_dict()), device=device)

"""The model directory: model.safetensors (weights) and model.json (everything else).

    model.json
        format, format_version   what the file is
        embed_dim, architecture, inputs   see ModelSpec
        weights                  name, SHA-256 and number of the tensors
        identity                 what the caller says about data, code and settings

A tokenizer that does not come with open_clip lies beside them, in a folder named after its
modality. The same model gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from coembed.errors import ModelError
from coembed.files import atomic_path, sha256_file, write_json
from coembed.models.build import build_towers
from coembed.models.joint import JointModel
from coembed.models.pretrained import MODEL_JSON, WEIGHTS, load_strictly, read_state
from coembed.models.spec import ModelSpec, spec_from_json

FORMAT = "coembed-model"
FORMAT_VERSION = 1
_AGAIN = "train the model again (`coembed train`), or fetch its folder again"


@dataclass(frozen=True)
class ModelCard:
    """What model.json says: the spec, the hash of the weights and the identity."""

    spec: ModelSpec
    weights_sha256: str
    identity: Mapping[str, Any]


def save_model(
    folder: Path, model: JointModel, spec: ModelSpec, identity: Mapping[str, Any]
) -> None:
    """Write model.safetensors and model.json into the existing `folder`.

    `identity` (plain JSON values) says what made the model: data, code, settings.
    """
    state = {
        name: value.detach().to("cpu").contiguous() for name, value in model.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS) as partial:
        save_file(state, partial)
    for modality in spec.inputs:
        spec.loader(modality).save(folder / modality)
    write_json(
        folder / MODEL_JSON,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **spec.to_json(),
            "weights": {
                "file": WEIGHTS,
                "sha256": sha256_file(folder / WEIGHTS),
                "num_parameters": sum(p.numel() for p in model.parameters()),
            },
            "identity": dict(identity),
        },
    )


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors."""
    whole = hashlib.sha256()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        whole.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
        whole.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def read_card(folder: Path) -> ModelCard:
    """Read model.json without the weights. Raises ModelError."""
    path = folder / MODEL_JSON
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"no model at {folder}: {MODEL_JSON} is missing", hint=_AGAIN) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}", hint=_AGAIN) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelError(f"{path} is not the description of a coembed model", hint=_AGAIN)
    if values.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {values.get('format_version')!r}; this coembed reads "
            f"version {FORMAT_VERSION}",
            hint="use the coembed that wrote it, or train the model again",
        )
    modalities = values.get("inputs") or {}
    files = {name: folder / name for name in modalities if (folder / name).is_dir()}
    spec = spec_from_json(values, source=str(path), files=files)
    weights, identity = values.get("weights"), values.get("identity")
    if not isinstance(weights, dict) or not isinstance(weights.get("sha256"), str):
        raise ModelError(f"{path} names no hash of the weights", hint=_AGAIN)
    return ModelCard(spec, weights["sha256"], identity if isinstance(identity, dict) else {})


def load_model(folder: Path, *, device: str = "cpu") -> tuple[JointModel, ModelSpec]:
    """The model of a model directory, in evaluation mode on `device`, and its description.

    Raises:
        ModelError: a file is missing, damaged, of another version or of another model.
    """
    card = read_card(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"no weights at {path}", hint=_AGAIN)
    found = sha256_file(path)
    if found != card.weights_sha256:
        raise ModelError(
            f"{path} is not what {MODEL_JSON} was written with: its SHA-256 is {found[:12]}..., "
            f"expected {card.weights_sha256[:12]}...",
            hint=_AGAIN,
        )
    model = build_towers(dict(card.spec.architecture), seed=0)
    load_strictly(model, read_state(path), source=path)
    return model.eval().to(device), card.spec

"""Export of each tower to ONNX.

    FOLDER/image.onnx, text.onnx, audio.onnx   one file a tower
    FOLDER/preprocessing.json                  what goes in, and how the model judges what comes out
    FOLDER/text/                               a transformers tokenizer, where the model has one

A graph takes what the tower's Loader gives, so everything after decoding, resizing and tokenising
is inside it, normalisation too:

    image   uint8 [batch, px, px, 3]: RGB, 0 to 255, resized as preprocessing.json says
    text    int64 [batch, length]: token ids, padded; where the tower is causal and pools at
            the end token `length` is free, up to the context length, else it is the context length
    audio   int16 [batch, 1, window_samples]: one window of one channel at sample_rate_hz

and gives, in float32,

    <modality>_embedding   [batch, embed_dim], of unit L2 norm
    <modality>_features    the same before normalisation: a sound of several windows has the mean of
                           its windows' features, brought to unit norm

What onnxruntime gives is compared with torch before a file is kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from coembed.errors import ModelError, UserError
from coembed.files import write_json
from coembed.modalities.base import Loader
from coembed.models.joint import JointModel
from coembed.models.spec import ModelSpec

PREPROCESSING_JSON = "preprocessing.json"
TOLERANCE = 1e-4
"""Largest difference of an embedding's element from torch's."""

_FORMAT, _FORMAT_VERSION = "coembed-onnx", 1
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Protobuf holds less than 2 GiB; above this the weights go to a file beside the graph.
_MAX_INSIDE_BYTES = 1_900_000_000
_TEXTS: Final = ("a red shoe", "", "stripes and dots " * 50)
_PROBES: Final = 3
_HOLDS: Final = {
    "image": "RGB pixels, resized and cut as `preprocessing` says; mean and std are applied inside",
    "text": "token ids of the tokenizer in `preprocessing`, start, end and padding included",
    "audio": "samples of one window of one channel, as `preprocessing` says",
}


def export_onnx(model: JointModel, spec: ModelSpec, folder: Path) -> dict[str, float]:
    """Write every tower of `model` (on the CPU) into the existing `folder`, see the module.

    Returns modality → largest difference from torch over a few items.

    Raises:
        UserError: onnx, onnxruntime or onnxscript is not installed.
        ModelError: a tower that torch cannot export, or whose embeddings come out otherwise.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the ONNX export needs {' and '.join(missing)}",
            hint=f"pip install {' '.join(missing)}",
        )
    model.eval()
    differences, towers = {}, {}
    for modality in spec.inputs:
        loader = spec.loader(modality)
        probes = _probes(loader)
        path = folder / f"{modality}.onnx"
        shape = _write(_Exported(model, modality, loader), probes, path)
        differences[modality] = _compare(model, modality, loader, probes, path)
        loader.save(folder / modality)
        towers[modality] = {
            "file": path.name,
            "input": {
                "name": modality,
                "dtype": str(loader.dtype).removeprefix("torch."),
                "shape": shape,
                "holds": _HOLDS.get(modality, "what the modality's loader gives"),
            },
            "outputs": list(_output_names(modality)),
            "preprocessing": spec.inputs[modality].model_dump(mode="json"),
        }
    bias = model.logit_bias
    about = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "embed_dim": spec.embed_dim,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "logit_bias": None if bias is None else float(bias.detach()),
        "towers": towers,
    }
    write_json(folder / PREPROCESSING_JSON, about)
    return differences


class _Exported(nn.Module):
    """One tower from what its loader gives to embeddings and features."""

    def __init__(self, model: JointModel, modality: str, loader: Loader) -> None:
        super().__init__()
        self.tower = model.tower(modality)
        self.modality = modality
        self._loader = loader
        self.eval()

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        features = self.tower(self._loader.to_inputs(batch)).float()
        return F.normalize(features, dim=-1), features


def _write(exported: _Exported, probes: Tensor, path: Path) -> list[str | int]:
    """Write the graph; the shape of its input, free dimensions by name."""
    axes = {0: "batch"}
    if getattr(exported.tower, "trims_exactly", False):
        axes[1] = "length"
    # Traced at a length that is none of the tower's own, so that nothing is taken for a constant.
    example = probes[:2, :-1] if 1 in axes else probes[:2]
    try:
        with _no_fast_path(), torch.no_grad():
            program = torch.onnx.export(
                exported,
                (example,),
                dynamo=True,
                dynamic_shapes=(axes,),
                input_names=[exported.modality],
                output_names=list(_output_names(exported.modality)),
                verbose=False,
            )
    except Exception as error:  # torch.export raises nearly everything
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"torch cannot export the {exported.modality} tower to ONNX: "
            f"{type(error).__name__}: {first}",
            hint="open_clip's own towers and most of timm's export; see torch.onnx.export",
        ) from error
    assert program is not None
    _forget_sources(program.model)
    weights = sum(p.numel() * p.element_size() for p in exported.tower.parameters())
    program.save(path, external_data=weights > _MAX_INSIDE_BYTES)
    return [axes.get(place, size) for place, size in enumerate(example.shape)]


def _compare(model: JointModel, modality: str, loader: Loader, probes: Tensor, path: Path) -> float:
    """The largest difference between onnxruntime's embeddings and torch's. Raises ModelError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # One item, several, and without the padding that the tower knows how to do without.
    batches = (probes[:1], probes, model.trim(modality, probes[:1]))
    name = _output_names(modality)[0]
    worst = 0.0
    for batch in batches:
        with torch.inference_mode():
            wanted = model.embed(modality, loader.to_inputs(batch)).float().numpy()
        (found,) = session.run([name], {modality: batch.numpy()})
        worst = max(worst, _difference(found, wanted))
    if not worst <= TOLERANCE:
        raise ModelError(
            f"the exported {modality} tower gives embeddings that differ from torch's by up to "
            f"{worst:.2g}; at most {TOLERANCE:g} is right",
            hint="this is a fault of torch's exporter or of onnxruntime for this tower: try other "
            "versions of torch, onnxscript or onnxruntime",
        )
    return worst


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max())


def _probes(loader: Loader) -> Tensor:
    """A few items as the loader gives them: texts, or noise over the range of the type."""
    if loader.dtype == torch.int64:
        return loader.load(list(_TEXTS))
    example = loader.example()
    limits = torch.iinfo(loader.dtype)
    generator = torch.Generator().manual_seed(0)
    shape: Sequence[int] = (_PROBES, *example.shape[1:])
    drawn = torch.randint(limits.min // 2, limits.max, shape, generator=generator)
    return drawn.to(loader.dtype)


def _output_names(modality: str) -> tuple[str, str]:
    # Not "embedding" alone: torch's exporter may name a layer's values so.
    return f"{modality}_embedding", f"{modality}_features"


def _forget_sources(graph_model: Any) -> None:
    """Drop the stack traces that torch notes at every node: they name places of this machine."""
    graph_model.metadata_props.clear()
    graph_model.graph.metadata_props.clear()
    for value in (*graph_model.graph.inputs, *graph_model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph_model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """nn.MultiheadAttention in evaluation has a fused path that no exporter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

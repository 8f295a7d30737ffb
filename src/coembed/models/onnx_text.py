"""A text tower as a graph of ONNX Runtime's fused operators, written from its weights.

torch's exporter gives the same answers (see models/onnx_export.py), but takes most of a minute for
a tower of twelve layers and leaves some 570 small operators, which cost as much as the products
once these run in int8. A text tower is always open_clip's, so its graph can be said outright: some
80 operators, written in a second.

    input    tokens      int64 [batch, length]; `length` as long as the tower takes (TextTower)
    output   features    float32 [batch, embed_dim], before normalisation

In int8 the products of the blocks take weights that were quantised once, symmetrically, a scale an
output column, and activations that are quantised as they come, one scale for all of a batch: so a
text's features depend on what is beside it in the batch, and texts have to go through alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip.transformer as towers
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coembed.errors import ModelError
from coembed.files import atomic_folder
from coembed.modalities.text import TextTower

GRAPH = "graph.onnx"
"""Name of the graph in its folder; the weights lie beside it."""

VERSION = 1
"""Of the graphs that this module writes; to be raised with every change of what they compute."""

_WEIGHTS = "weights.bin"
_OPSET = 17
_FUSED = "com.microsoft"  # The domain of ONNX Runtime's own operators.
_LARGEST = 127  # Of an int8, symmetrically.

Floats = NDArray[np.float32]


def write_text_graph(tower: TextTower, folder: Path, *, int8: bool) -> None:
    """Write the graph of `tower` (on the CPU) as `folder`, whole or not at all.

    Raises:
        ModelError: a tower with parts that have no place in such a graph, named.
    """
    import onnx

    refuse_unusual(tower)
    model = _Graph(tower, int8=int8).model()
    with atomic_folder(folder) as partial:
        onnx.save_model(
            model,
            partial / GRAPH,
            save_as_external_data=True,  # One file holds no more than 2 GiB.
            location=_WEIGHTS,
            size_threshold=1024,
        )


def refuse_unusual(tower: nn.Module) -> None:
    """Raise a ModelError that names what in `tower` has no place in such a graph."""
    reason = _unusual(tower)
    if reason:
        raise ModelError(f"the text tower has {reason}, which has no ONNX graph here")


def _unusual(tower: nn.Module) -> str | None:
    if not isinstance(tower, TextTower):
        return f"the type {type(tower).__name__}"
    encoder = tower.encoder
    if encoder.cls_emb is not None:
        return "a class token (embed_cls)"
    if encoder.use_pad_mask:
        return "a mask of padding (use_pad_mask)"
    for block in encoder.transformer.resblocks:
        if type(block) is not towers.ResidualAttentionBlock:
            return f"blocks of the type {type(block).__name__}"
        if type(block.attn) is not nn.MultiheadAttention or block.attn.in_proj_weight is None:
            return f"attention of the type {type(block.attn).__name__}"
        if type(block.mlp.gelu) not in (nn.GELU, towers.QuickGELU):
            return f"the activation {type(block.mlp.gelu).__name__}"
        for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
            # Also where an adapter was put in (LoRA); in a saved model they are merged.
            if not isinstance(layer, nn.Linear):
                return f"a layer of the type {type(layer).__name__}"
    return None


class _Graph:
    """Collects operators and weights. Methods that add an operator give its output's name."""

    def __init__(self, tower: TextTower, *, int8: bool) -> None:
        self._tower, self._encoder, self._int8 = tower, tower.encoder, int8
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def model(self) -> Any:
        """The onnx.ModelProto of the whole tower."""
        from onnx import TensorProto, helper

        with torch.no_grad():
            self._build()
        dim = self._encoder.text_projection
        width = self._encoder.width
        if isinstance(dim, nn.Linear):
            width = dim.out_features
        elif dim is not None:
            width = dim.shape[1]
        tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])
        return helper.make_model(
            helper.make_graph(self._nodes, "text", [tokens], [features], self._weights),
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)],
            producer_name="coembed",
            ir_version=8,  # What opset 17 came with.
        )

    def _build(self) -> None:
        encoder = self._encoder
        x, ends = self._embedded(), self._ends()
        blocks = list(encoder.transformer.resblocks)
        for number, block in enumerate(blocks):
            attended = self._attention(self._norm(x, block.ln_1), block.attn)
            if number == len(blocks) - 1 and ends:
                # From here on only the token that is pooled counts.
                attended, x = self._pick(attended, ends), self._pick(x, ends)
            out = self._linear(attended, block.attn.out_proj, _scale(block.ls_1))
            x = self._add("Add", [x, out])
            hidden = self._linear(self._norm(x, block.ln_2), block.mlp.c_fc)
            hidden = self._activation(hidden, block.mlp.gelu)
            out = self._linear(hidden, block.mlp.c_proj, _scale(block.ls_2))
            x = self._add("Add", [x, out])
        normed = self._norm(x, encoder.ln_final)
        self._project(normed if ends else self._pooled(normed))

    def _embedded(self) -> str:
        """Token embeddings plus positions: [batch, length, width]."""
        table = self._weight(_floats(self._encoder.token_embedding.weight))
        positions = self._weight(_floats(self._encoder.positional_embedding))
        embedded = self._add("Gather", [table, "tokens"])
        shape = self._add("Shape", ["tokens"], start=1, end=2)
        cut = self._add("Slice", [positions, self._weight(_ints([0])), shape])
        return self._add("Add", [embedded, cut])

    def _ends(self) -> str:
        """Place of the pooled token, [batch, 1]; empty where it is the first or the last."""
        encoder = self._encoder
        if encoder.pool_type == "argmax":
            return self._add("ArgMax", ["tokens"], axis=1, keepdims=1)
        if encoder.pool_type == "eos":
            found = self._add("Equal", ["tokens", self._weight(_ints([encoder.eos_id]))])
            numbers = self._add("Cast", [found], to=6)  # int32: ArgMax takes no booleans
            return self._add("ArgMax", [numbers], axis=1, keepdims=1)
        return ""

    def _pick(self, x: str, ends: str) -> str:
        """The rows of [batch, length, width] that are pooled: [batch, 1, width]."""
        picked = self._add("GatherND", [x, ends], batch_dims=1)
        return self._add("Unsqueeze", [picked, self._weight(_ints([1]))])

    def _pooled(self, x: str) -> str:
        """The first or the last row, [batch, 1, width]."""
        place = 0 if self._encoder.pool_type == "first" else -1
        return self._add("Gather", [x, self._weight(_ints([place]))], axis=1)

    def _norm(self, x: str, norm: nn.LayerNorm) -> str:
        # Not joined with the sum before it: SkipLayerNormalization takes twice the time here.
        inputs = [x, self._weight(_floats(norm.weight)), self._weight(_floats(norm.bias))]
        return self._add("LayerNormalization", inputs, epsilon=norm.eps)

    def _attention(self, x: str, attention: nn.MultiheadAttention) -> str:
        """Every head's answer, side by side, before the output layer."""
        assert attention.in_proj_weight is not None
        bias = attention.in_proj_bias
        product = self._product(
            x, _floats(attention.in_proj_weight.T), None if bias is None else _floats(bias)
        )
        return self._add(
            "MultiHeadAttention",
            self._add_all("Split", [product], ["query", "key", "value"], axis=-1),
            domain=_FUSED,
            num_heads=attention.num_heads,
            unidirectional=int(self._encoder.attn_mask is not None),
        )

    def _linear(self, x: str, layer: nn.Linear, scale: Floats | None = None) -> str:
        """What the layer gives, times `scale`."""
        weight = _floats(layer.weight.T)
        bias = None if layer.bias is None else _floats(layer.bias)
        if scale is not None:
            weight = weight * scale
            bias = None if bias is None else bias * scale
        return self._product(x, weight, bias)

    def _activation(self, x: str, kind: nn.Module) -> str:
        if isinstance(kind, nn.GELU):
            # FastGelu is the approximation by tanh.
            name = "Gelu" if kind.approximate == "none" else "FastGelu"
            return self._add(name, [x], domain=_FUSED)
        return self._add("QuickGelu", [x], domain=_FUSED, alpha=1.702)

    def _project(self, pooled: str) -> None:
        """Projection, if there is one; it is small, and stays in float32."""
        from onnx import helper

        rows = self._add("Squeeze", [pooled, self._weight(_ints([1]))])
        projection = self._encoder.text_projection
        if isinstance(projection, nn.Linear):
            rows = self._add("MatMul", [rows, self._weight(_floats(projection.weight.T))])
            if projection.bias is not None:
                rows = self._add("Add", [rows, self._weight(_floats(projection.bias))])
        elif projection is not None:
            rows = self._add("MatMul", [rows, self._weight(_floats(projection))])
        self._nodes.append(helper.make_node("Identity", [rows], ["features"]))

    def _product(self, x: str, weight: Floats, bias: Floats | None) -> str:
        """x [.., rows] by weight [rows, columns], plus bias."""
        if not self._int8:
            product = self._add("MatMul", [x, self._weight(weight)])
            return product if bias is None else self._add("Add", [product, self._weight(bias)])
        scales = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / _LARGEST
        whole = np.rint(weight / scales).astype(np.int8)
        inputs = [x, self._weight(whole), self._weight(scales.astype(np.float32))]
        if bias is not None:
            inputs += ["", self._weight(bias)]  # Nothing in between: the zero point is 0.
        return self._add("DynamicQuantizeMatMul", inputs, domain=_FUSED)

    def _weight(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _add(self, kind: str, inputs: Sequence[str], *, domain: str = "", **settings: Any) -> str:
        return self._add_all(kind, inputs, ["out"], domain=domain, **settings)[0]

    def _add_all(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **settings: Any,
    ) -> list[str]:
        from onnx import helper

        number = len(self._nodes)
        names = [f"{kind}_{number}_{name}" if name else "" for name in outputs]
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **settings))
        return names


def _scale(layer: nn.Module) -> Floats | None:
    """What a layer scale multiplies with; None where there is none."""
    return _floats(layer.gamma) if isinstance(layer, towers.LayerScale) else None


def _floats(tensor: Tensor | nn.Module) -> Floats:
    assert isinstance(tensor, Tensor)
    values: Floats = tensor.detach().float().numpy()
    return values


def _ints(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)

"""JointModel: two or more towers into one embedding space."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from coembed.errors import ModelError


class JointModel(nn.Module):
    """Towers of any two or more modalities, a logit scale and perhaps a logit bias.

    towers: modality → tower; a tower takes its modality's inputs and gives features [batch, dim].
    logit_scale: natural LOG of the scale, shape [].
    logit_bias: shape [], or None.
    """

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def __init__(
        self,
        towers: Mapping[str, nn.Module],
        *,
        logit_scale: float,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        if len(towers) < 2:
            raise ModelError(f"a joint model has two or more towers; got {list(towers)}")
        self.towers = nn.ModuleDict(dict(towers))
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)))
        if logit_bias is None:
            self.register_parameter("logit_bias", None)
        else:
            self.logit_bias = nn.Parameter(torch.tensor(float(logit_bias)))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the towers."""
        return tuple(self.towers)

    def features(self, modality: str, inputs: Tensor) -> Float[Tensor, "batch dim"]:
        """What the tower gives, before normalisation."""
        return self.tower(modality)(inputs)

    def embed(self, modality: str, inputs: Tensor) -> Float[Tensor, "batch dim"]:
        """Embeddings: features brought to unit L2 norm, in float32 at least."""
        return self.embed_features(self.features(modality, inputs))

    def embed_features(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Embeddings of features that a tower gave, now or earlier (of a locked one, cached)."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        return F.normalize(features.to(dtype), dim=-1)

    @torch.no_grad()
    def clamp_logit_scale(self, max_scale: float | None) -> None:
        """Bring the scale back to at most `max_scale` (exponentiated), in place; None leaves it.

        CLIP's limit is 100 (Radford et al. 2021, section 2.5); the sigmoid loss needs none.
        """
        if max_scale is not None:
            self.logit_scale.clamp_(max=math.log(max_scale))

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of each modality's inputs."""
        return {modality: self.embed(modality, values) for modality, values in inputs.items()}

    def tower(self, modality: str) -> nn.Module:
        """The tower of `modality`. Raises ModelError where there is none."""
        if modality not in self.towers:
            raise ModelError(
                f"the model has no {modality} tower; it has {', '.join(self.modalities)}"
            )
        return self.towers[modality]

    def trim(self, modality: str, inputs: Tensor, *, multiple: int = 1) -> Tensor:
        """`inputs`, on the host, without padding that cannot change the features.

        `multiple` rounds the length that is left up. Towers that know of no padding give `inputs`
        back.
        """
        trim = getattr(self.tower(modality), "trim", None)
        return inputs if trim is None else trim(inputs, multiple=multiple)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the towers' activations in the backward pass instead of keeping them."""
        for tower in self.towers.values():
            switch = getattr(tower, "set_grad_checkpointing", None)
            if callable(switch):
                switch(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone: scalars, biases, the scales of
        norms, and what the towers name (positional and class embeddings).
        """
        names = {name for name, parameter in self.named_parameters() if parameter.ndim < 2}
        known = {name for name, _ in self.named_parameters()}
        for modality, tower in self.towers.items():
            trunk = getattr(tower, "trunk", None)
            for prefix, module in (("", tower), ("trunk.", trunk)):
                listed: set[str] = set(getattr(module, "no_weight_decay", set)())
                names |= {f"towers.{modality}.{prefix}{name}" for name in listed} & known
        return names

"""How deep in its tower a parameter stands: embeddings and stem, the blocks, the projection.

Learning rates that fall with depth and adapters both ask for it. timm says it for each of its
models (`group_matcher`); open_clip's own towers are described here in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.models._manipulate import MATCH_PREV_GROUP, group_with_matcher
from torch import nn

Matcher = Mapping[str, Any] | Callable[[str], Any]

# The final norm goes with the last block, as in timm's matchers.
_TRANSFORMER: Matcher = {
    "stem": r"^(?:class_embedding|cls_emb|token_embedding|positional_embedding|conv1|ln_pre)",
    "blocks": [
        (r"^transformer\.resblocks\.(\d+)", None),
        (r"^(?:ln_post|ln_final)", MATCH_PREV_GROUP),
    ],
}
_RESNET: Matcher = {"stem": r"^(?:conv|bn)\d", "blocks": r"^layer(\d+)\.(\d+)"}


@dataclass(frozen=True)
class Depths:
    """`of`: a tower's parameters by name → their layer. 0 is the stem; `top` is the projection and
    whatever else stands above the last block.
    """

    of: Mapping[str, int]
    top: int

    def in_blocks(self, name: str) -> bool:
        """Whether the parameter is of a block, between stem and projection."""
        return 0 < self.of[name] < self.top


def parameter_depths(tower: nn.Module) -> Depths | None:
    """The layer of each parameter of a tower; None where nobody says what its layers are."""
    for prefix, module in tower.named_modules():
        matcher = _matcher(module)
        if matcher is not None:
            return _group([name for name, _ in tower.named_parameters()], prefix, matcher)
    return None


def _matcher(module: nn.Module) -> Matcher | None:
    if isinstance(module, VisionTransformer | TextTransformer):
        return _TRANSFORMER
    if isinstance(module, ModifiedResNet):
        return _RESNET
    matcher = getattr(module, "group_matcher", None)
    return matcher(coarse=False) if callable(matcher) else None


def _group(names: Iterable[str], prefix: str, matcher: Matcher) -> Depths:
    inside = f"{prefix}." if prefix else ""
    # No pattern begins like this: such names end up above everything that matches.
    above = "(above)."
    places = {
        name: name.removeprefix(inside) if name.startswith(inside) else above + name
        for name in names
    }
    if callable(matcher):
        ask = matcher
        matcher = lambda place: (math.inf,) if place.startswith(above) else ask(place)  # noqa: E731
    entries = [(place, None) for place in (*places.values(), above)]
    layers = group_with_matcher(iter(entries), matcher, reverse=True)
    return Depths({name: layers[place] for name, place in places.items()}, layers[above])

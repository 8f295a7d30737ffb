"""ModelSpec: everything about a model that is not a weight, as model.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from coembed.errors import ModelError
from coembed.modalities import audio, image, text
from coembed.modalities.base import InputSpec, Loader, load_loader, modality_module, modality_names
from coembed.models.architecture import check_architecture

_HINT = "use the coembed that wrote it, or train the model again"


@dataclass(frozen=True)
class ModelSpec:
    """What a model is made of and what it takes in.

    embed_dim: length of its embeddings.
    architecture: open_clip's config of its towers, with audio_cfg for an audio tower.
    inputs: modality → what that tower's inputs are.
    files: modality → folder of files that its loader needs (a transformers tokenizer); where they
        lie is this machine's business, so it is in no JSON and makes no difference.
    """

    embed_dim: int
    architecture: Mapping[str, Any]
    inputs: Mapping[str, InputSpec]
    files: Mapping[str, Path] = field(default_factory=dict, compare=False)

    @property
    def image(self) -> image.Spec:
        """The image tower's inputs. Raises ModelError where there is no such tower."""
        return cast(image.Spec, self._input("image"))

    @property
    def audio(self) -> audio.Spec:
        """The audio tower's inputs. Raises ModelError where there is no such tower."""
        return cast(audio.Spec, self._input("audio"))

    @property
    def text(self) -> text.Spec:
        """The text tower's inputs. Raises ModelError where there is no such tower."""
        return cast(text.Spec, self._input("text"))

    def loader(self, modality: str) -> Loader:
        """A loader of that tower's inputs."""
        return load_loader(modality, self._input(modality), files=self.files.get(modality))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `spec_from_json` reads them."""
        return {
            "embed_dim": self.embed_dim,
            "architecture": dict(self.architecture),
            "inputs": {name: spec.model_dump(mode="json") for name, spec in self.inputs.items()},
        }

    def _input(self, modality: str) -> InputSpec:
        if modality not in self.inputs:
            raise ModelError(f"the model has no {modality} tower; it has {', '.join(self.inputs)}")
        return self.inputs[modality]


def spec_from_json(
    values: Mapping[str, Any], *, source: str, files: Mapping[str, Path] | None = None
) -> ModelSpec:
    """Read what `ModelSpec.to_json` wrote; `source` names it in errors. Raises ModelError."""
    try:
        inputs = dict(values["inputs"])
        unknown = sorted(set(inputs) - set(modality_names()))
        if unknown or len(inputs) < 2:
            raise ModelError(
                f"{source}: inputs has {', '.join(inputs) or 'nothing'}; expected two or more of "
                f"{', '.join(modality_names())}",
                hint=_HINT,
            )
        check_architecture(values["architecture"], source=source)
        return ModelSpec(
            embed_dim=int(values["embed_dim"]),
            architecture=values["architecture"],
            inputs={
                name: modality_module(name).Spec.model_validate(entry)
                for name, entry in inputs.items()
            },
            files=files or {},
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        lines = str(error).splitlines()
        raise ModelError(
            f"{source} is not a model description of this version: {' '.join(lines[:4])}",
            hint=_HINT,
        ) from error

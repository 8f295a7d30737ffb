"""A model that a filter's settings name: a model directory, or open_clip's pretrained weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from coembed.errors import ModelError
from coembed.settings import ComponentSettings, Settings

if TYPE_CHECKING:
    from coembed.models.encoder import Encoder
    from coembed.models.joint import JointModel


class OpenClipModel(Settings):
    """An open_clip model and its weights: a tag that open_clip knows (downloaded, unless it is in
    its cache) or a local checkpoint, as in `model.pretrained` of params.yaml."""

    name: str
    pretrained: str


class GivenModelSettings(ComponentSettings):
    """Which model embeds, and how.

    model: a model directory, relative to the project's folder ("artifacts/model").
    open_clip: in its place, pretrained weights of open_clip.
    fingerprint: the model's, 64 hexadecimal digits. DVC sees the settings, not what lies in that
        folder: with the fingerprint in them, the same settings mean the same model, and any other
        is refused. Left out, any model is taken, and the run says what to pin.
    device, batch_size, num_threads: how it is run; num_threads both decode and compute.
    """

    model: str | None = None
    open_clip: OpenClipModel | None = None
    fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    device: str = "cpu"
    batch_size: int = Field(default=256, ge=1, le=65536)
    num_threads: int = Field(default=2, ge=1, le=256)

    @model_validator(mode="after")
    def _one_model(self) -> GivenModelSettings:
        if self.model is not None and self.open_clip is not None:
            raise ValueError("`model` and `open_clip` are both given; give one of them")
        return self

    @property
    def names_model(self) -> bool:
        """Whether a model is named at all."""
        return self.model is not None or self.open_clip is not None

    def open(self, root: Path) -> Encoder:
        """The encoder, of images and texts. Raises ModelError, ConfigError."""
        encoder = self._open(root)
        if self.fingerprint is not None and encoder.fingerprint != self.fingerprint:
            raise ModelError(
                f"the model at {self._place} has the fingerprint {encoder.fingerprint}, but the "
                f"settings of the filter {self.name} ask for {self.fingerprint}",
                hint="put that model there, or set the filter's `fingerprint` to the model's",
            )
        for modality in ("image", "text"):
            if modality not in encoder.modalities:
                raise ModelError(f"the model at {self._place} has no {modality} tower")
        return encoder

    def pin_notice(self, encoder: Encoder) -> str | None:
        """What to say of a fingerprint that is not pinned."""
        if self.fingerprint is not None:
            return None
        return (
            f"the model at {self._place} is not pinned; to make sure that the same "
            f"settings mean the same model, set `fingerprint: {encoder.fingerprint}`"
        )

    @property
    def _place(self) -> str:
        if self.open_clip is not None:
            return f"{self.open_clip.name}/{self.open_clip.pretrained}"
        return str(self.model)

    def _open(self, root: Path) -> Encoder:
        from coembed.models.encoder import Encoder, choose_device, load_encoder

        if self.open_clip is None:
            return load_encoder(
                root / str(self.model),
                device=self.device,
                batch_size=self.batch_size,
                num_threads=self.num_threads,
            )
        from coembed.models.build import build_model
        from coembed.models.settings import ModelSettings

        settings = ModelSettings(
            architecture=self.open_clip.name, pretrained=self.open_clip.pretrained
        )
        model, spec = build_model(settings, seed=0, root=root)
        return Encoder(
            model,
            spec,
            weights_sha256=_weights_hash(model),
            device=choose_device(self.device),
            batch_size=self.batch_size,
            num_threads=self.num_threads,
        )


def _weights_hash(model: JointModel) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Settings of the train stage: the `train:` section of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coembed.settings import Component, ComponentSettings, Settings

Precision = Literal["fp32", "bf16"]


class AugmentSettings(Settings):
    """Random changes of a training image, drawn anew every epoch. Hue is never touched: captions
    name colours.

    crop_area: the least share of the image's area that a random square crop keeps (1: no crop).
    flip: mirror half of the images. Switch it off where captions say left and right, or for text.
    brightness: the pixel values are multiplied by 1 ± up to this much.
    """

    crop_area: float = Field(default=0.8, gt=0.1, le=1.0)
    flip: bool = True
    brightness: float = Field(default=0.0, ge=0.0, le=0.5)


class CheckpointSettings(Settings):
    """When the state of a run is saved under `runs/`. None of it changes the result.

    every_steps, every_minutes: whichever comes first; null switches one off.
    keep: how many checkpoints are kept; with two or more, a torn one costs only its interval.
    """

    every_steps: int | None = Field(default=1000, ge=1)
    every_minutes: float | None = Field(default=5.0, gt=0)
    keep: int = Field(default=2, ge=1)


class TrainSettings(Settings):
    """How a model is trained.

    The defaults follow CLIP (Radford et al. 2021, table 18) where it says something: AdamW with
    betas (0.9, 0.98), eps 1e-6 and weight decay 0.2, cosine decay, scale at most 100.

    epochs, steps: the length; exactly one of them is set. An epoch drops its last partial batch.
    batch_size: pairs a step; every other pair of the batch is a negative.
    weight_decay: not applied to norms, biases, logit_scale and logit_bias.
    warmup: steps of linear warm-up; a number below 1 is a share of all steps.
    lr_floor: the cosine ends at this share of `lr`.
    grad_clip: largest global L2 norm of the gradient; null leaves it alone.
    max_logit_scale: largest exponentiated logit scale; null leaves it alone.
    precision: auto is bf16 on CUDA and on processors that multiply bf16 in hardware, else fp32.
    Weights, optimiser state and loss are fp32 either way.
    num_threads: threads of a CPU's arithmetic; null leaves torch's choice (one a core).
    log_every: steps between two rows of history.csv.
    validate_every_epochs: epochs between two looks at the val split; null never looks.
    max_val_items: the val split is cut to so many items for that look.
    """

    epochs: int | None = Field(default=32, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=2)
    lr: float = Field(default=5e-4, gt=0, lt=1)
    lr_floor: float = Field(default=0.0, ge=0, le=1)
    warmup: int | float = Field(default=0.05, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.98,
    )
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.2, ge=0)
    grad_clip: float | None = Field(default=1.0, gt=0)
    max_logit_scale: float | None = Field(default=100.0, ge=1)
    loss: Annotated[ComponentSettings, Component("coembed.losses")] = Field(
        default="softmax", validate_default=True
    )
    augment: AugmentSettings = AugmentSettings()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int | None = Field(default=None, ge=1)
    log_every: int = Field(default=50, ge=1)
    validate_every_epochs: int | None = Field(default=1, ge=1)
    max_val_items: int = Field(default=5000, ge=2)
    checkpoint: CheckpointSettings = CheckpointSettings()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs is {self.epochs} and steps is {self.steps}: set one of them and leave "
                "the other null"
            )
        return self

    @model_validator(mode="after")
    def _warmup_is_steps_or_share(self) -> Self:
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(
                f"warmup is {self.warmup}: give a whole number of steps, or a share below 1"
            )
        if self.steps is not None and 1 <= self.warmup >= self.steps:
            raise ValueError(
                f"warmup is {self.warmup} steps of {self.steps}: nothing is left to train"
            )
        return self

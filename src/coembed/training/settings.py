"""Settings of the train stage: the `train:` section of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from coembed.modalities._augment import AudioAugment, ImageAugment
from coembed.settings import Component, ComponentSettings, Settings
from coembed.types import MODALITIES, Modality

Precision = Literal["fp32", "bf16", "fp16"]


class AugmentSettings(Settings):
    """Random changes of a training item, drawn anew every epoch."""

    image: ImageAugment = ImageAugment()
    audio: AudioAugment = AudioAugment()


class CheckpointSettings(Settings):
    """When the state of a run is saved under `runs/`. None of it changes the result.

    every_steps, every_minutes: whichever comes first; null switches one off.
    keep: how many checkpoints are kept; with two or more, a torn one costs only its interval.
    """

    every_steps: int | None = Field(default=1000, ge=1)
    every_minutes: float | None = Field(default=5.0, gt=0)
    keep: int = Field(default=2, ge=1)


class LoraSettings(Settings):
    """Low-rank adapters in place of training a tower's matrices (Hu et al. 2021, arXiv 2106.09685).

    The tower's own weights are locked; each matrix W becomes W + (alpha / rank) · B A. What is
    saved is the merged matrix.

    rank: of B A. alpha: scale of the update. where: the blocks' matrices that get an adapter.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    where: Literal["attention", "mlp", "both"] = "both"


class TowerSettings(Settings):
    """How one tower is trained.

    lr_scale: times `train.lr`.
    layer_decay: a block's rate is this factor times that of the block above it (Clark et al. 2020,
        ELECTRA; 1: all alike). The projection has the tower's whole rate.
    weight_decay: in place of `train.weight_decay`.
    locked: the tower stays as it starts (LiT: Zhai et al. 2022, arXiv 2111.07991).
    unlock_at: of a locked tower, the step from which it is trained, or a share of all steps below
        1; null: never.
    cache_features: a tower that is locked to the end goes over the data once, without random
        changes, and its features are kept. False: it runs in every step, on augmented items.
    lora: adapters instead of the tower's own weights; null: none.
    """

    lr_scale: float = Field(default=1.0, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float | None = Field(default=None, ge=0)
    locked: bool = False
    unlock_at: int | float | None = Field(default=None, ge=0)
    cache_features: bool = True
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unlock_at is not None and not self.locked:
            raise ValueError(f"unlock_at is {self.unlock_at}, but the tower is not locked")
        if self.lora is not None and self.locked:
            raise ValueError("the tower is locked and has lora: its adapters could not learn")
        if self.unlock_at is not None and self.unlock_at >= 1 and self.unlock_at % 1:
            raise ValueError(
                f"unlock_at is {self.unlock_at}: give a whole step, or a share below 1"
            )
        return self


class EarlyStoppingSettings(Settings):
    """Stop where validation no longer gains.

    patience: looks at the val split without a gain before the run stops.
    min_gain: of mean val Recall@10, for a look to count as a gain.
    """

    patience: int = Field(default=3, ge=1)
    min_gain: float = Field(default=0.001, ge=0, lt=1)


class CacheSettings(Settings):
    """Where decoded items come from. None of it changes the result.

    mode: `decoded` keeps them in a memory-mapped file under runs/cache, `shards` decodes them anew
        each time they are needed, out of the shards; `auto` keeps what is seen more than once, as
        far as it fits by the size that it measures, and says what it did and what decoding costs.
    max_gb: the cache's largest size, in 10⁹ bytes; what was used longest ago is removed first.
    num_threads: threads that decode and crop; null takes one where the CPU trains, which needs the
        cores itself, else one a core, at most eight.
    """

    mode: Literal["auto", "decoded", "shards"] = "auto"
    max_gb: float = Field(default=50.0, gt=0)
    num_threads: int | None = Field(default=None, ge=1)


class DistributedSettings(Settings):
    """Several processes, one a GPU, each with its share of every batch.

    num_processes: on this machine. With more than one, `coembed train` starts them through torchrun
        itself; under a torchrun of your own (several machines) the number comes from there.
    sharding: `none` keeps the whole model in every process (DDP); `fsdp` divides weights, gradients
        and optimiser state among them (FSDP2), for towers that do not fit.
    max_restarts: how often the processes are started again from the last checkpoint after a crash.
    """

    num_processes: int = Field(default=1, ge=1)
    sharding: Literal["none", "fsdp"] = "none"
    max_restarts: int = Field(default=3, ge=0)


class TrainSettings(Settings):
    """How a model is trained.

    The defaults follow CLIP (Radford et al. 2021, table 18) where it says something: AdamW with
    betas (0.9, 0.98), eps 1e-6 and weight decay 0.2, cosine decay, scale at most 100.

    epochs, steps: the length; exactly one of them is set. An epoch drops its last partial batch.
    batch_size: pairs a step, over all processes; every other pair of the batch is a negative.
    micro_batch_size: pairs whose activations are in memory at one time, a process; null: the whole
        batch. The gradient is the whole batch's (gradient caching, Gao et al. 2021, arXiv
        2101.06983); batch norms and dropout, which look at what is in memory, see a micro-batch.
    mix: with items of several modalities, modality → share of the steps; null: as many as they have
        items. A step's pairs are of one modality.
    hard_negatives: column of the pool with a caption that does not describe the item; it is a
        negative for the whole batch.
    towers: modality → how its tower is trained, where it differs from the rest.
    weight_decay: not applied to norms, biases, logit_scale and logit_bias.
    warmup: steps of linear warm-up; a number below 1 is a share of all steps.
    lr_floor: the cosine ends at this share of `lr`.
    grad_clip: largest global L2 norm of the gradient; null leaves it alone.
    max_logit_scale: largest exponentiated logit scale; null leaves it alone.
    ema: decay of an exponential moving average of the weights, which is then what is validated and
        saved; null: none.
    early_stopping: null runs to the end.
    save_weights: `last` saves the final weights, `best` those of the best look at the val split.
    precision: auto is bf16 on CUDA and on processors that multiply bf16 in hardware, else fp32.
        Weights, optimiser state and loss are fp32 in every case; fp16 needs CUDA.
    num_threads: threads of a CPU's arithmetic; null leaves torch's choice (one a core).
    compile: torch.compile of the towers: 1.06 to 1.08 times as fast on a CPU after half a minute of
        warm-up, so a run has to be long for it to pay.
    channels_last: memory layout of images and convolutions; null: for towers of convolutions.
    activation_checkpointing: recompute activations in the backward pass: less memory, more time.
        Not for towers with batch norms.
    log_every: steps between two rows of history.csv.
    validate_every_epochs: epochs between two looks at the val split; null never looks.
    max_val_items: the val split is cut to so many items for that look.
    """

    epochs: int | None = Field(default=32, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=2)
    micro_batch_size: int | None = Field(default=None, ge=1)
    mix: dict[Modality, Annotated[float, Field(gt=0)]] | None = None
    hard_negatives: str | None = Field(default=None, min_length=1)
    towers: dict[Modality, TowerSettings] = Field(default_factory=dict)
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
    ema: float | None = Field(default=None, gt=0, lt=1)
    early_stopping: EarlyStoppingSettings | None = None
    save_weights: Literal["last", "best"] = "last"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int | None = Field(default=None, ge=1)
    compile: bool = False
    channels_last: bool | None = None
    activation_checkpointing: bool = False
    log_every: int = Field(default=50, ge=1)
    validate_every_epochs: int | None = Field(default=1, ge=1)
    max_val_items: int = Field(default=5000, ge=2)
    cache: CacheSettings = CacheSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    distributed: DistributedSettings = DistributedSettings()

    @field_validator("mix")
    @classmethod
    def _items_only(cls, value: dict[Modality, float] | None) -> dict[Modality, float] | None:
        if value is not None and "text" in value:
            items = ", ".join(m for m in MODALITIES if m != "text")
            raise ValueError(f"mix names text, which is in every pair; expected {items}")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs is {self.epochs} and steps is {self.steps}: set one of them and leave "
                "the other null"
            )
        return self

    @model_validator(mode="after")
    def _validation_where_needed(self) -> Self:
        wanting = "early_stopping" if self.early_stopping is not None else None
        wanting = "save_weights: best" if self.save_weights == "best" else wanting
        if wanting and self.validate_every_epochs is None:
            raise ValueError(f"{wanting} needs looks at the val split: set validate_every_epochs")
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

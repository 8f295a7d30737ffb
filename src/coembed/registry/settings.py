"""Settings of the registry and of the promotion gate."""

from __future__ import annotations

from pydantic import Field, model_validator

from coembed.settings import Settings

# MLflow keeps "latest" and "v<N>" to itself; these are ours.
CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
# A version's tag: the version that was served again in its place. Empty: it is rehabilitated.
ROLLED_BACK = "coembed.rolled_back_to"


class RegisterSettings(Settings):
    """Under which names a run and its model version are kept."""

    model: str = Field(default="coembed", pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,199}$")
    experiment: str = Field(default="coembed", min_length=1, max_length=200)


class PromoteSettings(Settings):
    """The gate. `metric` is a path into metrics.json; higher is better.

    A challenger passes when its metric is at most `tolerance` below the champion's and not below
    `minimum` (which also judges the first version of all). `guards` are further metrics, each with
    how much worse than the champion's is still accepted.
    """

    metric: str = Field(default="retrieval/text_to_image/recall_at_10", min_length=1)
    tolerance: float = Field(default=0.0, ge=0.0)
    minimum: float | None = None
    guards: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _guards(self) -> PromoteSettings:
        for metric, tolerance in self.guards.items():
            if tolerance < 0:
                raise ValueError(f"guards: the tolerance of {metric} is {tolerance}, below 0")
            if metric == self.metric:
                raise ValueError(f"guards names {metric}, which is the gate's own metric")
        return self

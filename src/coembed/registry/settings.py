"""Settings of the registry, and the policy that decides what is promoted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from coembed.settings import Settings

# MLflow keeps "latest" and "v<N>" to itself; these are ours.
CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
# A version's tag: the version that was served again in its place. Empty: it is rehabilitated.
ROLLED_BACK = "coembed.rolled_back_to"
# A version's tag: the fingerprint in its evaluation's receipt, which another precision may change.
EVALUATED = "coembed.evaluated_fingerprint"
# What the tags of a version begin with that hold a metric the policy names.
METRIC_TAG = "coembed.metric/"
# What keys of `promote` became, for those who come with a params file of before.
_RENAMED = {
    "tolerance": "it is called `margin` now, and a regression counts only where it is significant",
    "minimum": "it is a floor now: `floors: {METRIC: VALUE}`",
}


class RegisterSettings(Settings):
    """Under which names a run and its model version are kept."""

    model: str = Field(default="coembed", pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,199}$")
    experiment: str = Field(default="coembed", min_length=1, max_length=200)


class SearchLimits(Settings):
    """What is asked of the collection's search, as `coembed index` measured it.

    `min_recall` is the least Recall@10 of the search that serves against a full scan; `max_p95_ms`
    the slowest accepted 95th percentile of one query's milliseconds, null for any.
    """

    min_recall: float = Field(default=0.95, ge=0.0, le=1.0)
    max_p95_ms: float | None = Field(default=None, gt=0.0)


class PromoteSettings(Settings):
    """The policy: what a challenger has to show before it is served.

    A metric is named by its path in metrics.json; higher is better. `metric` is the headline. It
    and the `guards` (path → margin) are compared with the champion's, query by query:

    - `proof: regression` refuses what is surely worse: the whole 95 % interval of challenger minus
      champion is below minus the margin.
    - `proof: non_inferiority` refuses what is not surely as good: the whole interval has to be
      above minus the margin.

    `protected_slices` (column → margin) asks the same of the headline on every value of a column
    that is not small. `floors` (path → value) are the lowest accepted values; they judge the first
    version of all, too. `leakage: refuse` refuses a model that was trained on what it is evaluated
    on. `approval` has a person say yes (`coembed approve`).
    """

    metric: str = Field(default="retrieval/text_to_image/recall_at_10", min_length=1)
    margin: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    proof: Literal["regression", "non_inferiority"] = "regression"
    floors: dict[str, float] = Field(default_factory=dict)
    guards: dict[str, float] = Field(default_factory=dict)
    protected_slices: dict[str, float] = Field(default_factory=dict)
    index: SearchLimits = SearchLimits()
    max_model_mb: float | None = Field(default=None, gt=0.0)
    leakage: Literal["refuse", "allow"] = "refuse"
    approval: bool = False

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key, became in _RENAMED.items():
                if key in values:
                    raise ValueError(f"there is no {key}: {became}")
        return values

    @model_validator(mode="after")
    def _margins(self) -> PromoteSettings:
        for name, margins in (("guards", self.guards), ("protected_slices", self.protected_slices)):
            for key, margin in margins.items():
                if not (math.isfinite(margin) and margin >= 0):
                    raise ValueError(f"{name}: the margin of {key} is {margin}, expected 0 or more")
        for metric, value in self.floors.items():
            if not math.isfinite(value):
                raise ValueError(f"floors: the floor of {metric} is {value}, expected a number")
        if self.metric in self.guards:
            raise ValueError(f"guards names {self.metric}, which is the headline; set `margin`")
        return self

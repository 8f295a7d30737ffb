"""Two models evaluated on the same hostile items, for the tests of the page of a decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluated_pairs import THREE_TOWERS, catalogue, make_config, sounds, write_model, write_pairs

from coembed.config import Config
from coembed.evaluation.comparison import Comparison, compare
from coembed.evaluation.outcomes_file import OUTCOMES, read_outcomes
from coembed.pairs.shards import read_samples
from coembed.stages import evaluate
from coembed.stages.decision import Decision, Gate
from coembed.types import Sample

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'</style>"
HEADLINE = "retrieval/text_to_image/recall_at_10"
EVALUATE: dict[str, Any] = {
    "zero_shot": [{"column": "shape"}],
    "attribute_queries": [{"template": "{colour} {shape}"}],
    "slices": ["colour", "shape", "composition"],
    "contact_sheet": {"num_queries": 8, "num_hits": 5, "thumbnail_px": 48},
    "compositional": {},
    "robustness": {},
    "bootstrap": {"num_resamples": 200},
    "min_slice": 12,
}


@dataclass(frozen=True)
class Evaluated:
    """Curated pairs and the evaluations of two models of random weights on their test split."""

    cfg: Config
    pairs: Path
    champion: Path
    challenger: Path

    @property
    def samples(self) -> list[Sample]:
        return list(read_samples(self.pairs, "test"))

    def compared(self, headline: str = HEADLINE, leave_out: int = 0) -> Comparison:
        """The comparison, without the first `leave_out` items."""
        left = {sample.item_id: "the champion was trained on it" for sample in self.samples}
        settings = self.cfg.evaluate
        return compare(
            read_outcomes(self.champion / OUTCOMES),
            read_outcomes(self.challenger / OUTCOMES),
            headline=headline,
            bootstrap=settings.bootstrap,
            min_slice=settings.min_slice,
            leave_out=dict(list(left.items())[:leave_out]),
        )


def make_evaluated(folder: Path) -> Evaluated:
    """Pictures and sounds, some with captions and attributes that are markup."""
    things = catalogue(70, seed=2)
    things[0] = replace(things[0], captions=(HOSTILE, "an honest caption"))
    things[1] = replace(things[1], attributes={**things[1].attributes, "colour": HOSTILE})
    pairs = write_pairs(folder / "pairs", test=[*things, *sounds(12, seed=3)])
    cfg = make_config(model=THREE_TOWERS, evaluate=EVALUATE)
    made = []
    for seed in (1, 2):
        model = write_model(folder / f"model{seed}", seed=seed, settings=THREE_TOWERS)
        (model / "history.csv").write_text(
            "step,epoch,loss,val_recall_at_10\n10,0,2.5,0.1\n20,1,1.5,0.3\n", encoding="utf-8"
        )
        made.append(folder / f"evaluation{seed}")
        evaluate.run(cfg, model=model, pairs=pairs, out=made[-1])
    return Evaluated(cfg, pairs, *made)


def decide(verdict: str = "refused", champion: int | None = 6, text: str = "lost") -> Decision:
    """A decision of three gates on version 7; `text` is what the gates say."""
    gates = (
        Gate("metric", f"Recall: {text}", "−3.1", "0", "passed", text),
        Gate("floors", "Top-1: floor", "0.31", "0.50", "refused", "0.31 is below"),
        Gate("approval", "Approval", "nobody yet", "a person says yes", "waiting"),
    )
    kept = {"passed": gates[:1], "refused": gates, "waiting": (gates[0], gates[2])}[verdict]
    return Decision(7, champion, "e" * 64, "p" * 64, kept, f"reason: {text}")

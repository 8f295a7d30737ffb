"""The decision on a challenger: what each gate saw, what it asked, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "refused", "waiting"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One line of the decision. `name` says what is asked ("Recall@10, text to image: no
    regression"), `key` is the policy's setting that asks it (`guards`, `floors`, ...), `value` and
    `limit` are as shown to a person, `detail` says more (the interval, the list of leaks).

    "waiting" is for what only a person can give: an approval.
    """

    key: str
    name: str
    value: str
    limit: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gates say together. `champion` is the version it was compared with, None for the
    first version; `policy` is the hash of the settings that were asked."""

    version: int
    champion: int | None
    evaluation_set: str
    policy: str
    gates: tuple[Gate, ...]
    reason: str

    @property
    def verdict(self) -> Verdict:
        """Refused if any gate refuses, else waiting if any waits."""
        verdicts = {gate.verdict for gate in self.gates}
        return next((v for v in ("refused", "waiting") if v in verdicts), "passed")

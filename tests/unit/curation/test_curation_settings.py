"""Settings of the curation: defaults that work, impossible ones refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from coembed.curation.filters.base import Filter
from coembed.curation.settings import CurateSettings


def test_the_defaults() -> None:
    settings = CurateSettings()
    names = [chosen.name for chosen in settings.filters]
    assert names[0] == "readable" and len(set(names)) == len(names)
    # Filters that judge the pool come after those that judge pairs, or would miss their drops.
    filters = [chosen.build() for chosen in settings.filters]  # type: ignore[attr-defined]
    whole = [type(built).check_pool is not Filter.check_pool for built in filters]
    assert whole == sorted(whole)
    # None that needs a model of the user's, or takes away what is sound.
    assert {"semantic_duplicate", "concept_cap", "caption_language"}.isdisjoint(names)
    assert CurateSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filters": ["sharpness"]}, "expected one of aspect_ratio, attribute_cap"),
        ({"seconds_per_item": 0}, "greater than 0"),
        ({"filters": ["readable", "readable"]}, "filter 'readable' is listed twice"),
        ({"filters": [{"name": "image_size", "min_px": 0}]}, "greater than or equal to 1"),
        ({"filters": [{"name": "image_size", "px": 3}]}, "Extra inputs"),
        (
            {"filters": [{"name": "caption_length", "min_chars": 9, "max_chars": 8}]},
            r"min_chars \(9\) is above max_chars \(8\)",
        ),
        ({"split": {"val": 0.5, "test": 0.5}}, "leave nothing to train on"),
        ({"split": {"group_by": ["a", "a"]}}, "names a column twice"),
        ({"min_pairs": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CurateSettings.model_validate(values)

"""Settings of the curation: defaults that work, impossible ones refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from coembed.curation.settings import CurateSettings


def test_the_defaults() -> None:
    settings = CurateSettings()
    assert [chosen.name for chosen in settings.filters] == [
        "readable",
        "aspect_ratio",
        "image_size",
        "caption_length",
        "exact_duplicate",
    ]
    assert CurateSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filters": ["sharpness"]}, "expected one of aspect_ratio, caption_length"),
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

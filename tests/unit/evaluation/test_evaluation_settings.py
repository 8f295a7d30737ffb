"""Settings of evaluation and embedding refuse what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from coembed.embedding.settings import EmbedSettings
from coembed.evaluation.settings import AttributeQuerySettings, EvaluateSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ks": []}, "at least 1 item"),
        ({"ks": [10, 1]}, "rising whole numbers"),
        ({"ks": [0, 1]}, "rising whole numbers"),
        ({"split": "dev"}, "'train', 'val' or 'test'"),
        ({"zero_shot": [{"column": "kind", "prompts": ["a photo"]}]}, "has no {label} in it"),
        ({"zero_shot": [{"column": "kind", "prompts": []}]}, "at least 1 item"),
        ({"zero_shot": [{"column": "kind"}, {"column": "kind"}]}, "zero_shot names kind twice"),
        ({"attribute_queries": [{"template": "red shoes"}]}, "name at least one column in braces"),
        ({"attribute_queries": [{"template": "{kind"}]}, "write columns in braces"),
        ({"attribute_queries": [{"template": "{kind} {kind}"}]}, "a column is named twice"),
        ({"attribute_queries": [{"template": "{kind.__class__}{x!r}"}]}, "only plain column names"),
        ({"slices": ["kind"], "slices_in_metrics": ["colour"]}, "names colour, not in slices"),
        ({"recall": 3}, "Extra inputs"),
    ],
)
def test_evaluate_settings_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EvaluateSettings.model_validate(values)
    assert message in str(caught.value)


def test_template_columns() -> None:
    settings = AttributeQuerySettings(template="a {base colour} {kind} for me")
    assert settings.columns == ("base colour", "kind")
    assert settings.name == "base colour_kind"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"part_size": 100, "batch_size": 64}, "100 is not a multiple of batch_size 64"),
        ({"splits": []}, "at least 1 item"),
        ({"splits": ["test", "test"]}, "names one twice"),
        ({"modalities": ["audio"]}, "'image'"),
    ],
)
def test_embed_settings_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EmbedSettings.model_validate(values)
    assert message in str(caught.value)

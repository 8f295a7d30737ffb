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
        ({"meets_on": ""}, "the name of a column, several names, or null"),
        ({"meets_on": []}, "the name of a column, several names, or null"),
        ({"zero_shot": [{"column": "kind", "modality": "text"}]}, "'image' or 'audio'"),
    ],
)
def test_evaluate_settings_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EvaluateSettings.model_validate(values)
    assert message in str(caught.value)


def test_one_column_may_be_classified_in_each_modality() -> None:
    tasks = [{"column": "kind"}, {"column": "kind", "modality": "audio"}]
    settings = EvaluateSettings.model_validate({"zero_shot": tasks})
    assert [task.name for task in settings.zero_shot] == ["kind", "kind_audio"]


def test_what_items_meet_on_is_one_column_or_several() -> None:
    for given, columns in ((None, ()), ("kind", ("kind",)), (["a", "b"], ("a", "b"))):
        settings = EvaluateSettings.model_validate({"meets_on": given})
        assert settings.meeting_columns == columns


def test_template_columns() -> None:
    settings = AttributeQuerySettings(template="a {base colour} {kind} for me")
    assert settings.columns == ("base colour", "kind")
    assert settings.name == "base colour_kind"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"splits": []}, "at least 1 item"),
        ({"splits": ["test", "test"]}, "names one twice"),
        ({"modalities": ["text"]}, "'image' or 'audio'"),
        ({"modalities": []}, "at least 1 item"),
        ({"modalities": ["audio", "audio"]}, "names one twice"),
    ],
)
def test_embed_settings_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EmbedSettings.model_validate(values)
    assert message in str(caught.value)

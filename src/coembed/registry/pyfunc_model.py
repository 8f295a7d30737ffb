"""The model as MLflow serves it: texts, or bytes of images or sounds in, embeddings out.

MLflow runs this file ("models from code"), so nothing is pickled: the weights are the safetensors
of the model directory beside it. Not to be imported otherwise: `set_model` below is for MLflow.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

COLUMNS = ("text", "image", "audio")
"""Columns of the input, each named after what it holds: a text, or for the last two a file, as
bytes or, because JSON has none, in base64."""


class EncoderModel(PythonModel):
    """Embeds a DataFrame, or a list of dicts, with one or more of COLUMNS.

    Returns float32 [rows, dim], unit L2. A row has a text, an image or a sound: one of them.
    """

    def load_context(self, context: Any) -> None:
        """Load the model directory."""
        from coembed.models.encoder import load_encoder

        config = context.model_config or {}
        self._encoder = load_encoder(
            Path(context.artifacts["model"]),
            device=str(config.get("device", "auto")),
            precision=config.get("precision", "fp32"),
        )

    # MLflow reads the hint of `model_input` and warns of every other than this one; the signature
    # that is stored with the model says more.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:  # noqa: ARG002
        """Embeddings of the rows, in their order."""
        given: Any = model_input
        if isinstance(given, list | tuple | np.ndarray | pd.Series):
            given = pd.DataFrame({"text": list(given)})
        frame: pd.DataFrame = given
        if not set(COLUMNS) & set(frame.columns):
            # MLflow drops what the signature does not name, a bare list of texts among it.
            raise ValueError(
                f"expected a column {_either(COLUMNS)}, for example a DataFrame with a column "
                'text, or [{"text": "red sneakers"}]'
            )
        columns = {name: _column(frame, name) for name in COLUMNS}
        rows: dict[str, list[int]] = {name: [] for name in COLUMNS}
        for row in range(len(frame)):
            found = [name for name in COLUMNS if columns[name][row] is not None]
            if len(found) != 1:
                raise ValueError(
                    f"row {row} has {' and '.join(found) or f'no {_either(COLUMNS)}'}; expected "
                    "one of them"
                )
            rows[found[0]].append(row)
        result = np.empty((len(frame), self._encoder.embed_dim), dtype=np.float32)
        for name, places in rows.items():
            if places:
                result[places] = self._encoder.encode(name, [columns[name][i] for i in places])
        return result


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _column(frame: pd.DataFrame, name: str) -> list[Any]:
    """A column's values with None for what is missing, and all None if there is no such column."""
    if name not in frame.columns:
        return [None] * len(frame)
    read = _text if name == "text" else _file
    return [read(value, f"{name} of row {row}") for row, value in enumerate(frame[name])]


def _text(value: Any, _what: str) -> str | None:
    return value if isinstance(value, str) else None


def _file(value: Any, what: str) -> bytes | None:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(
                f"the {what} is text that is no base64 ({error}); expected a file's bytes, or its "
                "base64"
            ) from None
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None


mlflow.models.set_model(EncoderModel())

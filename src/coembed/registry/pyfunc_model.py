"""The model as MLflow serves it: texts or image bytes in, embeddings out.

MLflow runs this file ("models from code"), so nothing is pickled: the weights are the safetensors
of the model directory beside it. Not to be imported otherwise: `set_model` below is for MLflow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


class EncoderModel(PythonModel):
    """Embeds a DataFrame, or a list of dicts, with a column `text` and/or `image` (bytes).

    Returns float32 [rows, dim], unit L2. A row has a text or an image, not both.
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
        if not {"text", "image"} & set(frame.columns):
            # MLflow drops what the signature does not name, a bare list of texts among it.
            raise ValueError(
                "expected a column text or image, for example a DataFrame with a column text, or "
                '[{"text": "red sneakers"}]'
            )
        texts, images = _column(frame, "text"), _column(frame, "image")
        for row, (text, image) in enumerate(zip(texts, images, strict=True)):
            if (text is None) == (image is None):
                raise ValueError(
                    f"row {row} has {'neither a text nor an image' if text is None else 'both'}; "
                    "expected one of the two"
                )
        result = np.empty((len(frame), self._encoder.embed_dim), dtype=np.float32)
        text_rows = [row for row, text in enumerate(texts) if text is not None]
        image_rows = [row for row, image in enumerate(images) if image is not None]
        if text_rows:
            result[text_rows] = self._encoder.encode_texts([texts[row] for row in text_rows])
        if image_rows:
            result[image_rows] = self._encoder.encode_images(
                [bytes(images[row]) for row in image_rows]
            )
        return result


def _column(frame: pd.DataFrame, name: str) -> list[Any]:
    """A column's values with None for what is missing, and all None if there is no such column."""
    if name not in frame.columns:
        return [None] * len(frame)
    return [value if isinstance(value, str | bytes | bytearray) else None for value in frame[name]]


mlflow.models.set_model(EncoderModel())

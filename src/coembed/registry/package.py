"""A model directory packed as an MLflow model: pyfunc from code, safetensors, no pickle."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from coembed.registry._mlflow import mlflow

# What the packages that are needed to embed (coembed.models and below) import. Given in full:
# MLflow would otherwise load the model once more to find out, and guess.
_REQUIREMENTS = (
    "jaxtyping",
    "mlflow",
    "numpy",
    "open_clip_torch",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "rich",
    "safetensors",
    "simplejpeg",
    "soundfile",
    "soxr",
    "timm",
    "torch",
    "torchvision",
)


def save_package(into: Path, model: Path, *, dim: int, precision: str) -> None:
    """Pack the model directory `model` into the folder `into` (which must not exist).

    The code of this package goes with it, so that it loads where coembed is not installed.
    `precision` is what the fingerprint of the model was taken with.
    """
    types = mlflow.types
    package_root = Path(__file__).parents[1]
    with warnings.catch_warnings(), _without_links(model) as plain:
        warnings.simplefilter("ignore")  # it advises an example; the signature below says more
        mlflow.pyfunc.save_model(
            str(into),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(plain)},
            code_paths=[str(package_root)],
            model_config={"device": "auto", "precision": precision},
            pip_requirements=requirements(),
            signature=mlflow.models.ModelSignature(
                inputs=types.Schema(
                    [
                        types.ColSpec("string", "text", required=False),
                        # Bytes, or base64 where they come as JSON. With MLflow's "binary", rows
                        # of different kinds could not come in one request: it would decode what
                        # is not there.
                        types.ColSpec(types.schema.AnyType(), "image", required=False),
                        types.ColSpec(types.schema.AnyType(), "audio", required=False),
                    ]
                ),
                outputs=types.Schema([types.TensorSpec(np.dtype(np.float32), (-1, dim))]),
            ),
        )


@contextlib.contextmanager
def _without_links(folder: Path) -> Iterator[Path]:
    """The same files without symbolic links, which DVC may have put there and MLflow refuses."""
    folder = folder.resolve()
    if not any(path.is_symlink() for path in folder.rglob("*")):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(shutil.copytree(folder, Path(scratch) / folder.name))


def requirements() -> list[str]:
    """The installed versions of what embedding needs, without local builds ("+cu130")."""
    found = []
    for name in _REQUIREMENTS:
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            found.append(name)
    return found

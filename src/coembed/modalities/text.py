"""Texts: the tokenizer, the tower, and trimming of padding where it is exact."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int64
from open_clip.model import CLIPTextCfg, _build_text_tower
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe
from open_clip.transformer import TextTransformer
from pydantic import Field, model_validator
from torch import Tensor, nn

from coembed.errors import DataError, ModelError
from coembed.files import sha256_file, sha256_tree
from coembed.modalities import base

SECTION = "text_cfg"
OPEN_CLIP = "text"

# The byte-pair cache of open_clip's tokenizer grows by an entry for every new word, for ever.
_MAX_CACHED_WORDS = 500_000
# A word takes time that grows with the square of its length. No token is longer than 32 characters,
# so this cuts only texts that are mostly blanks or markup, or that are attacks.
_MAX_CHARACTERS_PER_TOKEN = 100
_CLEANERS = ("lower", "canonicalize", "whitespace")


class Spec(base.InputSpec):
    """The text tower's inputs.

    tokenizer: `clip` is the byte-pair vocabulary of CLIP, which comes with open_clip; `hf` is the
    transformers tokenizer `hf_tokenizer_name`, whose files the model directory keeps.
    context_length: tokens a text, start and end included; what is longer is cut, the end kept.
    mode, options: open_clip's `tokenizer_mode` and `tokenizer_kwargs`.
    """

    tokenizer: Literal["clip", "hf"] = "clip"
    hf_tokenizer_name: str | None = None
    context_length: int = Field(ge=3)
    vocab_size: int = Field(ge=1)
    mode: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tokenizer == "hf") != bool(self.hf_tokenizer_name):
            raise ValueError(
                f"tokenizer is {self.tokenizer!r} and hf_tokenizer_name "
                f"{self.hf_tokenizer_name!r}: `hf` goes with a name, `clip` without"
            )
        return self

    def local_files(self, root: Path) -> Path | None:
        """See base.InputSpec: `hf_tokenizer_name` may be a folder."""
        folder = root / self.hf_tokenizer_name if self.hf_tokenizer_name else None
        return folder if folder is not None and folder.is_dir() else None


class Tokenizer:
    """Texts to token ids, padded to the context length. Safe to call from several threads.

    `files` is the folder of a transformers tokenizer; without it `hf_tokenizer_name` is loaded, a
    local folder or a name that transformers finds in its cache or downloads.
    """

    def __init__(self, spec: Spec, *, files: Path | None = None) -> None:
        self.spec = spec
        self._files = files
        self._lock = threading.Lock()
        if spec.tokenizer == "clip":
            self._tokenize: Any = _clip_tokenizer(spec.options.get("clean", "lower"))
        else:
            self._tokenize = _hf_tokenizer(spec, files)
        num_words = self.num_tokens()
        if num_words > spec.vocab_size:
            raise ModelError(
                f"vocab_size {spec.vocab_size:,} is less than the tokenizer's {num_words:,} tokens",
                hint=f"set text_cfg.vocab_size to {num_words}",
            )

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "batch context"]:
        """Token ids [len(texts), context_length]."""
        length = self.spec.context_length
        if not texts:
            return torch.zeros((0, length), dtype=torch.int64)
        with self._lock:
            cut = [text[: length * _MAX_CHARACTERS_PER_TOKEN] for text in texts]
            tokens: Tensor = self._tokenize(cut, context_length=length)
            if self.spec.tokenizer == "clip":
                _bound_cache(self._tokenize)
        return tokens.to(torch.int64)

    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        if self.spec.tokenizer == "clip":
            return int(self._tokenize.vocab_size)
        return len(self._tokenize.tokenizer)

    def save(self, folder: Path) -> None:
        """Write a transformers tokenizer's files into `folder`; CLIP's comes with open_clip."""
        if self.spec.tokenizer == "hf":
            self._tokenize.save_pretrained(folder)

    def identity(self) -> Mapping[str, Any]:
        """Hashes of the vocabulary."""
        if self.spec.tokenizer == "clip":
            return {"vocabulary": _clip_vocabulary_hash()}
        return {"vocabulary": sha256_tree(self._files)} if self._files else {}


class TextTower(nn.Module):
    """open_clip's text transformer, taking tokens of any length up to the context length.

    Token ids [batch, length] → features [batch, embed_dim].
    """

    def __init__(self, encoder: TextTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self._pool_type: str = encoder.pool_type
        self._eos_id: int = encoder.eos_id
        # In a causal transformer nothing after the pooled token can reach it.
        self.trims_exactly = (
            encoder.attn_mask is not None
            and encoder.cls_emb is None
            and encoder.pool_type in ("argmax", "eos")
        )

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Features before normalisation."""
        encoder, length = self.encoder, tokens.shape[1]
        full = encoder.context_length
        if length > full:
            raise ModelError(f"texts of {length} tokens; the model's context length is {full}")
        if not self.trims_exactly:
            if length < full:
                raise ModelError(
                    f"texts of {length} tokens; this text tower takes exactly {full}",
                    hint="only causal towers that pool at the end token take shorter texts",
                )
            return encoder(tokens)
        # open_clip's own forward wants the full length: it does not slice its causal mask.
        x, _ = encoder._embeds(tokens)
        x = encoder.transformer(x, attn_mask=encoder.attn_mask[:length, :length])
        x = encoder.ln_final(x)
        x = x[torch.arange(len(x), device=x.device), self._ends(tokens)]
        projection = encoder.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def trim(
        self, tokens: Int64[Tensor, "batch context"], *, multiple: int = 1
    ) -> Int64[Tensor, "batch length"]:
        """Cut columns of padding that cannot change the features; all of them where unsure.

        Call it on host memory: on a GPU it would wait for the device. `multiple` rounds the length
        up, for fewer distinct shapes.
        """
        if not self.trims_exactly or not len(tokens):
            return tokens
        longest = int(self._ends(tokens).max()) + 1
        return tokens[:, : -(-longest // multiple) * multiple]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def _ends(self, tokens: Tensor) -> Tensor:
        """Place of the token whose features are pooled: [batch]."""
        if self._pool_type == "eos":
            return (tokens == self._eos_id).int().argmax(dim=-1)
        return tokens.argmax(dim=-1)  # CLIP's end token is the largest id


class Loader(base.Loader):
    """Texts to token ids."""

    dtype: ClassVar[torch.dtype] = torch.int64

    def __init__(self, spec: Spec, *, files: Path | None = None) -> None:
        self._tokenizer = Tokenizer(spec, files=files)

    def load(self, items: Sequence[str], *, first: int = 0) -> Tensor:
        """See base.Loader."""
        for place, text in enumerate(items):
            if not isinstance(text, str):
                raise DataError(f"text {first + place} is {type(text).__name__}, expected a string")
        return self._tokenizer(items)

    def to_inputs(self, batch: Tensor) -> Tensor:
        """See base.Loader."""
        return batch

    def example(self) -> Tensor:
        """See base.Loader."""
        return self._tokenizer(["an example"])

    def identity(self) -> Mapping[str, Any]:
        """See base.Loader."""
        return self._tokenizer.identity()

    def save(self, folder: Path) -> None:
        """See base.Loader."""
        self._tokenizer.save(folder)


def describe(section: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Spec:  # noqa: ARG001
    """See base.ModalityModule."""
    name = section.get("hf_tokenizer_name")
    options = dict(section.get("tokenizer_kwargs") or {})
    if not name:
        for key in set(options) - {"clean"}:
            raise ModelError(
                f"tokenizer_kwargs.{key} is not supported without hf_tokenizer_name",
                hint="tokenizer_kwargs.clean may be one of " + ", ".join(_CLEANERS),
            )
        if options.get("clean", "lower") not in _CLEANERS:
            raise ModelError(
                f"tokenizer_kwargs.clean is {options['clean']!r}; expected one of "
                f"{', '.join(_CLEANERS)}"
            )
    return Spec(
        tokenizer="hf" if name else "clip",
        hf_tokenizer_name=name or None,
        context_length=section.get("context_length", 77),
        vocab_size=section.get("vocab_size", 49408),
        mode=section.get("tokenizer_mode"),
        options=options,
    )


def build_tower(embed_dim: int, section: Mapping[str, Any], *, quick_gelu: bool) -> TextTower:
    """open_clip's text tower: token ids [batch, length] → features [batch, embed_dim].

    Raises:
        ModelError: an unknown key, or sizes that do not fit.
    """
    settings = dict(section)
    settings["output_tokens"] = False
    known = CLIPTextCfg.__dataclass_fields__
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ModelError(
            f"text_cfg has unknown keys: {', '.join(unknown)}",
            hint=f"known: {', '.join(sorted(known))}",
        )
    if settings.get("proj_type", "linear") == "none" and settings.get("width", 512) != embed_dim:
        raise ModelError(
            f"text_cfg has proj_type none and width {settings.get('width', 512)}, but embed_dim is "
            f"{embed_dim}",
            hint="without a projection the width must be embed_dim",
        )
    if settings.get("pool_type") == "none":
        raise ModelError("text_cfg has pool_type none: it gives no single vector for a text")
    try:
        encoder = _build_text_tower(embed_dim, settings, quick_gelu)
    except Exception as error:
        raise ModelError(
            f"open_clip cannot build the text tower: {type(error).__name__}: {error}",
            hint="check model.architecture.text_cfg in params.yaml",
        ) from error
    assert isinstance(encoder, TextTransformer)
    return TextTower(encoder)


@cache
def _clip_tokenizer(clean: str) -> SimpleTokenizer:
    return SimpleTokenizer(clean=clean)


@cache
def _clip_vocabulary_hash() -> str:
    return sha256_file(Path(default_bpe()))


def _bound_cache(tokenizer: SimpleTokenizer) -> None:
    if len(tokenizer.cache) > _MAX_CACHED_WORDS:
        tokenizer.cache = {token: token for token in ("<start_of_text>", "<end_of_text>")}


def _hf_tokenizer(spec: Spec, files: Path | None) -> HFTokenizer:
    source = str(files) if files is not None else spec.hf_tokenizer_name
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            f"the tokenizer {spec.hf_tokenizer_name!r} needs the package transformers",
            hint="pip install transformers sentencepiece",
        )
    try:
        return HFTokenizer(
            source, context_length=spec.context_length, tokenizer_mode=spec.mode, **spec.options
        )
    except Exception as error:
        raise ModelError(
            f"the tokenizer {source!r} cannot be loaded: {error}",
            hint="offline: download it elsewhere and name its folder as text_cfg.hf_tokenizer_name",
        ) from error

"""The tokenizer and the text tower: trimming padding must change nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from coembed.errors import DataError, ModelError
from coembed.modalities.text import Loader, Spec, TextTower, Tokenizer, build_tower, describe

SECTION = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TEXTS = ["a red shoe", "", "x", "a much longer caption about a small blue striped summer shirt"]


def _tower(**changes: object) -> TextTower:
    torch.manual_seed(0)
    return build_tower(16, {**SECTION, **changes}, quick_gelu=False).eval()


def _spec(**changes: object) -> Spec:
    return describe({**SECTION, **changes}, {})


def test_tokens_are_open_clips() -> None:
    tokens = Tokenizer(_spec())(TEXTS)
    assert tokens.shape == (4, 20) and tokens.dtype == torch.int64
    torch.testing.assert_close(tokens, SimpleTokenizer()(TEXTS, context_length=20))


def test_a_long_text_is_cut_and_keeps_its_end_token() -> None:
    tokens = Tokenizer(_spec(context_length=6))(["one two three four five six seven"])
    assert tokens.shape == (1, 6)
    assert tokens[0, -1] == 49407


def test_no_texts_give_no_tokens() -> None:
    assert Tokenizer(_spec())([]).shape == (0, 20)


def test_canonicalising_is_a_setting() -> None:
    spec = _spec(tokenizer_kwargs={"clean": "canonicalize"})
    tokens = Tokenizer(spec)(["Red, shoes!", "red shoes"])
    torch.testing.assert_close(tokens[0], tokens[1])
    with pytest.raises(ModelError, match="clean is 'loud'"):
        _spec(tokenizer_kwargs={"clean": "loud"})
    with pytest.raises(ModelError, match="strip_sep_token is not supported"):
        _spec(tokenizer_kwargs={"strip_sep_token": True})


def test_an_endless_word_does_not_hang() -> None:
    start = time.monotonic()
    Tokenizer(_spec())(["qzxj" * 100_000, "🦖" * 100_000])
    assert time.monotonic() - start < 10


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(ModelError, match=r"vocab_size 1,000 is less than the tokenizer's 49,408"):
        Tokenizer(_spec(vocab_size=1000))


def test_what_is_no_text_is_named() -> None:
    with pytest.raises(DataError, match="text 8 is bytes, expected a string"):
        Loader(_spec()).load(["fine", b"bytes"], first=7)


@pytest.mark.parametrize("pool", [{"pool_type": "argmax"}, {"pool_type": "eos", "eos_id": 49407}])
@pytest.mark.parametrize("proj_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trimming_is_exact(pool: dict[str, object], proj_bias: bool, dtype: torch.dtype) -> None:
    tower = _tower(**pool, proj_bias=proj_bias).to(dtype)
    allowed = {"atol": 1e-6 if dtype == torch.float32 else 1e-14, "rtol": 0}

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(tower(tokens), dim=-1)

    tokens = Tokenizer(_spec())(TEXTS)
    whole = embed(tokens)
    for multiple in (1, 8):
        trimmed = tower.trim(tokens, multiple=multiple)
        assert trimmed.shape[1] < 20 and trimmed.shape[1] % multiple == 0
        torch.testing.assert_close(embed(trimmed), whole, **allowed)
    # Each text alone, as short as it can be.
    for row, tokens_of_one in enumerate(tokens):
        alone = embed(tower.trim(tokens_of_one[None]))
        torch.testing.assert_close(alone[0], whole[row], **allowed)


def test_trimming_is_exact_for_gradients() -> None:
    tokens = Tokenizer(_spec())(TEXTS)
    grads = []
    for trim in (False, True):
        tower = _tower().double()
        features = tower(tower.trim(tokens) if trim else tokens)
        features.square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in tower.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-10, rtol=1e-10, msg=name)


def test_trimming_never_cuts_into_a_text() -> None:
    tower = _tower()
    tokens = Tokenizer(_spec())(TEXTS)
    trimmed = tower.trim(tokens)
    assert (tokens[:, trimmed.shape[1] :] == 0).all()
    assert trimmed.shape[1] == int((tokens != 0).sum(dim=1).max())
    full = torch.full((1, 20), 320)
    full[0, -1] = 49407
    assert tower.trim(full, multiple=8).shape == (1, 20)


@pytest.mark.parametrize(
    "changes",
    [{"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}, {"embed_cls": True}],
)
def test_where_trimming_would_not_be_exact_nothing_is_trimmed(changes: dict[str, object]) -> None:
    tower = _tower(**changes)
    tokens = Tokenizer(_spec())(TEXTS)
    assert tower.trim(tokens) is tokens
    assert tower(tokens).shape == (4, 16)
    with pytest.raises(ModelError, match="takes exactly 20"):
        tower(tokens[:, :10])


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ModelError, match="texts of 21 tokens"):
        _tower()(torch.zeros((1, 21), dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 64}, "unknown keys: widht"),
        ({"proj_type": "none"}, "embed_dim is 16"),
        ({"pool_type": "none"}, "no single vector"),
        ({"pool_type": "mean"}, "cannot build the text tower"),
    ],
)
def test_impossible_towers_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        _tower(**changes)


def test_a_transformers_tokenizer_from_a_local_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, "red": 3, "shoe": 4}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )
    fast.save_pretrained(tmp_path / "words")
    spec = _spec(hf_tokenizer_name="words", vocab_size=5)
    folder = spec.local_files(tmp_path)
    assert folder == tmp_path / "words"
    tokenizer = Tokenizer(spec, files=folder)
    assert tokenizer(["red shoe"])[0, :3].tolist() == [3, 4, 0]
    tokenizer.save(tmp_path / "copy")
    again = Tokenizer(spec, files=tmp_path / "copy")
    torch.testing.assert_close(again(TEXTS), tokenizer(TEXTS))


def test_a_transformers_tokenizer_that_is_not_there_says_what_to_do() -> None:
    spec = _spec(hf_tokenizer_name="nobody/nothing-of-that-name")
    with pytest.raises(ModelError, match=r"tokenizer.*nobody/nothing-of-that-name") as caught:
        Tokenizer(spec)
    assert "transformers" in str(caught.value) or "offline" in str(caught.value)

"""Measures of embeddings and gradients, against slow and obvious references."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from coembed.models.joint import JointModel
from coembed.training.diagnostics import EMBEDDING_COLUMNS, embedding_row, grad_norms


def _unit(rows: int, dim: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator) + shift, dim=1)


def _slowly(za: Tensor, zb: Tensor) -> dict[str, float]:
    """Each pair in turn, in float64."""

    def spread(z: Tensor) -> tuple[float, float]:
        pairs = [(x, y) for i, x in enumerate(z) for y in z[i + 1 :]]
        energy = [math.exp(-2 * float(((x - y) ** 2).sum())) for x, y in pairs]
        cosines = [float((x * y).sum()) for x, y in pairs]
        return math.log(math.fsum(energy) / len(pairs)), math.fsum(cosines) / len(pairs)

    za, zb = za.double(), zb.double()
    gap = math.dist(za.mean(0).tolist(), zb.mean(0).tolist())
    near = math.fsum(math.dist(x.tolist(), y.tolist()) ** 2 for x, y in zip(za, zb, strict=True))
    (even_a, cos_a), (even_b, cos_b) = spread(za), spread(zb)
    return dict(
        zip(
            EMBEDDING_COLUMNS,
            (gap, near / len(za), even_a, even_b, cos_a, cos_b),
            strict=True,
        )
    )


@pytest.mark.parametrize(("rows", "dim", "shift"), [(2, 3, 0.0), (24, 16, 0.0), (33, 8, 2.0)])
def test_the_measures_are_those_of_the_papers(rows: int, dim: int, shift: float) -> None:
    za, zb = _unit(rows, dim, seed=0), _unit(rows, dim, seed=1, shift=shift)
    assert embedding_row(za, zb) == pytest.approx(_slowly(za, zb), abs=2e-6)


def test_the_ends_of_the_scales() -> None:
    axes = torch.eye(8)
    one = axes[:1].expand(8, 8)
    together = embedding_row(one, one)
    assert together == pytest.approx(
        {**dict.fromkeys(EMBEDDING_COLUMNS, 0.0), "mean_cosine_item": 1, "mean_cosine_text": 1}
    )
    apart = embedding_row(one, -one)
    assert apart["modality_gap"] == pytest.approx(2.0)
    assert apart["alignment"] == pytest.approx(4.0)
    spread = embedding_row(axes, axes)
    assert spread["uniformity_item"] == pytest.approx(-4.0)
    assert spread["mean_cosine_text"] == pytest.approx(0.0)


def test_of_a_large_batch_the_same_rows_are_looked_at() -> None:
    za, zb = _unit(1300, 8, seed=0), _unit(1300, 8, seed=1)
    chosen = [number * 1300 // 512 for number in range(512)]
    found = embedding_row(za, zb)
    assert found == embedding_row(za, zb)
    assert found == embedding_row(za[chosen], zb[chosen])


def test_half_precision_is_measured_in_whole_and_no_graph_is_kept() -> None:
    za = _unit(40, 8, seed=0).requires_grad_()
    whole = embedding_row(za, za)
    half = embedding_row(za.bfloat16(), za.bfloat16())
    assert half == pytest.approx(whole, abs=0.02)
    assert all(type(value) is float for value in half.values())


def _model() -> JointModel:
    towers = {name: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)) for name in ("image", "text")}
    towers["audio"] = nn.Sequential(nn.Linear(4, 2))
    return JointModel(towers, logit_scale=0.0, logit_bias=-10.0)


def _give_gradients(model: nn.Module) -> dict[str, float]:
    """A gradient for all but the audio tower, and the norms that come of it."""
    squares: dict[str, float] = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if "audio" not in name:
            parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
            part = name.split("towers.")[-1].split(".")[0] if "towers." in name else "logit"
            squares[part] = squares.get(part, 0.0) + float((parameter.grad**2).sum())
    return {f"grad_norm_{part}": math.sqrt(value) for part, value in squares.items()}


def test_norms_by_tower_leave_out_what_has_no_gradient() -> None:
    model = _model()
    assert grad_norms(model) == {}
    expected = _give_gradients(model)
    assert grad_norms(model) == pytest.approx(expected)
    assert set(expected) == {"grad_norm_image", "grad_norm_text", "grad_norm_logit"}


def test_norms_by_tower_see_through_a_wrapper() -> None:
    wrapped = nn.ModuleDict({"module": _model()})
    expected = _give_gradients(wrapped)
    assert grad_norms(wrapped) == pytest.approx(expected)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process only."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_norms_of_divided_gradients() -> None:
    whole, divided = _model(), _model()
    divided.load_state_dict(whole.state_dict())
    # One tower is divided as a whole, one in part, and the scalars are not.
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(divided.towers["image"], mesh=mesh)
    fully_shard(divided.towers["text"][1], mesh=mesh)
    for model in (whole, divided):
        z = {name: model.embed(name, torch.ones(5, 4)) for name in ("image", "text")}
        loss = model.logit_scale.exp() * z["image"] @ z["text"].T
        (loss.square() + model.logit_bias).sum().backward()
    grads = [p.grad for p in divided.parameters() if p.grad is not None]
    assert any(hasattr(grad, "full_tensor") for grad in grads)
    assert grad_norms(divided) == pytest.approx(grad_norms(whole))

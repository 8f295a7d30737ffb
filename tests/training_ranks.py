"""What one process of `tests/unit/training/test_training_distributed.py` does. Started by `launch`;
leaves its findings in the folder it is given.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from coembed.errors import ConfigError
from coembed.losses.base import Loss
from coembed.losses.sigmoid import Sigmoid
from coembed.losses.softmax import Softmax
from coembed.models.build import build_towers
from coembed.models.joint import JointModel
from coembed.training.distributed import World, average_statistics, open_world, torchrun_place
from coembed.training.sharding import (
    clip_,
    fill_,
    gather_into,
    lerp_,
    shard,
    total_norm,
    undivided,
    whole,
)

ROWS, NEGATIVES = 8, 4
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
}  # fmt: skip
LOSSES: dict[str, Loss] = {"softmax": Softmax(), "sigmoid": Sigmoid()}


def make_model(dtype: torch.dtype = torch.float32) -> JointModel:
    """Two real towers, a third one that no step uses, a scale and a bias."""
    built = build_towers(ARCHITECTURE, seed=3)
    torch.manual_seed(4)
    unused = nn.Linear(5, 16)
    towers = {**built.towers, "audio": unused}
    return JointModel(towers, logit_scale=2.0, logit_bias=-1.0).to(dtype)


def make_batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Images, captions and hard negatives, and which further captions match."""
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(ROWS, 3, 16, 16, generator=draw).to(dtype)
    tokens = torch.randint(1, 60, (ROWS + NEGATIVES, 8), generator=draw)
    tokens[:, -1] = 63  # the end of the text
    return images, tokens, torch.tensor([[1, 5], [5, 1]])


def whole_batch(model: JointModel, loss: Loss) -> Tensor:
    """One process, one pass: the slow obvious reference. Leaves the gradients in `model`."""
    images, tokens, positives = make_batch(model.logit_scale.dtype)
    value = loss(
        model.embed("image", images), model.embed("text", tokens),
        logit_scale=model.logit_scale, logit_bias=model.logit_bias, positives=positives,
    )  # fmt: skip
    value.backward()
    return value.detach()


def shared_batch(model: JointModel, loss: Loss, world: World) -> Tensor:
    """The same by several processes, two micro-batches each, as `distributed.py` describes."""
    images, tokens, positives = make_batch(model.logit_scale.dtype)
    first, last = world.share(ROWS)
    middle = (first + last) // 2
    from_, to = (ROWS + edge for edge in world.share(NEGATIVES))
    parts = [(slice(first, middle), slice(from_, to)), (slice(middle, last), slice(0, 0))]

    def embed(rows: slice, more: slice) -> tuple[Tensor, Tensor]:
        texts = torch.cat([tokens[rows], tokens[more]])
        return model.embed("image", images[rows]), model.embed("text", texts)

    with torch.no_grad():
        found = [embed(*part) for part in parts]
    num = [len(za) for za, _ in found]
    za = world.gather(torch.cat([za for za, _ in found]))
    zb = world.gather(torch.cat([zb[:n] for (_, zb), n in zip(found, num, strict=True)]))
    negatives = world.gather(torch.cat([zb[n:] for (_, zb), n in zip(found, num, strict=True)]))
    za, zb = za.requires_grad_(), torch.cat([zb, negatives]).requires_grad_()
    value = loss(
        za, zb, logit_scale=model.logit_scale, logit_bias=model.logit_bias,
        positives=positives, share=(first, last),
    )  # fmt: skip
    value.backward()
    assert za.grad is not None and zb.grad is not None
    world.sum_([za.grad, zb.grad])
    for rows, more in parts:
        grads = za.grad[rows], torch.cat([zb.grad[rows], zb.grad[more]])
        known = [(z, g) for z, g in zip(embed(rows, more), grads, strict=True) if z.requires_grad]
        torch.autograd.backward([z for z, _ in known], [g for _, g in known])
    world.sum_(undivided([p.grad for p in model.parameters() if p.grad is not None]))
    total = value.detach().clone()
    world.sum_([total])
    return total


def optimiser_of(model: JointModel) -> torch.optim.AdamW:
    """Groups a tower, and scale and bias apart, as training has them."""
    groups = [{"params": list(tower.parameters())} for tower in model.towers.values()]
    groups.append({"params": [model.logit_scale, model.logit_bias]})
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1, fused=True)


def update(model: JointModel, world: World, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """One clipped step; the gradients' norm and the new weights, whole."""
    shared_batch(model, LOSSES["sigmoid"], world)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = total_norm(gradients)
    clip_(gradients, 0.05, float(norm))
    clipped = total_norm(gradients)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    weights = {name: whole(p).clone() for name, p in model.named_parameters()}
    return {"norm": norm, "clipped": clipped, **weights}


def with_moments(
    model: JointModel, optimiser: torch.optim.Optimizer
) -> dict[tuple[str, str], Tensor]:
    """Weights and moments as they are: what a checkpoint holds whole."""
    found: dict[tuple[str, str], Tensor] = {}
    for name, p in model.named_parameters():
        found["weight", name] = p
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if optimiser.state[p]:
                found[key, name] = optimiser.state[p][key]
    return found


def run_sharded(world: World) -> dict[str, Tensor]:
    """Every process divided and undivided, side by side."""
    found: dict[str, Tensor] = {}
    exact = make_model(torch.float64)
    shard(exact, world, torch.device("cpu"))
    found["sharded/loss"] = shared_batch(exact, LOSSES["softmax"], world)
    for name, p in exact.named_parameters():
        if p.grad is not None:
            found[f"sharded/grad/{name}"] = whole(p.grad)

    plain, divided = make_model(), make_model()
    shard(divided, world, torch.device("cpu"))
    divided.towers["text"].requires_grad_(False)  # as a tower that unlocks at the second step
    plain.towers["text"].requires_grad_(False)
    optimisers = {"plain": optimiser_of(plain), "divided": optimiser_of(divided)}
    models = {"plain": plain, "divided": divided}
    for step in range(3):
        for kind, model in models.items():
            if step == 1:
                model.towers["text"].requires_grad_(True)
            for name, tensor in update(model, world, optimisers[kind]).items():
                found[f"{kind}/{step}/{name}"] = tensor
            with torch.no_grad():  # a look at the val split, with no backward pass after it
                model.embed("text", make_batch()[1])

    # A checkpoint of whole tensors, into a model and an optimiser that are new.
    saved = {at: whole(t).clone() for at, t in with_moments(divided, optimisers["divided"]).items()}
    restored = make_model()
    shard(restored, world, torch.device("cpu"))
    optimiser = optimiser_of(restored)
    for name, p in restored.named_parameters():
        if ("step", name) in saved:
            optimiser.state[p] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    for at, tensor in with_moments(restored, optimiser).items():
        fill_(tensor, saved[at])
    for kind, model, by in (
        ("uninterrupted", divided, optimisers["divided"]), ("restored", restored, optimiser)
    ):  # fmt: skip
        for name, tensor in update(model, world, by).items():
            found[f"{kind}/{name}"] = tensor

    average = [p.detach().clone() for p in restored.parameters()]
    lerp_(average, [p.detach() for p in divided.parameters()], 0.5)
    target = make_model()
    gather_into(target, divided)
    for name, p in target.named_parameters():
        found[f"gathered/{name}"] = p.detach().clone()
    return found


def listens_on() -> list[str]:
    """The addresses on which this process and the one that launched it accept connections."""
    found = set()
    for process in (psutil.Process(), psutil.Process().parent()):
        assert process is not None
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return sorted(found)


def say(world: World) -> dict[str, object]:
    """What the processes tell one another."""
    mixed = [torch.full((3,), world.rank + 1.0), torch.ones(2, dtype=torch.int64)]
    channels_last = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    many = [torch.full((3_000_000,), 1.0 + world.rank) for _ in range(4)]  # more than a bucket
    world.sum_([*mixed, channels_last, *many])
    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.full((2,), float(world.rank))
    average_statistics(norm, world)
    try:
        world.share(ROWS + 1)
        refused = ""
    except ConfigError as error:
        refused = str(error)
    return {
        "rank": world.rank,
        "share": world.share(ROWS),
        "gathered": world.gather(torch.tensor([[world.rank, 7]])).tolist(),
        "summed": [t.tolist() for t in mixed],
        "channels_last": channels_last.flatten().tolist(),
        "stays_channels_last": channels_last.is_contiguous(memory_format=torch.channels_last),
        "many": [t.unique().tolist() for t in many],
        "max": world.max_over_ranks(world.rank / 4),
        "same": world.same({"rank": world.rank, "value": 0.1 + world.rank, "text": "é"}),
        "running_mean": norm.running_mean.tolist(),
        "refused": refused,
        "threads": torch.get_num_threads(),
        "listens_on": listens_on(),
    }


def main(folder: Path) -> None:
    place = torchrun_place(os.environ)
    assert place is not None
    with open_world(place, torch.device("cpu")) as world:
        found: dict[str, Tensor] = {}
        for name, loss in LOSSES.items():
            model = make_model(torch.float64)
            found[f"{name}/loss"] = shared_batch(model, loss, world)
            for parameter, p in model.named_parameters():
                if p.grad is not None:
                    found[f"{name}/grad/{parameter}"] = p.grad
        found |= run_sharded(world)
        said = say(world)
        world.barrier()
    save_file({k: t.contiguous() for k, t in found.items()}, folder / f"{place.rank}.safetensors")
    (folder / f"{place.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

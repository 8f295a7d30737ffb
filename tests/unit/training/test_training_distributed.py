"""Several processes against one: gradients, shards, what they tell one another, their launch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import training_ranks
from safetensors.torch import load_file
from torch import Tensor

from coembed.errors import CoembedError, ConfigError, UserError
from coembed.training.distributed import (
    LAUNCH_ID,
    Place,
    World,
    open_world,
    own_device,
    torchrun_place,
)
from coembed.training.launch import launch
from coembed.training.sharding import clip_, fill_, total_norm, whole

TESTS = Path(training_ranks.__file__).parent
VARIABLES = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@dataclass(frozen=True)
class Ranks:
    """What the processes of `training_ranks` found."""

    tensors: tuple[dict[str, Tensor], ...]
    said: tuple[dict[str, Any], ...]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Rank 0's tensors under `prefix`."""
        found = self.tensors[0].items()
        return {k.removeprefix(prefix): t for k, t in found if k.startswith(prefix)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Two processes over gloo."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(TESTS / "training_ranks.py"), str(folder)]
    launch(command, num_processes=2, max_restarts=0)
    return Ranks(
        tuple(load_file(folder / f"{rank}.safetensors") for rank in range(2)),
        tuple(json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)),
    )


def reference(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one process in one pass; in float64 1e-6 is far above rounding."""
    model = training_ranks.make_model(torch.float64)
    loss = training_ranks.whole_batch(model, training_ranks.LOSSES[name])
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=tolerance, msg=name)


class TestGradients:
    @pytest.mark.parametrize("loss", training_ranks.LOSSES)
    def test_are_those_of_one_process(self, ranks: Ranks, loss: str) -> None:
        value, gradients = reference(loss)
        torch.testing.assert_close(ranks.part(f"{loss}/loss")[""], value, atol=1e-6, rtol=1e-6)
        found = ranks.part(f"{loss}/grad/")
        assert_close(found, gradients, 1e-6)
        assert "logit_scale" in found
        assert not any("audio" in name for name in found)  # the tower that the step leaves out

    def test_are_the_same_bits_in_every_process(self, ranks: Ranks) -> None:
        first, second = ranks.tensors
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


class TestSharding:
    def test_gradients_are_those_of_one_process(self, ranks: Ranks) -> None:
        value, gradients = reference("softmax")
        torch.testing.assert_close(ranks.part("sharded/loss")[""], value, atol=1e-6, rtol=1e-6)
        assert_close(ranks.part("sharded/grad/"), gradients, 1e-6)

    @pytest.mark.parametrize("step", range(3))
    def test_updates_are_those_of_whole_weights(self, ranks: Ranks, step: int) -> None:
        """Clipped; with a tower that unlocks, one that is never used, and a look in between."""
        found = ranks.part(f"divided/{step}/")
        assert_close(found, ranks.part(f"plain/{step}/"), 1e-5)
        assert float(found["norm"]) > 0.05
        torch.testing.assert_close(float(found["clipped"]), 0.05, atol=1e-4, rtol=0)

    def test_a_locked_tower_stays(self, ranks: Ranks) -> None:
        start = dict(training_ranks.make_model().named_parameters())
        name = "towers.text.encoder.text_projection"
        assert torch.equal(ranks.part("divided/0/")[name], start[name])
        assert not torch.equal(ranks.part("divided/1/")[name], start[name])

    def test_goes_on_from_whole_tensors_with_the_same_bits(self, ranks: Ranks) -> None:
        expected, found = ranks.part("uninterrupted/"), ranks.part("restored/")
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_is_gathered_whole(self, ranks: Ranks) -> None:
        expected = ranks.part("uninterrupted/")
        gathered = ranks.part("gathered/")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in gathered.items())

    def test_of_a_group_of_one_is_sharding_all_the_same(self, tmp_path: Path) -> None:
        """On one GPU, FSDP2 can then be tried out; a process without a group is left whole."""
        in_processes(_GROUP_OF_ONE.format(tests=str(TESTS)), tmp_path, num=1)
        found = load_file(tmp_path / "found.safetensors")
        _, gradients = reference("softmax")
        assert_close(found, gradients, 1e-6)

    def test_whole_tensors_need_none_of_it(self) -> None:
        gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
        assert float(total_norm(gradients)) == pytest.approx(5)
        clip_(gradients, 10.0, 5.0)
        assert gradients[0][0] == 3
        clip_(gradients, 1.0, 5.0)
        assert float(total_norm(gradients)) == pytest.approx(1, abs=1e-5)
        into = torch.zeros(2)
        fill_(into, gradients[0])
        assert torch.equal(whole(into), gradients[0])


class TestWorld:
    def test_tells(self, ranks: Ranks) -> None:
        for rank, said in enumerate(ranks.said):
            assert said["rank"] == rank
            assert said["share"] == [4 * rank, 4 * rank + 4]
            assert said["gathered"] == [[0, 7], [1, 7]]
            assert said["summed"] == [[3.0] * 3, [2, 2]]
            assert said["max"] == 0.25
            assert said["same"] == {"rank": 0, "value": 0.1, "text": "é"}
            assert said["many"] == [[3.0]] * 4
            assert said["threads"] == 1

    def test_sums_keep_the_memory_layout(self, ranks: Ranks) -> None:
        assert ranks.said[0]["channels_last"] == [2.0 * i for i in range(24)]
        assert ranks.said[0]["stays_channels_last"]

    def test_averages_running_statistics(self, ranks: Ranks) -> None:
        assert ranks.said[0]["running_mean"] == ranks.said[1]["running_mean"] == [0.5, 0.5]

    def test_refuses_a_batch_that_does_not_divide(self, ranks: Ranks) -> None:
        assert ranks.said[0]["refused"] == (
            "a batch of 9 does not divide among 2 processes\n"
            "  → set train.batch_size to 8 or another multiple of 2"
        )

    def test_listens_on_loopback_alone(self, ranks: Ranks) -> None:
        assert {ip for said in ranks.said for ip in said["listens_on"]} == {"127.0.0.1"}

    def test_of_one_process_changes_nothing(self) -> None:
        with open_world(None, torch.device("cpu")) as world:
            assert type(world) is World
            values = torch.rand(3, 2, requires_grad=True)
            assert torch.equal(world.gather(values), values)
            assert not world.gather(values).requires_grad
            before = values.detach().clone()
            world.sum_([values])
            assert torch.equal(values, before)
            assert world.is_main
            assert world.share(7) == (0, 7)
            assert world.same([1]) == [1]
            assert world.max_over_ranks(0.5) == 0.5
            world.barrier()


class TestPlace:
    def test_none_without_torchrun(self) -> None:
        assert torchrun_place({"LOCAL_RANK": "0"}) is None

    def test_is_read_from_torchruns_variables(self) -> None:
        assert torchrun_place(VARIABLES) == Place(5, 8, 1, 4, divide_threads=True, launched=False)

    def test_knows_who_launched_it(self) -> None:
        place = torchrun_place(
            {**VARIABLES, "OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": LAUNCH_ID}
        )
        assert place is not None
        assert place.launched
        assert not place.divide_threads

    def test_refuses_half_of_the_variables(self) -> None:
        with pytest.raises(ConfigError, match=r"LOCAL_RANK=''.*torchrun sets all four"):
            torchrun_place({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})

    def test_has_a_device_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place = torchrun_place(VARIABLES)
        assert own_device(place, torch.device("cpu")) == torch.device("cpu")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert own_device(place, torch.device("cuda")) == torch.device("cuda", 1)
        assert own_device(None, torch.device("cuda")) == torch.device("cuda")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(ConfigError, match=r"4 training processes .* has 1 CUDA devices"):
            own_device(place, torch.device("cuda"))


_GROUP_OF_ONE = """
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
sys.path.insert(0, {tests!r})
import training_ranks
from coembed.training.device import prepare_model
from coembed.training.distributed import World, open_world, torchrun_place
from coembed.training.settings import TrainSettings
from coembed.training.sharding import whole

settings = TrainSettings.model_validate({{"distributed": {{"sharding": "fsdp"}}}})
cpu = torch.device("cpu")
with open_world(torchrun_place(os.environ), cpu) as world:
    assert world.size == 1
    alone, model = (training_ranks.make_model(torch.float64) for _ in range(2))
    prepare_model(alone, settings, cpu, World())
    assert not any(isinstance(module, FSDPModule) for module in alone.modules())
    prepare_model(model, settings, cpu, world)
    assert all(isinstance(tower, FSDPModule) for tower in model.towers.values())
    training_ranks.shared_batch(model, training_ranks.LOSSES["softmax"], world)
    grads = {{n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}}
    save_file(grads, folder / "found.safetensors")
"""


def in_processes(program: str, folder: Path, *, num: int = 2, max_restarts: int = 0) -> None:
    """Launch `program`, which finds `rank`, `attempt` and `folder` defined."""
    start = (
        "import os, pathlib, signal, sys, time\n"
        "rank, attempt = int(os.environ['RANK']), int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "(folder / f'{attempt}-{rank}-{os.getpid()}').touch()\n"
    )
    launch([sys.executable, "-c", start + program], num_processes=num, max_restarts=max_restarts)


def started(folder: Path) -> list[str]:
    """attempt-rank of every process that started."""
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir())


class TestLaunch:
    def test_starts_again_after_a_crash(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program = """
if attempt == 0 and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if attempt == 0:
    time.sleep(60)
"""
        in_processes(program, tmp_path, max_restarts=2)
        assert started(tmp_path) in (["0-0", "0-1", "1-0", "1-1"], ["0-1", "1-0", "1-1"])
        said = capsys.readouterr().err
        assert "training process 1 was ended by SIGKILL" in said
        assert "starting the training processes again (restart 1 of at most 2)" in said

    def test_gives_up(self, tmp_path: Path) -> None:
        with pytest.raises(CoembedError, match="training process 0 ended with code 3"):
            in_processes("sys.exit(3 * (rank == 0))", tmp_path, max_restarts=1)
        assert {name[0] for name in started(tmp_path)} == {"0", "1"}

    def test_a_users_mistake_is_not_tried_again(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """It reaches the caller once, as what it was, whatever the others then say."""
        program = """
from coembed.errors import DataError
from coembed.training.distributed import LostTouchError
from coembed.training.launch import leave_error
if rank == 1:
    leave_error(DataError("row 7 is torn", hint="mend it"), os.environ)
    sys.exit(2)
leave_error(LostTouchError("this process lost touch"), os.environ)
sys.exit(1)
"""
        with pytest.raises(UserError) as caught:
            in_processes(program, tmp_path, max_restarts=3)
        assert (caught.value.message, caught.value.hint) == ("row 7 is torn", "mend it")
        assert started(tmp_path) == ["0-0", "0-1"]
        assert capfd.readouterr().err == ""

    def test_puts_the_handlers_of_signals_back(self, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGTERM)
        in_processes("", tmp_path)
        assert signal.getsignal(signal.SIGTERM) == before

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)]
    )
    def test_a_signal_ends_all(self, tmp_path: Path, number: int, code: int) -> None:
        program = """
import sys
from coembed.training.launch import launch
child = '''
import os, pathlib, time
pathlib.Path(os.environ["RANK"] + "-" + str(os.getpid())).touch()
time.sleep(100)
'''
try:
    launch([sys.executable, "-c", child], num_processes=2, max_restarts=3)
except KeyboardInterrupt:
    sys.exit(130)
"""
        launcher = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
        while len(list(tmp_path.iterdir())) < 2:
            assert launcher.poll() is None
            time.sleep(0.05)
        launcher.send_signal(number)
        assert launcher.wait(60) == code
        names = [path.name.split("-") for path in tmp_path.iterdir()]
        assert sorted(rank for rank, _ in names) == ["0", "1"]
        assert not any(psutil.pid_exists(int(pid)) for _, pid in names)

"""A small project in a folder of its own: a clone of this repository with a small shop in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
# Small enough for seconds, large enough that every stage has real work.
SMALL = {
    ("train", "epochs"): 2,
    ("train", "batch_size"): 32,
    ("train", "precision"): "fp32",
    ("promote", "floors"): {},  # no model of two epochs is as good as the policy asks
    ("embed", "canaries"): [],  # nor finds it what a whole demo's does
    ("train", "num_threads"): 1,  # tests run side by side: two threads on a shared core stall
}


@dataclass(frozen=True)
class Project:
    """Runs commands in `root` as a user would, with the clone's own code."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MLFLOW_TRACKING_URI", "QDRANT_URL", "PREFECT_API_URL", "DVC_STAGE")
        }
        return {
            **clean,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
            # DVC's tables of hashes belong to the test, not to the machine.
            "DVC_SITE_CACHE_DIR": str(self.root.parent / f"{self.root.name}-site"),
        }

    def run(
        self, *command: str, code: int = 0, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, capture_output=True,
            stdin=subprocess.DEVNULL, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == code, (
            f"{command} ended with {done.returncode}, not {code}\n{done.stdout[-3000:]}\n"
            f"{done.stderr[-6000:]}"
        )
        assert "Traceback" not in done.stderr or code == 0, done.stderr[-6000:]
        return done

    def coembed(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("coembed", *arguments, code=code)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        return self.run("git", *identity, *arguments).stdout

    def lock(self) -> bytes:
        return (self.root / "dvc.lock").read_bytes()

    def copy(self, root: Path) -> Project:
        """Another clone at the same commit, data included, with nothing run in it yet."""
        subprocess.run(["git", "clone", "--quiet", str(self.root), str(root)], check=True)
        shutil.copytree(self.root / "data", root / "data")
        return Project(root)


def small_project(root: Path, *, num_pairs: int = 360, **settings: Any) -> Project:
    """Copy this repository's files as they are now into `root`, draw a small shop, commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        source = REPOSITORY / name
        if source.is_file() and not name.startswith("tests/") and name != "dvc.lock":
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    params = yaml.safe_load((root / "params.yaml").read_text())
    for (section, key), value in SMALL.items():
        params[section][key] = value
    # The small shop is drawn without sounds.
    asked = params["evaluate"]["zero_shot"]
    params["evaluate"]["zero_shot"] = [one for one in asked if one.get("modality") != "audio"]
    for dotted, value in settings.items():
        section, key = dotted.split("__")
        params[section][key] = value
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project = Project(root)
    project.git("init", "--quiet", "--initial-branch=main")
    project.git("add", "--all")
    project.git("commit", "--quiet", "-m", "a small project")
    project.coembed("demo-pool", "--num-pairs", str(num_pairs), "--overwrite")
    project.git("add", "--all")
    project.git("commit", "--quiet", "-m", "its data", "--allow-empty")
    return project


def wait_until_no_stage_lives(project: Project) -> None:
    """A killed command takes its stage with it: an orphan would hold DVC's lock and the cores."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        listed = subprocess.run(
            ["pgrep", "-f", str(project.root)], capture_output=True, text=True, check=False
        )
        if not listed.stdout.strip():
            return
        time.sleep(0.2)
    raise AssertionError(f"orphans: {listed.stdout}")

"""DVC: the one execution path of the reproducible stages, called as a command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

from coembed.errors import CoembedError, DataError, ServiceError, error_type
from coembed.files import write_text
from coembed.lineage.process import capture, stream, tool

Outcome = Literal["ran", "cached", "unchanged"]
LOCK = "dvc.lock"
_RUNNING = "Running stage "


def dvc(project: Path, *arguments: str, extra: Mapping[str, str] | None = None) -> str:
    """Standard output of a dvc command in `project`; waits for locks; failing is a ServiceError."""
    done = capture([tool("dvc"), "--wait-for-lock", *arguments], cwd=project, extra=extra)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        errors = [line for line in said if line.startswith("ERROR:")] or said[-3:]
        raise ServiceError(f"dvc {' '.join(arguments)} failed: {' '.join(errors)}")
    return done.stdout


def changes(project: Path, *targets: str) -> dict[str, object]:
    """What differs from dvc.lock and the .dvc files: empty where all is up to date."""
    return dict(json.loads(dvc(project, "status", "--json", *targets) or "{}"))


def reproduce(project: Path, stage: str, extra: Mapping[str, str] | None = None) -> Outcome:
    """Bring one stage up to date, its dependencies being so already, and say what it took.

    Raises:
        UserError: the stage ended with exit code 2 (it has printed why).
        CoembedError: it ended otherwise.
    """
    command = [tool("dvc"), "--wait-for-lock", "repro", "--single-item", stage]
    code, printed = stream(command, cwd=project, extra=extra, keep=_is_the_stages_own)
    if code != 0:
        hint = f"mend that and run the same command again; `coembed {stage}` runs the stage alone"
        raise _stage_error(project, stage, code, hint)
    if f"Running stage '{stage}'" in printed:
        return "ran"
    return "unchanged" if "didn't change, skipping" in printed else "cached"


def reproduce_anew(
    project: Path, target: str | None, *, extra: Mapping[str, str], show: bool, hint: str
) -> None:
    """Run every stage, or those up to `target`, for real: out of no cache, and into none.

    dvc.lock says afterwards what they made. `show` passes on what the stages print; `hint` goes
    with the error of one that fails, which is a UserError where the stage says so.
    """
    command = [tool("dvc"), "--wait-for-lock", "repro", "--force", "--no-run-cache", "--no-commit"]
    code, printed = stream(
        [*command, *([target] if target else [])],
        cwd=project,
        extra=extra,
        keep=lambda line: show and (line.startswith(_RUNNING) or _is_the_stages_own(line)),
    )
    if code != 0:
        begun = [line for line in printed.splitlines() if line.startswith(_RUNNING)]
        stage = begun[-1].removeprefix(_RUNNING).strip("':") if begun else "dvc repro"
        raise _stage_error(project, stage, code, hint)


def _is_the_stages_own(line: str) -> bool:
    """Whether a line comes from the stage, and is not DVC's advice about a lock file in git.

    The flow publishes the lock file itself, so that advice would mislead.
    """
    advice = (
        _RUNNING, "> ", "Updating lock file", "To track the changes", "To enable auto",
        "\tgit add", "\tdvc config", "Use `dvc push`", "Generating lock file", "Stage '",
    )  # fmt: skip
    return bool(line.strip()) and not line.startswith(advice)


def _stage_error(project: Path, stage: str, code: int, hint: str) -> CoembedError:
    """The error of a failed stage. The verb leaves its own exit code in a small file."""
    left = project / EXIT_FOLDER / f"{stage}.json"
    said: dict[str, object] = {}
    if left.exists():
        said = json.loads(left.read_text(encoding="utf-8"))
        left.unlink()
    return error_type(said.get("kind"))(
        f"stage {stage} failed: {said.get('error', f'dvc repro ended with code {code}')}",
        hint=hint,
    )


# Where a verb that DVC called leaves its error for the flow: DVC only passes "it failed" on.
EXIT_FOLDER = Path(".dvc") / "tmp" / "coembed"


def record(project: Path, stage: str) -> None:
    """Write into dvc.lock that the stage's outputs come from its inputs as they are now."""
    dvc(project, "commit", "--force", stage)


def data_hash(project: Path, pool: Path) -> str | None:
    """The hash by which DVC knows the pool (`md5` in data.dvc), or None before `dvc add`."""
    pointer = project / f"{pool}.dvc"
    if not pointer.exists():
        return None
    outs = yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"]
    return str(outs[0]["md5"])


def add(project: Path, pool: Path) -> bool:
    """Version the pool: cache its files and write its .dvc file. True where that file changed."""
    pointer = project / f"{pool}.dvc"
    before = pointer.read_bytes() if pointer.exists() else None
    dvc(project, "add", "--quiet", str(pool))
    return pointer.read_bytes() != before


def require_versioned(project: Path, pool: Path) -> None:
    """Refuse a pool that is missing, unversioned, or changed since it was versioned."""
    pointer = f"{pool}.dvc"
    if not (project / pointer).exists():
        raise DataError(
            f"{pool}/ is not versioned: there is no {pointer}",
            hint="run `coembed demo-pool --audio` for the demo, `coembed ingest SOURCE` for your "
            f"own pairs, or `dvc add {pool}`",
        )
    if not (project / pool).exists():
        try:
            dvc(project, "checkout", pointer)
        except ServiceError:
            raise DataError(
                f"{pool}/ is not here and not in the DVC cache",
                hint="run `dvc pull`, or `coembed demo-pool --audio` for the demo",
            ) from None
    elif not holds_what_it_says(project, pool):
        raise DataError(
            f"{pool}/ has changed since {pointer} was written",
            hint=f"run `dvc add {pool}` to version it as it is now, or `dvc checkout {pointer}` "
            "to get the versioned files back",
        )


def holds_what_it_says(project: Path, pool: Path) -> bool:
    """Whether the pool's files are those of its .dvc file. Puts them into the cache if they are.

    After a fresh draw, or where the cache was lost, DVC says "not in cache" whatever the files are:
    only adding them tells. A .dvc file that this would change is put back.
    """
    pointer = project / f"{pool}.dvc"
    found = json.dumps(changes(project, pointer.name))
    if "not in cache" in found:
        pinned = pointer.read_text(encoding="utf-8")
        if not add(project, pool):
            return True
        write_text(pointer, pinned)
        return False
    return found == "{}"

"""Running git, dvc and stages as child processes that do not outlive their parent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coembed.errors import ServiceError, UserError
from coembed.parent import die_with_parent


def tool(name: str) -> str:
    """The command `name` of this Python's environment, or just its name where it has none."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child: this one, quiet, with this Python's commands on the path."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    )
    environment.setdefault("DVC_NO_ANALYTICS", "1")
    environment.setdefault("DO_NOT_TRACK", "1")
    environment.update(extra or {})
    return environment


def capture(
    command: Sequence[str], *, cwd: Path, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it printed. Does not judge its exit code."""
    try:
        return subprocess.run(
            list(command),
            cwd=cwd,
            env=child_environment(extra),
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            preexec_fn=die_with_parent,
        )
    except FileNotFoundError:
        if not cwd.is_dir():
            raise UserError(f"there is no folder {cwd}") from None
        raise ServiceError(
            f"the command {command[0]!r} is not installed",
            hint=f"install {command[0]}; `coembed doctor` lists everything that is needed",
        ) from None


def stream(
    command: Sequence[str],
    *,
    cwd: Path,
    extra: Mapping[str, str] | None = None,
    keep: Callable[[str], bool] = lambda _: True,
) -> tuple[int, str]:
    """Run a command whose standard error goes where ours goes (progress bars keep their terminal).

    Its standard output is returned with the exit code, and passed on line by line where `keep` says
    so.
    """
    with subprocess.Popen(
        list(command),
        cwd=cwd,
        env=child_environment(extra),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent,
    ) as child:
        assert child.stdout is not None
        lines = []
        for line in child.stdout:
            if keep(line):
                print(line, end="", flush=True)
            lines.append(line)
    return child.returncode, "".join(lines)

"""Who has the embedded store open: a small file beside it, for the message that says so.

It is only a note. The lock itself is the store's own.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from coembed.files import write_json

_NAME = "opened-by.json"


def say_holder(store: Path) -> None:
    """Note that this process has `store` open."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    write_json(store / _NAME, {"pid": os.getpid(), "command": command})


def locked_by(store: Path) -> str:
    """ " (process 123: coembed serve)", or nothing when it is not known who has it open."""
    try:
        note = json.loads((store / _NAME).read_text(encoding="utf-8"))
        pid, command = int(note["pid"]), str(note["command"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (process {pid}: {command})"

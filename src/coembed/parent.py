"""Not outliving the process that started this one."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Loaded here, because loading a library between fork and exec can hang a process with threads.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends (Linux; elsewhere nothing happens).

    To the kernel the parent is the thread that started this process: where that thread may end
    first, start the process from one that stays. A parent that is killed with -9 cannot clean up;
    without this its child would go on alone, holding locks and the machine.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

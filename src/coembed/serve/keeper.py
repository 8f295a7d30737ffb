"""Which release answers: one bound object at a time, swapped whole.

A request takes a lease of the release that is current, and every step of its answer is that
release's: encoder, collection, calibration. A thread watches the alias. When it moves, the new
release is loaded and warmed beside the old one; then one pointer changes. The old one stays loaded
for a way back, as long as it is among the last few; after that it is closed, behind the last
request that has a lease of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from coembed.errors import CoembedError
from coembed.index.base import VectorIndex
from coembed.serve.bound import BoundRelease
from coembed.serve.refusals import away

_LOG = logging.getLogger("coembed.serve")
_MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Failing:
    """A release that should be served and cannot be loaded: what is served stays."""

    collection: str
    error: str
    num_tries: int


@dataclass(frozen=True, slots=True)
class Swap:
    """A change of release. `warm`: it was loaded already."""

    before: BoundRelease | None
    after: BoundRelease
    warm: bool
    seconds: float


class _Slot:
    """A loaded release and how many requests have it. Guarded by the keeper's lock."""

    __slots__ = ("bound", "is_kept", "num_leases")

    def __init__(self, bound: BoundRelease) -> None:
        self.bound = bound
        self.num_leases = 0
        self.is_kept = True


class Keeper:
    """Keeps the current release and the last few. Safe to use from several threads.

    load: (collection, stop) → the release of a collection, loaded and warm; raises CoembedError.
    unload: lets go of what `load` made. keep_warm: releases that stay loaded, the current one among
    them. on_swap, on_failing: hear of changes, in the watching thread.
    """

    def __init__(
        self,
        index: VectorIndex,
        *,
        alias: str,
        load: Callable[[str, Callable[[], bool]], BoundRelease],
        unload: Callable[[BoundRelease], None],
        poll_s: float,
        keep_warm: int,
        on_swap: Callable[[Swap], None] = lambda _swap: None,
        on_failing: Callable[[bool], None] = lambda _is_failing: None,
    ) -> None:
        self._index, self._alias = index, alias
        self._load, self._unload = load, unload
        self._poll_s, self._keep_warm = poll_s, keep_warm
        self._on_swap, self._on_failing = on_swap, on_failing
        self._lock = threading.Lock()  # of the fields below, held for moments only
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # the least recently current first
        self._current: _Slot | None = None
        self._drained: list[BoundRelease] = []
        self._failing: Failing | None = None
        self._again_at = 0.0
        self._moving = threading.Lock()  # one look at a time
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch-alias", daemon=True)

    # What requests see

    @contextmanager
    def lease(self) -> Iterator[BoundRelease]:
        """The current release, for one request. Raises Refusal (503) where there is none yet."""
        with self._lock:
            slot = self._current
            if slot is None:
                raise self._nothing_served()
            slot.num_leases += 1
        try:
            yield slot.bound
        finally:
            with self._lock:
                slot.num_leases -= 1
                if not slot.is_kept and not slot.num_leases:
                    self._drained.append(slot.bound)

    @property
    def current(self) -> BoundRelease | None:
        """The release that the next request gets."""
        slot = self._current
        return None if slot is None else slot.bound

    @property
    def failing(self) -> Failing | None:
        """What should be served and cannot be loaded."""
        return self._failing

    @property
    def loaded(self) -> tuple[str, ...]:
        """The collections whose releases are loaded, the least recently current first."""
        with self._lock:
            return tuple(self._slots)

    # What moves it

    def start(self) -> None:
        """Look for the first time, and watch from then on. A release that cannot be loaded is
        logged and tried again."""
        self.look()
        self._watcher.start()

    def stop(self) -> None:
        """Stop watching, and close all releases. No request may be in work."""
        self._stopped.set()
        if self._watcher.is_alive():
            self._watcher.join()
        with self._moving, self._lock:
            slots = list(self._slots.values())
            self._slots.clear()
            self._current = None
            self._drained.extend(slot.bound for slot in slots)
        self._close_drained()

    def look(self) -> None:
        """See where the alias points, and go there. What goes wrong is kept as `failing`."""
        with self._moving:
            self._close_drained()
            began = time.perf_counter()
            try:
                collection = self._index.aliases().get(self._alias)
            except CoembedError as error:
                _LOG.warning("the index does not answer: %s", error.message)
                return
            current = self.current
            if collection is None or (current and current.collection == collection):
                self._set_failing(None)
                return
            with self._lock:
                slot = self._slots.get(collection)
            if slot is not None:
                self._swap(slot, warm=True, began=began)
            elif self._may_try(collection):
                self._load_and_swap(collection, began)

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self.look()
            except Exception:  # a bug must not end the watch: the next look may be luckier
                _LOG.exception("looking at the alias failed")

    def _load_and_swap(self, collection: str, began: float) -> None:
        try:
            bound = self._load(collection, self._stopped.is_set)
        except Exception as error:
            known = isinstance(error, CoembedError)
            _LOG.log(
                logging.WARNING if known else logging.ERROR,
                "collection %s cannot be served: %s", collection, error, exc_info=not known,
            )  # fmt: skip
            before = self._failing
            again = before is not None and before.collection == collection
            tries = before.num_tries + 1 if before is not None and again else 1
            self._again_at = time.monotonic() + min(self._poll_s * 2**tries, _MAX_WAIT_S)
            self._set_failing(Failing(collection, str(error), tries))
            return
        self._swap(_Slot(bound), warm=False, began=began)

    def _may_try(self, collection: str) -> bool:
        failing = self._failing
        return (
            failing is None
            or failing.collection != collection
            or time.monotonic() >= self._again_at
        )

    def _swap(self, slot: _Slot, *, warm: bool, began: float) -> None:
        with self._lock:
            before = self._current
            self._current = slot
            self._slots[slot.bound.collection] = slot
            self._slots.move_to_end(slot.bound.collection)
            while len(self._slots) > self._keep_warm:
                _, old = self._slots.popitem(last=False)
                old.is_kept = False
                if not old.num_leases:
                    self._drained.append(old.bound)
        seconds = time.perf_counter() - began
        self._set_failing(None)
        _LOG.info("serving %s (%.3f s)", slot.bound.collection, seconds)
        self._on_swap(Swap(before.bound if before else None, slot.bound, warm, seconds))
        self._close_drained()

    def _close_drained(self) -> None:
        with self._lock:
            drained, self._drained = self._drained, []
        for bound in drained:
            self._unload(bound)

    def _set_failing(self, failing: Failing | None) -> None:
        if (failing is None) != (self._failing is None):
            self._on_failing(failing is not None)
        self._failing = failing

    def _nothing_served(self) -> Exception:
        failing = self._failing
        if failing is not None:
            return away(f"nothing is served yet: {failing.error}")
        return away(
            f"nothing is served as {self._alias!r} yet",
            hint="`coembed retrain` trains, registers, indexes and promotes a first model",
        )

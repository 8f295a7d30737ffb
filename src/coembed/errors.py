"""The error tree.

    CoembedError                 something that coembed itself explains; exit code 1
    ├── UserError                the user can mend it: exit code 2
    │   ├── ConfigError          params.yaml or --set says something that cannot be
    │   ├── DataError            a pool, table, shard or media file is not what it should be
    │   └── ModelError           a model directory, checkpoint or architecture does not fit
    └── ServiceError             a store or server is locked, full, slow or away: exit code 1

An error names what was found, what was expected and what to do next (`hint`). Anything that is not
a CoembedError is a bug and keeps its traceback.
"""

from __future__ import annotations


class CoembedError(Exception):
    """An error that explains itself: one message, and a hint that says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class UserError(CoembedError):
    """Something that the person who ran the command can put right."""

    exit_code = 2


class ConfigError(UserError):
    """A setting that is unknown, of the wrong type, or impossible beside another."""


class DataError(UserError):
    """A pool, table, shard or media file that is missing or malformed."""


class ModelError(UserError):
    """A model directory, checkpoint or architecture that cannot be used as asked."""


class ServiceError(CoembedError):
    """A registry, index, disk or port that is locked, full, refusing or away."""


_KINDS: tuple[tuple[str, type[CoembedError]], ...] = (
    ("user", UserError),
    ("service", ServiceError),
    ("other", CoembedError),
)


def kind_of(error: CoembedError) -> str:
    """The branch of the tree that an error is on, as a word that a file can carry."""
    return next(kind for kind, branch in _KINDS if isinstance(error, branch))


def error_type(kind: object) -> type[CoembedError]:
    """The class to raise for what `kind_of` said in another process."""
    return dict(_KINDS).get(str(kind), CoembedError)

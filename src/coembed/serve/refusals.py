"""What a request is answered with when it is not served: a status, what is wrong, what to do."""

from __future__ import annotations

from coembed.errors import UserError


class Refusal(UserError):  # noqa: N818 - an answer, not a fault of the program
    """A refused request. `retry_after_s` is for those that may come again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after_s = retry_after_s


def invalid(message: str, *, hint: str | None = None) -> Refusal:
    """422: understood, and it cannot be."""
    return Refusal(422, message, hint=hint)


def not_found(message: str, *, hint: str | None = None) -> Refusal:
    """404."""
    return Refusal(404, message, hint=hint)


def busy(message: str, *, retry_after_s: float) -> Refusal:
    """429: later."""
    hint = "try again after the seconds of Retry-After"
    return Refusal(429, message, hint=hint, retry_after_s=retry_after_s)


def away(message: str, *, hint: str | None = None, retry_after_s: float = 1.0) -> Refusal:
    """503: nothing is served, or the index does not answer."""
    return Refusal(503, message, hint=hint, retry_after_s=retry_after_s)

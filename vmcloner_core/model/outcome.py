"""Results of the members of a batch, and of the checks of ``host check``."""

from __future__ import annotations

import enum
from typing import Generic, TypeVar, cast

import attrs

from vmcloner_core.errors import BackendError, VmclonerError

T_co = TypeVar("T_co", covariant=True)


@attrs.frozen(kw_only=True)
class Outcome(Generic[T_co]):
    """Result of one member of a batch: a value, or an error.

    :param key: the name of the clone, domain or volume.
    :param changed: False if the requested state already existed: nothing was done, so a roll-back
        has nothing to undo.
    """

    key: str
    value: T_co | None = None
    error: VmclonerError | None = None
    changed: bool = True

    @property
    def ok(self) -> bool:
        """Whether the member is now in the requested state."""
        return self.error is None

    def unwrap(self) -> T_co:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast(T_co, self.value)


class Status(enum.Enum):
    """Result of one check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@attrs.frozen(kw_only=True)
class Check:
    """One line of ``host check``: what was checked, the result, and how to fix it.

    :param exit_code: that of a command which needs what failed.
    :param setup: whether ``vmcloner host setup`` mends it if it failed.
    """

    backend: str
    name: str
    status: Status
    detail: str = ""
    fix: str = ""
    exit_code: int = BackendError.exit_code
    setup: bool = False

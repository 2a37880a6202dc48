"""What the conformance suites share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, TypeVar

import pytest

from vmcloner_core.contracts import check_driver
from vmcloner_core.errors import said
from vmcloner_core.model import Outcome

T = TypeVar("T")


def by_key(outcomes: Iterable[Outcome[T]]) -> dict[str, Outcome[T]]:
    """Return outcomes by key; check that each key occurs once."""
    found: dict[str, Outcome[T]] = {}
    for outcome in list(outcomes):  # all of them: a driver that waits at one may hold its lock
        assert outcome.key not in found, f"two outcomes for {outcome.key}"
        found[outcome.key] = outcome
    return found


class Suite:
    """Tests of a driver. One that can't be made, or is incomplete, fails only the first of them.

    The others are skipped: each would say the same.
    """

    contract: ClassVar[type] = object
    made_by: ClassVar[str] = "driver"
    """The name of the fixture that makes the driver, or a function that does."""
    opens: ClassVar[bool] = False
    """Whether it makes a function."""

    @pytest.fixture(autouse=True)
    def when_complete(self, request: pytest.FixtureRequest) -> None:
        """Check once that there is a driver, and that it has what its contract demands.

        Its name is behind those of most other fixtures: pytest sets them up in that order.
        """
        known = vars(type(self)).get("_wrong")
        if known is None:
            known = self._found(request)
            type(self)._wrong = known  # type: ignore[attr-defined]
            if known:
                pytest.fail(f"{known} (docs/plugins.md; the other tests are skipped)", False)
        if known:
            pytest.skip(known)

    def _found(self, request: pytest.FixtureRequest) -> str:
        """Return what keeps the driver from being tested, empty if nothing does."""
        try:
            made = request.getfixturevalue(self.made_by)
            driver = made() if self.opens else made
        except pytest.FixtureLookupError:
            return f"define a fixture {self.made_by}"
        except NotImplementedError as error:  # a fixture that a subclass has to define
            return str(error)
        except TypeError as error:  # its class is abstract
            return said(error)
        except Exception:  # the tests say it; a fixture may need others of its subclass before
            return ""
        wrong = self.wrong_with(driver) or ""
        if self.opens:
            driver.close()
        return wrong

    def wrong_with(self, made: object) -> str | None:
        """Return what its contract demands and the fixture's value lacks, None for nothing."""
        return check_driver(made, self.contract)


def differs(found: bytes, wanted: bytes) -> str | None:
    """Return where the contents of two disks differ, None if they are the same.

    For asserts: pytest takes minutes to show the difference of two such values itself.
    """
    if found == wanted:
        return None
    if len(found) != len(wanted):
        return f"{len(found)} bytes instead of {len(wanted)}"
    place = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    return f"byte {place} is {found[place]:#04x} instead of {wanted[place]:#04x}"

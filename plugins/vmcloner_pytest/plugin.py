"""The plugin of pytest: options, marker, fixtures, and what is told of a failed test.

Nothing of vmcloner's engine is imported before a test asks for a machine.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Generator, Iterator
from typing import TYPE_CHECKING, Literal, Protocol

import pytest

from vmcloner_pytest.settings import POOL, TTL, Wanted

if TYPE_CHECKING:
    from vmcloner_core import Engine, Machine
    from vmcloner_core.errors import VmclonerError
    from vmcloner_pytest.holdings import Group, Holdings

MARKER = (
    "vmcloner(template=None, count=1, ready=True, timeout=None): the machines that the fixtures "
    "clone and clones give: of this template, or from the pool of the settings"
)
TIMEOUT = 900.0
"""Seconds to wait for machines of a pool."""
Scope = Literal["function", "class", "module", "package", "session"]
_NODES: dict[str, type[pytest.Collector]] = {
    "class": pytest.Class,
    "module": pytest.Module,
    "package": pytest.Package,
    "session": pytest.Session,
}
_used = pytest.StashKey["list[Group]"]()
_made = pytest.StashKey["dict[tuple[object, ...], Group]"]()


class Fleet(Protocol):
    """What the fixture ``fleet`` gives: a function that makes machines."""

    def __call__(
        self,
        template: str,
        *,
        count: int = 1,
        ready: str | bool = True,
        timeout: float | None = None,
        scope: Scope = "function",
    ) -> tuple[Machine, ...]:
        """Make a fleet, or return the one that was made for the same words in this scope.

        :param ready: what to wait for, as ``vmcloner create --wait``; True for what the template
            says, False for nothing. :param timeout: seconds to wait for each machine.
        :param scope: until when it is there.
        """
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and settings."""
    group = parser.getgroup("vmcloner", "machines by vmcloner")
    for option, text in (
        ("keep-pool", "leave the pool's machines for the next run, until their leases end"),
        ("keep-on-failure", "leave the machines of failed tests for 8 hours, and say how to reach"),
        ("console", "add consoles and journals of their machines to the reports of failed tests"),
        ("require", "fail tests that this host can't run, instead of skipping them"),
    ):
        group.addoption(f"--vmcloner-{option}", action="store_true", help=text)
    parser.addini(
        POOL, "pool of machines: {template = 'tiny', size = 4, reset = 'always'}", "string"
    )
    parser.addini(TTL, "how long machines stay if pytest is killed", "string", default="10min")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", MARKER)


@contextlib.contextmanager
def answered(config: pytest.Config) -> Iterator[None]:
    """Skip a test if the host can't make what it needs; fail it in lines for other errors."""
    from vmcloner_core.errors import BackendError, NotEnoughResources, VmclonerError

    try:
        yield
    except VmclonerError as error:
        lacking = isinstance(error, (BackendError, NotEnoughResources))
        if lacking and not config.getoption("--vmcloner-require"):
            pytest.skip(f"this host can't: {error}")
        pytest.fail(_lines(error), pytrace=False)


@contextlib.contextmanager
def removed(names: Collection[str]) -> Iterator[None]:
    """Fail if machines can't be removed or given back, for any reason; name those that stay."""
    from vmcloner_core.errors import PartialFailure, VmclonerError

    try:
        yield
    except VmclonerError as error:
        if isinstance(error, PartialFailure) and error.failures:
            names = [name for name, _ in error.failures]
        stay = f"\nthese may stay until their leases end: {' '.join(names)}" if names else ""
        pytest.fail(_lines(error) + stay, pytrace=False)


def _lines(error: VmclonerError) -> str:
    """Return what an error says, with a line for each machine that it is about."""
    from vmcloner_core.errors import PartialFailure

    failures = error.failures if isinstance(error, PartialFailure) else ()
    return "\n".join([f"vmcloner: {error}", *(f"{name}: {why}" for name, why in failures)])


@pytest.fixture(scope="session")
def vmcloner(pytestconfig: pytest.Config) -> Iterator[Engine]:
    """Give the engine, on this host. To open it otherwise, define this fixture yourself."""
    from vmcloner_core import Engine

    with answered(pytestconfig):
        engine = Engine.open()
        engine.resources()
    with engine:
        yield engine


@pytest.fixture(scope="session")
def vmcloner_holdings(pytestconfig: pytest.Config, vmcloner: Engine) -> Iterator[Holdings]:
    """Give what this process has of machines; for the other fixtures."""
    from vmcloner_pytest.holdings import Holdings

    keep_pool = bool(pytestconfig.getoption("--vmcloner-keep-pool"))
    with answered(pytestconfig):
        holdings = Holdings(vmcloner, Wanted.of(pytestconfig), keep_pool=keep_pool)
    yield holdings
    with removed(holdings.names()):
        holdings.close()


@pytest.fixture
def fleet(request: pytest.FixtureRequest, vmcloner_holdings: Holdings) -> Fleet:
    """Give a function that makes machines, which are removed at the end of the scope it is told."""

    def make(
        template: str,
        *,
        count: int = 1,
        ready: str | bool = True,
        timeout: float | None = None,
        scope: Scope = "function",
    ) -> tuple[Machine, ...]:
        node = _node(request.node, scope)
        known = node.stash.setdefault(_made, {})
        key = (template, count, ready, timeout)
        if scope == "function" or key not in known:
            with answered(request.config):
                group = vmcloner_holdings.make(template, count, ready, timeout)
            known[key] = group
            node.addfinalizer(functools.partial(_end, vmcloner_holdings, group))
            node.addfinalizer(lambda: known.pop(key, None))
        return _noted(request, known[key])

    return make


@pytest.fixture
def clones(
    request: pytest.FixtureRequest, vmcloner_holdings: Holdings
) -> Iterator[tuple[Machine, ...]]:
    """Give machines, as the marker ``vmcloner`` says: of its template, or from the pool."""
    count, template, ready, timeout = _marked(request.node)
    pool = vmcloner_holdings.wanted.pool
    with answered(request.config):
        if pool is not None and template in (None, pool.template) and count <= pool.size:
            group = vmcloner_holdings.take(count, timeout or TIMEOUT)
        elif template is None and pool is not None:
            pytest.fail(f"vmcloner: {count} machines of a pool of {pool.size}", pytrace=False)
        elif template is None:
            pytest.fail(
                f"vmcloner: no template: set {POOL}, or @pytest.mark.vmcloner(template='tiny')",
                pytrace=False,
            )
        else:
            group = vmcloner_holdings.make(template, count, ready, timeout)
    yield _noted(request, group)
    _end(vmcloner_holdings, group)


@pytest.fixture
def clone(clones: tuple[Machine, ...]) -> Machine:
    """Give one machine; the first, if the marker asks for several."""
    return clones[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test failed, and add to its report what is known of its machines."""
    report = yield
    if report.failed and call.when != "teardown":
        for group in item.stash.get(_used, []):
            group.failed = True
            _tell(item.config, group, report)
    return report


def _tell(config: pytest.Config, group: Group, report: pytest.TestReport) -> None:
    for machine in group.machines:
        if config.getoption("--vmcloner-console"):
            report.sections.append((f"console of {machine.name}", _said(machine.console)))
            report.sections.append((f"journal of {machine.name}", _said(machine.journal)))
    if config.getoption("--vmcloner-keep-on-failure"):
        group.kept = True
        lines = [f"vmcloner ssh {name}  # or: vmcloner console {name}" for name in group.names]
        lines.append(f"vmcloner delete {' '.join(group.names)} --yes")
        report.sections.append(("machines kept for 8 hours", "\n".join(lines)))


def _said(read: Callable[[], str]) -> str:
    """Return what a machine said, or why that isn't known: a report must not fail."""
    from vmcloner_core.errors import VmclonerError

    try:
        return read()
    except VmclonerError as error:
        return f"not known: {error}"


def _end(holdings: Holdings, group: Group) -> None:
    with removed(group.names):
        holdings.end(group)


def _noted(request: pytest.FixtureRequest, group: Group) -> tuple[Machine, ...]:
    """Note which machines a test uses."""
    request.node.stash.setdefault(_used, []).append(group)
    return group.machines


def _node(item: pytest.Item, scope: Scope) -> pytest.Item | pytest.Collector:
    """Return the part of the run at whose end machines of a scope are removed."""
    if scope == "function":
        return item
    if scope not in _NODES:
        pytest.fail(f"vmcloner: no scope {scope!r}", pytrace=False)
    return item.getparent(_NODES[scope]) or item.getparent(pytest.Module) or item.session


def _marked(
    item: pytest.Item,
) -> tuple[int, str | None, str | bool, float | None]:
    """Return count, template, readiness and timeout that the markers of a test ask for."""
    asked: dict[str, object] = {"count": 1, "template": None, "ready": True, "timeout": None}
    for mark in reversed(list(item.iter_markers("vmcloner"))):
        unknown = set(mark.kwargs) - set(asked)
        if mark.args or unknown:
            pytest.fail(f"vmcloner: the marker is {MARKER.partition(':')[0]}", pytrace=False)
        asked |= mark.kwargs
    return tuple(asked.values())  # type: ignore[return-value]

"""The engine's calls that a controller makes on hosts, by name, with the types that cross.

A new one needs a line here, and a merge in :mod:`vmcloner_core.hosts.reads`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.booting import Preview
from vmcloner_core.capturing import Capture
from vmcloner_core.console_lines import ConsoleLine
from vmcloner_core.drivers import ImageFile
from vmcloner_core.engine import Engine
from vmcloner_core.errors import VmclonerError
from vmcloner_core.exporting import Export
from vmcloner_core.labs.site import NetworkOn
from vmcloner_core.lease_calls import LeaseState
from vmcloner_core.model import (
    Access,
    Check,
    Clone,
    CloneSpec,
    Copying,
    ImageFormat,
    Leftover,
    NetworkChange,
    NetworkRequest,
    Origin,
    Outcome,
    Seed,
    Statistics,
    Template,
)
from vmcloner_core.pulling import PulledImage
from vmcloner_core.records import Record
from vmcloner_core.run_events import RunEvent
from vmcloner_core.survey import Survey, Unseen
from vmcloner_core.template_calls import TemplateRow
from vmcloner_core.template_leftovers import TemplateLeftover
from vmcloner_core.warm_origins import WarmOrigin


@attrs.frozen
class Call:
    """A call that crosses.

    :param do: makes it; ``targets`` are given by position, other arguments by name.
    :param answer: the type of what it returns; of a stream, of each item.
    :param takes: the types of its arguments, by name.
    :param stream: whether it returns items one after another, maybe for ever.
    :param tells: whether the caller gets the engine's events meanwhile.
    """

    do: Callable[..., Any]
    answer: Any
    takes: Mapping[str, Any] = attrs.field(factory=dict)
    stream: bool = False
    tells: bool = False


@attrs.frozen(kw_only=True)
class Reached:
    """How a clone is reached from its host, with its known host keys' text, or why it is not."""

    name: str
    access: Access | None = None
    known_hosts: str = ""
    error: VmclonerError | None = None


@attrs.frozen(kw_only=True)
class Collected:
    """What a host's gc has removed, or would, and what it could not read."""

    left: tuple[Leftover, ...]
    unseen: tuple[Unseen, ...] = ()


def _reached(engine: Engine, *targets: str) -> tuple[Reached, ...]:
    return tuple(map(_as_text, engine.access(*targets)))


def _as_text(outcome: Outcome[Access]) -> Reached:
    if not outcome.ok:
        return Reached(name=outcome.key, error=outcome.error)
    access = outcome.unwrap()
    text = access.known_hosts.read_text(encoding="ascii")
    return Reached(name=outcome.key, access=access, known_hosts=text)


def _collected(engine: Engine, *, expired: bool, orphans: bool, dry_run: bool) -> Collected:
    unseen: list[Unseen] = []
    left = engine.gc(expired=expired, orphans=orphans, dry_run=dry_run, on_unseen=unseen.append)
    return Collected(left=left, unseen=tuple(unseen))


def _leases(engine: Engine, *targets: str) -> tuple[LeaseState, ...]:
    return engine.leases(engine.list(*targets))


def _started(engine: Engine, name: str) -> float | None:
    return engine.started(engine.show(name))


def _spec(engine: Engine, name: str) -> CloneSpec:
    return engine.spec(engine.show(name))


def _records(engine: Engine, *targets: str) -> tuple[Record, ...]:
    """Return records without what is only of use on the host."""
    return tuple(
        attrs.evolve(record, identity=None, seed=Seed()) for record in engine.records(*targets)
    )


def _checked(engine: Engine, *targets: str) -> tuple[Check, ...]:
    return tuple(engine.check_host(*targets))


_TARGETS = {"targets": tuple[str, ...]}
_NAME = {"name": str}
_LEASE = {**_TARGETS, "everything": bool, "dry_run": bool}
_IMAGE = {**_NAME, "storage": str | None}
_NETWORK = {"request": NetworkRequest, "hypervisor": str | None}

CALLS = {
    "survey": Call(Engine.survey, Survey),
    "check_host": Call(_checked, tuple[Check, ...], _TARGETS),
    "reach": Call(_reached, tuple[Reached, ...], _TARGETS),
    "leases": Call(_leases, tuple[LeaseState, ...], _TARGETS),
    "extend_lease": Call(
        Engine.extend_lease, tuple[LeaseState, ...], {**_LEASE, "ttl": int | str | None}
    ),
    "end_lease": Call(Engine.end_lease, tuple[LeaseState, ...], _LEASE),
    "gc": Call(
        _collected, Collected, {"expired": bool, "orphans": bool, "dry_run": bool}, tells=True
    ),
    "statistics": Call(Engine.statistics, tuple[tuple[Clone, Statistics | None], ...], _TARGETS),
    "boots": Call(Engine.boots, tuple[Preview, ...], _TARGETS),
    "started": Call(_started, float | None, _NAME),
    "spec": Call(_spec, CloneSpec, _NAME),
    "domain_xml": Call(Engine.domain_xml, str, _NAME),
    "domain_native": Call(Engine.domain_native, str, _NAME),
    "screenshot": Call(Engine.screenshot, bytes, _NAME),
    "read_console": Call(
        Engine.read_console, tuple[bytes, int], {**_NAME, "offset": int, "limit": int}
    ),
    "console_lines": Call(
        Engine.console_lines,
        ConsoleLine,
        {**_TARGETS, "lines": int | None, "since": float | None, "follow": bool},
        stream=True,
    ),
    "events": Call(
        Engine.events,
        RunEvent,
        {"run": str | None, "follow": bool, "plans": bool},
        stream=True,
    ),
    # Templates, their images, and networks: of one host.
    "template_rows": Call(Engine.template_rows, tuple[TemplateRow, ...]),
    "template": Call(Engine.template, Template, _NAME),
    "origins": Call(Engine.origins, tuple[Origin, ...], {"template": str | None}),
    "check_template": Call(Engine.check_template, tuple[Check, ...], _NAME),
    "import_template": Call(
        Engine.import_template,
        Outcome[Origin],
        {
            **_IMAGE,
            "image": str | None,
            "sha256": str | None,
            "format": ImageFormat | None,
            "copying": Copying,
        },
        tells=True,
    ),
    "pull_template": Call(
        Engine.pull_template, Outcome[PulledImage], {**_NAME, "mirror": str | None}, tells=True
    ),
    "build_image": Call(
        Engine.build_image,
        tuple[Template, ImageFile],
        {**_NAME, "options": Mapping[str, Any] | None, "builder": str, "parent": str},
        tells=True,
    ),
    "capture_template": Call(
        Engine.capture_template,
        Outcome[Capture],
        {
            **dict.fromkeys(("clone", "name", "description"), str),
            **dict.fromkeys(("live", "compact", "seal", "dry_run"), bool),
            "copying": Copying,
        },
        tells=True,
    ),
    "export_template": Call(
        Engine.export_template,
        Outcome[Export],
        {
            **_IMAGE,
            "file": Path,
            **dict.fromkeys(("compressed", "overwrite", "dry_run"), bool),
        },
        tells=True,
    ),
    "delete_template": Call(Engine.delete_template, Outcome[None], _IMAGE),
    "warm_origins": Call(Engine.warm_origins, tuple[WarmOrigin, ...], {"template": str | None}),
    "warm_template": Call(
        Engine.warm_template,
        Outcome[WarmOrigin],
        {
            **_IMAGE,
            "at": str,
            "identical": bool,
            "hypervisor": str | None,
            "timeout": float | None,
        },
        tells=True,
    ),
    "leftovers": Call(Engine.leftovers, tuple[TemplateLeftover, ...]),
    "prune_templates": Call(
        Engine.prune_templates,
        tuple[Outcome[TemplateLeftover], ...],
        {"left": Sequence[TemplateLeftover]},
    ),
    "prepare_network": Call(Engine.prepare_network, NetworkChange, _NETWORK),
    "remove_network": Call(Engine.remove_network, NetworkChange, _NETWORK),
    # Of labs.
    "records": Call(_records, tuple[Record, ...], _TARGETS),
    "lab_networks": Call(
        Engine.lab_networks, tuple[NetworkOn, ...], {"lab": str, "hypervisors": Sequence[str]}
    ),
}
"""What crosses, by name."""

ON_ONE = frozenset(
    {"template", "origins", "check_template", "import_template", "pull_template", "build_image"}
    | {"export_template", "delete_template", "leftovers", "prune_templates"}
    | {"warm_origins", "warm_template"}
    | {"prepare_network", "remove_network"}
)
"""Those that work on one host: the only one that is chosen, else the controller's own."""

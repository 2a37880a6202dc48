"""What a clone that comes from another host is made of on this one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound
from vmcloner_core.hosts.cargo import Cargo
from vmcloner_core.hosts.parcels import was_sent
from vmcloner_core.model import CloneSpec, Nic, Template
from vmcloner_core.outcomes import asked
from vmcloner_core.records import Record

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine


def adapted_spec(engine: Engine, record: Record) -> CloneSpec:
    """Return the specification of a clone that comes from another host."""
    return recorded_spec(record, _adapted(engine, record))


def recorded_spec(record: Record, template: Template) -> CloneSpec:
    """Return the specification of a clone as its record has it."""
    nics = tuple(Nic(spec=s, mac=m) for s, m in zip(template.nics, record.macs, strict=False))
    return CloneSpec(
        labels=record.labels,
        template=template,
        uuid=record.uuid,
        nics=nics,
        values=record.values,
        identity=record.identity,
        lease=record.lease,
    )


def check_networks(engine: Engine, cargo: Cargo, vouched: Collection[str]) -> None:
    """Check that a clone's cards are only on networks that clones may be on here.

    These are those of this host's own template, of its settings, and those that vmcloner made. A
    host that somebody has taken over must reach no others, not by a template of its own either.

    :param vouched: the networks of the controller's template.
    :raises InvalidRequest: a card is on another one.
    """
    host, labels, made_of = engine._host, cargo.labels, cargo.known().template()
    if made_of is None:
        return
    own = own_networks(engine, labels.template)
    unknown = made_of.networks - {*vouched, *own, *engine.host.networks}
    interface = host.drivers.hypervisor(labels.hypervisor).networks
    if unknown and interface is not None:
        backend = host.drivers.backend("hypervisor", labels.hypervisor)
        found = asked(backend.of("networks.inspect"), interface.inspect) or ()
        unknown -= {network.key for network in found if network.ours}
    for key in sorted(unknown):  # the first one
        setting = f"[hosts.{engine.host.name}] networks = [{json.dumps(key)}]"
        raise InvalidRequest(
            f"{cargo.name} is on network {key!r}, which its new host does not know",
            hint=f"in the settings there, {setting}; or a card on it in template "
            f"{labels.template!r}, here or there",
        )


def check_devices(engine: Engine, cargo: Cargo, vouched: str) -> None:
    """Check that no clone gets devices or domain XML of a template by the word of its old host.

    A host that somebody has taken over could name any template that there is here.

    :param vouched: the template that the user says it has.
    :raises InvalidRequest: it would.
    """
    name = cargo.labels.template
    if name == vouched:
        return
    with contextlib.suppress(NotFound):
        domain = engine.template(name).domain
        if domain.xml is not None or domain.devices:
            given = "domain.devices" if domain.xml is None else "domain.xml"
            raise InvalidRequest(
                f"{cargo.name} would get {given} of template {name!r}, and only its old host says "
                "that it has that template",
                hint=f"if it has: vmcloner move {cargo.name} HOST --template {name}",
            )


def own_networks(engine: Engine, name: str) -> frozenset[str]:
    """Return the networks of a template; none if a host lacks it, or had it sent by another."""
    try:
        template = engine.template(name)
    except NotFound:
        return frozenset()
    return frozenset() if was_sent(engine, template) else template.networks


def _adapted(engine: Engine, record: Record) -> Template:
    """Return the template that a clone was made of, with this host's files and devices.

    A host that somebody has taken over must not reach into this one by a path or by XML.

    :raises NotFound: this host lacks the template.
    """
    own, made_of = engine.template(record.labels.template), record.template()
    if made_of is None:
        return own
    return attrs.evolve(
        made_of,
        image=own.image,
        kernel=own.kernel,
        domain=own.domain,
        ssh=own.ssh,
        seal=own.seal,
        folder=own.folder,
        origin_file=own.origin_file,
        identity=attrs.evolve(
            made_of.identity,
            authorized_keys=own.identity.authorized_keys,
            user_data=own.identity.user_data,
            network_config=own.identity.network_config,
        ),
    )

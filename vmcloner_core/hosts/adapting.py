"""What a clone that comes from another host is made of on this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from vmcloner_core.model import CloneSpec, Nic, Template
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

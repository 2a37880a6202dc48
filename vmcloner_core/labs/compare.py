"""Compare a lab's file with what is there. Changes nothing."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import attrs

from vmcloner_core.catalog import built
from vmcloner_core.clone_spec import own_values
from vmcloner_core.errors import Conflict, VmclonerError
from vmcloner_core.images import up_to_date
from vmcloner_core.labs.model import Change, Lab, LabFleet, LabImage, LabNetwork
from vmcloner_core.labs.site import NetworkOn, Site
from vmcloner_core.model import Clone, Network, NetworkChange, Nic, State, Template
from vmcloner_core.names import clone_name
from vmcloner_core.plan import Sizes
from vmcloner_core.planner import SIZES
from vmcloner_core.records import Record
from vmcloner_core.survey import Survey
from vmcloner_core.tomlfile import keys_of
from vmcloner_core.trusted_files import exists, read_file
from vmcloner_core.units import format_size, parse_size

_NOT_COMPARED = frozenset({"description", "ready", *SIZES})
"""Keys of a template whose changes replace no clone: it keeps its ``ready``, and sizes can change
without."""


@attrs.frozen(kw_only=True)
class Comparison:
    """What differs, and what is needed to plan it.

    :param templates: those that images of the file will have written, by name.
    :param networks: networks of the file that change, as they will be, by their keys.
    """

    changes: tuple[Change, ...]
    templates: Mapping[str, Template]
    networks: Mapping[str, Network]


class Comparer:
    """Compares one lab with one site."""

    def __init__(self, lab: Lab, site: Site) -> None:
        self._lab = lab
        self._site = site
        self._templates: dict[str, Template] = {}
        self._clones: dict[str, Clone] = {}

    def __call__(self, found: Survey) -> Comparison:
        """Return what differs.

        :raises Conflict: a fleet or network of the file isn't the lab's, or not vmcloner's.
        :raises NotFound, InvalidRequest: a template is unknown or wrong; names file, line and key.
        :raises BackendError: the lab may have clones on a backend that could not be read.
        """
        lab = self._lab
        members = self.members(found)
        for fleet in lab.fleets.values():
            storage = self._backend(fleet.storage, "storage") or ""
            hypervisor = self._backend(fleet.hypervisor, "hypervisor") or ""
            found.check_backends(f"lab {lab.name}", storage, hypervisor)
        self._clones = {clone.name: clone for clone in found.clones}
        changes = [
            change for name, image in lab.images.items() for change in self._image(name, image)
        ]
        networks: dict[str, Network] = {}
        for name, network in lab.networks.items():
            for host, change in self._prepared(name, network).items():
                if not change.steps:
                    continue
                networks[change.network.key] = change.network
                new = {"define", "bridge"} & set(change.steps)
                changes.append(
                    Change(
                        action="make" if new else "change",
                        kind="network",
                        name=name,
                        why=", ".join(change.steps) + self._site.on(host),
                    )
                )
        for name, fleet in lab.fleets.items():
            changes += self._fleet(name, fleet, [c for c in found.clones if c.fleet == name])
        changes += [
            _removed(clone, f"fleet {clone.fleet} is not in the file")
            for clone in members
            if clone.fleet not in lab.fleets
        ]
        changes += [
            Change(
                action="remove",
                kind="network",
                name=found_on.network.name,
                why="not in the file" + self._site.on(found_on.host),
                option="--prune",
            )
            for found_on in self.unwanted()
        ]
        return Comparison(
            changes=tuple(changes),
            templates=self._templates,
            networks=networks,
        )

    def members(self, found: Survey) -> tuple[Clone, ...]:
        """Return the clones that carry the lab's name, of this state folder.

        :raises BackendError: one is on a backend that could not be read.
        """
        lab = self._lab
        self._site.check_seen(lab, found)
        return tuple(c for c in found.clones if c.ours and c.labels.lab == lab.name)

    def unwanted(self) -> tuple[NetworkOn, ...]:
        """Return the networks that carry the lab's name, and that the file doesn't have."""
        wanted = {network.key(name) for name, network in self._lab.networks.items()}
        there = self._site.networks(self._lab)
        return tuple(each for each in there if each.network.key not in wanted)

    def _backend(self, named: str | None, kind: Literal["storage", "hypervisor"]) -> str | None:
        return named or self._site.default(kind)

    # --- images and networks --------------------------------------------------------------------

    def _image(self, name: str, image: LabImage) -> Iterator[Change]:
        try:
            if image.options:
                yield from self._built(name, image)
            elif image.pull:
                yield from self._pulled(name)
            elif not self._up_to_date(self._site.catalog.template(name)):
                yield Change(action="build", kind="image", name=name)
        except VmclonerError as error:
            raise self._lab.located(error, f"images.{name}") from error

    def _built(self, name: str, image: LabImage) -> Iterator[Change]:
        self._site.images.check_options(name, image.builder, image.options)
        file, text = built(name, image.extends, image.builder, image.options)
        template = self._site.catalog.declared(name, file, text)
        self._templates[name] = template
        same = exists(file) and read_file(file, trusted=False) == text.encode()
        if not same or not self._up_to_date(template):
            why = "" if not exists(file) else "its options have changed" if not same else ""
            yield Change(action="build", kind="image", name=name, why=why)

    def _pulled(self, name: str) -> Iterator[Change]:
        from vmcloner_core import pulling

        template = self._site.catalog.template(name)
        if pulling.find(template.image) is None and not self._site.images.origins(name):
            yield Change(action="pull", kind="image", name=name)

    def _up_to_date(self, template: Template) -> bool:
        builder = self._site.images.builder(template)
        return builder is not None and up_to_date(builder, template.folder)

    def _prepared(self, name: str, network: LabNetwork) -> Mapping[str, NetworkChange]:
        request = network.request(name, self._lab.name, dry_run=True)
        try:
            return self._site.prepare(request, network.hypervisor)
        except VmclonerError as error:
            raise self._lab.located(error, f"networks.{name}") from error

    # --- fleets ---------------------------------------------------------------------------------

    def _fleet(self, name: str, fleet: LabFleet, clones: Sequence[Clone]) -> Iterator[Change]:
        lab = self._lab
        for clone in clones:
            if not clone.ours or clone.labels.lab != lab.name:
                whose = f"lab {clone.labels.lab!r}" if clone.labels.lab else "no lab"
                whose = whose if clone.ours else "another state folder"
                error = Conflict(
                    f"{clone.name} is there and is part of {whose}",
                    hint=f"choose another fleet name, or vmcloner delete {name} first",
                )
                raise lab.located(error, f"fleets.{name}")
        kept = sorted(clones, key=lambda clone: clone.index)[: fleet.count]
        try:
            shaped = {
                host: lab.request(name).shaped(self.template(fleet, host))
                for host in {"", *(clone.host for clone in kept)}
            }
        except VmclonerError as error:
            raise lab.located(error, f"fleets.{name}.template") from error
        records = self._site.records(kept)
        mixed = False
        for clone in kept:
            change = self._clone(fleet, shaped[clone.host], clone, records.get(clone.name))
            mixed = mixed or self._other_kind(fleet, clone)
            yield from change
        there = {clone.index for clone in clones}
        for index in missing(there, fleet.count):
            yield Change(
                action="create",
                kind="clone",
                name=clone_name(name, index),
                fleet=name,
                # One fleet can't have clones of two templates.
                why="the others are to be replaced first" if mixed else _how(fleet),
                option="--recreate" if mixed else "",
            )
        for clone in clones:
            if clone not in kept:
                yield _removed(clone, f"count is {fleet.count}")

    def template(self, fleet: LabFleet, host: str = "") -> Template:
        """Return the template of a fleet, as a host has it."""
        new = self._templates.get(fleet.template)
        if new is None or (host and self._site.many):
            return self._site.template(fleet.template, host)
        return new

    def sizes(self, name: str, clone: str) -> Sizes:
        """Return what a ``set`` is to change of a clone that has a record."""
        fleet, there = self._lab.fleets[name], self._clones[clone]
        record = self._site.records([there]).get(clone)
        new = _new_sizes(fleet, self.template(fleet, there.host), record)
        return Sizes(memory=new.get("memory"), vcpus=new.get("vcpus"), disk=new.get("disk_size"))

    def _clone(
        self, fleet: LabFleet, template: Template, clone: Clone, record: Record | None
    ) -> Iterator[Change]:
        """Yield what is to be done to a clone that stays, if anything."""
        change = functools.partial(Change, kind="clone", name=clone.name, fleet=clone.fleet)
        reasons = [*self._other(fleet, template, clone, record)]
        sizes = [*_sizes(fleet, template, record)]
        possible = _new_sizes(fleet, template, record)
        reasons += [_said(*size) for size in sizes if size[0] not in possible]
        if reasons:
            yield change(action="replace", why="; ".join(reasons), option="--recreate")
        elif _lacks_a_part(clone):
            yield change(action="complete", why=clone.state.value)
        else:
            if sizes:
                yield change(action="resize", why=", ".join(_said(*size) for size in sizes))
            if fleet.start and clone.state is not State.RUNNING:
                yield change(action="start", why=clone.reason or clone.state.value)
        if reasons or record is None:
            return
        new = [s.name for s in fleet.scripts if s.name not in record.ran]
        edited = [s.name for s in fleet.scripts if record.ran.get(s.name, s.digest) != s.digest]
        if new:
            yield change(action="provision", why=", ".join(new))
        if edited:
            why = f"{', '.join(edited)} changed since it ran"
            yield change(action="provision", why=why, option="--provision")

    def _other(
        self, fleet: LabFleet, template: Template, clone: Clone, record: Record | None
    ) -> Iterator[str]:
        """Yield why a clone can't become what the file says, but only be replaced by it."""
        labels = clone.labels
        if labels.template != template.name:
            yield f"template {labels.template}, not {template.name}"
            return
        for what, asked, has in self._backends(fleet, clone):
            if asked != has:
                yield f"{what} {has}, not {asked}"
        made_of = record.template() if record is not None else None
        if made_of is None or record is None:
            return  # of an older version: not known
        if labels.warm is not None:  # a fork's provider isn't its template's
            own = attrs.evolve(template.identity, provider=made_of.identity.provider)
            template = attrs.evolve(template, identity=own)
        changed = [
            key
            for key in keys_of(Template)
            if key not in _NOT_COMPARED and getattr(made_of, key) != getattr(template, key)
        ]
        if changed:
            yield f"template {template.name} has changed: {', '.join(changed)}"
        nics = tuple(
            Nic(spec=spec, mac=mac) for spec, mac in zip(template.nics, record.macs, strict=False)
        )
        wanted = {**own_values(template, labels, nics), **fleet.given(clone.index)}
        differ = [
            key
            for key in sorted({*wanted, *record.values} - {*SIZES})
            if str(wanted.get(key)) != str(record.values.get(key))
        ]
        if differ and "values" not in changed:
            yield f"values: {', '.join(differ)}"

    def _backends(self, fleet: LabFleet, clone: Clone) -> Iterator[tuple[str, str, str]]:
        """Yield the kind, and the wanted and present name, of a clone's backends."""
        storage = self._backend(fleet.storage, "storage") or clone.labels.storage
        hypervisor = self._backend(fleet.hypervisor, "hypervisor") or clone.labels.hypervisor
        yield "storage", storage, clone.labels.storage
        yield "hypervisor", hypervisor, clone.labels.hypervisor

    def _other_kind(self, fleet: LabFleet, clone: Clone) -> bool:
        """Tell whether a clone keeps others of its fleet from being made as the file says."""
        if clone.labels.template != fleet.template:
            return True
        return any(asked != has for _, asked, has in self._backends(fleet, clone))


def _how(fleet: LabFleet) -> str:
    """Return how a fleet's new clones are made, if not by a boot."""
    if not fleet.warm:
        return ""
    return "an exact copy of a booted guest" if fleet.identical else "forked from a booted guest"


def _lacks_a_part(clone: Clone) -> bool:
    """Tell whether a create would make a part of a clone."""
    domain, whole = clone.domain, [volume for volume in clone.volumes if volume.complete]
    if domain is None or clone.state is State.ORPHAN or len(whole) < len(clone.volumes):
        return True
    return clone.renamed is None and len(whole) < len(domain.disks)


def _sizes(
    fleet: LabFleet, template: Template, record: Record | None
) -> Iterator[tuple[str, int | None, int | None]]:
    """Yield the name, present and wanted value of each size that differs; None: the image's."""
    made_of = record.template() if record is not None else None
    if record is None or made_of is None:
        return  # of an older version: not known
    given = fleet.given(record.labels.index)
    for key in SIZES:
        has = _number(record.values.get(key, getattr(made_of, key)))
        wanted = _number(given.get(key, getattr(template, key)))
        if has != wanted:
            yield key, has, wanted


def _new_sizes(fleet: LabFleet, template: Template, record: Record | None) -> dict[str, int]:
    """Return the sizes that a clone can get without being replaced."""
    return {
        key: wanted
        for key, has, wanted in _sizes(fleet, template, record)
        if wanted is not None and (key != "disk_size" or wanted > (has or 0))
    }


def _number(value: str | int | None) -> int | None:
    return None if value is None else parse_size(value)


def _said(key: str, has: int | None, wanted: int | None) -> str:
    """Return how a size differs, for people."""

    def shown(value: int | None) -> str:
        if value is None:
            return "that of its image"
        return str(value) if key == "vcpus" else format_size(value)

    return f"{key} {shown(has)}, not {shown(wanted)}"


def missing(there: Collection[int], count: int) -> Iterator[int]:
    """Yield the indices that a fleet gets to have so many clones: the lowest free ones."""
    wanted, index = count - len(there), 1
    while wanted > 0:
        if index not in there:
            yield index
            wanted -= 1
        index += 1


def _removed(clone: Clone, why: str) -> Change:
    return Change(
        action="remove", kind="clone", name=clone.name, fleet=clone.fleet, why=why, option="--prune"
    )

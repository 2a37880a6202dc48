"""Drivers with one planted bug each, and the test of the conformance suite that names it.

A mutant is the sound driver but for one thing, which its docstring says. ``MUTANTS`` is the table.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import tempfile
import time
from pathlib import Path
from types import MappingProxyType

import attrs

from tests.core.test_stores import Folder
from vmcloner_core.cli.base import Base
from vmcloner_core.drivers import IdentityProvider, ImageBuilder
from vmcloner_core.errors import InvalidRequest, NotFound, WrongState
from vmcloner_core.hooks import hookimpl
from vmcloner_core.model import (
    BootConfig,
    Capacity,
    Outcome,
    Seed,
    State,
    Statistics,
    untold,
)
from vmcloner_core.testing.reference import (
    ReferenceBoot,
    ReferenceConsoles,
    ReferenceHypervisor,
    ReferenceMachines,
    ReferenceMemory,
    ReferenceSizes,
    ReferenceSnapshots,
    ReferenceStatistics,
    ReferenceStorage,
    ReferenceWarm,
)

MUTANTS = []
"""(kind, mutant, the name of the test that fails)."""


def caught_by(test):
    """Put a mutant into the table."""

    def put(mutant):
        kind = next(kind for kind, sound in SOUND.items() if issubclass(mutant, sound))
        MUTANTS.append((kind, mutant, test))
        return mutant

    return put


# --- sound plugins of the kinds that have no reference ------------------------------------------


class Identities(IdentityProvider):
    """A text with the clone's name and its key."""

    def check(self, template):
        pass

    def seed(self, requests):
        for request in requests:
            yield Outcome(key=request.labels.clone, value=self.one(request))

    def one(self, request):
        return Seed(image=self.write(request, request.folder / "seed.img"))

    def write(self, request, path):
        path.unlink(missing_ok=True)
        path.touch(mode=self.mode)
        path.chmod(self.mode)
        path.write_text(f"{request.labels.clone}\n{request.host_key}")
        return path

    mode = 0o600


class Boots(ReferenceBoot):
    """The reference, which reads the disk at a start: one of 0xff can't be booted."""

    def resolve_start(self, requests):
        for request in requests:
            if request.volumes[0].path.read_bytes()[:1] == b"\xff":
                error = InvalidRequest(f"{request.labels.clone}: no boot loader")
                yield Outcome(key=request.labels.clone, error=error)
                continue
            yield self.started(request)

    def started(self, request):
        [outcome] = super().resolve_start([request])
        return outcome


class Images(ImageBuilder):
    """A disk of zeros, with a kernel beside it."""

    def fingerprint(self):
        return "images 1"

    def build(self, folder, progress):
        disk = folder / "disk.raw"
        disk.write_bytes(bytes(1024**2))
        (folder / "vmlinuz").write_bytes(b"kernel")
        progress(1024**2, 1024**2)
        return disk


class Observing:
    """An observer, a veto and a MAC policy."""

    @hookimpl
    def vmcloner_step_changed(self, event):
        str(event)

    @hookimpl
    def vmcloner_clone_mac(self, labels, attempt):
        return f"52:54:00:00:{attempt:02x}:{labels.index:02x}"


class Command(Base):
    """Say hello."""

    example = "vmcloner hello --loud"

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument("--loud", action="store_true", help="Say it aloud.")
        return parser

    def take_action(self, parsed_args):
        pass


SOUND = {
    "storage": ReferenceStorage,
    "hypervisor": ReferenceHypervisor,
    "identity": Identities,
    "boot": Boots,
    "image": Images,
    "observer": Observing,
    "command": Command,
    "store": Folder,
}


# --- storage ------------------------------------------------------------------------------------


@caught_by("test_clones_hold_the_origins_bytes")
class MissesAnOutcome(ReferenceStorage):
    """Yields nothing for the last of a batch."""

    def clone(self, requests, progress=untold):
        outcomes = list(super().clone(requests, progress))
        yield from outcomes[: max(1, len(outcomes) - 1)]


@caught_by("test_clones_hold_the_origins_bytes")
class DoublesAnOutcome(ReferenceStorage):
    """Yields the first of a batch twice."""

    def clone(self, requests, progress=untold):
        for place, outcome in enumerate(super().clone(requests, progress)):
            yield outcome
            if place == 0 and len(requests) > 2:
                yield outcome


@caught_by("test_clones_hold_the_origins_bytes")
class KeysByClone(ReferenceStorage):
    """Outcomes have the clone's name, not the volume's."""

    def clone_one(self, request):
        return attrs.evolve(super().clone_one(request), key=request.labels.clone)


@caught_by("test_clones_hold_the_origins_bytes")
class GivesAnothersVolume(ReferenceStorage):
    """Each outcome has the volume of the first."""

    def clone(self, requests, progress=untold):
        first = None
        for outcome in super().clone(requests, progress):
            first = first or outcome.value
            yield attrs.evolve(outcome, value=first) if outcome.ok else outcome


@caught_by("test_clones_hold_the_origins_bytes")
class GivesRelativePaths(ReferenceStorage):
    """A volume's path depends on the current folder."""

    def clone_one(self, request):
        outcome = super().clone_one(request)
        volume = attrs.evolve(outcome.value, path=Path(outcome.value.name))
        self.disks[volume.name] = volume
        return attrs.evolve(outcome, value=volume)


class Relabels(ReferenceStorage):
    changes = MappingProxyType({})

    def clone_one(self, request):
        labels = attrs.evolve(request.labels, **self.changes)
        return super().clone_one(attrs.evolve(request, labels=labels))


@caught_by("test_labels_survive")
class LosesTheLab(Relabels):
    """A label that was added lately isn't stored."""

    changes = MappingProxyType({"lab": None})


@caught_by("test_labels_survive")
class LosesTheOwner(Relabels):
    """The owner is whoever stores it."""

    changes = MappingProxyType({"owner": "root"})


@caught_by("test_delete_twice")
class DeletesOnce(ReferenceStorage):
    """A volume that is gone is an error."""

    def delete_one(self, volume):
        if volume.name not in self.disks:
            raise NotFound(f"no volume {volume.name}")
        return super().delete_one(volume)


@caught_by("test_delete_twice")
class BoastsOfDeletes(ReferenceStorage):
    """A volume that is gone was deleted by this call."""

    def delete_one(self, volume):
        return attrs.evolve(super().delete_one(volume), changed=True)


@caught_by("test_foreign_volume_is_never_touched")
class DeletesForeign(ReferenceStorage):
    """Deletes whatever has the name."""

    def delete_one(self, volume):
        self.foreign.discard(volume.name)
        return super().delete_one(volume)


@caught_by("test_foreign_volume_is_never_touched")
class TakesForeign(ReferenceStorage):
    """Overwrites whatever has the name."""

    def clone_one(self, request):
        self.foreign.discard(request.volume_name)
        return super().clone_one(request)


@caught_by("test_foreign_volume_is_never_touched")
class MisnamesUnlabelled(ReferenceStorage):
    """All names are taken by something without labels."""

    def unlabelled(self, names):
        return names


@caught_by("test_larger_disk")
class IgnoresSizes(ReferenceStorage):
    """A disk has its image's size, whatever is asked for."""

    def _content(self, request):
        size, content = super()._content(request)
        return (request.origin.size if request.origin else size), content


@caught_by("test_longest_name")
class CutsNames(ReferenceStorage):
    """Leaves out volumes with long names."""

    def volumes(self):
        return tuple(v for v in super().volumes() if len(v.name) < 64)


@caught_by("test_labels_survive")
class SaysAbsent(ReferenceStorage):
    """Tells of only two volumes: a page of a list."""

    def volumes(self):
        return super().volumes()[:2]


@caught_by("test_same_clone_twice")
class Overwrites(ReferenceStorage):
    """Makes an existing volume again."""

    def clone_one(self, request):
        if request.volume_name in self.disks:
            self.contents[request.volume_name] = self._content(request)[1]
        return super().clone_one(request)


@caught_by("test_same_clone_twice")
class BoastsOfClones(ReferenceStorage):
    """An existing volume was made by this call."""

    def clone_one(self, request):
        return attrs.evolve(super().clone_one(request), changed=True)


@caught_by("test_same_name_from_another_template")
class TakesAnothers(ReferenceStorage):
    """A volume of that name is this clone's, whatever its labels."""

    def held(self, name, labels):
        return self.disks.get(name)


@caught_by("test_failure_in_mid_batch")
class GivesUp(ReferenceStorage):
    """One failure ends the batch."""

    def clone(self, requests, progress=untold):
        for request in requests:
            yield self.clone_one(request)


@caught_by("test_failure_in_mid_batch")
class Shrinks(ReferenceStorage):
    """Makes a disk that is smaller than its image."""

    def _content(self, request):
        if request.origin is not None and request.size and request.size < request.origin.size:
            return request.size, b""
        return super()._content(request)


@caught_by("test_clones_are_isolated")
class SharesWrites(ReferenceStorage):
    """A clone begins as the last one is now."""

    def _content(self, request):
        size, content = super()._content(request)
        last = [self.contents[name] for name in self.disks]
        return size, (last[-1] if last and request.origin else content)


@caught_by("test_import_twice_changes_nothing")
class ImportsAgain(ReferenceStorage):
    """Each import is a change."""

    def import_image(self, *values):
        return attrs.evolve(super().import_image(*values), changed=True)


@caught_by("test_import_of_a_changed_image_replaces")
class KeepsOldImages(ReferenceStorage):
    """A template that has an image keeps it."""

    def import_image(self, template, *values):
        if template in self.images:
            return Outcome(key=template, value=self.images[template], changed=False)
        return super().import_image(template, *values)


@caught_by("test_origins_are_told_apart")
class DeletesAllOrigins(ReferenceStorage):
    """Deletes the images of all templates."""

    def delete_origin(self, template):
        outcome = super().delete_origin(template)
        self.images.clear()
        return outcome


@caught_by("test_delete_origin")
class DeletesOriginsOnce(ReferenceStorage):
    """An image that is gone is an error."""

    def delete_origin(self, template):
        if template not in self.images:
            raise NotFound(f"no image of {template}")
        return super().delete_origin(template)


@caught_by("test_clone_of_a_missing_origin")
class ClonesNothing(ReferenceStorage):
    """A clone of an image that is gone is empty."""

    def _content(self, request):
        try:
            return super()._content(request)
        except NotFound:
            return request.origin.size, b""


@caught_by("test_delete_busy")
class DeletesWhatIsUsed(ReferenceStorage):
    """Deletes a volume under its guest."""

    def delete_one(self, volume):
        self.busy.discard(volume.name)
        return super().delete_one(volume)


@caught_by("test_reset")
class ResetsNothing(ReferenceStorage):
    """A reset is a success, and nothing more."""

    def reset(self, requests, progress=untold):
        for request in requests:
            yield Outcome(key=request.volume_name, value=self.disks.get(request.volume_name))


@caught_by("test_reset")
class ResetsLabels(ReferenceStorage):
    """A reset volume has the labels of the request."""

    def reset(self, requests, progress=untold):
        self.disks = {
            k: v for k, v in self.disks.items() if k not in {r.volume_name for r in requests}
        }
        return super().reset(requests, progress)


@caught_by("test_reset")
class ResetsAll(ReferenceStorage):
    """A reset is of the whole pool."""

    def reset(self, requests, progress=untold):
        for name, volume in self.disks.items():
            self.contents[name] = self.contents[f"image {volume.labels.template}"]
        return super().reset(requests, progress)


@caught_by("test_grow")
class GrowsBlank(ReferenceStorage):
    """A larger disk is a new one."""

    def _grown(self, volume, size):
        outcome = super()._grown(volume, size)
        self.contents[volume.name] = b""
        return outcome


@caught_by("test_grow")
class SaysItGrew(ReferenceStorage):
    """Only the outcome tells of the new size."""

    def _grown(self, volume, size):
        held = self.disks[volume.name]
        outcome = super()._grown(volume, size)
        self.disks[volume.name] = held
        return outcome


@caught_by("test_grow_of_what_is_not_the_clones")
class GrowsStrangers(ReferenceStorage):
    """Makes another clone's disk larger."""

    def _grown(self, volume, size):
        held = self.disks.get(volume.name)
        return super()._grown(attrs.evolve(volume, labels=held.labels) if held else volume, size)


@caught_by("test_hand_over")
class HandsStrangersOver(ReferenceStorage):
    """Gives another clone's disk away."""

    def hand_over(self, volumes, state):
        there = [(v, self.disks.get(v.name)) for v in volumes]
        own = [attrs.evolve(v, labels=held.labels) if held else v for v, held in there]
        return super().hand_over(own, state)


@caught_by("test_hand_over")
class HandsItsImageOver(ReferenceStorage):
    """A disk that is handed over begins anew."""

    def hand_over(self, volumes, state):
        for volume in volumes:
            self.contents[volume.name] = b""
        return super().hand_over(volumes, state)


@caught_by("test_blank_disks_hold_nothing_of_the_deleted")
class ShowsTheDeleted(ReferenceStorage):
    """A new disk has the bytes of the last one of its name."""

    def delete_one(self, volume):
        self.old = {**getattr(self, "old", {}), volume.name: self.contents.get(volume.name, b"")}
        return super().delete_one(volume)

    def _content(self, request):
        size, content = super()._content(request)
        return size, content or getattr(self, "old", {}).get(request.volume_name, b"")


@caught_by("test_blank_disks")
class ForgetsHeads(ReferenceStorage):
    """A blank disk is all zeros."""

    def _content(self, request):
        size, content = super()._content(request)
        return size, (content if request.origin else b"")


@caught_by("test_disks_of_one_clone")
class DeletesByClone(ReferenceStorage):
    """Deletes all disks of the clone."""

    def delete_one(self, volume):
        outcome = super().delete_one(volume)
        for name in [n for n, v in self.disks.items() if v.labels.same_clone(volume.labels)]:
            del self.disks[name]
        return outcome


@caught_by("test_empty_batches")
class DeletesAllForNone(ReferenceStorage):
    """No names are all names."""

    def delete(self, volumes):
        yield from super().delete(volumes or self.volumes())


@caught_by("test_need_grows_with_the_count")
class NeedsOnce(ReferenceStorage):
    """Counts one volume, however many there are."""

    def need(self, request, count):
        return super().need(request, 1)


@caught_by("test_capacity_is_of_the_pool")
class FreeWithoutEnd(ReferenceStorage):
    """Has more room than there is."""

    def capacity(self):
        return attrs.evolve(super().capacity(), total=1)


@caught_by("test_probe_is_content_and_changes_nothing")
class ProbesByMaking(ReferenceStorage):
    """Tries the pool by a volume that stays."""

    def probe(self):
        self.images["probe"] = object()
        return super().probe()


@caught_by("test_delete_of_another_clone")
class DeletesByName(ReferenceStorage):
    """A volume's labels are not compared."""

    def held(self, name, labels):
        held = self.disks.get(name)
        return super().held(name, held.labels if held else labels)


@caught_by("test_activation_is_by_volume")
class ActivatesByClone(ReferenceStorage):
    """Outcomes of an activation have the clone's name."""

    def activate(self, volumes):
        return (Outcome(key=volume.labels.clone) for volume in volumes)


class SnapshotMutant(ReferenceStorage):
    Interface = ReferenceSnapshots

    def __init__(self, *values):
        super().__init__(*values)
        self.snapshots = self.Interface(self)


@caught_by("test_taking_twice_changes_nothing")
class ReplacesSnapshots(SnapshotMutant):
    """A snapshot of a later run replaces the earlier one of its name."""

    class Interface(ReferenceSnapshots):
        def _create(self, request):
            self.kept.pop(request.key, None)
            return super()._create(request)


@caught_by("test_a_volume_gets_its_old_size")
class KeepsNewSizes(SnapshotMutant):
    """A revert gives back the bytes, not the size."""

    class Interface(ReferenceSnapshots):
        def _revert(self, labels):
            held = self._driver.disks.get(labels.volume)
            outcome = super()._revert(labels)
            if held is not None:
                volume = attrs.evolve(outcome.value, size=held.size)
                self._driver.disks[labels.volume] = volume
            return outcome


@caught_by("test_removing_snapshots")
class RemovesAnothersSnapshots(SnapshotMutant):
    """The labels of a snapshot are not compared."""

    class Interface(ReferenceSnapshots):
        def delete(self, snapshots):
            for snapshot in snapshots:
                gone = self.kept.pop(snapshot.key, None)
                yield Outcome(key=snapshot.key, changed=gone is not None)


@caught_by("test_a_volume_in_use_is_left")
class RevertsWhatIsUsed(SnapshotMutant):
    """Changes a disk under its guest."""

    class Interface(ReferenceSnapshots):
        def _revert(self, labels):
            self._driver.busy.discard(labels.volume)
            return super()._revert(labels)


@caught_by("test_a_lost_volume_is_made_again")
class LosesSnapshots(SnapshotMutant):
    """Snapshots go with their volumes."""

    class Interface(ReferenceSnapshots):
        def found(self):
            return tuple(s for s in super().found() if s.labels.volume in self._driver.disks)


@caught_by("test_a_volume_reverts_to_its_snapshot")
class RevertsOnce(SnapshotMutant):
    """A snapshot is used up by a revert."""

    class Interface(ReferenceSnapshots):
        def _revert(self, labels):
            outcome = super()._revert(labels)
            del self.kept[labels.key]
            return outcome


# --- hypervisor ---------------------------------------------------------------------------------


@caught_by("test_defined_domains_are_found_with_all_they_have")
class DefinesAllButOne(ReferenceHypervisor):
    """Yields nothing for the last of a batch."""

    def define(self, specs):
        outcomes = list(super().define(specs))
        yield from outcomes[: max(1, len(outcomes) - 1)]


@caught_by("test_defined_domains_are_found_with_all_they_have")
class DefinesTwice(ReferenceHypervisor):
    """Yields each outcome twice."""

    def define(self, specs):
        for outcome in super().define(specs):
            yield from (outcome, outcome)


@caught_by("test_defined_domains_are_found_with_all_they_have")
class CountsInKib(ReferenceHypervisor):
    """Memory is in KiB."""

    def _defined(self, spec):
        return super()._defined(attrs.evolve(spec, memory=spec.memory // 1024))


@caught_by("test_defined_domains_are_found_with_all_they_have")
class LosesCards(ReferenceHypervisor):
    """Domains have no MAC addresses."""

    def _defined(self, spec):
        return super()._defined(attrs.evolve(spec, nics=()))


@caught_by("test_define_twice_changes_nothing")
class UpdatesLabels(ReferenceHypervisor):
    """A domain belongs to the last run."""

    def _defined(self, spec):
        held = self.machines.get(spec.name)
        if held is not None and held.labels.same_clone(spec.labels):
            self.machines[spec.name] = attrs.evolve(held, labels=spec.labels)
        return super()._defined(spec)


@caught_by("test_another_templates_clone_is_a_conflict")
class TakesAnothersDomain(ReferenceHypervisor):
    """A domain of that name is this clone's."""

    def _defined(self, spec):
        held = self.machines.get(spec.name)
        if held is not None:
            return Outcome(key=spec.name, value=held, changed=False)
        return super()._defined(spec)


@caught_by("test_longest_name")
class CutsDomains(ReferenceHypervisor):
    """Leaves out domains with long names."""

    def states(self):
        return {name: state for name, state in super().states().items() if len(name) < 60}


@caught_by("test_hostile_labels_survive")
class UnescapesLabels(ReferenceHypervisor):
    """Labels are written into XML as they are."""

    def _defined(self, spec):
        owner = spec.labels.owner.replace("&amp;", "&")
        return super()._defined(attrs.evolve(spec, labels=attrs.evolve(spec.labels, owner=owner)))


@caught_by("test_our_domains_are_not_foreign")
class KnowsNoneOfItsOwn(ReferenceHypervisor):
    """All names are foreign."""

    def inspect(self):
        return attrs.evolve(super().inspect(), foreign_names=frozenset(self.machines))


@caught_by("test_render_is_what_define_uses")
class RendersByDefining(ReferenceHypervisor):
    """Defines the domain to render it."""

    def render(self, spec):
        list(self.define([spec]))
        return super().render(spec)


@caught_by("test_render_is_what_define_uses")
class RendersAtRandom(ReferenceHypervisor):
    """Each text has a number of its own."""

    def render(self, spec):
        return super().render(spec) + secrets.token_hex(4)


@caught_by("test_start_of_what_is_not_defined")
class StartsNothing(ReferenceHypervisor):
    """A domain that isn't defined is a success."""

    def start(self, names, boots=None):
        for name in names:
            yield self.set_state("start", name, State.RUNNING)


@caught_by("test_start_and_destroy")
class BoastsOfStarts(ReferenceHypervisor):
    """A running domain was started by this call."""

    def start(self, names, boots=None):
        for outcome in super().start(names, boots or {}):
            yield attrs.evolve(outcome, changed=True)


@caught_by("test_start_and_destroy")
class StartsAll(ReferenceHypervisor):
    """Starts what is defined, whatever is named."""

    def start(self, names, boots=None):
        yield from [o for o in super().start(list(self.machines), boots or {}) if o.key in names]


@caught_by("test_shutdown_ends_what_runs")
class AsksOnly(ReferenceHypervisor):
    """A guest that doesn't obey runs on."""

    def shutdown(self, names, timeout):
        for name in names:
            held = self.machines.get(name)
            yield Outcome(key=name, changed=held is not None and held.state is State.RUNNING)


@caught_by("test_destroy_of_what_is_not_there")
class DestroysWhatIsThere(ReferenceHypervisor):
    """A domain that is gone is an error."""

    def destroy(self, names):
        for name in names:
            if name in self.machines:
                yield self.set_state("destroy", name, State.STOPPED)
            else:
                yield Outcome(key=name, error=NotFound(f"no domain {name}"))


@caught_by("test_empty_batches")
class DestroysAllForNone(ReferenceHypervisor):
    """No names are all names."""

    def destroy(self, names):
        for name in names or list(self.machines):
            outcome = self.set_state("destroy", name, State.STOPPED)
            if names:
                yield outcome


@caught_by("test_undefine_of_a_running_domain")
class UndefinesWhatRuns(ReferenceHypervisor):
    """Undefines a domain that runs."""

    def undefine(self, names):
        list(self.destroy(names))
        return super().undefine(names)


@caught_by("test_undefine")
class UndefinesOnce(ReferenceHypervisor):
    """A domain that is gone is an error."""

    def undefine(self, names):
        for name in names:
            if name not in self.machines:
                yield Outcome(key=name, error=NotFound(f"no domain {name}"))
            else:
                yield from super().undefine([name])


@caught_by("test_a_boot_for_one_start")
class BootsForGood(ReferenceHypervisor):
    """A boot for one start is written into the definition."""

    def start(self, names, boots=None):
        for name in boots or {}:
            self.machines[name] = attrs.evolve(self.machines[name], networks=("changed",))
        return super().start(names, boots or {})


@caught_by("test_uses_name_the_disks_of_domains")
class UsesNothing(ReferenceHypervisor):
    """No domain uses a disk."""

    def uses(self, names):
        return ()


@caught_by("test_resources")
class CountsInMib(ReferenceHypervisor):
    """The host's memory is in MiB."""

    def resources(self):
        found = super().resources()
        return attrs.evolve(found, memory_total=64 * 1024, memory_free=0)


@caught_by("test_probe")
class ProbesForAnother(ReferenceHypervisor):
    """Checks have the driver's name, not the backend's."""

    def probe(self):
        return (attrs.evolve(check, backend="driver") for check in super().probe())


@caught_by("test_a_running_domain_is_not_renewed")
class RenewsWhatRuns(ReferenceHypervisor):
    """A running domain is renewed."""

    def renew(self, disks):
        for name in disks:
            yield self.set_state("renew", name, State.STOPPED)


class PartMutant(ReferenceHypervisor):
    """A driver with another optional interface."""

    part = ""

    def __init__(self, *values):
        super().__init__(*values)
        setattr(self, self.part, self.Interface(self))


@caught_by("test_each_domain_has_a_console_log_of_its_own")
class SharesLogs(PartMutant):
    """All domains have one log."""

    part = "consoles"

    class Interface(ReferenceConsoles):
        def log(self, name):
            return super().log("all")


@caught_by("test_attach_needs_a_running_domain")
class AttachesToNothing(PartMutant):
    """A console of a domain that isn't there is empty."""

    part = "consoles"

    class Interface(ReferenceConsoles):
        def attach(self, name, stdin, stdout):
            pass


@caught_by("test_paused_domains_continue")
class PausesWhatIsOff(PartMutant):
    """A domain that is off is paused."""

    part = "memory"

    class Interface(ReferenceMemory):
        def pause(self, names):
            return (self._driver.set_state("pause", name, State.PAUSED) for name in names)


@caught_by("test_saved_domains_continue")
class SavesByStopping(PartMutant):
    """A saved domain is off."""

    part = "memory"

    class Interface(ReferenceMemory):
        def save(self, names):
            for outcome in super().save(names):
                if outcome.ok:
                    self._driver.set_state("save", outcome.key, State.STOPPED)
                yield outcome


@caught_by("test_discarded_memory")
class DiscardsNothing(PartMutant):
    """Saved memory stays."""

    part = "memory"

    class Interface(ReferenceMemory):
        def discard(self, names):
            return (Outcome(key=name, changed=False) for name in names)


@caught_by("test_changed_sizes")
class ResizesAll(PartMutant):
    """A size is that of all domains."""

    part = "sizes"

    class Interface(ReferenceSizes):
        def resize(self, names, memory, vcpus):
            list(super().resize(list(self._driver.machines), memory, vcpus))
            return super().resize(names, memory, vcpus)


@caught_by("test_statistics_are_of_running_domains")
class MeasuresWhatIsOff(PartMutant):
    """A domain that is off has used nothing."""

    part = "statistics"

    class Interface(ReferenceStatistics):
        def read(self, names):
            return {name: Statistics(at=0.0, cpu=0.0, memory=1) for name in names}


@caught_by("test_statistics_are_of_running_domains")
class SharesOfWhatIsOff(PartMutant):
    """A domain that is off takes no memory."""

    part = "statistics"

    class Interface(ReferenceStatistics):
        def shares(self, names):
            return dict.fromkeys(names, 1)


@caught_by("test_memory_that_is_not_as_it_was_saved")
class LoadsWhatIsCutShort(PartMutant):
    """Memory is loaded as far as it goes."""

    part = "warm"

    class Interface(ReferenceWarm):
        def _kept(self, folder):
            file = folder / "warm.json"
            return json.loads(file.read_text())["memory"] if file.exists() else 0


@caught_by("test_forks_have_the_devices_of_their_memory")
class LoadsIntoOtherDevices(PartMutant):
    """The memory has the size that the domain has."""

    part = "warm"

    class Interface(ReferenceWarm):
        def load(self, names, folder):
            for name in names:
                self.now = self._driver.machines[name].memory
                yield from super().load([name], folder)

        def _kept(self, folder):
            super()._kept(folder)
            return self.now


@caught_by("test_only_what_was_booted_for_it_is_saved")
class SavesWhateverRuns(PartMutant):
    """What was started otherwise is saved too."""

    part = "warm"

    class Interface(ReferenceWarm):
        def save(self, name, folder):
            self.booted[name] = folder
            super().save(name, folder)


@caught_by("test_forks_continue_from_one_memory")
class LoadsWhatRuns(PartMutant):
    """A fork that runs is loaded again."""

    part = "warm"

    class Interface(ReferenceWarm):
        def load(self, names, folder):
            self.loaded.update(names)
            return super().load(names, folder)


@caught_by("test_machines_go_on_from_where_they_were")
class ForgetsWhoWasPaused(PartMutant):
    """Whoever is put back runs."""

    part = "snapshots"

    class Interface(ReferenceMachines):
        def put_back(self, folders):
            for outcome in super().put_back(folders):
                if outcome.ok:
                    self._driver.set_state("put_back", outcome.key, State.RUNNING)
                yield outcome


@caught_by("test_a_folder_that_is_damaged")
class TrustsFolders(PartMutant):
    """What is kept of a machine isn't checked."""

    part = "snapshots"

    class Interface(ReferenceMachines):
        def check(self, folders):
            return (Outcome(key=name, changed=False) for name in folders)


# --- identity -----------------------------------------------------------------------------------


@caught_by("test_each_clone_has_one_outcome")
class SeedsAllButOne(Identities):
    """Yields nothing for the last of a batch."""

    def seed(self, requests):
        return super().seed(requests[: max(1, len(requests) - 1)])


@caught_by("test_each_clone_has_one_outcome")
class SeedsTwice(Identities):
    """Yields each outcome twice."""

    def seed(self, requests):
        for outcome in super().seed(requests):
            yield from (outcome, outcome)


@caught_by("test_no_clones_is_no_seeds")
class NeedsAClone(Identities):
    """Fails without a clone."""

    def seed(self, requests):
        requests[0]
        return super().seed(requests)


@caught_by("test_a_seed_lies_in_its_clones_folder")
class SeedsElsewhere(Identities):
    """A seed lies beside the clone's folder."""

    def one(self, request):
        path = request.folder.parent / f"{request.labels.clone}.img"
        return Seed(image=self.write(request, path))


@caught_by("test_secrets_are_the_owners_alone")
class ShowsKeys(Identities):
    """Everybody can read the private key."""

    mode = 0o644


@caught_by("test_secrets_are_the_owners_alone")
class SaysKeys(Identities):
    """The private key is on the command line."""

    def one(self, request):
        return attrs.evolve(super().one(request), cmdline=request.host_key.splitlines()[1])


@caught_by("test_seeding_again_replaces_the_seed")
class SeedsMore(Identities):
    """Each call leaves a file of its own."""

    def one(self, request):
        name = f"seed-{len(list(request.folder.iterdir()))}.img"
        return Seed(image=self.write(request, request.folder / name))


@caught_by("test_two_clones_are_told_apart")
class SeedsTwins(Identities):
    """All clones have the seed of the first."""

    def write(self, request, path):
        path.touch(mode=0o600)
        path.write_text("web-1")
        return path


@caught_by("test_its_own_template_passes_its_check")
class ChecksByWriting(Identities):
    """The check writes a seed."""

    def check_seed(self, request):
        self.one(request)


# --- boot ---------------------------------------------------------------------------------------


class Resolves(Boots):
    """Answers with one value that the mutants change."""

    def resolve(self, requests):
        for request in requests:
            yield Outcome(key=request.labels.clone, value=self.config(request))


@caught_by("test_each_clone_has_one_outcome")
class ResolvesAllButOne(Boots):
    """Yields nothing for the last of a batch."""

    def resolve(self, requests):
        return super().resolve(requests[: max(1, len(requests) - 1)])


@caught_by("test_each_clone_has_one_outcome")
class ResolvesTwice(Boots):
    """Yields each outcome twice."""

    def resolve(self, requests):
        return super().resolve([*requests, *requests])


@caught_by("test_each_clone_has_one_outcome")
class BootsNothing(Resolves):
    """Neither a kernel nor a device."""

    def config(self, request):
        return BootConfig(devices=())


@caught_by("test_each_clone_has_one_outcome")
class BootsByRelativePaths(Resolves):
    """The kernel depends on the current folder."""

    def config(self, request):
        return BootConfig(kernel=Path("vmlinuz"), devices=())


@caught_by("test_each_clone_has_one_outcome")
class BootsByTwoLines(Resolves):
    """The command line has a line break."""

    def config(self, request):
        return BootConfig(cmdline="quiet\ninit=/bin/sh")


@caught_by("test_each_clone_has_one_outcome")
class BootsTheFloppy(Resolves):
    """A device that vmcloner doesn't know."""

    def config(self, request):
        return BootConfig(devices=("fd",))


@caught_by("test_a_definition_names_files_that_are_there")
class BootsWhatIsGone(Resolves):
    """The kernel doesn't exist."""

    def config(self, request):
        return BootConfig(kernel=Path("/nonexistent/vmlinuz"), devices=())


@caught_by("test_a_definition_needs_no_disk")
class DefinesByTheDisk(Resolves):
    """Reads the disk for the definition."""

    def config(self, request):
        disk = request.volumes[0].path
        return BootConfig(devices=("hd",) if disk.exists() else ("network",))


@caught_by("test_a_definition_changes_nothing")
class DefinesByWriting(Resolves):
    """Writes a file beside the disk."""

    def config(self, request):
        request.volumes[0].path.with_suffix(".boot").write_text("hd")
        return BootConfig()


@caught_by("test_a_definition_changes_nothing")
class DefinesAtRandom(Resolves):
    """Each call has another answer."""

    def config(self, request):
        return BootConfig(cmdline=secrets.token_hex(8))


@caught_by("test_its_own_template_passes_its_check")
class RefusesAll(Boots):
    """Accepts no template."""

    def check(self, template):
        raise InvalidRequest("no")


@caught_by("test_unused_keys_are_words")
class UnusedIsAWord(Boots):
    """One word is taken for a list of them."""

    def unused(self, template):
        return "kernel"


@caught_by("test_each_start_has_one_outcome")
class StartsOnce(Boots):
    """A clone is resolved at its first start alone."""

    def resolve_start(self, requests):
        done = {asked.labels.clone for asked in self.asked}
        return super().resolve_start([r for r in requests if r.labels.clone not in done])


@caught_by("test_files_of_a_start_are_the_clones_own")
class SharesFolders(Boots):
    """All files lie in the folder of the first."""

    def resolve_start(self, requests):
        return super().resolve_start(
            [attrs.evolve(r, folder=requests[0].folder) if r.folder else r for r in requests]
        )


@caught_by("test_files_of_a_start_are_the_clones_own")
class OpensFiles(Boots):
    """Everybody can change what a clone boots."""

    def started(self, request):
        outcome = super().started(request)
        if outcome.value.kernel:
            outcome.value.kernel.chmod(0o666)
        return outcome


@caught_by("test_files_of_a_start_are_the_clones_own")
class LinksFiles(Boots):
    """The kernel is a link to where it was found."""

    def started(self, request):
        outcome = super().started(request)
        if outcome.value.kernel:
            target = outcome.value.kernel.rename(request.volumes[0].path.with_suffix(".kernel"))
            outcome.value.kernel.symlink_to(target)
        return outcome


@caught_by("test_a_start_changes_only_the_folder")
class WritesToDisks(Boots):
    """Replays the journal on the clone's disk."""

    def started(self, request):
        request.volumes[0].path.write_bytes(b"replayed")
        return super().started(request)


@caught_by("test_a_dry_run_leaves_nothing")
class DryRunsWrite(Boots):
    """A dry run fetches the kernel."""

    def started(self, request):
        if request.dry_run:
            request.volumes[0].path.with_suffix(".kernel").write_text("kernel")
        return super().started(request)


@caught_by("test_a_damaged_disk_fails_only_its_clone")
class FailsForAll(Boots):
    """One damaged disk ends the batch."""

    def resolve_start(self, requests):
        for request in requests:
            if request.volumes[0].path.read_bytes()[:1] == b"\xff":
                raise WrongState("no boot loader")
            yield self.started(request)


# --- image --------------------------------------------------------------------------------------


@caught_by("test_the_fingerprint_stays")
class FingerprintsAtRandom(Images):
    """Each fingerprint is another one."""

    def fingerprint(self):
        return secrets.token_hex(8)


@caught_by("test_the_fingerprint_is_a_short_text")
class FingerprintsInBytes(Images):
    """A digest, not a text."""

    def fingerprint(self):
        return hashlib.sha256(b"").digest()


@caught_by("test_the_fingerprint_stays")
class FingerprintsBuilds(Images):
    """A build changes the fingerprint."""

    count = 0

    def fingerprint(self):
        return f"images {self.count}"

    def build(self, folder, progress):
        self.count += 1
        return super().build(folder, progress)


@caught_by("test_the_fingerprint_tells_images_apart")
class FingerprintsNothing(Images):
    """All images have one fingerprint, whatever the options."""

    def fingerprint(self):
        return "other"


@caught_by("test_the_image_is_in_its_folder")
class BuildsElsewhere(Images):
    """The image lies beside the folder."""

    def build(self, folder, progress):
        return super().build(folder, progress).rename(folder.parent / "disk.raw")


@caught_by("test_the_image_is_in_its_folder")
class NamesItImg(Images):
    """The image's name says nothing."""

    def build(self, folder, progress):
        return super().build(folder, progress).rename(folder / "disk.img")


@caught_by("test_the_image_can_be_imported")
class BuildsOverlays(Images):
    """The image is an overlay of another file."""

    def build(self, folder, progress):
        disk = super().build(folder, progress)
        return disk.rename(folder / "disk.qcow2")


@caught_by("test_files_stay_in_the_folder")
class LinksOutside(Images):
    """The kernel is a link to this host's."""

    def build(self, folder, progress):
        (folder / "initrd").symlink_to("/etc/hostname")
        return super().build(folder, progress)


@caught_by("test_files_stay_in_the_folder")
class TakesReservedNames(Images):
    """A file has a name of vmcloner's."""

    def build(self, folder, progress):
        (folder / ".fingerprint").write_text("mine")
        return super().build(folder, progress)


@caught_by("test_nothing_is_left_elsewhere")
class LeavesRubbish(Images):
    """A temporary folder stays."""

    def build(self, folder, progress):
        tempfile.mkdtemp()
        return super().build(folder, progress)


@caught_by("test_nothing_is_left_elsewhere")
class BuildsHere(Images):
    """Scratch files lie in the current folder."""

    def build(self, folder, progress):
        Path("scratch.log").write_text("built")
        return super().build(folder, progress)


@caught_by("test_progress_is_of_bytes")
class Overdoes(Images):
    """More is done than there is."""

    def build(self, folder, progress):
        return super().build(folder, lambda done, total: progress(2 * done, total))


@caught_by("test_a_second_build_has_the_same_files")
class NamesByRun(Images):
    """Files have names of their build."""

    def build(self, folder, progress):
        disk = super().build(folder, progress)
        return disk.rename(folder / f"disk-{secrets.token_hex(4)}.raw")


@caught_by("test_the_image_is_in_its_folder")
class MovesAway(Images):
    """The current folder is another one afterwards."""

    def build(self, folder, progress):
        os.chdir(folder)
        return super().build(folder, progress)


# --- observer -----------------------------------------------------------------------------------


@caught_by("test_it_is_told_of_a_run")
class FailsAtFailures(Observing):
    """An error without a hint, or one of two lines, is not expected."""

    @hookimpl
    def vmcloner_step_changed(self, event):
        if event.error is not None:
            [_line] = str(event.error).splitlines()


@caught_by("test_it_is_told_of_a_run")
class KnowsAllSteps(Observing):
    """A step of a later version is an error."""

    @hookimpl
    def vmcloner_step_changed(self, event):
        {"clone": 1, "define": 2, "start": 3, "wait": 4}[event.step]


@caught_by("test_it_is_told_of_a_run")
class Hangs(Observing):
    """Waits for a server that doesn't answer."""

    @hookimpl
    def vmcloner_run_finished(self, result):
        import threading

        threading.Event().wait()


@caught_by("test_values_are_not_changed")
class ChangesValues(Observing):
    """Counts down in the value that others are told of."""

    @hookimpl
    def vmcloner_waiting(self, waiting):
        waiting.phases.clear()


@caught_by("test_it_may_be_told_of_a_part")
class NeedsTheBegin(Observing):
    """An event of a run that it hasn't seen begin is an error."""

    def __init__(self):
        self.plans = {}

    @hookimpl
    def vmcloner_plan_ready(self, plan):
        self.plans[plan.run] = plan

    @hookimpl
    def vmcloner_step_changed(self, event):
        self.plans[event.run]


@caught_by("test_runs_may_be_interleaved")
class KnowsOneRun(Observing):
    """There is one run at a time."""

    run = None

    @hookimpl
    def vmcloner_plan_ready(self, plan):
        self.run = plan.run

    @hookimpl
    def vmcloner_clone_ready(self, run):
        if self.run is not None and run != self.run:
            raise RuntimeError(f"{run} isn't the run")


@caught_by("test_it_leaves_logging_alone")
class SetsLogging(Observing):
    """Sets up the process's logging."""

    @hookimpl
    def vmcloner_plan_ready(self, plan):
        root = logging.getLogger()
        root.setLevel(root.level + 1)


@caught_by("test_a_veto_is_one_of_vmcloners_errors")
class VetoesByAccident(Observing):
    """A veto is any exception."""

    @hookimpl
    def vmcloner_preflight(self, plan):
        raise ValueError("too many")


@caught_by("test_a_veto_is_one_of_vmcloners_errors")
class VetoesOnce(Observing):
    """The second try passes."""

    asked = False

    @hookimpl
    def vmcloner_preflight(self, plan):
        if not self.asked:
            self.asked = True
            raise WrongState("not yet")


@caught_by("test_addresses_of_a_mac_policy")
class GivesMulticast(Observing):
    """An address of a group."""

    @hookimpl
    def vmcloner_clone_mac(self, labels, attempt):
        return f"01:00:5e:00:{attempt:02x}:{labels.index:02x}"


@caught_by("test_addresses_of_a_mac_policy")
class GivesAgain(Observing):
    """An address that is in use is given again."""

    @hookimpl
    def vmcloner_clone_mac(self, labels, attempt):
        return f"52:54:00:00:00:{labels.index:02x}"


@caught_by("test_it_is_for_this_api")
class OfAnotherApi(Observing):
    """Built for another version."""

    VMCLONER_API = 99


# --- command ------------------------------------------------------------------------------------


@caught_by("test_its_first_line_says_what_it_does")
class SaysNothing(Command):
    __doc__ = None


@caught_by("test_it_has_an_example")
class ExampleOfAnother(Command):
    """Say hello."""

    example = "vmcloner list"


@caught_by("test_it_has_an_example")
class ExampleWithoutOption(Command):
    """Say hello."""

    example = "vmcloner hello --silent"


class Option(Command):
    """Say hello."""

    option, words = ("--to",), {"help": "To whom."}

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.add_argument(*self.option, **self.words)
        return parser


@caught_by("test_its_help_can_be_shown")
class OptionWithoutHelp(Option):
    """Say hello."""

    words = MappingProxyType({})


@caught_by("test_its_help_can_be_shown")
class HelpWithPercent(Option):
    """Say hello."""

    words = MappingProxyType({"help": "How loud: 100 %."})


@caught_by("test_its_options_are_long")
class ShortAlone(Option):
    """Say hello."""

    option = ("-t",)


@caught_by("test_its_options_are_long")
class Underlined(Option):
    """Say hello."""

    option = ("--to_whom",)


@caught_by("test_its_options_are_long")
class TakesDebug(Option):
    """Say hello."""

    option = ("--debug",)


@caught_by("test_its_help_can_be_shown")
class AsksTheEngine(Command):
    """Say hello."""

    def get_parser(self, prog_name):
        self.engine  # noqa: B018
        return super().get_parser(prog_name)


@caught_by("test_wrong_usage_is_refused")
class TakesAnything(Command):
    """Say hello."""

    def get_parser(self, prog_name):
        parser = super().get_parser(prog_name)
        parser.error = lambda _: None
        return parser


# --- stores of volumes --------------------------------------------------------------------------


@caught_by("test_a_killed_make")
class MakesTheRecordLast(Folder):
    """The volume is there before its record: a killed call leaves what counts as foreign."""

    def make(self, name, known, size, below):
        path = super().make(name, {}, size, below)
        self._record(name).unlink()
        self._record(name).write_text(json.dumps(known))
        return path


@caught_by("test_a_killed_make")
class LabelsLast(Folder):
    """The record says whose the volume is once that is made."""

    def make(self, name, known, size, below):
        path = super().make(name, {}, size, below)
        self._record(name).write_text(json.dumps(known))
        return path


@caught_by("test_a_killed_make")
class MakesItWhole(Folder):
    """The record begins with the mark of a whole volume, which is taken back."""

    def make(self, name, known, size, below):
        self._record(name).write_text(json.dumps(known) + " ")
        path = self.folder / name
        path.touch()
        self._record(name).unlink()
        path.unlink()
        return super().make(name, known, size, below)


@caught_by("test_a_killed_make")
class LeavesDrafts(Folder):
    """The record is written elsewhere and renamed; what a killed call left there stays."""

    def make(self, name, known, size, below):
        draft = self.folder / f"{name}.draft"
        draft.write_text(json.dumps(known))
        path = super().make(name, known, size, below)
        draft.rename(self._record(name))
        return path


@caught_by("test_a_killed_make")
class NeedsWhatItMade(Folder):
    """A volume whose record was made alone can't be removed."""

    def remove(self, name):
        if self._record(name).exists():
            (self.folder / name).unlink()
        self._record(name).unlink(missing_ok=True)


@caught_by("test_a_killed_finish")
class FinishesInTwoSteps(Folder):
    """The record is removed and written again with the mark."""

    def finish(self, name):
        text = self._record(name).read_text()
        self._record(name).unlink()
        self._record(name).write_text(text.rstrip() + " ")


@caught_by("test_a_killed_finish")
class FinishesOnce(Folder):
    """Marking a whole volume again is taken for another mark."""

    def find(self, name):
        kept = super().find(name)
        twice = kept is not None and self._record(name).read_text().endswith("  ")
        return attrs.evolve(kept, whole=False) if twice else kept


@caught_by("test_a_killed_remove")
class RemovesTheRecordFirst(Folder):
    """A killed call leaves a volume that counts as foreign."""

    def remove(self, name):
        self._record(name).unlink(missing_ok=True)
        (self.folder / name).unlink(missing_ok=True)


@caught_by("test_a_killed_remove")
class IsWholeByItsMark(Folder):
    """A volume that is gone is whole, as long as its record is there."""

    def find(self, name):
        kept = super().find(name)
        marked = kept is not None and self._record(name).read_text().endswith(" ")
        return attrs.evolve(kept, whole=True) if marked else kept


@caught_by("test_remove")
class KeepsRecords(Folder):
    """A record outlives its volume."""

    def remove(self, name):
        (self.folder / name).unlink(missing_ok=True)


@caught_by("test_remove")
class RemovesOnce(Folder):
    """What isn't there can't be removed."""

    def remove(self, name):
        (self.folder / name).unlink()
        self._record(name).unlink()


@caught_by("test_a_volume_becomes_whole")
class RoundsSizes(Folder):
    """Volumes have whole MiB."""

    def make(self, name, known, size, below):
        return super().make(name, known, -(-size // 2**20) * 2**20, below)


@caught_by("test_a_volume_becomes_whole")
class HidesLabels(Folder):
    """What is found has no labels."""

    def find(self, name):
        kept = super().find(name)
        known = {k: v for k, v in kept.known.items() if k != "labels"} if kept else {}
        return attrs.evolve(kept, known=known) if kept else None


@caught_by("test_a_volume_becomes_whole")
class ListsTheWhole(Folder):
    """Volumes that aren't whole are not listed."""

    def names(self):
        return [name for name in super().names() if self.find(name).whole]


@caught_by("test_a_volume_becomes_whole")
class RemembersMarks(Folder):
    """Which volumes are whole is known by one object only."""

    def __init__(self, folder):
        super().__init__(folder)
        self.marked = set()

    def finish(self, name):
        self.marked.add(name)

    def find(self, name):
        kept = super().find(name)
        return attrs.evolve(kept, whole=name in self.marked) if kept else None


@caught_by("test_an_overlay_reads_from_what_is_below")
class CopiesWhatIsBelow(Folder):
    """A linked volume is a raw one."""

    def make(self, name, known, size, below):
        return super().make(name, known, size, None)


@caught_by("test_an_overlay_reads_from_what_is_below")
class OverlaysAsLargeAsBelow(Folder):
    """An overlay is as large as the image below."""

    def make(self, name, known, size, below):
        size = below.stat().st_size if below else size
        return super().make(name, known, size, below)


@caught_by("test_a_record_says_what_it_was_given")
class CutsRecords(Folder):
    """A record has one KiB."""

    def make(self, name, known, size, below):
        path = super().make(name, known, size, below)
        if len(json.dumps(known)) > 1024:
            self._record(name).write_text(json.dumps({"state": known["state"]}))
        return path


@caught_by("test_volumes_are_told_apart")
class RemovesWhatBeginsAlike(Folder):
    """A name is a pattern."""

    def remove(self, name):
        for path in self.folder.glob(f"{name}*"):
            path.unlink()


@caught_by("test_volumes_are_told_apart")
class ListsByPrefix(Folder):
    """Volumes that begin with x are not listed."""

    def names(self):
        return [name for name in super().names() if not name.startswith("x")]


@caught_by("test_a_new_volume_has_nothing_of_the_old")
class KeepsOldBytes(Folder):
    """A removed volume is put aside, and taken again for the next of its name."""

    def remove(self, name):
        with contextlib.suppress(FileNotFoundError):
            self.aside = (self.folder / name).read_bytes()
        super().remove(name)

    def make(self, name, known, size, below):
        path = super().make(name, known, size, below)
        if not below and known["labels"]["index"] == "2":
            path.write_bytes(getattr(self, "aside", b"") or bytes(size))
        return path


@caught_by("test_a_foreign_volume_is_a_conflict")
class TakesForeignForNothing(Folder):
    """A volume without a record isn't seen."""

    def find(self, name):
        return super().find(name) if self._record(name).exists() else None


@caught_by("test_a_foreign_volume_is_a_conflict")
class ListsForeign(Folder):
    """All volumes are listed."""

    def names(self):
        return [path.name for path in self.folder.iterdir() if path.suffix != ".record"]


@caught_by("test_calls_of_several_threads")
class WorksOnOneAtATime(Folder):
    """The record that is written is the last one that was asked for, whoever did."""

    def make(self, name, known, size, below):
        self.current = known
        time.sleep(0.01)
        return super().make(name, self.current, size, below)


@caught_by("test_capacity")
class HasNoSpace(Folder):
    """Free space is that of another place."""

    def capacity(self):
        return Capacity(total=2**20, free=2**40)

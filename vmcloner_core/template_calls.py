"""What an engine does with templates and their images: a part of the engine's API."""

from __future__ import annotations

import functools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vmcloner_core.errors import NotFound, VmclonerError, WrongState
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    AS_IT_COMES,
    Check,
    Clone,
    Copying,
    ImageFormat,
    Origin,
    Outcome,
    Progress,
    Template,
)
from vmcloner_core.names import check_template, fold
from vmcloner_core.os_errors import translated
from vmcloner_core.planning import Planning
from vmcloner_core.settings import Settings
from vmcloner_core.units import format_size

if TYPE_CHECKING:
    from vmcloner_core.capturing import Capture
    from vmcloner_core.catalog import TemplateInfo
    from vmcloner_core.drivers import ImageFile
    from vmcloner_core.exporting import Export
    from vmcloner_core.pulling import PulledImage
    from vmcloner_core.template_leftovers import TemplateLeftover

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class TemplateRow:
    """A template, or what is left of one, in a list.

    :param pools: those that have its image. :param error: what is wrong, in words; None if nothing.
    """

    name: str
    description: str | None = None
    pools: tuple[str, ...] = ()
    file: Path | None = None
    host: str = ""
    error: str | None = None


class TemplateCalls(ABC):
    """The calls of :class:`~vmcloner_core.Engine` that are about templates."""

    settings: Settings
    _planning: Planning

    @property
    @abstractmethod
    def _host(self) -> LocalHost:
        """The host that the engine works on."""

    @abstractmethod
    def _held(self, names: Sequence[str]) -> AbstractContextManager[object]:
        """Hold locks; see :meth:`LocalHost.hold`."""

    def templates(self) -> tuple[TemplateInfo, ...]:
        """Return all templates, broken ones with their errors."""
        return self._host.catalog.infos()

    def template_rows(self) -> tuple[TemplateRow, ...]:
        """Return all templates with the pools that have their images, and what none names."""
        from vmcloner_core.catalog import written_beside

        pools: dict[str, list[str]] = {}
        for origin in self.origins():
            pools.setdefault(origin.template, []).append(origin.pool)
        row = functools.partial(TemplateRow, host=self._host.host.name)
        rows = [
            row(
                name=info.name,
                description=info.template.description if info.template is not None else None,
                pools=tuple(pools.get(info.name, ())),
                file=info.file,
                error=str(info.error) if info.error is not None else None,
            )
            for info in self.templates()
        ]
        rows += [
            row(name=stem, file=file, error=f"no template: {written_beside(file, stem)}")
            for stem, file in self.stray_images().items()
        ]
        from vmcloner_core.template_leftovers import named

        for name, left in named(self.leftovers()).items():
            folder = next((each.folder for each in left if each.folder is not None), None)
            places = tuple(each.pool for each in left if each.pool is not None)
            size = format_size(sum(each.size for each in left))
            why = f"{size} that no template names any more (vmcloner template prune)"
            rows.append(row(name=name, pools=places, file=folder, error=why))
        return tuple(rows)

    def template(self, name: str) -> Template:
        """Return a template.

        :raises NotFound: there is none. :raises InvalidRequest: it is wrong; names file and key.
        """
        return self._host.catalog.template(name)

    def origins(self, template: str | None = None) -> tuple[Origin, ...]:
        """Return the images that the host's pools hold, of all templates or of one."""
        return self._host.images.origins(template)

    def import_template(
        self,
        name: str,
        *,
        storage: str | None = None,
        image: str | None = None,
        sha256: str | None = None,
        format: ImageFormat | None = None,  # noqa: A002 - the key of [image]
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """Import a template's image into a pool; unchanged if it is already there.

        :param image: a path or an http(s) URL to use instead of the template's own source.
        :param sha256: of that image; required for a URL.
        :param format: of the image; None for what its name says, else its template.
        :param copying: bandwidth, and whether to verify what was written.
        :raises WrongState: clones are linked to the image that would be replaced.
        """
        template = self._host.catalog.template(name)
        if image is not None:
            from vmcloner_core.images import source_of

            source = source_of(image, sha256, format, template.image)
            template = attrs.evolve(template, image=source)
        elif format is not None:
            template = attrs.evolve(template, image=attrs.evolve(template.image, format=format))
        driver = self._host.drivers.storage(storage or self.settings.defaults.storage)
        with self._held([f"template/{name}"]):
            return self._host.images.import_image(template, driver, "", time.monotonic(), copying)

    def pull_template(self, name: str, *, mirror: str | None = None) -> Outcome[PulledImage]:
        """Download a template's image and check it, unless what is here is still what is published.

        It is kept in the user's cache for all pools. What pools have imported stays as it is, and
        so do clones.

        :param mirror: a URL that stands for scheme and host of the template's URLs.
        :raises InvalidRequest: the template's image has no URL, or the checksum doesn't match.
        :raises HostCommandError: the server doesn't answer or isn't trusted; what came is kept.
        """
        return self._host.images.pull(self._host.catalog.template(name), mirror)

    def pull_size(self, name: str) -> int:
        """Return how many bytes the server says a template's image has, 0 if it doesn't say.

        :raises HostCommandError: the server doesn't answer.
        """
        from vmcloner_core.downloads import size

        url = self._host.catalog.template(name).image.url
        return size(url) if url is not None else 0

    def build_image(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        builder: str = "debian",
        parent: str = "debian-12-built",
    ) -> tuple[Template, ImageFile]:
        """Build a template's image, unless it is up to date.

        :param options: the builder's. With any, the template is written to the user's own
            templates once its image is built, with everything else from ``parent``.
        :raises NotFound: there is no such template, and no options are given.
        :raises Conflict: there is such a template, written by hand.
        """
        from vmcloner_core.catalog import built, write

        with self._held([f"template/{check_template(name)}"]):
            if not options:
                template = self._host.catalog.template(name)
                return template, self._host.images.build(template)
            self._host.images.check_options(name, builder, options)
            file, text = built(name, parent, builder, options)
            template = self._host.catalog.declared(name, file, text)
            image = self._host.images.build(template)
            write(file, text)
            return template, image

    def capture_template(
        self,
        clone: str,
        name: str,
        *,
        description: str = "",
        live: bool = False,
        compact: bool = False,
        seal: bool = True,
        copying: Copying = AS_IT_COMES,
        dry_run: bool = False,
    ) -> Outcome[Capture]:
        """Make a template of a clone: its first disk, sealed, is the template's image.

        Unchanged if the template was captured from this clone before. The clone stays as it is.

        :param name: of the new template, which extends the clone's. :param description: of it.
        :param live: take the disk of a running clone, while its guest agent has frozen it.
        :param compact: give back the space of what the disk's file systems don't use.
        :param seal: remove what makes the clone the machine that it is.
        :param dry_run: check everything, and change nothing.
        :raises NotFound: there is no such clone, or its template is gone.
        :raises Conflict: the name is taken. :raises BackendError: its pool captures no disks.
        :raises WrongState: the clone isn't off (with ``live``, its agent doesn't freeze it),
            something uses its disk, or it can't be sealed.
        """
        from vmcloner_core.capturing import CaptureOptions, Capturer

        options = CaptureOptions(
            description=description, live=live, compact=compact, seal=seal, copying=copying
        )
        with self._held([f"fleet/{self.show(clone).fleet}", f"template/{check_template(name)}"]):
            capturer = Capturer(self._host, self.show(clone), name, options)
            plan = capturer.plan()
            changed = not dry_run and capturer(plan)
            return Outcome(key=name, value=plan, changed=changed)

    @abstractmethod
    def show(self, name: str) -> Clone:
        """Return one clone; see :meth:`Engine.show`."""

    def export_template(
        self,
        name: str,
        file: Path,
        *,
        storage: str | None = None,
        compressed: bool = False,
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> Outcome[Export]:
        """Write a template's image to a file, as its name says: ``*.qcow2`` or ``*.raw``.

        For a captured template, its TOML file and what its clones boot are written beside.

        :param storage: the pool; None for the default one, else any that has the image.
        :param dry_run: change nothing.
        :raises NotFound: no pool has its image. :raises Conflict: a file is there.
        """
        from vmcloner_core import exporting

        with self._held([f"template/{check_template(name)}"]):
            template = self._host.catalog.template(name)
            origin = self._origin(name, storage)
            plan = exporting.planned(
                template, origin, file, compressed=compressed, overwrite=overwrite
            )
            if dry_run:
                return Outcome(key=name, value=plan, changed=False)
            images, pool = self._host.images, self._host.drivers.storage(origin.pool)

            def work(progress: Progress) -> Outcome[Export]:
                with images.lent(name, pool) as image:
                    return exporting.write(plan, template, image, progress)

            return images.told(exporting.STEP, name, "", time.monotonic(), work)

    def _origin(self, name: str, storage: str | None) -> Origin:
        """Return a template's image: in a pool, or in any, the default one first."""
        wanted = storage or self.settings.defaults.storage
        origins = {origin.pool: origin for origin in self._host.images.origins(name)}
        found = origins.get(wanted) or (next(iter(origins.values()), None) if not storage else None)
        if found is None:
            raise NotFound(
                f"template {name} has no image in pool {wanted!r}",
                hint=f"vmcloner template import {name}",
            )
        return found

    def delete_template(self, name: str, *, storage: str | None = None) -> Outcome[None]:
        """Remove a template's image from a pool, and what a builder made. Its TOML file stays.

        That of a captured template goes with the last of its images, unless it was changed by hand:
        it can't be had again.

        What a builder made is kept while a clone or another pool has the template's image, which is
        logged.

        :raises WrongState: clones are linked to it.
        """
        driver = self._host.drivers.storage(storage or self.settings.defaults.storage)
        leftovers = self._host.leftovers
        with self._held([f"template/{check_template(name)}"]):
            file = self._captured_file(name, driver.name)
            outcome = self._host.images.delete_origin(driver.name, name)
            if file is not None and not self._host.images.origins(name):
                from vmcloner_core.catalog import is_captured

                if is_captured(file):
                    with translated(file):
                        file.unlink()
            if not self._host.images.origins(name):
                self._host.leftovers.remove_received(name)
            kept = self._kept_for(name)
            gone = not kept and leftovers.remove_built(name)
            if kept and (leftovers.built / name).is_dir():
                log.warning("%s: what its builder made is kept: %s", name, kept)
            return attrs.evolve(outcome, changed=outcome.changed or gone)

    def _captured_file(self, name: str, pool: str) -> Path | None:
        """Return the file of a template whose image was captured into a pool, None for others.

        :raises WrongState: a clone, or another template, needs the image.
        """
        infos = {info.name: info for info in self._host.catalog.infos()}
        mine = infos[name].template if name in infos else None
        captured = mine.image.captured if mine is not None else None
        if captured is None or (captured.template, captured.pool) != (name, pool):
            return None
        for info in infos.values():
            other = info.template.image.captured if info.template is not None else None
            if info.name != name and other is not None and other.template == name:
                raise WrongState(f"template {name}: {info.name} has its image", hint=str(info.file))
        from vmcloner_core.template_leftovers import clones_of

        if users := clones_of(name, self._host.survey()):
            raise WrongState(
                f"template {name}: {fold(users)} was made from it, and has no other",
                hint="delete them first",
            )
        return infos[name].file

    def _kept_for(self, name: str) -> str:
        """Return why what a template's builder made is kept, empty if nothing needs it."""
        try:
            if self._host.images.origins(name):
                return "another pool has its image"
            from vmcloner_core.template_leftovers import clones_of

            users = clones_of(name, self._host.survey())
        except VmclonerError as error:  # what can't be read may use it
            return str(error)
        return f"{fold(users)} was made from it" if users else ""

    def leftovers(self) -> tuple[TemplateLeftover, ...]:
        """Return the images in pools, and what builders made, that no template names any more."""
        return self._host.leftovers.find()

    def stray_images(self) -> Mapping[str, Path]:
        """Return the image files beside templates that no template names, by their stems."""
        return self._host.catalog.stray_images()

    def prune_templates(
        self, left: Sequence[TemplateLeftover]
    ) -> tuple[Outcome[TemplateLeftover], ...]:
        """Remove leftovers (:meth:`leftovers`) that are still such; those that clones use stay.

        :returns: one outcome for each.
        """
        with self._held([f"template/{each.template}" for each in left]):
            still, found = self.leftovers(), self._host.survey()
            return tuple(
                self._host.leftovers.remove(each, found)
                if each in still
                else Outcome(key=each.template, value=each, changed=False)
                for each in left
            )

    def check_template(self, name: str) -> tuple[Check, ...]:
        """Check a template without making a clone of it: one check for each thing that is wrong.

        :raises NotFound: there is none. :raises InvalidRequest: its file can't be read at all.
        """
        return self._planning.checks.checks(name)

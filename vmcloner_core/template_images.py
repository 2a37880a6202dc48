"""The images of templates on a host: built, fetched, imported into its pools."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vmcloner_core.deadlines import instance
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import ImageBuilder, ImageFile, StorageDriver
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, VmclonerError
from vmcloner_core.model import AS_IT_COMES, Copying, Origin, Outcome, Progress, Template
from vmcloner_core.outcomes import single
from vmcloner_core.plan import ProgressEvent, StepEvent, StepStatus
from vmcloner_core.plugins import PluginHost

if TYPE_CHECKING:
    from vmcloner_core.pulling import PulledImage

log = logging.getLogger(__name__)
STEP, PULL = "import", "pull"
"""The names in events of the steps that import and download a template's image."""
T = TypeVar("T")


class TemplateImages:
    """Templates' images on one host. Callers make sure that only one import runs at a time."""

    def __init__(self, drivers: DriverRegistry, plugins: PluginHost) -> None:
        self._drivers = drivers
        self._plugins = plugins

    def origins(self, template: str | None = None) -> tuple[Origin, ...]:
        """Return the images that the host's pools hold, of all templates or of one."""
        found: list[Origin] = []
        for name in self._drivers.names("storage"):
            try:
                found += self._origins(name)
            except BackendError as error:
                log.warning("storage %r could not be read: %s", name, error.message)
        return tuple(origin for origin in found if template in (None, origin.template))

    def _origins(self, pool: str) -> tuple[Origin, ...]:
        def origins(driver: StorageDriver) -> tuple[Origin, ...]:
            return tuple(instance(each, Origin) for each in instance(driver.origins(), tuple))

        return self._drivers.ask("storage", pool, "origins", origins, tuple)

    def origin(self, pool: StorageDriver, template: str) -> Origin | None:
        """Return a template's image in a pool, None if it isn't there."""
        return next((o for o in self._origins(pool.name) if o.template == template), None)

    def check(self, template: Template) -> str:
        """Check a template's image file, if it names one, without reading all of it.

        :returns: the image's format, or what it is packed in; empty without a file.
        :raises NotFound: it doesn't exist. :raises NotPulled: it is to be pulled first.
        :raises InvalidRequest: it can't be imported.
        """
        from vmcloner_core import pulling

        pulling.check(template)
        path = template.image.path
        if path is None:
            return ""
        try:
            from vmcloner_core.images import check_file

            return check_file(template.image)
        except NotFound as error:
            raise NotFound(
                f"image {path} of template {template.name} doesn't exist",
                hint=f"vmcloner template import {template.name} --image FILE_OR_URL, "
                f"or see {template.origin_file}",
            ) from error

    def import_image(
        self,
        template: Template,
        pool: StorageDriver,
        run: str,
        started: float,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """Import a template's image into a pool, with events; unchanged if it is there.

        :param run: the run that it is part of, empty for a separate import.
        :param started: :func:`time.monotonic` at the run's start, from which events count.
        """
        from vmcloner_core import images  # most creates find their image in the pool

        def work(progress: Progress) -> Outcome[Origin]:
            builder, host = self.builder(template), self._drivers.host
            with (
                self._captured(template)
                if template.image.captured is not None
                else images.obtained(template, builder, host, progress)
            ) as image:
                return self.imported(pool, template.name, image, progress, copying)

        return self.told(STEP, template.name, run, started, work)

    def imported(
        self,
        pool: StorageDriver,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """Import an image into a pool; see :meth:`StorageDriver.import_image`."""
        backend = self._drivers.backend("storage", pool.name, "import_image")
        return single(
            lambda: pool.import_image(template, image, progress, copying),
            template,
            backend,
            Origin,
        )

    def delete_origin(self, pool: str, template: str) -> Outcome[None]:
        """Remove a template's image from a pool; see :meth:`StorageDriver.delete_origin`.

        :raises VmclonerError: it is still there.
        """
        driver = self._drivers.storage(pool)
        backend = self._drivers.backend("storage", pool, "delete_origin")
        outcome = single(lambda: driver.delete_origin(template), template, backend)
        outcome.unwrap()
        return outcome

    @contextlib.contextmanager
    def lent(self, template: str, pool: StorageDriver) -> Iterator[ImageFile]:
        """Yield a template's image in a pool as a raw file or device, to be read.

        :raises NotFound: the pool has none. :raises BackendError: the pool can't lend it.
        """
        origin = self.origin(pool, template)
        if origin is None:
            raise NotFound(f"template {template} has no image in pool {pool.name}")
        if pool.capturing is None:
            raise BackendError(f"pool {pool.name!r} doesn't give its images out")
        with pool.capturing.image(template) as path:
            yield ImageFile(path=path, format="raw", size=origin.size, digest=origin.digest)

    @contextlib.contextmanager
    def _captured(self, template: Template) -> Iterator[ImageFile]:
        """Yield the image that was captured, of this template or of one that it extends."""
        captured = template.image.captured
        assert captured is not None  # noqa: S101 - the caller chose by it
        try:
            pool = self._drivers.storage(captured.pool)
            with self.lent(captured.template, pool) as image:
                yield image
        except NotFound as error:
            raise NotFound(
                f"template {template.name}: its image was captured, and is gone from pool "
                f"{captured.pool}",
                hint=f"vmcloner template import {template.name} --image FILE, if it was exported",
            ) from error

    def pull(self, template: Template, mirror: str | None = None) -> Outcome[PulledImage]:
        """Download a template's image, with events; see :func:`vmcloner_core.pulling.pull`."""
        from vmcloner_core import pulling

        def work(progress: Progress) -> Outcome[PulledImage]:
            return pulling.pull(template, progress, mirror)

        return self.told(PULL, template.name, "", time.monotonic(), work)

    def told(
        self,
        step: str,
        template: str,
        run: str,
        started: float,
        work: Callable[[Progress], Outcome[T]],
    ) -> Outcome[T]:
        """Do work on a template's image, and tell observers."""
        begun = time.monotonic()

        def event(status: StepStatus, error: VmclonerError | None = None) -> None:
            now = time.monotonic()
            self._plugins.step_changed(
                StepEvent(
                    run=run,
                    clone=template,
                    step=step,
                    status=status,
                    at=now - started,
                    seconds=now - begun,
                    error=error,
                )
            )

        def progress(done: int, total: int) -> None:
            self._plugins.progress(
                ProgressEvent(run=run, what=f"{step} {template}", done=done, total=total)
            )

        event(StepStatus.STARTED)
        try:
            outcome = work(progress)
        except VmclonerError as error:
            event(StepStatus.FAILED, error)
            raise
        event(StepStatus.DONE if outcome.changed else StepStatus.UNCHANGED)
        return outcome

    def build(self, template: Template) -> ImageFile:
        """Build a template's image, unless it is up to date.

        :raises InvalidRequest: it has no builder.
        """
        from vmcloner_core import images

        builder, name = self.builder(template), template.name
        if builder is None:
            raise InvalidRequest(
                f"template {name!r} has no image builder",
                hint=f"vmcloner template import {name}",
            )

        def progress(done: int, total: int) -> None:
            self._plugins.progress(
                ProgressEvent(run="", what=f"build {name}", done=done, total=total)
            )

        return images.build(builder, template.folder, progress)

    def has_kernel(self, template: Template) -> bool:
        """Tell whether the kernel that a template's builder makes beside the image is there."""
        kernel = template.kernel
        if template.image.builder is None or kernel is None:
            return True
        files = [template.folder / file for file in (kernel.path, kernel.initrd) if file]
        return all(file.exists() for file in files)

    def check_options(self, name: str, builder: str, options: Mapping[str, Any]) -> None:
        """Check the options of an image builder.

        :raises InvalidRequest: the builder takes no such options.
        """
        self._drivers.builder(builder, options, f"image {name}")

    def builder(self, template: Template) -> ImageBuilder | None:
        """Return the builder of a template's image, None if it has none."""
        source, where = template.image, f"template {template.name}"
        if source.builder is None:
            return None
        return self._drivers.builder(source.builder, source.options, where)

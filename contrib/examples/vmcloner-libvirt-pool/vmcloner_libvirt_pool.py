"""Storage backend libvirt-pool for vmcloner: the volumes of a storage pool of libvirt."""

import contextlib
import functools

import attrs
from vmcloner_libvirt_volumes import IMAGE, SIZE, TABLES, Volumes, fill

from vmcloner_core import drivers, errors, model, qemu_img, units
from vmcloner_core.errors import Conflict, NotFound, VmclonerError, WrongState
from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_core.model import CloneMode, Outcome
from vmcloner_core.os_errors import translated


@attrs.frozen(kw_only=True)
class LibvirtPoolSettings:
    """The table [hosts.HOST.storage.NAME] of the settings file."""

    pool: str
    uri: str = "qemu:///system"


class LibvirtPoolDriver(drivers.StorageDriver):
    """The driver: its public methods are those of vmcloner's contract."""

    reset_lane = delete_lane = drivers.Lane(batch=64)  # each call looks once for files in use

    def __init__(self, context, settings):
        super().__init__(context)
        self._volumes = Volumes(context, settings.uri, settings.pool)

    def probe(self):
        check = functools.partial(model.Check, backend=self.name, name="pool")
        try:
            self.capacity()
            yield check(status=model.Status.OK)
        except VmclonerError as error:
            yield check(status=model.Status.FAILED, detail=error.message, fix=error.hint or "")

    def capacity(self):
        return self._volumes.capacity()

    def need(self, request, count):
        full = request.origin and request.mode is CloneMode.FULL
        return count * (SIZE + TABLES + (request.origin.allocated if full else len(request.head)))

    def origins(self):
        return tuple(self._found(self._volumes.origin))

    def volumes(self):
        return tuple(v for v in self._found(self._volumes.disk) if v.labels.has_volume(v.name))

    def _found(self, read):
        for name in self._volumes.names():
            with contextlib.suppress(Conflict, NotFound):
                if found := read(name):
                    yield found

    def import_image(self, template, image, progress, copying=model.AS_IT_COMES):
        name, known = template + IMAGE, {"size": image.size, "digest": image.digest}
        with self._volumes.locked(name):
            held = self._volumes.origin(name)
            if held and held.digest == image.digest:
                return Outcome(key=template, value=held, changed=False)
            self._check_unlinked(template)
            if (need := qemu_img.measure(self.context.runner, image)) > self.capacity().free:
                raise errors.NotEnoughResources(
                    f"pool {self.name}: {template} needs {units.format_size(need)}"
                )
            with self._volumes.made(name, known) as path, translated(path):
                if image.format == "raw":
                    fill(image.path, path, image.size, copying, progress)
                else:
                    qemu_img.convert(self.context.runner, image, path, copying)
                    progress(image.size, image.size)
                path.chmod(0o444)
            return Outcome(key=template, value=self._volumes.origin(name))

    def delete_origin(self, template):
        name = template + IMAGE
        with self._volumes.locked(name):
            there = bool(self._volumes.known(name))
            self._check_unlinked(template)
            self._volumes.remove(name)
            return Outcome(key=template, changed=there)

    def _check_unlinked(self, template):
        for volume in self.volumes():
            if volume.backing and volume.labels.template == template:
                raise WrongState(f"{volume.name} is linked to the image of template {template}")

    def clone(self, requests, progress=model.untold):
        for request in requests:
            try:
                yield self._clone(request, functools.partial(progress, request.volume_name))
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)

    def _clone(self, request, progress):
        name, origin, linked = request.volume_name, request.origin, request.mode is CloneMode.LINKED
        image = origin.template + IMAGE if origin else name
        size = request.size_over(origin.size if origin else 0)
        known = {"labels": request.labels.to_mapping(), "size": size}
        with self._volumes.locked(name, image):
            disk = self._disk(name, request.labels)
            if disk and disk.complete:
                return Outcome(key=name, value=disk, changed=False)
            if origin:
                origin.check_held(self._volumes.origin(image))
                source = self._volumes.known(image)["path"]
                known |= {"below": str(source)} if linked else {}
            with self._volumes.made(name, known) as path, translated(path):
                if not origin:
                    with path.open("r+b") as file:
                        file.write(request.head)
                elif not linked:
                    fill(source, path, size, request.copying, progress)
            return Outcome(key=name, value=self._volumes.disk(name))

    def _disk(self, name, labels):
        disk = self._volumes.disk(name)
        if disk and not disk.labels.same_clone(labels):
            raise Conflict(f"volume {name} of pool {self.name} is another clone's")
        return disk

    def delete(self, volumes):
        users = self._volumes.users(volumes)
        for volume in volumes:
            try:
                with self._volumes.locked(volume.name):
                    disk = self._disk(volume.name, volume.labels)
                    if disk and disk.name in users:
                        raise WrongState(f"{disk.path} is in use by {users[disk.name]}")
                    self._volumes.remove(volume.name)
                yield Outcome(key=volume.name, changed=disk is not None)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)


@hookimpl
def vmcloner_storage_backend():
    """Describe the backend."""
    return StorageBackend(
        api=1,
        name="libvirt-pool",
        description="volumes of a storage pool that libvirt manages",
        factory=LibvirtPoolDriver,
        settings=LibvirtPoolSettings,
    )

"""What warm origins are made of: whether a template can have one, and which one is current."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import attrs

from vmcloner_core import reseeding
from vmcloner_core.clone_spec import clone_spec
from vmcloner_core.drivers import HypervisorDriver, StorageDriver, WarmInterface
from vmcloner_core.errors import BackendError, InvalidRequest, WrongState
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Labels, Template, clone_uuid
from vmcloner_core.os_errors import translated
from vmcloner_core.outcomes import guarded
from vmcloner_core.plan import Readiness
from vmcloner_core.template_checks import TemplateChecks
from vmcloner_core.warm_origins import IDENTICAL, READY, WarmOrigin

SEEDS = "cloud-init"
"""The identity provider whose seeds tell forks who they are."""
COLD = "create the clones without --warm"
_CHUNK = 1024**2
_NOT_IN_MEMORY = ("description", "ready", "seal", "origin_file")


@attrs.frozen
class Wanted:
    """What clones that are to be forked need: the origin of these.

    :param template: as :func:`forked` returns it.
    :param depends: what such an origin depends on, in short texts by subject.
    """

    template: Template
    storage: StorageDriver
    hypervisor: HypervisorDriver
    depends: Mapping[str, str]

    @property
    def identical(self) -> bool:
        """Whether they stay who their parent was."""
        return IDENTICAL in self.depends


def forked(template: Template, *, identical: bool = False) -> Template:
    """Return a template with what its forks need: an identity on a seed disk.

    :param identical: they keep their parent's, and are told none.
    :raises InvalidRequest: its identity is told in another way, which a running guest doesn't see.
    """
    provider = template.identity.provider
    if not identical and provider not in ("none", SEEDS):
        raise InvalidRequest(
            f"template {template.name}: forks get their identity from a disk, not by {provider}",
            hint=f'identity.provider = "{SEEDS}", or {COLD}',
        )
    wanted = "none" if identical else SEEDS
    return attrs.evolve(template, identity=attrs.evolve(template.identity, provider=wanted))


def check_told(template: Template, at: str = READY) -> None:
    """Check that a guest's console tells when it can be saved: of copies' parent, nothing else is.

    :param at: see :meth:`~vmcloner_core.Engine.warm_template`.
    :raises InvalidRequest: it doesn't.
    """
    aim = template.readiness if at == READY else at
    if Readiness.parse(aim).kind != "console":
        raise InvalidRequest(
            f"template {template.name}: {'ready = ' if at == READY else '--at '}{aim} doesn't tell "
            "when a guest that isn't asked anything can be saved",
            hint=f"vmcloner template warm {template.name} --identical --at console:REGEX",
        )


def warm_of(hypervisor: HypervisorDriver) -> WarmInterface:
    """Return a hypervisor's part for warm forks.

    :raises BackendError: it has none; says why.
    """
    if hypervisor.warm is None:
        why = hypervisor.not_warm or "it can't start guests from the memory of another"
        raise BackendError(f"hypervisor {hypervisor.name!r} has no warm forks: {why}", hint=COLD)
    return hypervisor.warm


def wanted(
    host: LocalHost,
    checks: TemplateChecks,
    template: Template,
    storage: StorageDriver,
    hypervisor: HypervisorDriver,
    *,
    identical: bool,
) -> Wanted:
    """Return what clones of a template need to be forked. Asks the hypervisor; changes nothing.

    :param identical: see :func:`forked`. Origins of such clones are of no use for others: their
        guests have not been asked whether they can take another identity.
    :raises BackendError: pool or hypervisor can't do their part.
    :raises InvalidRequest: the template's clones can't be forked.
    """
    template = forked(template, identical=identical)
    warm = warm_of(hypervisor)
    if storage.capturing is None:
        raise BackendError(f"pool {storage.name!r} captures no disks: no warm forks", hint=COLD)
    if template.blanks:
        raise InvalidRequest(
            f"template {template.name}: a fork can't have disks beside its image, which its origin "
            "would have written",
            hint=COLD,
        )
    reseeding.check_template(template)
    labels = Labels(
        fleet="warm",
        index=1,
        template=template.name,
        run="",
        owner="",
        created="",
        storage=storage.name,
        hypervisor=hypervisor.name,
    )
    domain = clone_uuid(host.seed, labels.fleet, labels.index, labels.template)
    spec = clone_spec(template, labels, domain, checks.macs(labels, template, hypervisor))
    with guarded(host.drivers.backend("hypervisor", hypervisor.name, "warm.depends")):
        found = dict(warm.depends(checks.imagined(spec, hypervisor)))
    found["template"] = _digest(template)
    if identical:
        found[IDENTICAL] = "yes"
    image = host.images.origin(storage, template.name)
    found["image"] = image.digest if image is not None else ""
    return Wanted(template, storage, hypervisor, found)


def _digest(template: Template) -> str:
    """Return a digest of what a template says that a guest may have in its memory."""
    own = attrs.asdict(template)
    kept = {key: value for key, value in own.items() if key not in _NOT_IN_MEMORY}
    kept["nics"] = len(template.nics)  # their places on the bus
    digest = hashlib.sha256(json.dumps(kept, default=_plain, sort_keys=True).encode())
    kernel = template.kernel
    for file in (kernel.path, kernel.initrd) if kernel is not None else ():
        if file is not None and (template.folder / file).is_file():
            with translated(file), (template.folder / file).open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    return digest.hexdigest()[:16]


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)


def current(host: LocalHost, known: Wanted) -> WarmOrigin | None:
    """Return the newest whole origin that clones can be forked from now, None if there is none."""
    storage, hypervisor = known.storage, known.hypervisor
    place = (known.template.name, storage.name, hypervisor.name)
    for origin in host.warm.all():
        where = (origin.template, origin.pool, origin.hypervisor)
        if where != place or not origin.fits(known.depends):
            continue
        try:
            with guarded(host.drivers.backend("hypervisor", hypervisor.name, "warm.check")):
                warm_of(hypervisor).check(origin.folder)
        except WrongState:
            continue
        disk = host.images.origin(storage, origin.image)
        if disk is not None and disk.digest == origin.digest:
            return origin
    return None

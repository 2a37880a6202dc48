"""Identity provider ``cloud-init``: a disk for cloud-init's datasource NoCloud.

The identity goes into meta-data, network-config and vendor-data. user-data is the user's file, byte
for byte, and overrides vendor-data.
https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcloner_core.drivers import DriverContext, IdentityProvider, IdentityRequest
from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.hooks import IdentityBackend, hookimpl
from vmcloner_core.model import Outcome, Seed, Template

SEED = "seed.iso"
MAX_USER_DATA = 1024**2
"""Bytes. Larger files are probably a mistake: cloud-init keeps several copies in memory."""
_NOTHING = b"#cloud-config\n{}\n"


class CloudInit(IdentityProvider):
    """Writes one small ISO 9660 image for each clone."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`IdentityProvider.check`."""
        from vmcloner_identity import documents

        user_data, network_config = _read(template, "user_data"), _read(template, "network_config")
        if user_data is not None and not _is_template(template.identity.user_data):
            documents.check_user_data(user_data, _what(template, "user_data"))
        if network_config is not None and not _is_template(template.identity.network_config):
            documents.check_mapping(network_config, _what(template, "network_config"))

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`IdentityProvider.unused`: the user's own network-config replaces ours."""
        spec, unused = template.identity, {"kernel_args"}
        if spec.network_config is not None and not _is_template(spec.network_config):
            unused |= {"gateway", "nameservers"}
        return tuple(f"identity.{key}" for key in spec.given if key in unused)

    def check_seed(self, request: IdentityRequest) -> None:
        """See :meth:`IdentityProvider.check_seed`."""
        if request.template.identity.network_config is None:
            _check_gateway(request)
        for key in ("user_data", "network_config"):
            _own(request, key, _read(request.template, key))

    def seed(self, requests: Sequence[IdentityRequest]) -> Iterator[Outcome[Seed]]:
        """See :meth:`IdentityProvider.seed`."""
        read: dict[str, bytes | None] = {}  # once for all clones of a template
        for request in requests:
            name = request.labels.clone
            try:
                for key in ("user_data", "network_config"):
                    if key not in read:
                        read[key] = _read(request.template, key)
                image = _write(request, read)
                yield Outcome(key=name, value=Seed(image=image))
            except VmclonerError as error:
                yield Outcome(key=name, error=error)


def _write(request: IdentityRequest, read: dict[str, bytes | None]) -> Path:
    from vmcloner_core import reseeding
    from vmcloner_identity import documents, iso

    network = _own(request, "network_config", read["network_config"])
    files = {
        "meta-data": documents.meta_data(request.identity),
        "network-config": network or documents.network_config(request.identity),
        "vendor-data": documents.vendor_data(
            request.identity, request.host_key, request.host_key_public
        ),
        "user-data": _own(request, "user_data", read["user_data"]) or _NOTHING,
        # For a guest that has booted before, as somebody else; cloud-init ignores it.
        reseeding.FILE: reseeding.identity_file(
            request.identity, request.host_key, request.host_key_public
        ),
    }
    image = request.folder / SEED
    iso.write(image, "cidata", files)
    return image


def _own(request: IdentityRequest, key: str, content: bytes | None) -> bytes | None:
    """Return the contents of a template's file, rendered for this clone."""
    from vmcloner_core.placeholders import fill
    from vmcloner_identity import documents
    from vmcloner_identity.values import identity_values

    template = request.template
    if content is None or not _is_template(getattr(template.identity, key)):
        return content
    what = _what(template, key)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what}: not UTF-8: {error.reason}") from error
    filled = fill(text, identity_values(request), what=what).encode()
    if key == "user_data":
        documents.check_user_data(filled, what)
    else:
        documents.check_mapping(filled, what)
    return filled


def _check_gateway(request: IdentityRequest) -> None:
    """Check that a card can reach the gateway, unless all have DHCP, which brings one of its own.

    Clones of one template may differ in that: a table of values gives addresses to some.
    """
    from vmcloner_identity import documents

    identity = request.identity
    cards = [card.address for card in identity.interfaces if card.address is not None]
    if not identity.gateway or not cards:
        return
    if not any(documents.gateway(identity.gateway, card) for card in cards):
        raise InvalidRequest(
            f"template {request.template.name}: identity.gateway: {identity.gateway} is not on the "
            f"network of any card with a static address (clone {request.labels.clone})",
            hint="set identity.addresses on its network",
        )


def _what(template: Template, key: str) -> str:
    return f"template {template.name}: identity.{key}: {getattr(template.identity, key)}"


def _is_template(path: Path | None) -> bool:
    return path is not None and path.suffix == ".j2"


def _read(template: Template, key: str) -> bytes | None:
    """Return the contents of a template's file, or None if the template has no such file.

    :raises InvalidRequest: the file cannot be read, or is too large.
    """
    path: Path | None = getattr(template.identity, key)
    if path is None:
        return None
    what = _what(template, key)
    try:
        if not path.is_file():  # a device or a pipe could block, or never end
            reason = "is not a file" if path.exists() else "doesn't exist"
            raise InvalidRequest(f"{what} {reason}")
        with path.open("rb") as stream:
            content = stream.read(MAX_USER_DATA + 1)
    except OSError as error:
        raise InvalidRequest(f"{what}: {error.strerror}") from error
    if len(content) > MAX_USER_DATA:
        raise InvalidRequest(f"{what}: larger than {MAX_USER_DATA} bytes")
    return content


@hookimpl
def vmcloner_identity_provider() -> IdentityBackend:
    """Describe the backend."""
    return IdentityBackend(
        api=1,
        name="cloud-init",
        description="A small disk for cloud-init's datasource NoCloud",
        factory=CloudInit,
    )

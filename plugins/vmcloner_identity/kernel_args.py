"""Identity provider ``kernel-args``: arguments on the kernel's command line.

systemd reads ``systemd.hostname=`` and ``systemd.machine_id=`` (kernel-command-line(7)); the kernel
and most initramfs read ``ip=`` (Documentation/admin-guide/nfs/nfsroot.rst); Debian's live system,
dracut and many init scripts read ``hostname=``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vmcloner_core.drivers import DriverContext, IdentityProvider, IdentityRequest
from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.hooks import IdentityBackend, hookimpl
from vmcloner_core.model import Outcome, Seed, Template

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class KernelArgs(IdentityProvider):
    """Renders the template's ``identity.kernel_args``."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`IdentityProvider.check`."""
        for key in ("user_data", "network_config"):
            if getattr(template.identity, key) is not None:
                raise InvalidRequest(
                    f"template {template.name}: identity.{key} is for provider cloud-init"
                )
        _single_line(template.identity.kernel_args, template.name)

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`IdentityProvider.unused`: what the arguments don't mention."""
        words = set(re.findall(r"\w+", template.identity.kernel_args))
        named = {"addresses": {"address", "interfaces"}, "kernel_args": words}
        return tuple(
            f"identity.{key}"
            for key in template.identity.given
            if not named.get(key, {key}) & words
        )

    def check_seed(self, request: IdentityRequest) -> None:
        """See :meth:`IdentityProvider.check_seed`."""
        _words(request)

    def seed(self, requests: Sequence[IdentityRequest]) -> Iterator[Outcome[Seed]]:
        """See :meth:`IdentityProvider.seed`."""
        for request in requests:
            name = request.labels.clone
            try:
                yield Outcome(key=name, value=Seed(cmdline=_words(request)))
            except VmclonerError as error:
                yield Outcome(key=name, error=error)


def _words(request: IdentityRequest) -> str:
    from vmcloner_core.placeholders import fill  # imports jinja2
    from vmcloner_identity.values import identity_values

    name = request.template.name
    what = f"template {name}: identity.kernel_args"
    text = fill(request.template.identity.kernel_args, identity_values(request), what=what)
    return _single_line(text, name)


def _single_line(text: str, name: str) -> str:
    if _CONTROL.search(text):
        raise InvalidRequest(
            f"template {name}: identity.kernel_args: contains a line break or control character"
        )
    return text


@hookimpl
def vmcloner_identity_provider() -> IdentityBackend:
    """Describe the backend."""
    return IdentityBackend(
        api=1,
        name="kernel-args",
        description="Host name, addresses and other arguments on the kernel's command line",
        factory=KernelArgs,
        cmdline=True,
    )

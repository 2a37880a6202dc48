"""Conformance suite for boot providers.

Example::

    from vmcloner_core.testing.boot import BootConformance
    from vmcloner_core.testing.samples import make_context

    class TestMine(BootConformance):
        at_start = True            # if it is asked at each start on this kind of hypervisor

        @pytest.fixture
        def provider(self, tmp_path):
            return MyProvider(make_context(tmp_path))

        @pytest.fixture
        def template(self):        # one that the provider accepts
            return Template(name="tiny", boot="mine", image=ImageSource(path=Path("image.raw")))

        def fill_disk(self, path):             # if it reads the clones' disks
            path.write_bytes(...)
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from vmcloner_core.drivers import BootProvider, BootRequest
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import BootConfig, ImageSource, Outcome, Template, clone_uuid
from vmcloner_core.testing.samples import make_labels, make_nic, make_volume
from vmcloner_core.testing.suite import Suite, by_key

MIB = 1024**2
DEVICES = {"hd", "network"}
Ask = Callable[..., BootRequest]
Files = dict[Path, bytes | None]


class BootConformance(Suite):
    """What every boot provider must do. Define the fixture :meth:`provider`."""

    contract = BootProvider
    made_by = "provider"
    hypervisor: ClassVar[str] = "kvm"
    """The kind of hypervisor on which the clones boot."""
    at_start: ClassVar[bool] = False
    """Whether it is asked at each start there, as its ``BootBackend.at_start`` says."""

    @pytest.fixture
    def provider(self) -> BootProvider:
        """Return the provider under test."""
        raise NotImplementedError("define a fixture provider")

    @pytest.fixture
    def template(self) -> Template:
        """Return a template that the provider accepts."""
        return Template(name="tiny", image=ImageSource(path=Path("image.raw")))

    def fill_disk(self, path: Path) -> None:
        """Write the disk of a clone that can be booted; zeros, if the provider reads none."""
        path.write_bytes(bytes(MIB))

    @pytest.fixture
    def ask(self, template: Template, tmp_path: Path) -> Ask:
        """Return a function that makes the request for the clone with an index."""
        (tmp_path / "disks").mkdir()

        def make(index: int = 1, **changes: Any) -> BootRequest:
            labels = make_labels("web", index, template=template.name, boot=template.boot)
            disk = tmp_path / "disks" / labels.clone
            request = BootRequest(
                labels=labels,
                template=template,
                hypervisor=self.hypervisor,
                uuid=clone_uuid("local", "web", index, template.name),
                volumes=(make_volume(labels, disk, MIB),),
                nics=(make_nic(index),),
            )
            return attrs.evolve(request, **changes)

        return make

    @pytest.fixture
    def starts(self, ask: Ask, tmp_path: Path) -> list[BootRequest]:
        """Return the requests of three clones at a start, with disks and folders of their own."""
        if not self.at_start:
            pytest.skip("the suite declares that the provider isn't asked at each start")
        requests = []
        for index in (1, 2, 3):
            request = ask(index)
            self.fill_disk(request.volumes[0].path)
            folder = tmp_path / "boot" / request.labels.clone
            folder.mkdir(parents=True)
            requests.append(attrs.evolve(request, folder=folder))
        return requests

    # --- templates ------------------------------------------------------------------------------

    def test_its_own_template_passes_its_check(
        self, provider: BootProvider, template: Template, tmp_path: Path
    ) -> None:
        """The check accepts the suite's template, any number of times, and changes nothing."""
        before = files(tmp_path)
        provider.check(template)
        provider.check(template)
        assert files(tmp_path) == before

    def test_unused_keys_are_words(self, provider: BootProvider, template: Template) -> None:
        """What is ignored is named by keys of the template, like ``kernel.initrd``."""
        unused = provider.unused(template)
        assert isinstance(unused, tuple)
        assert all(isinstance(key, str) and key for key in unused)

    # --- definitions ----------------------------------------------------------------------------

    def test_each_clone_has_one_outcome(self, provider: BootProvider, ask: Ask) -> None:
        """A batch yields one outcome for each clone, in any order."""
        outcomes = list(provider.resolve([ask(n) for n in range(1, 21)]))
        assert sorted(o.key for o in outcomes) == sorted(f"web-{n}" for n in range(1, 21))
        for outcome in outcomes:
            check_config(outcome.unwrap())

    def test_no_clones_is_no_outcomes(self, provider: BootProvider) -> None:
        """An empty batch is no error."""
        assert list(provider.resolve([])) == []
        if self.at_start:
            assert list(provider.resolve_start([])) == []

    def test_a_definition_needs_no_disk(self, provider: BootProvider, ask: Ask) -> None:
        """What is defined doesn't depend on what a clone's disk holds, or whether it is there."""
        request = ask()
        without = one(provider.resolve([request]))
        self.fill_disk(request.volumes[0].path)
        assert one(provider.resolve([request])) == without

    def test_a_definition_changes_nothing(
        self, provider: BootProvider, ask: Ask, tmp_path: Path
    ) -> None:
        """No file is written, changed or removed for a definition, asked for twice."""
        request = ask()
        self.fill_disk(request.volumes[0].path)
        before = files(tmp_path)
        first = one(provider.resolve([request]))
        assert one(provider.resolve([request])) == first
        one(provider.resolve([attrs.evolve(request, dry_run=True)]))
        assert files(tmp_path) == before

    def test_a_definition_names_files_that_are_there(
        self, provider: BootProvider, ask: Ask
    ) -> None:
        """Kernel and initrd exist. A bootloader is looked for by the hypervisor."""
        config = one(provider.resolve([ask()]))
        for path in (config.kernel, config.initrd):
            assert path is None or path.is_file(), f"{path} is no file"

    def test_calls_at_once(self, provider: BootProvider, ask: Ask) -> None:
        """Concurrent calls give each clone what it gets alone."""
        requests = [ask(n) for n in range(1, 9)]
        alone = [one(provider.resolve([request])) for request in requests]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda r: one(provider.resolve([r])), requests)) == alone

    # --- starts ---------------------------------------------------------------------------------

    def test_who_is_asked_at_starts_answers(self, provider: BootProvider) -> None:
        """The provider has a method of its own for starts, exactly if it is asked at them."""
        own = type(provider).resolve_start is not BootProvider.resolve_start
        assert own or not self.at_start, "resolve_start is missing"

    def test_each_start_has_one_outcome(
        self, provider: BootProvider, starts: list[BootRequest]
    ) -> None:
        """A batch yields one outcome for each clone, in any order; again at the next start."""
        for _ in range(2):
            outcomes = list(provider.resolve_start(starts))
            assert sorted(o.key for o in outcomes) == ["web-1", "web-2", "web-3"]
            for outcome in outcomes:
                check_config(outcome.unwrap())
            _empty(starts)

    def test_files_of_a_start_are_the_clones_own(
        self, provider: BootProvider, starts: list[BootRequest]
    ) -> None:
        """They lie in the clone's folder, not that of another, and guests' user can read them."""
        for outcome in provider.resolve_start(starts):
            request = next(r for r in starts if r.labels.clone == outcome.key)
            config = outcome.unwrap()
            for path in (config.kernel, config.initrd):
                if path is None:
                    continue
                assert path.parent == request.folder
                mode = path.lstat().st_mode
                assert stat.S_ISREG(mode), f"{path} is no regular file"
                assert stat.S_IMODE(mode) in (0o644, 0o600, 0o444), f"{path}: {mode:o}"

    def test_a_start_changes_only_the_folder(
        self, provider: BootProvider, starts: list[BootRequest], tmp_path: Path
    ) -> None:
        """Disks stay as they are, and nothing is left in the folders of clones not asked about."""
        before = files(tmp_path / "disks")
        one(provider.resolve_start(starts[:1]))
        assert files(tmp_path / "disks") == before
        for request in starts[1:]:
            assert request.folder is not None
            assert list(request.folder.iterdir()) == []

    def test_a_dry_run_leaves_nothing(
        self, provider: BootProvider, starts: list[BootRequest], tmp_path: Path
    ) -> None:
        """It names what would be booted by ``origins`` or devices, and writes no file."""
        before = files(tmp_path)
        dry = [attrs.evolve(request, folder=None, dry_run=True) for request in starts]
        for outcome in provider.resolve_start(dry):
            config = outcome.unwrap()
            assert config.kernel is None
            assert config.initrd is None
            assert config.origins or config.devices or config.handover
        assert files(tmp_path) == before

    @pytest.mark.parametrize("rubbish", [b"", b"\0", b"\xff", b"\x55\xaa"], ids=repr)
    def test_a_damaged_disk_fails_only_its_clone(
        self, provider: BootProvider, starts: list[BootRequest], rubbish: bytes
    ) -> None:
        """Whatever is on a disk, the others of the batch start, and the reason is one line."""
        starts[1].volumes[0].path.write_bytes(rubbish * MIB)
        outcomes = by_key(provider.resolve_start(starts))
        assert sorted(outcomes) == ["web-1", "web-2", "web-3"]
        assert outcomes["web-1"].ok
        assert outcomes["web-3"].ok
        error = outcomes["web-2"].error
        assert error is None or isinstance(error, VmclonerError)
        assert error is None or len(str(error).splitlines()) == 1


def one(outcomes: Any) -> BootConfig:
    """Return the value of the only outcome."""
    found: Sequence[Outcome[BootConfig]] = list(outcomes)
    assert len(found) == 1, f"{len(found)} outcomes for one clone"
    return found[0].unwrap()


def check_config(config: object) -> None:
    """Check that a domain can boot this: one way to boot, by absolute paths, and one line."""
    assert isinstance(config, BootConfig), f"a {type(config).__name__}, not a BootConfig"
    assert set(config.devices) <= DEVICES, f"unknown devices: {config.devices}"
    ways = [config.kernel, config.bootloader, config.devices, config.handover]
    assert any(ways), "it says nothing that could be booted"
    assert config.kernel is None or config.bootloader is None, "a kernel and a boot loader"
    assert config.initrd is None or config.kernel is not None, "an initrd without a kernel"
    for path in (config.kernel, config.initrd):
        assert path is None or path.is_absolute(), f"{path} is not absolute"
    for text in (config.cmdline or "", config.source, *config.origins):
        assert text.isprintable(), f"not one line of text: {text!r}"


def files(folder: Path) -> Files:
    """Return all that is in a folder, with the files' bytes."""
    return {
        path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


def _empty(requests: Sequence[BootRequest]) -> None:
    for request in requests:
        assert request.folder is not None
        for path in request.folder.iterdir():
            path.unlink()

"""The calls about labs, for whatever has a lab: one host, or many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from vmcloner_core.cancelling import Cancellation, ending_with
from vmcloner_core.plan import RunResult

if TYPE_CHECKING:
    from vmcloner_core.labs import Change, Lab, LabResult
    from vmcloner_core.labs.apply import Applier
    from vmcloner_core.labs.site import Site


class LabCalls(ABC):
    """Compares labs with what is there, applies and deletes them."""

    @abstractmethod
    def _lab_site(self, lab: Lab) -> Site:
        """Return where a lab is."""

    @abstractmethod
    def _cancellable(self) -> AbstractContextManager[Cancellation]:
        """Return what ends the calls in a block."""

    def diff_lab(self, lab: Lab) -> tuple[Change, ...]:
        """Return what differs between a lab's file and what is there, in order. Changes nothing.

        :param lab: as :func:`vmcloner_core.labs.read_lab` returns it.
        :raises Conflict: a name of the file is taken by what isn't the lab's.
        """
        with self._applier(lab) as apply:
            return apply.diff()

    def apply_lab(
        self,
        lab: Lab,
        *,
        prune: bool = False,
        recreate: bool = False,
        provision: bool = False,
        dry_run: bool = False,
        on_changes: Callable[[Sequence[Change], Sequence[Change]], None] = lambda _todo, _left: (
            None
        ),
        on_run: Callable[[RunResult], None] = lambda _result: None,
    ) -> LabResult:
        """Make what is there what a lab's file says. Idempotent; what was killed is continued.

        :param prune: also remove what the lab has made and the file doesn't have.
        :param recreate: also replace clones that can't be changed to what the file says.
        :param provision: also run scripts again that have changed since they ran.
        :param on_changes: called with what will be done and what is left for lack of an option,
            before anything is changed; may raise to stop.
        :param on_run: called with the result of each run, also of failed ones.
        :raises Conflict: as :meth:`diff_lab`. :raises NotEnoughResources: there is no room for
            all of it; nothing was changed.
        :raises PartialFailure: some fleets aren't as the file says; carries the clones' errors.
        """
        given = {"--prune": prune, "--recreate": recreate, "--provision": provision}
        options = [option for option, wanted in given.items() if wanted]
        with self._applier(lab, on_run) as apply:
            return apply(options, dry_run=dry_run, on_changes=on_changes)

    def lab_parts(self, lab: Lab) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the clones and of the networks that carry a lab's name."""
        with self._applier(lab) as apply:
            return apply.parts()

    def delete_lab(self, lab: Lab) -> RunResult | None:
        """Delete all clones and networks that carry a lab's name. Its images stay. Idempotent.

        :returns: the result of the clones' deletion, None if there were none.
        :raises PartialFailure: some clones are left, and so are the networks.
        """
        with self._applier(lab) as apply:
            return apply.delete()

    @contextmanager
    def _applier(
        self, lab: Lab, on_run: Callable[[RunResult], None] = lambda _result: None
    ) -> Iterator[Applier]:
        from vmcloner_core.labs.apply import Applier

        with self._cancellable() as ending, ending_with(ending):
            site = self._lab_site(lab)
            yield Applier(lab, site, cancelled=lambda: ending.asked, on_run=on_run)

"""Keep a pool filled in the background, as long as somebody in this process uses it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vmcloner_core.cancelling import Cancellation, ending_with
from vmcloner_core.errors import Interrupted, VmclonerError, said

log = logging.getLogger(__name__)


class Keeper:
    """A thread that fills a pool when it is asked to, and before the pool's leases end.

    If its process dies, what it was asked for is still to be seen in the clones' claims.

    :param fill: fills the pool, by calls of an engine.
    :param every: seconds after which to fill it unasked.
    """

    def __init__(self, name: str, fill: Callable[[], object], every: float) -> None:
        self.error: VmclonerError | None = None
        """Why the last filling failed, None if it didn't."""
        self._fill = fill
        self._ending = Cancellation()
        self._every = every
        self._asked = threading.Event()
        self._filling = False
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"pool {name}", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether it fills the pool, or is about to."""
        return self._asked.is_set() or self._filling

    def ask(self) -> None:
        """Have the pool filled, now or after the present filling."""
        self._asked.set()

    def close(self) -> None:
        """Stop; what was begun is left as after a kill. Waits until calls in progress are done."""
        self._closing = True
        self._asked.set()
        while self._thread.is_alive():
            self._ending.cancel()  # again: what a run does last clears it
            self._thread.join(0.05)

    def _work(self) -> None:
        while True:
            self._asked.wait(self._every)
            if self._closing:
                return
            self._filling = True  # before: it is busy all the time
            self._asked.clear()
            self._ending = Cancellation()
            try:
                with ending_with(self._ending):
                    self._fill()
                self.error = None
            except Interrupted:
                pass
            except VmclonerError as error:
                self.error = error
                log.warning("%s", error)
            except Exception as error:  # a thread has nobody to raise it to
                self.error = VmclonerError(f"unexpected {said(error)}")
                log.exception("filling a pool")
            finally:
                self._filling = False

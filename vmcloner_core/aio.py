"""The engine for programs that use asyncio: the calls of an engine as coroutines.

Example::

    from vmcloner_core.aio import AsyncEngine
    from vmcloner_core.plan import RunFinished

    async with AsyncEngine.open() as engine:
        async with engine.watching() as events:
            making = asyncio.create_task(engine.create("ci", "tiny", count=3, ready=True))
            async for event in events:
                print(event.time, event)
                if isinstance(event, RunFinished):
                    break
        await making

Calls run in threads of the engine's own, so they don't hold up the event loop, and runs of
different fleets go on at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from vmcloner_core.cancelling import Cancellation, cancellable, ending_with
from vmcloner_core.engine import Engine
from vmcloner_core.errors import Interrupted
from vmcloner_core.event_stream import Watcher
from vmcloner_core.plan import Event, RunResult

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 32
MAX_EVENTS = 100_000
"""Events that wait for a reader; then the oldest are dropped."""
_END = object()


def _coroutine(
    call: Callable[Concatenate[Engine, P], T],
) -> Callable[Concatenate[AsyncEngine, P], Coroutine[Any, Any, T]]:
    """Return a call of the engine as a coroutine.

    If its task is cancelled, the call is ended as :meth:`Engine.cancel` does it, and only this
    call. The coroutine ends when the call has: what it was doing then is finished or rolled back.
    """

    @functools.wraps(call)
    async def run(self: AsyncEngine, /, *args: P.args, **options: P.kwargs) -> T:
        return await self._threaded(functools.partial(call, self.engine, *args, **options))

    return run


def _action(call: Callable[..., RunResult]) -> Callable[..., Coroutine[Any, Any, RunResult]]:
    """Return a call whose options are a request's fields, as a coroutine."""
    return _coroutine(call)


def _stream(
    call: Callable[Concatenate[Engine, P], Iterator[T]],
) -> Callable[Concatenate[AsyncEngine, P], AsyncGenerator[T, None]]:
    """Return a call that yields values as an asynchronous generator."""

    @functools.wraps(call)
    async def items(self: AsyncEngine, /, *args: P.args, **options: P.kwargs) -> AsyncGenerator[T]:
        iterator = await self._threaded(functools.partial(call, self.engine, *args, **options))

        def following() -> object:
            return next(iterator, _END)

        while (item := await self._threaded(following, waits=True)) is not _END:
            yield item  # type: ignore[misc]

    return items


class AsyncEngine:
    """An engine's calls as coroutines, with the same arguments, results and errors.

    Use it in the event loop that made it.

    :param engine: what does the work; it can be used by threads at the same time.
    :param threads: calls at once; more wait.
    """

    def __init__(self, engine: Engine, *, threads: int = THREADS) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(threads, "engine")

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, *, threads: int = THREADS, **options: Any) -> AsyncIterator[Self]:
        """Open an engine, with the options of :meth:`Engine.open`, and close it at the end."""
        engine = await asyncio.to_thread(functools.partial(Engine.open, **options))
        opened = cls(engine, threads=threads)
        try:
            yield opened
        finally:
            await opened.close()

    async def close(self) -> None:
        """Wait for calls in progress, and close the engine's connections."""
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self.engine.close)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Watch the runs of this engine: yields their events from now on, as they come.

        They are :class:`~vmcloner_core.plan.PlanReady`, ``StepEvent``, ``Seen``, ``Sample`` and
        ``RunFinished``; :func:`~vmcloner_core.event_stream.as_json` makes JSON objects of them. A
        reader that falls far behind misses the oldest ones.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def put(event: Event) -> None:
            if events.qsize() >= MAX_EVENTS:
                events.get_nowait()
            events.put_nowait(event)

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(put, event)

        async def come() -> AsyncIterator[Event]:
            while True:
                yield await events.get()

        stop = self.engine.plugins.watch(Watcher(tell))
        try:
            yield come()
        finally:
            stop()

    def cancel(self) -> None:
        """Stop all current runs of the engine cleanly; see :meth:`Engine.cancel`."""
        self.engine.cancel()

    async def _threaded(self, call: Callable[[], T], *, waits: bool = False) -> T:
        """Make a call in a thread; it is ended with the task.

        :param waits: it waits for something by :func:`~vmcloner_core.cancelling.pause`.
        """
        ending = Cancellation()

        def run() -> T:
            with contextlib.ExitStack() as stack:
                stack.enter_context(ending_with(ending))
                if waits:
                    stack.enter_context(cancellable(ending.event))
                if ending.asked:  # while it waited for a thread
                    raise Interrupted("stopped by the user")
                return call()

        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._threads, context.run, run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            ending.cancel()
            await _ended(future)
            raise

    create = _action(Engine.create)
    start = _action(Engine.start)
    stop = _action(Engine.stop)
    restart = _action(Engine.restart)
    pause = _action(Engine.pause)
    resume = _action(Engine.resume)
    save = _action(Engine.save)
    restore = _action(Engine.restore)
    set = _action(Engine.set)
    reset = _action(Engine.reset)
    delete = _action(Engine.delete)
    wait = _action(Engine.wait)
    create_snapshot = _coroutine(Engine.create_snapshot)
    revert_snapshot = _coroutine(Engine.revert_snapshot)
    delete_snapshot = _coroutine(Engine.delete_snapshot)
    plan = _coroutine(Engine.plan)
    run = _coroutine(Engine.run)
    apply = _coroutine(Engine.apply)
    move = _coroutine(Engine.move)
    gc = _coroutine(Engine.gc)
    diff_lab = _coroutine(Engine.diff_lab)
    apply_lab = _coroutine(Engine.apply_lab)
    lab_parts = _coroutine(Engine.lab_parts)
    lab_networks = _coroutine(Engine.lab_networks)
    records = _coroutine(Engine.records)
    delete_lab = _coroutine(Engine.delete_lab)
    survey = _coroutine(Engine.survey)
    list = _coroutine(Engine.list)
    show = _coroutine(Engine.show)
    spec = _coroutine(Engine.spec)
    started = _coroutine(Engine.started)
    reach = _coroutine(Engine.reach)
    fleets = _coroutine(Engine.fleets)
    all_fleets = _coroutine(Engine.all_fleets)
    missed = _coroutine(Engine.missed)
    domain_xml = _coroutine(Engine.domain_xml)
    domain_native = _coroutine(Engine.domain_native)
    console_log = _coroutine(Engine.console_log)
    boots = _coroutine(Engine.boots)
    read_console = _coroutine(Engine.read_console)
    attach_console = _coroutine(Engine.attach_console)
    display = _coroutine(Engine.display)
    screenshot = _coroutine(Engine.screenshot)
    access = _coroutine(Engine.access)
    execute = _coroutine(Engine.execute)
    audit = _coroutine(Engine.audit)
    networks = _coroutine(Engine.networks)
    prepare_network = _coroutine(Engine.prepare_network)
    remove_network = _coroutine(Engine.remove_network)
    check_host = _stream(Engine.check_host)
    resources = _coroutine(Engine.resources)
    templates = _coroutine(Engine.templates)
    template_rows = _coroutine(Engine.template_rows)
    template = _coroutine(Engine.template)
    origins = _coroutine(Engine.origins)
    import_template = _coroutine(Engine.import_template)
    pull_template = _coroutine(Engine.pull_template)
    pull_size = _coroutine(Engine.pull_size)
    build_image = _coroutine(Engine.build_image)
    capture_template = _coroutine(Engine.capture_template)
    export_template = _coroutine(Engine.export_template)
    delete_template = _coroutine(Engine.delete_template)
    warm_template = _coroutine(Engine.warm_template)
    warm_origins = _coroutine(Engine.warm_origins)
    delete_warm = _coroutine(Engine.delete_warm)
    leftovers = _coroutine(Engine.leftovers)
    stray_images = _coroutine(Engine.stray_images)
    prune_templates = _coroutine(Engine.prune_templates)
    check_template = _coroutine(Engine.check_template)
    leases = _coroutine(Engine.leases)
    extend_lease = _coroutine(Engine.extend_lease)
    end_lease = _coroutine(Engine.end_lease)
    prepare_gc = _coroutine(Engine.prepare_gc)
    remove_gc = _coroutine(Engine.remove_gc)
    machines = _coroutine(Engine.machines)
    pools = _coroutine(Engine.pools)
    pool = _coroutine(Engine.pool)
    benchmark = _coroutine(Engine.benchmark)
    pool_members = _coroutine(Engine.pool_members)
    fill_pool = _coroutine(Engine.fill_pool)
    empty_pool = _coroutine(Engine.empty_pool)
    acquire = _coroutine(Engine.acquire)
    renew = _coroutine(Engine.renew)
    release = _coroutine(Engine.release)
    put = _coroutine(Engine.put)
    get = _coroutine(Engine.get)
    console_lines = _stream(Engine.console_lines)
    statistics = _coroutine(Engine.statistics)
    usage = _coroutine(Engine.usage)
    events = _stream(Engine.events)


async def _ended(future: asyncio.Future[Any]) -> None:
    """Wait until a call in a thread has ended, whatever came of it."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({future})
    if not future.cancelled():
        future.exception()

"""A small HTTP service in front of vmcloner, for a test lab that many people share.

Start it with ``python service.py --port 8080``; it listens on this machine only.

    curl -X PUT localhost:8080/fleets/ci -d '{"template": "tiny", "count": 3, "ready": true}'
    curl localhost:8080/fleets/ci
    curl -N localhost:8080/events
    curl -X DELETE localhost:8080/fleets/ci

A request that is broken off ends its run. Put a proxy that checks users in front of it: who can
reach it can use the host's memory and disks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypedDict

from aiohttp import web

from vmcloner_core import Clone
from vmcloner_core.aio import AsyncEngine
from vmcloner_core.errors import NotFound, PartialFailure, VmclonerError
from vmcloner_core.event_stream import as_json
from vmcloner_core.request import CreateRequest, TargetRequest
from vmcloner_core.results import check_result

ENGINE = web.AppKey("engine", AsyncEngine)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Row(TypedDict):
    """A clone, as the service tells it."""

    name: str
    state: str
    ip: str | None


def row(clone: Clone) -> Row:
    """Return what the service tells of a clone."""
    return {"name": clone.name, "state": clone.state.value, "ip": clone.ip}


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors of the engine as JSON."""
    try:
        return await handler(request)
    except PartialFailure as error:
        failed = {name: cause.message for name, cause in error.failures}
        return web.json_response({"error": error.message, "failed": failed}, status=500)
    except VmclonerError as error:
        status = 404 if isinstance(error, NotFound) else 409
        return web.json_response({"error": error.message, "hint": error.hint}, status=status)


async def put_fleet(request: web.Request) -> web.Response:
    """Make a fleet, or what is missing of it: the same request again changes nothing."""
    engine = request.app[ENGINE]
    try:
        wanted = CreateRequest(fleet=request.match_info["fleet"], **await request.json())
    except (TypeError, ValueError) as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    check_result(await engine.run(wanted))
    return await get_fleet(request)


async def get_fleet(request: web.Request) -> web.Response:
    """Tell the clones of a fleet."""
    clones = await request.app[ENGINE].list(request.match_info["fleet"])
    return web.json_response([row(clone) for clone in clones])


async def delete_fleet(request: web.Request) -> web.Response:
    """Delete a fleet; one that isn't there is fine."""
    name = request.match_info["fleet"]
    wanted = TargetRequest(action="delete", targets=(name,), missing_ok=True)
    result = check_result(await request.app[ENGINE].run(wanted))
    return web.json_response({"deleted": [clone.name for clone in result.results]})


async def get_events(request: web.Request) -> web.StreamResponse:
    """Tell the events of all runs from now on, as JSON lines."""
    response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
    async with request.app[ENGINE].watching() as events:
        await response.prepare(request)
        async for event in events:
            await response.write(json.dumps(as_json(event)).encode() + b"\n")
    return response


def application(engine: AsyncEngine | None = None) -> web.Application:
    """Return the service, with an engine of its own unless one is given."""

    async def opened(app: web.Application) -> AsyncIterator[None]:
        if engine is not None:
            app[ENGINE] = engine
            yield
            return
        async with AsyncEngine.open() as own:
            app[ENGINE] = own
            yield

    app = web.Application(middlewares=[errors])
    app.cleanup_ctx.append(opened)
    app.router.add_put("/fleets/{fleet}", put_fleet)
    app.router.add_get("/fleets/{fleet}", get_fleet)
    app.router.add_delete("/fleets/{fleet}", delete_fleet)
    app.router.add_get("/events", get_events)
    return app


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Make and delete fleets by HTTP.")
    parser.add_argument("--port", type=int, default=8080)
    # A request that is broken off cancels its handler, and with it the run.
    web.run_app(application(), host="127.0.0.1", port=parser.parse_args().port,
                handler_cancellation=True)  # fmt: skip


if __name__ == "__main__":
    main()

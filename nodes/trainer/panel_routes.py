"""HTTP routes through which pages read the training runs and press their buttons."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from .panel import BUTTONS, find_run, known_runs

RUNS = "/pastiche/runs"
ACTION = RUNS + "/{run}/{action}"

_LARGEST_BODY = 64 * 1024  # in bytes; a button needs no body, as its address names it


def register_routes() -> None:
    """Add the routes to ComfyUI's server, if there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        # All methods are routed; otherwise ComfyUI's static files would answer wrong ones with 404.
        server.routes.route("*", RUNS)(show_runs)
        server.routes.route("*", ACTION)(press_button)


async def show_runs(request: web.Request) -> web.Response:
    """Respond with the running and the latest ended runs, including their curves."""
    if request.method not in ("GET", "HEAD"):
        return _refused(405, f"the runs are asked for by GET, got {request.method}", "GET, HEAD")
    return web.json_response({"runs": [run.snapshot() for run in known_runs()]})


async def press_button(request: web.Request) -> web.Response:
    """Press a button of a run and respond with the run's current state."""
    if request.method != "POST":
        return _refused(405, f"a button is pressed by POST, got {request.method}", "POST")
    if await _is_large(request):
        return _refused(413, f"a button needs no body, got one above {_LARGEST_BODY} bytes")
    run, action = request.match_info["run"], request.match_info["action"]
    panel = find_run(run)
    if panel is None:
        return _refused(404, f"the run must be one that this server trained, got {run[:40]!r}")
    if action not in BUTTONS:
        return _refused(404, f"the action must be one of {', '.join(BUTTONS)}, got {action[:40]!r}")
    if not panel.press(action):
        return _refused(409, f"run {run} has ended; queue the graph again to train on")
    return web.json_response(panel.snapshot())


async def _is_large(request: web.Request) -> bool:
    """Return whether the body exceeds the limit; it is neither stored nor read beyond it."""
    if (request.content_length or 0) > _LARGEST_BODY:
        return True
    size = 0
    async for chunk in request.content.iter_chunked(_LARGEST_BODY):
        size += len(chunk)
        if size > _LARGEST_BODY:
            return True
    return False


def _refused(status: int, sentence: str, allowed: str = "") -> web.Response:
    headers = {"Allow": allowed} if allowed else None
    return web.json_response({"error": sentence}, status=status, headers=headers)

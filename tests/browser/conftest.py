"""Open the real frontend in a real Chromium, and read its state."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui.server import PACK_FOLDER, ComfyServer
from comfyui.toy_base import place_examples
from environment.browser_binary import ensure_browser
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

sys.path.append(str(Path(__file__).resolve().parent))  # for regions_canvas.py in this folder

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT = 300_000  # milliseconds; on two busy cores the frontend takes a minute to start
SETTLING_TIME = 1500  # milliseconds; FitView is animated, and widgets are mounted one by one

# Lists all nodes, also those inside subgraphs.
WALK = """
const walk = (graph) => graph.nodes.flatMap(
  (node) => [node, ...(node.subgraph ? walk(node.subgraph) : [])]);
"""


class Frontend:
    """A page of the frontend, and the errors on its console."""

    def __init__(self, page: Page, server: ComfyServer, screenshots: Path) -> None:
        self.page = page
        self.vue_nodes = False
        self.errors: list[str] = []
        self._server = server
        self._screenshots = screenshots
        page.set_default_timeout(TIMEOUT)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def open(self, *, vue_nodes: bool) -> None:
        """Load the frontend with Nodes 2.0 on or off.

        Errors during the start, before a graph is loaded, are ignored unless they name the pack.
        """
        self.vue_nodes = vue_nodes
        self._server.post("/settings", {"Comfy.VueNodes.Enabled": vue_nodes})
        self.page.goto(self._server.url)
        self.page.wait_for_function(
            # The public getter prints an error on the console until the graph exists.
            "() => window.app?.vueAppReady && window.app.rootGraphInternal?.nodes.length > 0"
        )
        self.page.wait_for_load_state("networkidle")
        own = [error for error in self.errors if "Pastiche" in error]
        if own:
            raise RuntimeError(f"the pack must load without an error on the console, got {own}")

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow in place of the present one, and clear ``errors``."""
        self.errors.clear()
        self.page.evaluate(
            """async (workflow) => {
              await window.app.loadGraphData(workflow);
              await window.app.extensionManager.command.execute("Comfy.Canvas.FitView");
            }""",
            workflow,
        )
        self.page.wait_for_timeout(SETTLING_TIME)

    def template(self, name: str) -> dict[str, Any]:
        """Fetch a template of the pack as the template browser does."""
        return json.loads(self._server.get(f"/api/workflow_templates/{PACK_FOLDER}/{name}.json"))

    def missing_types(self) -> list[str]:
        """Return the types of nodes that the frontend does not know."""
        return self.page.evaluate(
            "() => {" + WALK + "return walk(window.app.rootGraph).map((node) => node.type)"
            ".filter((type) => !(type in window.LiteGraph.registered_node_types)) }"
        )

    def node_count(self) -> int:
        """Return the number of nodes of the open graph, without those inside subgraphs."""
        return self.page.evaluate("window.app.rootGraph.nodes.length")

    def vue_node_count(self) -> int:
        """Return the number of nodes drawn by Nodes 2.0; 0 while it is off."""
        return self.page.locator("[data-node-id]").count()

    def prompt(self) -> dict[str, dict[str, Any]]:
        """Return the open graph as the frontend would queue it."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def screenshot(self, name: str) -> Path:
        """Save a screenshot of the page and return its path."""
        path = self._screenshots / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Yield one browser process; every page fixture opens a separate context, hence profile, in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(ensure_browser()), headless=True, args=FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """Yield the folder for screenshots and print its path at the end of the run."""
    folder = tmp_path_factory.mktemp("screenshots")
    yield folder
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:  # worker processes have none
        reporter.write_line(f"\nscreenshots: {folder}")


@pytest.fixture(scope="session")
def visited_server(comfy_server: ComfyServer) -> ComfyServer:
    """Return the server in its state after a first visit.

    It shows no tour, and all files that the frontend requests exist.
    """
    place_examples(comfy_server.base_directory)
    user = comfy_server.base_directory / "user" / "default"
    for folder in ("workflows", "subgraphs"):
        (user / folder).mkdir(parents=True, exist_ok=True)
    (user / "user.css").touch()
    (user / "comfy.templates.json").write_text("[]", encoding="utf-8")
    settings = {
        "Comfy.TutorialCompleted": True,
        "Comfy.UseNewMenu": "Top",
        "Comfy.Minimap.Visible": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False,
    }
    comfy_server.post("/settings", settings)
    return comfy_server


@pytest.fixture(scope="module", params=[False, True], ids=["nodes1", "nodes2"])
def frontend(
    chromium: Browser,
    visited_server: ComfyServer,
    screenshots: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Frontend]:
    """Yield a page in a fresh profile, with Nodes 2.0 off and on; a module's tests share both."""
    context = chromium.new_context(viewport={"width": 2560, "height": 1440})
    frontend = Frontend(context.new_page(), visited_server, screenshots)
    frontend.open(vue_nodes=request.param)
    yield frontend
    context.close()

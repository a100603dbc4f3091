"""Write the templates and their API graphs through ComfyUI's own frontend.

    python3 scripts/dev.py templates

The frontend itself saves the template and exports the API graph, so this module needs no knowledge
of their formats. Run it after a change of a layout in this folder or of a node's inputs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comfyui.server import ComfyServer, make_base_directory
from comfyui.toy_base import place_examples
from environment import REPOSITORY
from environment.browser_binary import ensure_browser
from playwright.sync_api import Page, sync_playwright

from . import LAYOUTS
from .parts import Layout

TEMPLATES = REPOSITORY / "workflows"
GRAPHS = REPOSITORY / "tests" / "graphs"
READY = "() => Boolean(window.app?.graph && LiteGraph.registered_node_types.MarkdownNote)"
BUILD = """
async (layout) => {
  app.graph.clear();
  const made = {};
  for (const [name, spec] of Object.entries(layout.nodes)) {
    const node = LiteGraph.createNode(spec.type);
    if (!node) throw new Error(`no node type ${spec.type}`);
    app.graph.add(node);
    if (spec.title) node.title = spec.title;
    node.pos = spec.place;
    node.setSize(spec.size);
    for (const [widget, value] of Object.entries(spec.widgets)) {
      const found = (node.widgets ?? []).find((item) => item.name === widget);
      if (!found) throw new Error(`${spec.type} has no widget ${widget}`);
      found.value = value;
    }
    made[name] = node;
  }
  for (const [name, spec] of Object.entries(layout.nodes)) {
    for (const [input, [from, output]] of Object.entries(spec.inputs)) {
      if (!made[from]) throw new Error(`${name}.${input} comes from no node: ${from}`);
      if (!made[from].connect(output, made[name], input)) {
        throw new Error(`${name}.${input} does not take output ${output} of ${from}`);
      }
    }
  }
  for (const spec of layout.groups) {
    const group = new LGraphGroup(spec.title);
    group.pos = spec.place;
    group.size = spec.size;
    app.graph.add(group);
  }
  const { output } = await app.graphToPrompt();
  // Returned as text, because absent values must stay absent.
  return JSON.stringify({ workflow: app.graph.serialize(), graph: output });
}
"""


def _build(page: Page, name: str, layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    made = json.loads(page.evaluate(BUILD, asdict(layout)))
    workflow, graph = made["workflow"], made["graph"]
    # The frontend draws a random id; a template keeps the same one.
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"pastiche/{name}"))
    workflow["extra"]["ds"] = {"scale": 0.6, "offset": [60, 80]}
    return workflow, graph


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Start a server, build every layout in its page, and write the templates and graphs."""
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory(prefix="pastiche-templates-") as temporary:
        base = make_base_directory(Path(temporary) / "base")
        place_examples(base)
        server = ComfyServer(Path(sys.executable), comfyui, base, log=Path(temporary) / "log")
        with server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=ensure_browser(), args=["--no-sandbox", "--disable-gpu"]
            )
            for name, layout in LAYOUTS.items():
                # Every layout gets a new page: the frontend keeps the values of widgets by node id
                # and would restore those of the cleared graph in the nodes of the next one.
                page = browser.new_page()
                page.goto(server.url, wait_until="domcontentloaded", timeout=120_000)
                page.wait_for_function(READY, timeout=120_000)
                workflow, graph = _build(page, name, layout)
                page.close()
                _write(TEMPLATES / f"{name}.json", workflow)
                _write(GRAPHS / f"{name}.json", graph)
            browser.close()


if __name__ == "__main__":
    main()

"""A run on its node's panel: watched, sampled, saved, reloaded, cancelled, gone on with, stopped."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from substitution import toy_graph

TRAINER = "PasticheTrainPair"
DROP = """
async ([name, text]) => {
  await window.app.handleFile(new File([text], name, { type: "application/json" }));
}
"""
FIT = '() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView")'
QUEUE = "() => window.app.queuePrompt(0, 1)"
SAVED = """
() => window.app.rootGraph.serialize().nodes
  .filter((node) => node.type.startsWith("PasticheTrain")).map((node) => node.widgets_values)
"""
INTO_SUBGRAPH = """
(id) => {
  const graph = window.app.rootGraph;
  const { node } = graph.convertToSubgraph(new Set([graph.getNodeById(id)]));
  return String(node.id);
}
"""
ENTER = """
(id) => {
  const { canvas, rootGraph } = window.app;
  const node = rootGraph.getNodeById(id);
  canvas.openSubgraph(node.subgraph, node);
}
"""
IN_VIEW = """
(panel) => {
  const { left, right, top, bottom } = panel.getBoundingClientRect();
  return left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight;
}
"""
TIMEOUT = 90_000


def trainers(run_name: str, steps: list[int]) -> dict[str, Any]:
    """Return the toy graph's trainer, once for every number of steps, with ids from 100 on."""
    graph = toy_graph("pair_customization")
    (key,) = [key for key, node in graph.items() if node["class_type"] == TRAINER]
    inputs = graph[key]["inputs"]
    kept = {link[0]: graph[link[0]] for link in inputs.values() if isinstance(link, list)}
    for node in kept.values():
        if node["class_type"] == "PasticheTrainingSettings":
            node["inputs"] |= {"batch_size": 1, "resolution": 32}
    for number, count in enumerate(steps):
        changes = {"steps": count, "rank": 4, "seed": number, "run_name": f"{run_name}_{number}"}
        kept[str(100 + number)] = {"class_type": TRAINER, "inputs": {**inputs, **changes}}
    return kept


class Panels:
    """The panels of the open page, as a user sees them."""

    def __init__(self, frontend: Any) -> None:
        self.page = frontend.page

    def one(self, state: str, text: str = "") -> Any:
        """Wait for a panel in that state, with that text, and return it."""
        found = self.page.locator(f'.pastiche-panel[data-state="{state}"]:visible')
        found = found.filter(has_text=text)
        self.until(lambda: found.count() > 0, f"a panel that is {state} {text}")
        return found.first

    def status(self, panel: Any) -> str:
        return panel.locator(".pastiche-status").inner_text()

    def step(self, panel: Any) -> int:
        return int(re.search(r"step (\d+) of", self.status(panel), re.IGNORECASE)[1])

    def until(self, question: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT / 1000
        while time.monotonic() < deadline:
            if question():
                return
            self.page.wait_for_timeout(100)
        shown = self.page.locator(".pastiche-panel").all_inner_texts()
        raise AssertionError(f"the page must come to show {what}, got {shown}")

    def curve(self, panel: Any) -> list[str]:
        return panel.locator(".pastiche-smooth").get_attribute("points").split()


@pytest.fixture
def panels(frontend, toy_server) -> Panels:
    frontend.errors.clear()
    return Panels(frontend)


def test_a_run_is_watched_and_steered(frontend, panels):
    mode = "nodes2" if frontend.vue_nodes else "nodes1"
    page = frontend.page
    page.evaluate(DROP, ["graph.json", json.dumps(trainers(f"panel_{mode}", [3000]))])
    page.wait_for_timeout(1000)
    assert page.locator(".pastiche-panel").count() == 0
    saved = page.evaluate(SAVED)
    page.evaluate(QUEUE)
    panel = panels.one("running")
    panels.until(lambda: panels.step(panel) >= 5, "five steps")
    before = panels.curve(panel)
    panels.until(lambda: panels.curve(panel) != before, "a curve that moves")
    panels.until(lambda: "left" in panels.status(panel), "the time that is left")
    assert "loss" in panel.locator(".pastiche-values").inner_text()

    panel.get_by_role("button", name="Sample now").click()
    image = panel.get_by_role("img", name=re.compile("Preview at step"))
    image.wait_for(timeout=TIMEOUT)
    panels.until(lambda: image.evaluate("(image) => image.naturalWidth") == 32, "a picture")
    panel.get_by_role("button", name="Save now").click()
    panels.until(lambda: "saved step" in panel.inner_text(), "where it was saved")
    scale = panel.get_by_role("button", name="Logarithmic scale")
    before = panel.locator(".pastiche-raw").get_attribute("points")
    scale.click()
    assert scale.get_attribute("aria-pressed") == "true"
    assert panel.locator(".pastiche-raw").get_attribute("points") != before
    assert page.evaluate(SAVED) == saved
    frontend.screenshot(f"panel-running-{mode}")

    step = panels.step(panel)
    page.wait_for_timeout(1500)  # the page keeps its graph for the next visit a moment later
    frontend.open(vue_nodes=frontend.vue_nodes)
    panel = panels.one("running")
    assert panels.step(panel) >= step
    assert len(panels.curve(panel)) >= step
    panel.get_by_role("img", name=re.compile("Preview at step")).wait_for(timeout=TIMEOUT)
    frontend.screenshot(f"panel-reloaded-{mode}")

    page.evaluate("() => window.app.api.interrupt(null)")
    panel = panels.one("broken")
    panels.until(lambda: "is kept" in panel.inner_text(), "which step is kept")
    kept = panels.step(panel)
    page.evaluate(QUEUE)
    panel = panels.one("running")
    panels.until(lambda: panels.step(panel) > kept, "a run that goes on")
    assert "goes on from step" in panel.inner_text()
    assert len(panels.curve(panel)) > kept

    stop = panel.get_by_role("button", name="Stop and keep")
    stop.focus()
    page.keyboard.press("Enter")
    panel = panels.one("stopped")
    assert panels.status(panel).startswith("Stopped and kept at step")
    assert not stop.is_visible()
    frontend.screenshot(f"panel-stopped-{mode}")
    assert page.evaluate(SAVED) == saved
    assert [error for error in frontend.errors if "astiche" in error] == []


def test_two_trainers_and_a_subgraph_do_not_mix(frontend, panels):
    mode = "nodes2" if frontend.vue_nodes else "nodes1"
    page = frontend.page
    page.evaluate(DROP, ["graph.json", json.dumps(trainers(f"two_{mode}", [12, 17]))])
    page.wait_for_timeout(1000)
    assert page.locator(".pastiche-panel").count() == 0
    outer = page.evaluate(INTO_SUBGRAPH, 101)
    page.evaluate(QUEUE)
    panels.one("finished", "Finished at step 12 of 12")
    assert page.locator(".pastiche-panel:visible").count() == 1
    page.evaluate(ENTER, int(outer))
    panel = panels.one("finished", "Finished at step 17 of 17")
    panels.until(lambda: page.locator(".pastiche-panel:visible").count() == 1, "one panel")
    assert len(panels.curve(panel)) == 17
    page.evaluate(FIT)
    page.wait_for_timeout(1000)
    assert panel.evaluate(IN_VIEW)
    frontend.screenshot(f"panel-subgraph-{mode}")
    assert [error for error in frontend.errors if "astiche" in error] == []

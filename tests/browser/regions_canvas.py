"""The canvas of Regions on an open page, used as a person would use it."""

from typing import Any

from pack.lora_ops.region_text import parse_regions

WIDTH, HEIGHT = 1024, 512
WORKFLOW = {
    "version": 0.4,
    "last_node_id": 3,
    "last_link_id": 1,
    "nodes": [
        {
            "id": 1,
            "type": "PasticheRegions",
            "pos": [500, 200],
            "size": [480, 760],
            "inputs": [],
            "outputs": [{"name": "regions", "type": "PASTICHE_REGIONS", "links": [1]}],
            "widgets_values": ["", WIDTH, HEIGHT, ""],
        },
        {
            "id": 2,
            "type": "PasticheShowRegions",
            "pos": [1050, 200],
            "size": [300, 450],
            "inputs": [{"name": "regions", "type": "PASTICHE_REGIONS", "link": 1}],
            "outputs": [],
            "widgets_values": [WIDTH, HEIGHT, 1.0, ""],
        },
        {
            "id": 3,
            "type": "LoadImage",
            "pos": [100, 200],
            "size": [300, 300],
            "inputs": [],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}],
            "widgets_values": ["blueprint_after.png", "image"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "PASTICHE_REGIONS"]],
}
WALK = """
const walk = (graph) => graph.nodes.flatMap(
  (node) => [node, ...(node.subgraph ? walk(node.subgraph) : [])]);
const node = walk(window.app.rootGraph).find((one) => one.type === "PasticheRegions");
const widget = (name) => node.widgets.find((one) => one.name === name);
"""
SAVED = "() => JSON.stringify(window.app.rootGraph.serialize())"
DROP = """
async (text) => {
  await window.app.handleFile(new File([text], "saved.json", { type: "application/json" }));
  await window.app.extensionManager.command.execute("Comfy.Canvas.FitView");
}
"""
QUEUE = """
() => new Promise((resolve, reject) => {
  const { api } = window.app;
  api.addEventListener("executed", ({ detail }) => {
    if (detail.output?.images) resolve(detail.output.images[0]);
  });
  api.addEventListener("execution_error", ({ detail }) => reject(detail.exception_message));
  window.app.queuePrompt(0, 1);
})
"""
SUBGRAPH = """
() => {
  const { canvas, rootGraph } = window.app;
  const { node } = rootGraph.convertToSubgraph(new Set([rootGraph.getNodeById(1)]));
  canvas.openSubgraph(node.subgraph, node);
}
"""
OPEN = """
() => {
  const { canvas, rootGraph } = window.app;
  const host = rootGraph.nodes.find((one) => one.subgraph);
  canvas.openSubgraph(host.subgraph, host);
}
"""
FOLLOWERS = """
async () => {
  const { Editor } = await import("/extensions/ComfyUI-Pastiche/js/regions_editor/editor.js");
  const { refresh } = Editor.prototype;
  const asked = new Set();
  Editor.prototype.refresh = function () { asked.add(this); refresh.call(this) };
  window.app.api.dispatchCustomEvent("graphChanged", {});
  Editor.prototype.refresh = refresh;
  return asked.size;
}
"""
FIT = '() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView")'
TEXT = "(name) => {" + WALK + "return widget(name).value }"


class Canvas:
    """The editor on the open page, used as a person would."""

    def __init__(self, frontend: Any) -> None:
        self.frontend = frontend
        self.page = frontend.page
        self.mode = "nodes2" if frontend.vue_nodes else "nodes1"

    @property
    def area(self) -> Any:
        return self.page.get_by_role("group", name="Regions of the picture")

    @property
    def boxes(self) -> Any:
        return self.area.get_by_role("button")

    def box(self, name: str) -> Any:
        return self.area.get_by_role("button", name=f"{name},")

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name).click()

    def type(self, label: str, text: str) -> None:
        field = self.page.get_by_label(label)
        field.fill(text)
        field.press("Enter")

    def wait_for_status(self, text: str) -> None:
        self.page.get_by_role("status").filter(has_text=text).wait_for()

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the picture, in its pixels, is on the page."""
        area = self.area.bounding_box()
        return area["x"] + x / WIDTH * area["width"], area["y"] + y / HEIGHT * area["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        (x, y), (to_x, to_y) = self.point(*start), self.point(*end)
        mouse.move(x, y)
        mouse.down()
        mouse.move((x + to_x) / 2, (y + to_y) / 2)
        mouse.move(to_x, to_y)
        mouse.up()

    def text(self, name: str = "regions") -> str:
        return self.page.evaluate(TEXT, name)

    def pixels(self) -> dict[str, tuple[int, ...]]:
        """Return each region's edges in the picture's pixels, as the server reads the text."""
        found = {}
        for region in parse_regions(self.text()):
            left, top, right, bottom = region.box
            edges = (left * WIDTH, top * HEIGHT, right * WIDTH, bottom * HEIGHT)
            found[region.name] = tuple(round(edge) for edge in edges)
        return found

    def saved(self) -> str:
        """Return the graph as a file of it holds it."""
        return self.page.evaluate(SAVED)

    def drop(self, saved: str) -> None:
        """Open such a file."""
        self.page.evaluate(DROP, saved)

    def queue(self) -> dict[str, str]:
        """Run the graph and return where its picture lies."""
        return self.page.evaluate(QUEUE)

    def into_subgraph(self) -> None:
        """Put the node into a subgraph and look at it there."""
        self.page.evaluate(SUBGRAPH)
        self.page.wait_for_timeout(1000)
        self.page.evaluate(FIT)
        self.page.wait_for_timeout(1500)

    def open_subgraph(self) -> None:
        """Look into the graph's subgraph."""
        self.page.evaluate(OPEN)
        self.page.wait_for_timeout(1000)
        self.page.evaluate(FIT)
        self.page.wait_for_timeout(1500)

    def followers(self) -> int:
        """Return how many editors follow a change of the graph."""
        return self.page.evaluate(FOLLOWERS)

    def screenshot(self, name: str) -> None:
        self.frontend.screenshot(f"regions-{name}-{self.mode}")

"""The canvas of Regions: drawn, named, undone, saved, reloaded, opened elsewhere and queued."""

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from pack.lora_ops.region_text import parse_layout, parse_regions, regions_text
from PIL import Image
from regions_canvas import HEIGHT, WALK, WIDTH, WORKFLOW, Canvas

ERROR = "regions, line"
UNDONE = "() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.redoQueue.length"
CONNECT = (
    "() => {"
    + WALK
    + """
  const slot = node.inputs.findIndex((input) => input.name === "background");
  window.app.rootGraph.getNodeById(3).connect(0, node, slot);
}"""
)
ON_CHANGE = """
(on) => {
  window.app.ui.autoQueueEnabled = on;
  window.app.ui.autoQueueMode = on ? "change" : "instant";
}
"""
READ = """
async ([part, name, text]) => {
  const part_ = await import(`/extensions/ComfyUI-Pastiche/js/regions_editor/${part}.js`);
  try { return { read: part_[name](text) } } catch (error) { return { error: error.message } }
}
"""
# What hand-written texts hold, and what is wrong with them.
TEXTS = [
    "",
    "{}",
    "[]",
    '{"regions": []}',
    '{"regions": [], "other": 1}',
    '{"regions": {}}',
    '{"regions": [\n  3\n]}',
    '{"regions": [\n  {"name": "cat", "x": 0, "y": 0, "width": 0.5, "height": 1}\n],\n}',
    '{"regions": [\n  {"name": "cat", "x": 0, "y": 0 "width": 0.5}\n]}',
    '{"regions": [{"name": "cat", "x": 0, "y": 0,\n "width": 0.5, "x": 0.1, "height": 1}]}',
    '{"regions": [{"name": "cat", "x": 0.5, "y": 0,\n "width": 0.6, "height": 1}]}',
    '{"regions": [{"name": "cat", "x": 0.5, "y": 0, "width": 0.5,\n "height": 0}]}',
    '{"regions": [{"name": "cat", "x": 0.5, "y": 0, "width": 0.5}]}',
    '{"regions": [{"name": " ", "x": 0.5, "y": 0, "width": 0.5, "height": 1}]}',
    '{"regions": [{"name": "a", "x": 0, "y": 0, "width": 1, "height": 1, "colour": "red"}]}',
    '{"regions": [{"name": "a", "x": 0, "y": 0, "width": 1, "height": 1, "hight": 1}]}',
    '{"regions": [{"name": "a", "x": true, "y": 0, "width": 1, "height": 1}]}',
    '{"regions": [{"name": "a", "x": 0, "y": 0, "width": 1, "height": 1,\n "end_percent": 0}]}',
    '{"regions": [{"name": "a", "x": 0, "y": 0, "width": 1, "height": 1},\n'
    ' {"name": "a", "x": 0, "y": 0, "width": 1, "height": 1}]}',
    '{"regions": [{"name": " cat", "x": 0, "y": 0, "width": 1, "height": 1},\n'
    ' {"name": "the dog\\n", "x": 0, "y": 0, "width": 1, "height": 1}]}',
    '{"regions": [{"name": "cat", "x": 0, "y": 0, "width": 1, "height": 1},\n'
    ' {"name": " cat ", "x": 0, "y": 0, "width": 1, "height": 1}]}',
    '{"regions": [{"name": " cat ", "x": "left", "y": 0, "width": 1, "height": 1}]}',
    '{"regions": [{"name": "d\\u00e9 \\"x\\"", "x": 1e-1, "y": 0, "width": 0.1, "height": 1,\n'
    ' "feather": 0.25, "weight": 3, "blend": 0.5, "start_percent": 0.1, "colour": "#a0B0c0"}],\n'
    ' "editor": {"of": ["others", {"a": null}]}}',
]
LAYOUTS = ["", "1", "1,2,1 / 1", "3: 1,2 / 1: .5", "1\n1,1", "0", "1,,2", "x: 1 / 2", "1 /", "inf"]


def drop_unset(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the colours that are none."""
    return [{k: v for k, v in one.items() if (k, v) != ("colour", "")} for one in regions]


@pytest.fixture
def canvas(frontend) -> Canvas:
    frontend.load(WORKFLOW)
    return Canvas(frontend)


def test_three_regions_are_drawn_named_saved_reopened_and_queued(
    canvas, frontend, comfy_server, chromium
):
    page = canvas.page
    canvas.drag((70, 60), (440, 450))
    canvas.drag((570, 70), (960, 250))
    canvas.drag((640, 310), (900, 500))
    drawn = {"region 1": (64, 64, 448, 448), "region 2": (576, 64, 960, 256)}
    assert canvas.pixels() == {**drawn, "region 3": (640, 320, 896, 512)}
    page.keyboard.press("Control+z")
    assert canvas.pixels() == drawn
    assert canvas.boxes.count() == 2
    page.keyboard.press("Control+y")
    assert canvas.boxes.count() == 3
    for _ in range(3):
        page.keyboard.press("Control+z")
    assert canvas.boxes.count() == 0
    for _ in range(3):
        page.keyboard.press("Control+Shift+Z")
    page.wait_for_timeout(200)  # the page looks at keys a frame later
    assert page.evaluate(UNDONE) == 0
    assert frontend.node_count() == 3

    canvas.box("region 1").click()
    canvas.type("Name of the region", "cat")
    canvas.box("region 2").click()
    canvas.type("Name of the region", "cat")
    canvas.wait_for_status("each name once")
    canvas.type("Name of the region", "dog")
    canvas.type("Left edge in pixels", "600")
    page.get_by_label("Colour of the region").fill("#123456")
    regions = {"cat": (64, 64, 448, 448), "dog": (600, 64, 984, 256)}
    regions |= {"region 3": (640, 320, 896, 512)}
    assert canvas.pixels() == regions
    canvas.screenshot("drawn")
    text, saved = canvas.text(), canvas.saved()
    assert regions_text(parse_regions(text)).count("\n") == text.count("\n")
    assert frontend.prompt()["1"]["inputs"]["regions"] == text
    assert "background" not in frontend.prompt()["1"]["inputs"]

    page.wait_for_timeout(1500)  # the page keeps its graph for the next visit a moment later
    frontend.open(vue_nodes=frontend.vue_nodes)
    canvas.boxes.first.wait_for()
    assert canvas.text() == text
    assert canvas.boxes.count() == 3
    assert [error for error in frontend.errors if "astiche" in error] == []

    context = chromium.new_context(viewport={"width": 1600, "height": 1000})
    fresh = type(frontend)(context.new_page(), comfy_server, frontend._screenshots)
    fresh.open(vue_nodes=frontend.vue_nodes)
    there = Canvas(fresh)
    there.drop(saved)
    there.box("cat").wait_for()
    there.screenshot("fresh-profile")
    image = there.queue()
    context.close()
    assert {region.name: region.colour for region in parse_regions(text)}["dog"] == "#123456"
    assert_picture_shows(comfy_server.get("/view", **image), text, regions)


def assert_picture_shows(file: bytes, text: str, regions: dict[str, tuple[int, ...]]) -> None:
    """Check that a picture has each region's colour within its edges and nowhere else."""
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    assert picture.size == (WIDTH, HEIGHT)
    colours = {region.name: region.colour for region in parse_regions(text)}
    for name, (left, top, right, bottom) in regions.items():
        colour = [int(colours[name][i : i + 2], 16) for i in (1, 3, 5)]
        rows, columns = np.nonzero((np.array(picture) == colour).all(-1))
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert edges == (left, top, right, bottom)


def test_keys_move_resize_copy_order_and_delete(canvas):
    page = canvas.page
    canvas.press("Add a region")
    assert canvas.pixels() == {"region 1": (256, 128, 512, 256)}
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    assert canvas.pixels() == {"region 1": (320, 192, 640, 256)}
    page.keyboard.press("Alt+ArrowLeft")
    assert canvas.pixels() == {"region 1": (319, 192, 639, 256)}
    page.keyboard.press("Control+d")
    page.keyboard.press("Control+c")
    page.keyboard.press("Control+v")
    assert list(canvas.pixels()) == ["region 1", "region 2", "region 3"]
    focused = page.locator(":focus")
    assert focused.get_attribute("aria-label").startswith("region 3, 3 of 3, left")
    page.keyboard.press("Shift+Tab")
    assert focused.get_attribute("aria-label").startswith("region 2, 2 of 3")
    page.keyboard.press("PageDown")
    assert focused.get_attribute("aria-label").startswith("region 2, 1 of 3")
    assert list(canvas.pixels()) == ["region 2", "region 1", "region 3"]
    page.keyboard.press("Tab")
    page.keyboard.press("Delete")
    assert list(canvas.pixels()) == ["region 2", "region 3"]
    page.keyboard.press("Enter")
    page.keyboard.type("bird")
    page.keyboard.press("Enter")
    assert list(canvas.pixels()) == ["region 2", "bird"]
    # Where the page queues every change, it looks for undo in fields as well.
    page.evaluate(ON_CHANGE, True)
    page.keyboard.press("Control+z")
    page.wait_for_timeout(300)
    page.evaluate(ON_CHANGE, False)
    assert list(canvas.pixels()) == ["region 2", "region 3"]
    assert page.evaluate(UNDONE) == 0
    for _ in range(20):
        page.keyboard.press("Control+z")
        page.wait_for_timeout(20)  # the page looks at every key a frame later
    assert canvas.pixels() == {}
    assert page.evaluate(UNDONE) == 0
    canvas.press("Add a region")
    canvas.press("Copy the selected region")
    for _ in range(4):  # more often than there are regions, and the node stays
        page.keyboard.press("Delete")
    assert canvas.pixels() == {}
    assert canvas.frontend.node_count() == 3


def test_handles_snapping_feather_and_a_finger(canvas):
    page = canvas.page
    before_zoom = canvas.area.bounding_box()
    canvas.press("Snap edges to a grid")
    canvas.drag((100, 100), (300, 200))
    left, top, right, bottom = canvas.pixels()["region 1"]
    assert (left, top, right, bottom) == pytest.approx((100, 100, 300, 200), abs=3)
    canvas.press("Snap edges to a grid")
    canvas.type("Grid in pixels", "32")
    canvas.drag((right - 2, bottom - 2), (500, 400))
    assert canvas.pixels()["region 1"] == (left, top, 512, 416)
    canvas.drag((300, 250), (332, 250))
    assert canvas.pixels()["region 1"][0] == 128
    canvas.type("Width of the soft edge", "0.125")
    assert parse_regions(canvas.text())[0].feather == 0.125
    canvas.type("Width of the soft edge", "3")
    assert parse_regions(canvas.text())[0].feather == 0.125
    canvas.wait_for_status("from 0 to 1")
    canvas.screenshot("feather")
    page.mouse.move(*canvas.point(900, 100))
    page.mouse.wheel(0, -100)
    page.wait_for_timeout(1000)
    assert canvas.area.bounding_box()["width"] > before_zoom["width"]
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *place: float) -> None:
        points = [dict(zip("xy", canvas.point(*place), strict=True))] if place else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 700, 100)
    touch("touchMove", 800, 200)
    touch("touchMove", 960, 480)
    touch("touchEnd")
    assert canvas.pixels()["region 2"] == (704, 96, 960, 480)


def test_a_text_with_a_mistake_is_explained_and_kept(canvas, frontend):
    page = canvas.page
    wrong = '{"regions": [\n  {"name": "cat", "x": 0.5, "y": 0, "width": 0.6, "height": 1}\n]}'
    workflow = json.loads(json.dumps(WORKFLOW))
    workflow["nodes"][0]["widgets_values"][0] = wrong
    frontend.load(workflow)
    with pytest.raises(ValueError, match="must end inside") as refused:
        parse_regions(wrong)
    problem = page.get_by_role("status").filter(has_text=ERROR)
    assert problem.inner_text() == str(refused.value)
    canvas.drag((100, 100), (300, 300))
    page.keyboard.press("Delete")
    assert page.get_by_role("button", name="Add a region").is_disabled()
    canvas.screenshot("mistake")
    assert canvas.text() == frontend.prompt()["1"]["inputs"]["regions"] == wrong
    canvas.press("Show the text")
    written = page.get_by_role("textbox", name="The regions as text")
    assert written.input_value() == wrong
    written.fill(wrong.replace("0.6", "0.5"))
    problem.wait_for(state="hidden")
    canvas.press("Show the regions as text")
    assert canvas.pixels() == {"cat": (512, 0, 1024, 512)}
    canvas.press("Undo the last change")
    assert canvas.text() == wrong


def test_rows_and_columns_and_a_background(canvas, frontend):
    page = canvas.page
    canvas.drag((70, 60), (440, 450))
    canvas.type("Rows and columns", "1,2,1 / 1")
    assert canvas.boxes.count() == 4
    assert frontend.prompt()["1"]["inputs"]["layout"] == "1,2,1 / 1"
    assert list(canvas.pixels()) == ["region 1"]
    canvas.screenshot("rows")
    canvas.press("Make boxes of them")
    assert canvas.text("layout") == ""
    assert [region.box for region in parse_regions(canvas.text())] == [
        region.box for region in parse_layout("1,2,1 / 1")
    ]
    canvas.press("Undo the last change")
    assert canvas.text("layout") == "1,2,1 / 1"
    canvas.type("Rows and columns", "1,x")
    canvas.wait_for_status("row 1 must be")
    field = page.get_by_label("Rows and columns")
    field.fill("1,2")
    page.evaluate("() => window.app.api.dispatchCustomEvent('graphChanged', {})")
    assert field.input_value() == "1,2"  # what is being typed stays
    canvas.type("Rows and columns", "")
    assert canvas.boxes.count() == 1
    wide = canvas.area.bounding_box()
    assert abs(wide["width"] / wide["height"] - WIDTH / HEIGHT) < 0.02
    page.evaluate(CONNECT)
    page.wait_for_function("() => document.querySelector('.pastiche-stage img').naturalWidth > 0")
    square = canvas.area.bounding_box()
    assert abs(square["width"] / square["height"] - 1) < 0.02
    canvas.screenshot("background")


def test_inside_a_subgraph(canvas, frontend, comfy_server, chromium):
    page = canvas.page
    canvas.drag((70, 60), (440, 450))
    canvas.into_subgraph()
    canvas.drag((570, 70), (960, 250))
    assert canvas.pixels()["region 2"] == (576, 64, 960, 256)
    canvas.drag((640, 310), (900, 500))
    page.keyboard.press("Control+z")
    page.wait_for_timeout(200)
    assert canvas.boxes.count() == 2
    assert page.evaluate(UNDONE) == 0
    canvas.box("region 2").click()
    canvas.type("Name of the region", "dog")
    canvas.screenshot("subgraph")
    text, saved = canvas.text(), canvas.saved()
    drawn = {"region 1": (64, 64, 448, 448), "dog": (576, 64, 960, 256)}
    assert canvas.pixels() == drawn
    (node,) = [n for n in frontend.prompt().values() if n["class_type"] == "PasticheRegions"]
    assert node["inputs"]["regions"] == text

    page.wait_for_timeout(1500)  # the page keeps its graph for the next visit a moment later
    frontend.open(vue_nodes=frontend.vue_nodes)
    canvas.open_subgraph()
    canvas.box("dog").wait_for()
    assert canvas.text() == text
    assert canvas.boxes.count() == 2
    assert [error for error in frontend.errors if "astiche" in error] == []

    context = chromium.new_context(viewport={"width": 1600, "height": 1000})
    fresh = type(frontend)(context.new_page(), comfy_server, frontend._screenshots)
    fresh.open(vue_nodes=frontend.vue_nodes)
    there = Canvas(fresh)
    there.drop(saved)
    there.open_subgraph()
    there.box("dog").wait_for()
    there.screenshot("subgraph-fresh-profile")
    assert there.pixels() == drawn
    image = there.queue()
    context.close()
    assert_picture_shows(comfy_server.get("/view", **image), text, drawn)


def test_editors_inside_subgraphs_go_with_their_graph(canvas, frontend):
    canvas.into_subgraph()
    assert canvas.followers() == 1
    saved = canvas.saved()
    for _ in range(3):
        canvas.drop(saved)
    assert canvas.followers() == 1
    canvas.open_subgraph()
    canvas.drag((70, 60), (440, 450))
    assert canvas.pixels() == {"region 1": (64, 64, 448, 448)}
    frontend.load(WORKFLOW)
    assert canvas.followers() == 1


def test_the_page_and_the_server_read_the_same_text(frontend):
    for text in TEXTS:
        told = frontend.page.evaluate(READ, ["text", "parseRegions", text])
        if "error" in told:
            # What JSON itself must be is said in other words, of the same line.
            said = told["error"].split(" must be valid JSON")[0]
            with pytest.raises(ValueError, match=re.escape(said)):
                parse_regions(text)
        else:
            read = told["read"]["regions"]
            again = json.dumps({"regions": drop_unset(read)})
            assert parse_regions(again) == parse_regions(text), text
            assert [one["name"] for one in read] == [one.name for one in parse_regions(text)]
    for text in LAYOUTS:
        told = frontend.page.evaluate(READ, ["layout", "parseLayout", text])
        if "error" in told:
            with pytest.raises(ValueError, match=re.escape(told["error"])):
                parse_layout(text)
        else:
            regions = parse_layout(text)
            assert [one["name"] for one in told["read"]] == [one.name for one in regions]
            for one, region in zip(told["read"], regions, strict=True):
                edges = (one["x"], one["y"], one["x"] + one["width"], one["y"] + one["height"])
                assert edges == pytest.approx(region.box)

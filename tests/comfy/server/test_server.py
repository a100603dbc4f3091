"""The pack inside a real server: it loads, shows its nodes, and core graphs run beside it."""

import json

from comfy_server import PACK_FOLDER, ComfyServer

CORE_GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 255},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "blue"}},
}


def test_the_server_shows_every_node_of_the_pack(comfy_server: ComfyServer, node_ids: list[str]):
    shown = [name for name in comfy_server.object_info() if name.startswith("Pastiche")]
    assert sorted(shown) == sorted(node_ids)
    assert f"/extensions/{PACK_FOLDER}/" not in comfy_server.log_text()


def test_a_core_graph_runs_and_its_picture_can_be_fetched(comfy_server: ComfyServer):
    entry = comfy_server.post_prompt(CORE_GRAPH)
    assert entry["status"]["status_str"] == "success"
    (image,) = entry["outputs"]["2"]["images"]
    assert comfy_server.get("/view", **image).startswith(b"\x89PNG")


def test_the_pack_offers_its_workflows_as_templates(comfy_server: ComfyServer, repository):
    offered = json.loads(comfy_server.get("/workflow_templates"))[PACK_FOLDER]
    files = sorted(path.stem for path in (repository / "workflows").glob("*.json"))
    assert sorted(offered) == files
    assert files


def test_everything_the_server_writes_stays_in_its_own_folder(comfy_server: ComfyServer):
    comfy_server.post_prompt(CORE_GRAPH)
    assert list((comfy_server.base_directory / "output").glob("blue_*.png"))

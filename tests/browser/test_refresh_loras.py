"""A LoRA that a graph saves is in the open page's lists without a reload, Nodes 2.0 off and on."""

import safetensors.torch
import torch

SEED = "seed_of_refresh.safetensors"
CORE, OURS = "LoraLoaderModelOnly", "PasticheLoadLora"
WORKFLOW = {
    "version": 0.4,
    "last_node_id": 2,
    "last_link_id": 0,
    "nodes": [
        {"id": 1, "type": CORE, "pos": [100, 200], "size": [300, 150], "widgets_values": [SEED, 1]},
        {"id": 2, "type": OURS, "pos": [500, 200], "size": [300, 100], "widgets_values": [SEED]},
    ],
    "links": [],
}
LISTS = """
() => Object.fromEntries(window.app.rootGraph.nodes.map((node) => [
  node.type, node.widgets.find((widget) => widget.name === "lora_name").options.values]))
"""


def save_graph(filename):
    return {
        "1": {"class_type": OURS, "inputs": {"lora_name": SEED}},
        "2": {
            "class_type": "PasticheSaveLora",
            "inputs": {"lora": ["1", 0], "filename": filename, "precision": "fp16"},
        },
    }


def test_a_saved_lora_appears_in_the_lists_of_an_open_page(frontend, comfy_server):
    folder = comfy_server.base_directory / "models" / "loras"
    factors = {"lora_down": torch.ones(2, 8), "lora_up": torch.ones(8, 2)}
    tensors = {f"lora_unet_x.{name}.weight": tensor for name, tensor in factors.items()}
    safetensors.torch.save_file(tensors, str(folder / SEED))
    frontend.load(WORKFLOW)
    name = f"refreshed_{'new' if frontend.vue_nodes else 'old'}_nodes"
    listed = f"{name}.safetensors"
    assert all(listed not in values for values in frontend.page.evaluate(LISTS).values())
    entry = comfy_server.post_prompt(save_graph(name))
    assert entry["status"]["status_str"] == "success", entry
    frontend.page.wait_for_function(
        f"(name) => Object.values(({LISTS})()).every((values) => values.includes(name))", arg=listed
    )
    lists = frontend.page.evaluate(LISTS)
    assert set(lists) == {CORE, OURS}
    assert all(SEED in values for values in lists.values())
    assert frontend.errors == []

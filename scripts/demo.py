"""Run the pair_customization template on the toy base in a real ComfyUI server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
from comfyui.server import ComfyServer
from comfyui.toy_base import place_toy_base
from contact_sheet import Column, contact_sheet
from environment import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests" / "graphs"))
from substitution import toy_graph

Graph = dict[str, dict[str, Any]]
TEMPLATE = "pair_customization"
PROMPTS = (
    "a blue star on sand",
    "a green tree on sand",
    "a yellow fish on sand",
    "a purple cup on sand",
)
FIRST_NOISE_SEED = 100
BAR_WIDTH = 30  # characters
CLIENT = "pastiche-demo"


def main(base_directory: Path, out: Path, seed: int) -> None:
    """Train, sample, and write the contact sheet, the LoRA and the graph into ``out``."""
    started = time.monotonic()
    place_toy_base(base_directory)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "comfyui.log"
    log.unlink(missing_ok=True)
    print("Starting ComfyUI ...", flush=True)
    server = ComfyServer(
        Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base_directory, log=log
    )
    with server:
        graph = toy_graph(TEMPLATE)
        set_input(graph, "PasticheTrainPair", "seed", seed)
        columns = []
        lora_name = ""
        for number, prompt in enumerate(PROMPTS):
            set_input(graph, "PasticheStylePrompts", "prompt", prompt)
            set_input(graph, "PrimitiveInt", "value", FIRST_NOISE_SEED + number)
            outputs = asyncio.run(run_graph(server, graph))
            columns.append(Column(prompt, *plain_and_styled(server, graph, outputs)))
            lora_name = lora_name or saved_lora(graph, outputs)
        before, after = example_pair(graph, base_directory)
    style = input_of(graph, "PasticheTrainPair", "style_words")
    sheet = out / "contact_sheet.png"
    contact_sheet(before, after, columns, f'Learnt from one pair: "{style}"').save(sheet)
    graph_file = out / f"{TEMPLATE}.json"
    graph_file.write_text(json.dumps(graph, indent=2) + "\n", encoding="utf-8")
    lora = base_directory / "models" / "loras" / lora_name
    shutil.copyfile(lora, out / lora.name)
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    print(f"  contact sheet  {sheet}")
    print(f"  style LoRA     {out / lora.name}")
    print(f"  graph          {graph_file}")
    print("The same graph in a browser: python3 scripts/dev.py comfy, then drop the graph's file")
    print("on the page.", flush=True)


def nodes_of(graph: Graph, class_type: str) -> list[dict[str, Any]]:
    """Return the graph's nodes of one type; raise if there is none."""
    nodes = [node for node in graph.values() if node["class_type"] == class_type]
    if not nodes:
        raise RuntimeError(f"the demo's graph must have a {class_type} node, got none")
    return nodes


def set_input(graph: Graph, class_type: str, name: str, value: Any) -> None:
    """Set one input of every node of a type."""
    for node in nodes_of(graph, class_type):
        node["inputs"][name] = value


def input_of(graph: Graph, class_type: str, name: str) -> Any:
    """Return one input of the first node of a type."""
    return nodes_of(graph, class_type)[0]["inputs"][name]


async def run_graph(server: ComfyServer, graph: Graph) -> dict[str, Any]:
    """Queue the graph, draw its progress and return the outputs of its nodes.

    Raises:
        RuntimeError: A node failed; the message contains the node's own.
    """
    prompt_id = ""
    bar = ProgressBar(graph)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={CLIENT}", max_msg_size=0) as socket,
    ):
        prompt_id = server.queue(graph, CLIENT)
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            data = event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if event["type"] == "progress_state":
                bar.show(data["nodes"])
            elif event["type"] == "execution_error":
                bar.close()
                raise RuntimeError(f"{data['node_type']}: {data['exception_message'].strip()}")
            elif event["type"] in ("execution_success", "execution_interrupted"):
                break
    bar.close()
    return server.wait(prompt_id)["outputs"]


class ProgressBar:
    """Progress of the running node: a line redrawn in a terminal, or one line per quarter in a log."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._shown = ("", -1)
        self._open = False

    def show(self, nodes: dict[str, dict[str, Any]]) -> None:
        """Draw the progress of the running node, if it has more than one step."""
        for node_id, state in nodes.items():
            if state["state"] == "running" and state["max"] > 1:
                self._draw(node_id, int(state["value"]), int(state["max"]))

    def close(self) -> None:
        """End the line."""
        if self._open:
            print(flush=True)
        self._open = False

    def _draw(self, node_id: str, value: int, total: int) -> None:
        node = self._graph.get(node_id, {})
        name = node.get("_meta", {}).get("title") or node.get("class_type", node_id)
        part = value * 4 // total
        terminal = sys.stdout.isatty()
        if not terminal and (node_id, part) == self._shown:
            return
        if node_id != self._shown[0]:
            self.close()
        self._shown = (node_id, part)
        filled = value * BAR_WIDTH // total
        line = f"{name[:32]:32s} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {value}/{total}"
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", flush=True)
        self._open = terminal


def upstream(graph: Graph, node_id: str) -> set[str]:
    """Return the types of all nodes that a node's result depends on."""
    seen: set[str] = set()
    waiting = [node_id]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        links = [value for value in graph[current]["inputs"].values() if isinstance(value, list)]
        waiting += [str(link[0]) for link in links]
    return {graph[name]["class_type"] for name in seen - {node_id}}


def plain_and_styled(
    server: ComfyServer, graph: Graph, outputs: dict[str, Any]
) -> tuple[bytes, bytes]:
    """Return the sampled pictures without and with the style, as PNG files."""
    found: dict[bool, bytes] = {}
    for node_id, output in outputs.items():
        types = upstream(graph, node_id)
        if "KSampler" not in types or not output.get("images"):
            continue
        image = output["images"][0]
        found["PasticheApplyStyleGuidance" in types] = server.get("/view", **image)
    if len(found) != 2:
        raise RuntimeError(
            f"the demo's graph must put out a plain and a styled picture, got {len(found)}"
        )
    return found[False], found[True]


def saved_lora(graph: Graph, outputs: dict[str, Any]) -> str:
    """Return the name of the LoRA file that the save node wrote or found unchanged."""
    for node_id, output in outputs.items():
        if graph[node_id]["class_type"] == "PasticheSaveLora":
            return output["text"][0]
    raise RuntimeError("the demo's graph must save its LoRA, got no saved file")


def example_pair(graph: Graph, base_directory: Path) -> tuple[bytes, bytes]:
    """Return the before and the after picture that are connected to the training node."""
    inputs = nodes_of(graph, "PasticheTrainPair")[0]["inputs"]
    pictures = []
    for name in ("before", "after"):
        node = graph[str(inputs[name][0])]
        pictures.append((base_directory / "input" / node["inputs"]["image"]).read_bytes())
    return pictures[0], pictures[1]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)

"""The pack's routes and messages on a real server: a run is seen, its buttons pressed, no more."""

import asyncio
import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from comfy_server import ComfyServer
from substitution import toy_graph

TRAINER = "PasticheTrainPair"
UNKNOWN = "/pastiche/runs/000000000000/stop"


def training_graph(run_name: str, steps: int, trainers: int = 1) -> dict[str, Any]:
    """Return the toy graph's trainers alone, each with a seed of its own."""
    graph = toy_graph("pair_customization")
    (key,) = [key for key, node in graph.items() if node["class_type"] == TRAINER]
    needed = {link[0] for link in graph[key]["inputs"].values() if isinstance(link, list)}
    kept = {number: graph[number] for number in needed}
    for node in kept.values():
        if node["class_type"] == "PasticheTrainingSettings":
            node["inputs"] |= {"batch_size": 1, "resolution": 32}
    for number in range(trainers):
        inputs = {**graph[key]["inputs"], "steps": steps, "rank": 4, "seed": number}
        inputs["run_name"] = run_name
        kept[f"10{number}"] = {"class_type": TRAINER, "inputs": inputs}
    return kept


def answered(
    server: ComfyServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON that the server answers with."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        connection.close()


def runs(server: ComfyServer, name: str) -> list[dict[str, Any]]:
    status, answer = answered(server, "GET", "/pastiche/runs")
    assert status == 200
    return [run for run in answer["runs"] if run["name"] == name]


def wait_for(server: ComfyServer, name: str, step: int) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for run in runs(server, name):
            if run["step"] >= step:
                return run
        time.sleep(0.05)
    raise AssertionError(f"the run must reach step {step}, got {runs(server, name)}")


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("POST", UNKNOWN, 404, "the run must be one that this server trained"),
        ("POST", "/api" + UNKNOWN, 404, "the run must be one that this server trained"),
        ("POST", "/pastiche/runs/..%2F..%2Fx/stop", 404, "the run must be one"),
        ("GET", UNKNOWN, 405, "a button is pressed by POST, got GET"),
        ("DELETE", UNKNOWN, 405, "a button is pressed by POST, got DELETE"),
        ("POST", "/pastiche/runs", 405, "the runs are asked for by GET, got POST"),
    ],
)
def test_what_is_no_button_of_a_run_is_refused(
    toy_server: ComfyServer, method: str, path: str, status: int, sentence: str
):
    found, answer = answered(toy_server, method, path)
    assert found == status
    assert answer["error"].startswith(sentence)


def memory(server: ComfyServer) -> int:
    """Return the most bytes that the server's process has held so far."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_not_held(toy_server: ComfyServer, chunked: bool):
    body = b"x" * 10_000_000
    sent = iter([body[:1_000_000]] * 10) if chunked else body
    if sys.platform == "linux":
        before = memory(toy_server)
    try:
        status, answer = answered(toy_server, "POST", UNKNOWN, sent)
    except (BrokenPipeError, ConnectionResetError):
        pytest.fail("the server must answer before it closes")
    assert status == 413
    assert "needs no body" in answer["error"]
    if sys.platform == "linux":
        assert memory(toy_server) - before < 5_000_000


def test_the_buttons_of_a_run_and_of_an_ended_one(toy_server: ComfyServer):
    prompt = toy_server.queue(training_graph("buttons", 2000))
    run = wait_for(toy_server, "buttons", 2)
    assert run["state"] == "running"
    assert (run["node_id"], run["workflow"], run["steps"]) == ("100", None, 2000)
    path = f"/pastiche/runs/{run['run']}"
    status, answer = answered(toy_server, "POST", f"{path}/explode")
    assert (status, "sample, save, stop" in answer["error"]) == (404, True)
    for action in ("sample", "save"):
        status, answer = answered(toy_server, "POST", f"{path}/{action}")
        assert (status, answer["run"]) == (200, run["run"])
    later = wait_for(toy_server, "buttons", answer["step"] + 3)
    picture = later["picture"]
    place = {key: picture[key] for key in ("filename", "subfolder", "type")}
    assert toy_server.get("/view", **place).startswith(b"\x89PNG")
    assert "saved step" in " ".join(later["notes"])
    status, answer = answered(toy_server, "POST", f"{path}/stop")
    assert (status, answer["pressed"]) == (200, ["stop"])
    entry = toy_server.wait(prompt, 60)
    assert entry["status"]["status_str"] == "success"
    (ended,) = runs(toy_server, "buttons")
    assert ended["state"] == "stopped"
    assert ended["step"] == len(ended["points"]) < 2000
    status, answer = answered(toy_server, "POST", f"{path}/stop")
    assert (status, "has ended" in answer["error"]) == (409, True)


async def heard(server: ComfyServer, graph: dict[str, Any]) -> list[dict[str, Any]]:
    """Queue a graph and return every message on training until it has ended."""
    found = []
    address = f"{server.url}/ws?clientId=listener"
    async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
        prompt = await asyncio.to_thread(server.queue, graph, "listener")
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            if told["type"] == "pastiche.training":
                found.append(told["data"])
            ended = ("execution_success", "execution_error", "execution_interrupted")
            if told["type"] in ended and told["data"]["prompt_id"] == prompt:
                assert told["type"] == "execution_success", told
                return found
    raise AssertionError("the graph must end, got a closed socket")


def test_messages_carry_every_step_of_two_trainers_apart(toy_server: ComfyServer):
    messages = asyncio.run(heard(toy_server, training_graph("two", 12, trainers=2)))
    by_node: dict[str, list[dict[str, Any]]] = {}
    for message in messages:
        by_node.setdefault(message["node_id"], []).append(message)
    assert set(by_node) == {"100", "101"}
    assert len({message["run"] for message in messages}) == 2
    for told in by_node.values():
        points = [point[0] for message in told for point in message["points"]]
        assert points == list(range(1, 13))
        assert [message["message"] for message in told] == list(range(1, len(told) + 1))
        assert told[0]["state"] == "running"
        assert told[-1]["state"] == "finished"
        assert told[-1]["step"] == 12
        assert any(message["seconds_left"] for message in told)

"""A run that is killed at any moment, and queued again, ends as if nothing had happened."""

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import folder_paths
import killed_run
import pytest
import torch
from comfyui.server import ComfyServer, make_base_directory
from comfyui.toy_base import place_toy_base
from headless import Headless, wait_for
from pack.training.files.checkpoint import checkpoints, latest_checkpoint
from substitution import Graph, toy_graph

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither fork nor SIGKILL")

Results = tuple[dict[str, bytes], dict[str, list[float]]]


def results(output: Path, name: str = "*") -> Results:
    """Return the LoRA files of the one finished run below an output folder, and its curves."""
    (folder,) = output.glob(f"pastiche/{name}/* steps")
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert set(files) == {"style.safetensors", "content_1.safetensors"}
    return files, json.loads((folder / "run.json").read_text())["losses"]


def kept_step(output: Path) -> int:
    """Return the step that a run below the folder can go on from, 0 for none."""
    (folder,) = [*output.glob("pastiche/*/checkpoints/*"), None][:1]
    found = latest_checkpoint(folder, 10**6)[0] if folder else None
    return found.step if found else 0


@pytest.fixture(scope="module")
def headless(tmp_path_factory) -> Iterator[Headless]:
    runner = Headless(tmp_path_factory.mktemp("headless"))
    yield runner
    runner.end()


@pytest.fixture(scope="module")
def undisturbed(headless, tmp_path_factory) -> tuple[Results, float]:
    """What an undisturbed run gives, and the seconds that it takes from its lock to its end."""
    output = tmp_path_factory.mktemp("undisturbed")
    headless.begin(output)
    wait_for(output, "lock")
    started = time.monotonic()
    assert headless.wait() == 0
    return results(output), time.monotonic() - started


def killed_after(headless: Headless, output: Path, delay: float) -> bool:
    """Kill a run some seconds after it has taken its lock; false where it had come to its end."""
    process = headless.begin(output)
    wait_for(output, "lock")
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return headless.wait() == signal.SIGKILL


def killed_and_resumed(headless: Headless, undisturbed, output: Path, share: float) -> int:
    """Kill a run after a share of its time, let it go on to its end, return where it went on."""
    expected, seconds = undisturbed
    delay, attempts = share * seconds, 0
    while not killed_after(headless, output / str(attempts), delay):
        delay, attempts = delay / 2, attempts + 1  # a less busy machine had come to the end
    output /= str(attempts)
    step = kept_step(output)
    headless.begin(output)
    assert headless.wait() == 0
    assert results(output) == expected
    text = (output / "text").read_text()
    if step:
        assert f"goes on from step {step}" in text or "trained before" in text
    else:
        assert "goes on" not in text
    leftovers = [p for p in output.rglob("*") if p.name.startswith(".")]
    assert leftovers == []
    return step


def moments(count: int, seed: int) -> list[float]:
    """Return random shares of a run's time, spread over all of it."""
    draw = random.Random(seed)
    return [0.9 * (number + draw.random()) / count for number in range(count)]


@pytest.mark.parametrize("share", moments(3, seed=1))
def test_a_killed_run_ends_with_the_same_bytes(share, headless, undisturbed, tmp_path):
    killed_and_resumed(headless, undisturbed, tmp_path / "output", share)


@pytest.mark.full
def test_a_run_killed_at_twenty_moments_ends_with_the_same_bytes(headless, undisturbed, tmp_path):
    steps = [
        killed_and_resumed(headless, undisturbed, tmp_path / str(number), share)
        for number, share in enumerate(moments(20, seed=2))
    ]
    assert len(set(steps)) > 4, steps  # moments of many steps were among them


def test_another_process_gives_the_same_bytes(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other: their number decides how sums are rounded
    try:
        killed_run.train(tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert results(tmp_path) == undisturbed[0]


def test_a_second_process_on_the_same_run_is_refused(headless, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    process = headless.begin(tmp_path)
    wait_for(tmp_path, "step_*.safetensors")
    os.kill(process, signal.SIGSTOP)
    (folder,) = (tmp_path / "pastiche").iterdir()
    try:
        with pytest.raises(RuntimeError, match=rf"got {re.escape(str(folder))} in use by another"):
            killed_run.train(tmp_path)
    finally:
        os.kill(process, signal.SIGCONT)
    assert headless.wait() == 0
    assert results(tmp_path) == undisturbed[0]


TRAINED_STEPS = 8


def trainer_graph(run_name: str) -> Graph:
    """Return the template's graph up to its trainer, with few steps and a checkpoint each."""
    graph = toy_graph("pair_customization")
    (trainer,) = [key for key, node in graph.items() if node["class_type"] == "PasticheTrainPair"]
    changes = {"steps": TRAINED_STEPS, "run_name": run_name}
    graph[trainer]["inputs"] |= changes
    needed = {trainer}
    for node in (graph[trainer],):
        needed |= {link[0] for link in node["inputs"].values() if isinstance(link, list)}
    settings = graph[graph[trainer]["inputs"]["settings"][0]]
    settings["inputs"] |= {"save_every_steps": 1, "batch_size": 1}
    return {key: node for key, node in graph.items() if key in needed}


@pytest.fixture(scope="module")
def server_results(toy_server: ComfyServer) -> Results:
    """What the same graph gives on a server that nothing disturbs."""
    entry = toy_server.post_prompt(trainer_graph("undisturbed"))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    return results(toy_server.base_directory / "output", "undisturbed-*")


def server_killed_after(step: int, delay: float, folder: Path, expected: Results) -> None:
    """Kill a server that trains, start it again, queue the same graph and compare."""
    base = make_base_directory(folder / "base")
    place_toy_base(base)
    server = ComfyServer(
        Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base, log=folder / "server.log"
    )
    with server:
        server.queue(trainer_graph("killed"))
        deadline = time.monotonic() + 300
        while kept_step(base / "output") < step and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delay)
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait() == -signal.SIGKILL
        assert not list((base / "output").glob("pastiche/*/* steps"))
        server.restart()
        entry = server.post_prompt(trainer_graph("killed"))
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        texts = [text for out in entry["outputs"].values() for text in out.get("text", ())]
    assert any("goes on from step" in text for text in texts)
    assert results(base / "output", "killed-*") == expected
    assert checkpoints(next((base / "output").glob("pastiche/*/checkpoints/*")))


def test_a_killed_server_goes_on_where_it_was(server_results, tmp_path):
    server_killed_after(random.Random(3).randrange(1, 6), 0.03, tmp_path, server_results)


@pytest.mark.full
@pytest.mark.parametrize("seed", [4, 5])
def test_a_server_killed_at_other_moments_goes_on_too(seed, server_results, tmp_path):
    draw = random.Random(seed)
    server_killed_after(draw.randrange(1, 6), draw.random() / 4, tmp_path, server_results)

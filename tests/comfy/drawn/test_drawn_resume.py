"""Every training of the drawn world, shortened, stopped and resumed, ends with the same bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn.flow_training import FlowPlan, FlowStage
from drawn.judge import HEADS, JudgeStage
from drawn.rows import CAPTIONS_EACH, KEPT_PADDING, SHARD, Rows
from drawn.scenes import random_scene
from drawn.stages import Stage
from drawn.text_encoder import Tokenizer
from drawn.text_training import TextStage
from drawn.vae import VAEStage
from drawn.vocabulary import SIDE

STEPS = 4
WORLD = "0" * 16


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


def vae(folder: Path) -> Stage:
    return VAEStage(folder, WORLD, pictures(3), channels=4, steps=STEPS, batch=1)


def judge(folder: Path) -> Stage:
    labels = torch.stack([torch.arange(16) % 3] * len(HEADS), 1)
    shown = pictures(16)
    return JudgeStage(folder, WORLD, shown, labels, shown[:8], steps=STEPS, batch=16)


def text(folder: Path) -> Stage:
    tokenizer = Tokenizer(Path(os.environ["COMFYUI_PATH"]))
    scenes = [random_scene(seed, wide=seed % 2 == 0) for seed in range(12)]
    features = torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    return TextStage(folder, WORLD, tokenizer, scenes, features, steps=STEPS, batch=4)


def flow(folder: Path) -> Stage:
    shards = folder.parent / "shards"
    if not shards.is_dir():
        shards.mkdir(parents=True)
        generator = torch.Generator().manual_seed(4)
        for shape, width in (("square", 12), ("wide", 24)):
            latents = torch.randn(SHARD, 16, 12, width, generator=generator).half()
            torch.save({"latents": latents}, shards / f"latents16-{shape}-0.pt")
            count = SHARD * CAPTIONS_EACH
            tokens = torch.randn(count * (4 + KEPT_PADDING), 768, generator=generator).half()
            starts = torch.arange(count + 1) * (4 + KEPT_PADDING)
            texts = {"tokens": tokens, "starts": starts, "lengths": torch.full((count,), 4)}
            torch.save(texts, shards / f"contexts-{shape}-0.pt")
    empty = torch.zeros(2 + KEPT_PADDING, 768).half(), 2
    rows = Rows(shards, 16, {"square": 1, "wide": 1}, empty)
    return FlowStage(folder, WORLD, rows, FlowPlan(STEPS, batch=4))


def equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        assert isinstance(second, dict)
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return first == second


@pytest.mark.parametrize("make", [vae, judge, text, flow])
def test_stopped_and_resumed_is_the_same(make: Callable[[Path], Stage], tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    assert whole.run()
    for stop in (1, 3):
        assert not make(tmp_path / "parts").run(until=stop)
    parts = make(tmp_path / "parts")
    assert parts.run()
    first = torch.load(whole.result, weights_only=True)
    assert equal(first, torch.load(parts.result, weights_only=True))
    assert whole.checkpoint.is_file()

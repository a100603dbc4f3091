"""Every training of the drawn world, shortened, stopped and resumed, ends with the same bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn.eps_training import EpsPlan, EpsStage
from drawn.flow_training import FlowPlan, FlowStage
from drawn.judge import HEADS, JudgeStage
from drawn.mmdit import MMDiT
from drawn.muon import Muon
from drawn.rows import CAPTIONS_EACH, CONTEXTS, KEPT_PADDING, SHARD, Rows, padded
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


def random_rows(folder: Path, channels: int) -> Rows:
    shards = folder.parent / "shards"
    if not shards.is_dir():
        shards.mkdir(parents=True)
        generator = torch.Generator().manual_seed(4)
        for shape, width in (("square", 12), ("wide", 24)):
            latents = torch.randn(SHARD, channels, 12, width, generator=generator).half()
            torch.save({"latents": latents}, shards / f"latents{channels}-{shape}-0.pt")
            count = SHARD * CAPTIONS_EACH
            tokens = torch.randn(count * (4 + KEPT_PADDING), 768, generator=generator).half()
            starts = torch.arange(count + 1) * (4 + KEPT_PADDING)
            texts = {"tokens": tokens, "starts": starts, "lengths": torch.full((count,), 4)}
            torch.save(texts, shards / f"{CONTEXTS[channels]}-{shape}-0.pt")
    empty = torch.zeros(2 + KEPT_PADDING, 768).half(), 2
    return Rows(shards, channels, {"square": 1, "wide": 1}, empty)


def flow(folder: Path) -> FlowStage:
    return FlowStage(folder, WORLD, random_rows(folder, 16), FlowPlan(STEPS, batch=4))


def eps(folder: Path) -> EpsStage:
    return EpsStage(folder, WORLD, random_rows(folder, 4), EpsPlan(STEPS, batch=4))


def equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        assert isinstance(second, dict)
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return first == second


@pytest.mark.parametrize("make", [vae, judge, text, flow, eps])
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


def test_a_step_of_base_b_is_its_formula_to_the_byte(tmp_path: Path) -> None:
    """A checkpoint of base B goes on as it would have before base A shared its code."""
    stage = flow(tmp_path / "b")
    rows, plan = stage.rows, stage.plan
    assert rows is not None
    torch.manual_seed(0)
    model = MMDiT()
    matrices, others, split = [], [], {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "joint_blocks" in name and "adaLN" not in name:
            matrices.append(parameter)
            if name.endswith("qkv.weight"):
                split[id(parameter)] = 3
        else:
            others.append(parameter)
    muon = Muon(matrices, plan.muon_rate, split=split)
    adam = torch.optim.AdamW(
        others, lr=plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        wide = torch.rand(1, generator=generator).item() < plan.wide_share
        shape, batch = ("wide", 2) if wide else ("square", 4)
        latents, texts = rows.draw(shape, batch, plan.empty_share, generator)
        prompts = padded([row for row, _ in texts], [length for _, length in texts])
        logits = torch.randn(batch, generator=generator) + plan.level_mean
        even = torch.rand(batch, generator=generator)
        uniform = torch.rand(batch, generator=generator) < plan.uniform_share
        t = torch.where(uniform, even, torch.sigmoid(logits))
        noise = torch.randn(latents.shape, generator=generator)
        level = t[:, None, None, None]
        velocity = model((1 - level) * latents + level * noise, t, prompts)
        (velocity - (noise - latents)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, peak in ((muon, plan.muon_rate), (adam, plan.adam_rate)):
            for group in optimizer.param_groups:
                group["lr"] = peak * plan.factor(number)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        stage.step(number)
    assert equal(stage.model.state_dict(), model.state_dict())
    assert equal(stage.state()["muon"], muon.state_dict())
    assert equal(stage.state()["adam"], adam.state_dict())
    assert stage.state().keys() == {"model", "average", "muon", "adam"}

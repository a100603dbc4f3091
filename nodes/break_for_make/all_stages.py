"""All stages of Break-for-Make in one go: two halves, then one LoRA of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...lora_ops.halves import Role
from ...training import LoraState, TrainingSettings
from ...training.files.half import check_tokens
from ..bridge.families import identify_for_training
from ..trainer.progress_bar import Share
from .half_plan import HalfRequest, plan_half
from .make import make_loras
from .make_plan import MakeRequest
from .train_half import train_half


@dataclass(frozen=True)
class B4MRequest:
    """The node's inputs; 0 for steps, rank and learning rate, -1 for the make steps is the default.

    Prompts are one for all pictures or one each; auxiliary prompts are one per picture to draw.
    """

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    content_images: Sequence[Tensor]
    content_prompts: Sequence[str]
    content_token: str
    other_styles: Sequence[str]
    style_images: Sequence[Tensor]
    style_prompts: Sequence[str]
    style_token: str
    other_contents: Sequence[str]
    steps: int
    make_steps: int
    rank: int
    learning_rate: float
    seed: int
    run_name: str
    content_strength: float = 1.0
    style_strength: float = 1.0
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    node_id: str | None = None


@dataclass(frozen=True)
class B4MResult:
    """What the node hands on and shows.

    Args:
        lora: Content and style in one.
        content: The content half.
        style: The style half.
        losses: Curves of all three stages, by stage and row.
        pictures: The first pictures as they were trained, each an IMAGE.
        text: What was trained, from which defaults, and where it lies.
    """

    lora: LoraState
    content: LoraState
    style: LoraState
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


def train_b4m(request: B4MRequest) -> B4MResult:
    """Train both halves and make them one, or return what equal runs have left.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    defaults = identify_for_training(request.model).half
    check_tokens(request.content_token.strip(), request.style_token.strip())
    steps = request.steps or defaults.steps
    make_steps = defaults.make_steps if request.make_steps < 0 else request.make_steps
    total = 2 * steps + make_steps
    plan_half(_half(request, "style"))  # what is wrong with it must not wait for the content
    content = train_half(_half(request, "content"), Share(0, total))
    style = train_half(_half(request, "style"), Share(steps, total))
    result = make_loras(
        MakeRequest(
            contents=[content.half],
            styles=[style.half],
            content_strength=request.content_strength,
            style_strength=request.style_strength,
            steps=make_steps,
            model=request.model,
            clip=request.clip,
            vae=request.vae,
            content_images=request.content_images,
            content_prompts=request.content_prompts,
            style_images=request.style_images,
            style_prompts=request.style_prompts,
            learning_rate=request.learning_rate,
            seed=request.seed,
            run_name=request.run_name,
            settings=request.settings,
            node_id=request.node_id,
        ),
        Share(2 * steps, total),
    )
    stages = {"content half": content, "style half": style, "make": result}
    losses = {
        f"{stage} {curve}": values
        for stage, part in stages.items()
        for curve, values in part.losses.items()
        if curve != "loss"
    }
    whole = [value for part in stages.values() for value in part.losses["loss"]]
    return B4MResult(
        lora=result.loras[0],
        content=content.half,
        style=style.half,
        losses={"loss": whole, **losses},
        pictures=[*content.pictures, *style.pictures],
        text="\n\n".join(f"{stage}: {part.text}" for stage, part in stages.items()),
    )


def _half(request: B4MRequest, role: Role) -> HalfRequest:
    content = role == "content"
    return HalfRequest(
        model=request.model,
        clip=request.clip,
        vae=request.vae,
        role=role,
        images=request.content_images if content else request.style_images,
        prompts=request.content_prompts if content else request.style_prompts,
        token=request.content_token if content else request.style_token,
        auxiliary_images=(),
        auxiliary_prompts=request.other_styles if content else request.other_contents,
        steps=request.steps,
        rank=request.rank,
        learning_rate=request.learning_rate,
        seed=request.seed,
        run_name=f"{request.run_name} {role} half",
        settings=request.settings,
        node_id=request.node_id,
        prefix=f"{role}_",
    )

"""All stages of Break-for-Make in one go: two halves, then one LoRA of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...lora_ops.halves import Role
from ...training import LoraState
from ...training.files.half import check_tokens
from ...training.recipes.break_for_make import HALF
from ..bridge.inputs import list_input
from ..trainer.progress_bar import ProgressRange
from ..trainer.request import TrainRequest
from ..trainer.run import run_training
from ..trainer.trainer import TrainerOutput
from .make import MakeTrainer, make_loras
from .train_half import HalfTrainer


@dataclass(frozen=True, kw_only=True, eq=False)
class B4MRequest(TrainRequest):
    """The node's inputs; -1 for the make steps is the default.

    Prompts are one for all pictures or one each; auxiliary prompts are one per picture to draw.
    """

    content_images: Sequence[Tensor] = list_input()
    content_prompt: Sequence[str] = list_input()
    content_token: str
    other_styles: Sequence[str] = list_input()
    style_images: Sequence[Tensor] = list_input()
    style_prompt: Sequence[str] = list_input()
    style_token: str
    other_contents: Sequence[str] = list_input()
    make_steps: int
    content_strength: float = 1.0
    style_strength: float = 1.0


def train_b4m(request: B4MRequest) -> tuple[LoraState, TrainerOutput]:
    """Train both halves and make them one, or take what equal runs have left.

    Returns:
        The LoRA of both; the halves under ``content`` and ``style``, the curves of all three
        stages by stage and row, and what the node shows.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    defaults = request.base.family.half
    check_tokens(request.content_token.strip(), request.style_token.strip())
    steps = request.steps or defaults.steps
    make_steps = defaults.make_steps if request.make_steps < 0 else request.make_steps
    total = 2 * steps + make_steps
    content_half, style_half = _half(request, "content"), _half(request, "style")
    style_half.check()  # what is wrong with it must not wait for the content
    content = run_training(content_half, ProgressRange(0, total))
    style = run_training(style_half, ProgressRange(steps, total))
    halves = {"content": content.loras[HALF], "style": style.loras[HALF]}
    trainer = MakeTrainer(
        base=request.base,
        contents=[halves["content"]],
        styles=[halves["style"]],
        content_strength=request.content_strength,
        style_strength=request.style_strength,
        steps=make_steps,
        content_images=request.content_images,
        content_prompt=request.content_prompt,
        style_images=request.style_images,
        style_prompt=request.style_prompt,
        learning_rate=request.learning_rate,
        seed=request.seed,
        run_name=request.run_name,
        settings=request.settings,
        node_id=request.node_id,
    )
    loras, made = make_loras(trainer, ProgressRange(2 * steps, total))
    stages = {"content half": content, "style half": style, "make": made}
    losses = {
        f"{stage} {curve}": values
        for stage, part in stages.items()
        for curve, values in part.losses.items()
        if curve != "loss"
    }
    whole = [value for part in stages.values() for value in part.losses["loss"]]
    return loras[0], TrainerOutput(
        loras=halves,
        losses={"loss": whole, **losses},
        pictures=[*content.pictures, *style.pictures],
        text="\n\n".join(f"{stage}: {part.text}" for stage, part in stages.items()),
    )


def _half(request: B4MRequest, role: Role) -> HalfTrainer:
    content = role == "content"
    return HalfTrainer(
        base=request.base,
        role=role,
        images=request.content_images if content else request.style_images,
        prompt=request.content_prompt if content else request.style_prompt,
        token=request.content_token if content else request.style_token,
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

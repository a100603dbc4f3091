"""Run all stages of Break-for-Make: train two halves, then make one LoRA of both."""

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
    """The inputs of the node that runs all stages.

    Args:
        content_images: Pictures of the content.
        content_prompt: One prompt for all content pictures, or one per picture.
        content_token: Trigger word of the content.
        other_styles: Auxiliary prompts of the content half, one per line.
        style_images: Pictures in the style.
        style_prompt: One prompt for all style pictures, or one per picture.
        style_token: Trigger word of the style.
        other_contents: Auxiliary prompts of the style half, one per line.
        make_steps: Steps of the joint fine-tune; -1 is the default, 0 joins the halves without it.
        content_strength: Multiplier of the content half.
        style_strength: Multiplier of the style half.
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
    """Train both halves and make one LoRA of them, reusing the results of equal finished runs.

    Returns:
        The LoRA of both halves, and the output of all stages: the halves by the names ``content``
        and ``style``, the loss curves by stage and row, and the display of the node.

    Raises:
        ValueError: An input is not valid.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    defaults = request.base.family.half
    check_tokens(request.content_token.strip(), request.style_token.strip())
    steps = request.steps or defaults.steps
    make_steps = defaults.make_steps if request.make_steps < 0 else request.make_steps
    total = 2 * steps + make_steps
    content_half, style_half = _half(request, "content"), _half(request, "style")
    style_half.check()  # so that errors in it are raised before the content half is trained
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
    loras, joint = make_loras(trainer, ProgressRange(2 * steps, total))
    stages = {"content half": content, "style half": style, "make": joint}
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

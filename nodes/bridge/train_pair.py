"""Pair Customization from pictures to LoRAs: what the train node does when it is queued."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from ...training import Example, LoraState, Trained, train
from ...training.recipes import Pair
from ...training.recipes.pair import STYLE
from ...training.run_store import (
    StoredRun,
    checked_run_name,
    load_run,
    require_space,
    result_folder,
    run_id,
)
from .conditioning import (
    Conditioning,
    Framing,
    encode_prompt,
    training_cond,
    training_latent,
)
from .denoiser import open_denoiser
from .pair_images import FittedImage, encode, side_by_side
from .pair_plan import PairPlan, PairRequest, plan_pair, run_pieces
from .pair_report import content_file, pair_loras, pair_text
from .progress import progress_bar
from .runs import keep, runs_root
from .sites import training_sites

_VIEWS = {"never": (False,), "always": (True,), "random": (False, True)}


@dataclass(frozen=True)
class PairResult:
    """What the train node hands on and shows.

    Args:
        style: The style LoRA.
        contents: One content LoRA per pair.
        losses: Curves ``loss``, ``content`` and ``style``.
        pictures: Each pair as it was trained, an IMAGE of before beside after.
        text: What was trained, from which defaults, and where it lies.
    """

    style: LoraState
    contents: list[LoraState]
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


def train_pair(request: PairRequest) -> PairResult:
    """Train the pairs, or return what an equal run has left.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    name = checked_run_name(request.run_name)
    plan = plan_pair(request)
    pieces = run_pieces(request, plan)
    identity = run_id(pieces)
    folder = result_folder(runs_root(), name, identity, plan.config.steps)
    run = load_run(folder)
    if run is None:
        _require_room(request, plan)
        started = time.monotonic()
        trained = _train(request, plan)
        run = StoredRun(
            steps=plan.config.steps,
            pieces=pieces,
            losses={curve: list(values) for curve, values in trained.losses.items()},
            loras=pair_loras(request, plan, trained, identity),
            facts={
                "family": plan.family.name,
                "style_start_step": plan.style_start_step,
                "pictures": [pair.note for pair in plan.pairs],
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        where = keep(folder, run)
    else:
        where = f"trained before, taken from {folder}"
    return PairResult(
        style=run.loras[STYLE],
        contents=[run.loras[content_file(pair)] for pair in range(len(plan.pairs))],
        losses=dict(run.losses),
        pictures=[side_by_side(pair, request.settings.flip == "always") for pair in plan.pairs],
        text=pair_text(request, plan, where),
    )


def _require_room(request: PairRequest, plan: PairPlan) -> None:
    sites = training_sites(request.model, request.settings.targets).values()
    numbers = sum(plan.config.rank * (site.shape[0] + site.shape[1]) for site in sites)
    require_space(runs_root(), 4 * numbers * (1 + len(plan.pairs)))


def _train(request: PairRequest, plan: PairPlan) -> Trained:
    settings = request.settings
    pairs, *mirrored = _examples(request, plan)  # encoded before the denoiser is loaded
    recipe = Pair(
        pairs=pairs,
        style_start=plan.style_start_step,
        samples=settings.batch_size,
        basis_seed=plan.family.pair.basis_seed,
        mirrored=mirrored[0] if mirrored else (),
    )
    with open_denoiser(request.model, settings.precision) as denoiser:
        sites = training_sites(denoiser.patcher, settings.targets)
        return train(denoiser, sites, recipe, plan.config, [progress_bar(plan.config.steps)])


def _examples(request: PairRequest, plan: PairPlan) -> list[list[tuple[Example, Example]]]:
    """Return all pairs encoded, once for every way they are mirrored."""
    prompts = dict.fromkeys((*plan.content_prompts, *plan.style_prompts))
    texts = {prompt: encode_prompt(request.clip, prompt) for prompt in prompts}
    triples = list(zip(plan.pairs, plan.content_prompts, plan.style_prompts, strict=True))
    return [
        [
            (
                _example(request, pair.before, texts[content], mirrored),
                _example(request, pair.after, texts[style], mirrored),
            )
            for pair, content, style in triples
        ]
        for mirrored in _VIEWS[request.settings.flip]
    ]


def _example(
    request: PairRequest, image: FittedImage, text: Conditioning, mirrored: bool
) -> Example:
    latent = training_latent(request.model, encode(request.vae, image, mirrored))[0]
    (height, width), (top, left) = image.original_size, image.crop
    framing = Framing(width, height, left, top, image.size[1], image.size[0])
    return Example(latent, training_cond(request.model, text, latent, framing))

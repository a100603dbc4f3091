"""A concept from pictures: what the train node does when it is queued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...lora_ops import Plain
from ...lora_ops.attention_regulariser import RELATIVE_WEIGHT, RELEASED_WEIGHT
from ...training import Gate, LoraState, Trained, lora_state
from ...training.files.concept import Concept
from ...training.files.metadata import as_metadata
from ...training.recipes import EdLora
from ...training.recipes.concept import CONCEPT
from ...training.runs.run_store import StoredRun
from ...training.words import Words
from ..pictures.crops import CROPS, CROPS_EACH, Look, looks
from ..pictures.picture import Picture
from ..trainer.preview import PreviewScene
from ..trainer.report import shared_metadata, warnings
from ..trainer.run import Prepared, TrainingJob, run_training
from .examples import Reader, concept_examples
from .plan import ConceptPlan, ConceptRequest, plan_concept, run_pieces
from .words import CLIP_L_NORM, starting_rows, vocabulary_densities, vocabulary_norms

WORDS = "words"
"""The words' rows among a run's results, by text encoder."""
SHOWN_PICTURES = 4
KEPT_CAPTIONS = 20
"""In the file's metadata, of the distinct ones."""
_LISTED_LAYERS = 3
_LEFT_OUT = "pastiche.left_out"


@dataclass(frozen=True)
class ConceptResult:
    """What the train node hands on and shows.

    Args:
        concepts: The one concept.
        losses: Curves ``loss`` and ``concept``.
        pictures: The first pictures as they were trained, each an IMAGE.
        text: What was trained, from which defaults, and where it lies.
    """

    concepts: tuple[Concept, ...]
    losses: dict[str, list[float]]
    pictures: list[Tensor]
    text: str


def train_concept(request: ConceptRequest) -> ConceptResult:
    """Train the concept, or return what an equal run has left.

    Raises:
        ValueError: An input is not what it must be; the message says which and what to do.
        RuntimeError: The output folder, the VAE or the loss prevents the training.
    """
    plan = plan_concept(request)
    outcome = run_training(
        TrainingJob(
            name=request.run_name,
            node_id=request.node_id,
            model=request.model,
            config=plan.config,
            settings=plan.settings,
            pieces=run_pieces(request, plan),
            facts={},
            prepare=lambda facts: _prepare(request, plan),
            loras=lambda trained, facts, identity: _results(request, plan, trained, identity),
            described={"family": plan.family.name, "concept": f"<{plan.name}> {plan.class_word}"},
            text=plan.text,
            denoiser_rate=plan.denoiser_rate,
        )
    )
    run = outcome.run
    return ConceptResult(
        concepts=(concept_of(plan, run),),
        losses=dict(run.losses),
        pictures=[
            next(_looks(request, plan, one))[0].pixels[None]
            for one in plan.pictures[:SHOWN_PICTURES]
        ],
        text=concept_text(request, plan, run, outcome.notes),
    )


def concept_of(plan: ConceptPlan, run: StoredRun) -> Concept:
    """Return the concept that a finished run holds."""
    rows = {encoder: tensor.clone() for encoder, tensor in run.loras[WORDS].items()}
    return Concept(plan.name, plan.class_word, rows, run.loras[CONCEPT])


def _looks(request: ConceptRequest, plan: ConceptPlan, picture: Picture) -> Iterator[Look]:
    return looks(picture, request.crops, plan.resolution, plan.family.multiple, request.seed)


def _prepare(request: ConceptRequest, plan: ConceptPlan) -> Prepared:
    masked = any(picture.mask is not None for picture in plan.pictures)
    reader = Reader(
        model=request.model,
        clip=request.clip,
        name=plan.name,
        layers=plan.layers,
        watch=masked and request.attention > 0,
    )
    settings = plan.settings
    examples, *mirrored = concept_examples(
        reader=reader,
        vae=request.vae,
        pictures=[_looks(request, plan, one) for one in plan.pictures],
        captions=plan.captions,
        flip=settings.flip,
        dropped=settings.caption_dropout > 0,
    )
    norms = vocabulary_norms(request.clip)
    share = plan.word_rate / plan.config.learning_rate
    words = Words(
        starts=starting_rows(
            clip=request.clip,
            class_word=plan.class_word,
            layers=plan.layers,
            seed=request.seed,
            start=request.start,
        ),
        # A step goes as far in every text encoder, measured by the rows of its vocabulary.
        rates={encoder: share * norm / CLIP_L_NORM for encoder, norm in norms.items()},
        norms=norms,
        stop=request.stop,
        # In the node's measure, which is the released code's, beside this pack's smaller loss.
        attention=request.attention * RELATIVE_WEIGHT / RELEASED_WEIGHT,
        fill_mask=request.fill_mask,
        density=request.density * RELATIVE_WEIGHT / RELEASED_WEIGHT,
        vocabularies=vocabulary_densities(request.clip) if request.density else {},
    )
    recipe = EdLora(
        examples=examples,
        learnt=words,
        batch_size=settings.samples,
        mirrored=mirrored[0] if mirrored else (),
        adapter=Plain(request.down_start),
        dropped=plan.dropped,
        dropout=request.dropout,
    )
    latent = examples[0][0].latent
    prompt = settings.preview_prompt.strip() or plan.captions[0][0]
    gates = {CONCEPT: Gate()}
    conds = (reader.cond(prompt, latent), reader.cond("", latent))
    return Prepared(recipe, PreviewScene(request.vae, *conds, gates, gates, latent.shape))


def _results(
    request: ConceptRequest, plan: ConceptPlan, trained: Trained, identity: str
) -> dict[str, LoraState]:
    layers = trained.adapters[CONCEPT]
    # Without any gradient ``up`` is as it began, zero, and the layer changes nothing.
    learnt = {name: factors for name, factors in layers.items() if factors.up.any()}
    captions = list(dict.fromkeys(picture.caption for picture in plan.pictures))
    metadata = {
        **shared_metadata(
            method="concept",
            request=request,
            family=plan.family,
            config=plan.config,
            resolution=plan.resolution,
            steps=trained.steps,
            identity=identity,
        ),
        "pastiche.concept": plan.name,
        "pastiche.class_word": plan.class_word,
        "pastiche.word_rate": plan.word_rate,
        "pastiche.text_rate": plan.text_rate,
        "pastiche.learnt": request.learnt,
        "pastiche.images": len(plan.pictures),
        "pastiche.masked": any(picture.mask is not None for picture in plan.pictures),
        "pastiche.crops": request.crops,
        "pastiche.captions": "\n".join(captions[:KEPT_CAPTIONS]),
        _LEFT_OUT: "\n".join(name for name in layers if name not in learnt),
        "modelspec.trigger_phrase": f"<{plan.name}>",
        "ss_num_train_images": len(plan.pictures),
    }
    described = as_metadata(metadata)
    return {
        CONCEPT: lora_state(learnt, described),
        WORDS: LoraState(trained.embeddings, described),
    }


def concept_text(
    request: ConceptRequest, plan: ConceptPlan, run: StoredRun, notes: Sequence[str]
) -> str:
    """Return the lines that the node shows: values with their source, words, pictures, notes."""
    config, source = plan.config, plan.family.concept.source

    def shown(label: str, value: float, given: float) -> str:
        if not value:
            return f"{label} 0 (not learnt)"
        return f"{label} {value:g}" if given else f"{label} {value:g} (default: {source})"

    rates = (
        shown("of the words", plan.word_rate, request.word_rate),
        shown("of the text encoder", plan.text_rate, request.text_rate),
        shown("of the denoiser", config.learning_rate * plan.denoiser_rate, request.learning_rate),
    )
    lines = [
        f"{plan.family.name}: <{plan.name}> as {plan.class_word}, "
        f"{shown('steps', run.steps, request.steps)}, rank {config.rank}, "
        f"learning rates {', '.join(rates)}",
        f"{len(plan.pictures)} pictures, {plan.layers} rows for each of the two words",
    ]
    if request.crops != CROPS[0]:
        lines.append(f"each picture in {CROPS_EACH} cuts: {request.crops}")
    if plan.unnamed:
        lines.append(
            f"<{plan.name}> was put in front of the captions without it: picture "
            f"{', '.join(map(str, plan.unnamed))}"
        )
    if plan.untrained:
        lines.append(f"the layers of {', '.join(plan.untrained)} stay as they are")
    left_out = run.loras[CONCEPT].metadata.get(_LEFT_OUT, "").split()
    if left_out:
        first = ", ".join(left_out[:_LISTED_LAYERS])
        more = f" and {len(left_out) - _LISTED_LAYERS} more" * (len(left_out) > _LISTED_LAYERS)
        lines.append(f"left out, as no gradient reached them: {first}{more}")
    return "\n".join([*lines, *warnings(plan.family), *notes])

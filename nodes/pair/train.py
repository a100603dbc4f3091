"""The trainer of Pair Customization: inputs, checks, recipe and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from torch import Tensor

from ...training import Example, Gate, LoraState, Trained, TrainingConfig, lora_state
from ...training.families.defaults import PairDefaults
from ...training.files.metadata import as_metadata
from ...training.recipes import Pair
from ...training.recipes.pair import STYLE, content_name
from ...training.runs.run_store import StoredRun
from ..bridge.digests import content_digest
from ..bridge.inputs import list_input, one_or_each
from ..pictures.fitted_image import FittedImage, single_images
from ..trainer.examples import VIEWS, example, picture_views, preview_scene, training_caption
from ..trainer.preview import PreviewScene
from ..trainer.trainer import Trainer
from .frames import FittedPair, fit_pairs, side_by_side

_STYLE_START_STEP = "pastiche.style_start_step"


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTrainer(Trainer):
    """Trainer of a style and of one content per pair.

    Args:
        before: Pictures before the style.
        after: The same pictures in the style.
        content_prompt: One prompt for all pairs, or one per pair.
        style_words: Words for the style, which are appended to the content prompts.
        style_start: Fraction of the steps before the training of the style starts.
        packing: Packing of a step's rows into forward passes.
    """

    method: ClassVar[str] = "pair"

    before: Sequence[Tensor] = list_input()
    after: Sequence[Tensor] = list_input()
    content_prompt: Sequence[str] = list_input()
    style_words: str
    style_start: float
    packing: Literal["batched", "sequential"]

    @property
    def defaults(self) -> PairDefaults:
        """Return the defaults of the method for the base's family."""
        return self.base.family.pair

    @cached_property
    def config(self) -> TrainingConfig:
        """Return the configuration of the run with all defaults filled in."""
        return self.resolve_config(packing=self.packing)

    @cached_property
    def pairs(self) -> list[FittedPair]:
        """Return every pair on its frame."""
        return fit_pairs(self.before, self.after, self.resolution, self.base.family.multiple)

    @cached_property
    def content_prompts(self) -> list[str]:
        """Return one content prompt per pair."""
        prompts = [prompt.strip() for prompt in self.content_prompt]
        prompts = one_or_each(prompts, len(self.pairs), "content_prompt", "pair")
        if not all(prompts):
            raise ValueError(
                "content_prompt must describe the picture before, got an empty text; "
                'write for example "a photo of a dog"'
            )
        return prompts

    @property
    def style_prompts(self) -> list[str]:
        """Return every content prompt followed by the style words."""
        return [f"{prompt} {self.style_words.strip()}" for prompt in self.content_prompts]

    def style_start_step(self, begun_for: int) -> int:
        """Return the first step that trains the style, counted from 0."""
        return round(self.style_start * begun_for)

    def choices_at_start(self, begun_for: int) -> int:
        """Return the first step that trains the style; it stays the same if a run is extended."""
        return self.style_start_step(begun_for)

    def check(self) -> None:
        """Raise unless all inputs are valid.

        Raises:
            ValueError: An input is not valid.
        """
        steps = self.config.steps
        self.base.require_clip()
        if not 0 <= self.style_start_step(steps) < steps:
            raise ValueError(
                "style_start must leave at least one step for the style, got "
                f"{self.style_start:g} of {steps} steps; lower style_start or raise steps"
            )
        if not self.style_words.strip():
            raise ValueError(
                "style_words must name the style, got an empty text; "
                'write for example "in digital art style"'
            )
        self._require_narrow()
        _ = self.content_prompts

    def _require_narrow(self) -> None:
        """Raise unless the bases of content and style fit into every layer together."""
        rank = self.config.rank
        name, narrowest = min(self.layers.items(), key=lambda entry: entry[1].shape[1])
        width = narrowest.shape[1]
        if 2 * rank > width:
            raise ValueError(
                "content and style rows must fit the narrowest layer together, got 2 x rank "
                f"{rank} for width {width} of {name}; set rank to {width // 2} or less"
            )

    def pieces(self) -> dict[str, Any]:
        """Return all values that determine the result, by name, except the number of steps.

        They contain ``style_start`` as a fraction; its step is in the metadata of the result.
        """
        pieces = self.base_pieces(prompts=[*self.content_prompts, *self.style_prompts])
        pieces["before"] = [content_digest(image) for image in single_images(self.before)]
        pieces["after"] = [content_digest(image) for image in single_images(self.after)]
        pieces["settings"] |= {
            "packing": self.packing,
            "style_start": self.style_start,
            "basis_seed": self.defaults.basis_seed,
        }
        return pieces

    def prepare(self, begun_for: int) -> tuple[Pair, PreviewScene]:
        """Return the encoded recipe and the scene of the previews."""
        pairs, *mirrored = self._examples()
        recipe = Pair(
            pairs=pairs,
            style_start_step=self.style_start_step(begun_for),
            samples=self.settings.samples,
            basis_seed=self.defaults.basis_seed,
            mirrored=mirrored[0] if mirrored else (),
        )
        gates = ({STYLE: Gate()}, {})
        latent = pairs[0][1].latent
        return recipe, preview_scene(self.base, self.settings, self.style_prompts, gates, latent)

    def _examples(self) -> list[list[tuple[Example, Example]]]:
        """Return the encoded pairs, one list for every view."""
        base, settings = self.base, self.settings
        prompts = dict.fromkeys((*self.content_prompts, *self.style_prompts))
        texts = {prompt: training_caption(base, prompt, settings) for prompt in prompts}
        empty = training_caption(base, "", settings) if settings.caption_dropout else None

        def examples(image: FittedImage, prompt: str) -> list[Example]:
            return [
                example(base.model, latent, texts[prompt], empty, framing)
                for latent, framing, _ in picture_views(base, image, settings.flip)
            ]

        views: list[list[tuple[Example, Example]]] = [[] for _ in VIEWS[settings.flip]]
        for pair, content, style in zip(
            self.pairs, self.content_prompts, self.style_prompts, strict=True
        ):
            both = zip(examples(pair.before, content), examples(pair.after, style), strict=True)
            for view, one in zip(views, both, strict=True):
                view.append(one)
        return views

    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the style and the content LoRAs with their metadata, by name."""
        shared = {
            **self.metadata(trained.steps, identity),
            "pastiche.style_words": self.style_words.strip(),
            "pastiche.basis_seed": self.defaults.basis_seed,
            _STYLE_START_STEP: self.style_start_step(begun_for),
            "pastiche.pairs": len(self.pairs),
        }
        prompts = "\n".join(dict.fromkeys(self.content_prompts))
        style = {**shared, "pastiche.role": "style", "pastiche.content_prompt": prompts}
        loras = {STYLE: lora_state(trained.adapters[STYLE], as_metadata(style))}
        for pair, prompt in enumerate(self.content_prompts):
            content = {**shared, "pastiche.role": "content", "pastiche.content_prompt": prompt}
            layers = trained.adapters[content_name(pair)]
            loras[content_file(pair)] = lora_state(layers, as_metadata(content))
        return loras

    def details(self) -> dict[str, Any]:
        """Return further values about the run, which are stored in its folder as JSON."""
        return {**super().details(), "pictures": [pair.note for pair in self.pairs]}

    def pictures(self) -> list[Tensor]:
        """Return each pair in the form it was trained, before and after side by side."""
        return [side_by_side(pair, self.settings.flip == "always") for pair in self.pairs]

    def lines(self, run: StoredRun) -> list[str]:
        """Return the lines that the node shows: the used values, then the pictures."""
        start = _style_start(int(run.loras[STYLE].metadata[_STYLE_START_STEP]) + 1, run.steps)
        return [
            self.values_line(run.steps),
            f"{start}, mirrored: {self.settings.flip}",
            *(pair.note for pair in self.pairs),
        ]


def content_file(pair: int) -> str:
    """Return the name of a pair's content LoRA in the run's folder."""
    return f"content_{pair + 1}"


def _style_start(first: int, steps: int) -> str:
    """Return a phrase with the step at which the style starts, if the run has reached it."""
    if first > steps:
        return f"stopped at step {steps}, before the style begins at step {first}"
    return f"style from step {first} of {steps}"

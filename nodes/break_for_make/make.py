"""Join a content and a style half into one LoRA, optionally with a joint fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from ...lora_ops import LowRank, PartlyLearnable
from ...lora_ops.halves import Part, join_layer
from ...lora_ops.keys import changes_text_encoder
from ...training import (
    Gate,
    LoraState,
    Trained,
    TrainingConfig,
    TrainingSettings,
    lora_state,
    metadata_of,
)
from ...training.families.defaults import HalfDefaults
from ...training.files.half import BASIS, OWNER, TOKEN, check_fit, half_layers
from ...training.files.metadata import as_metadata, family_of
from ...training.gates import Layer
from ...training.recipes import Make
from ...training.recipes.break_for_make import LORA
from ...training.runs.run_store import StoredRun
from ...training.settings import TARGETS
from ..bridge.digests import content_digest
from ..bridge.inputs import list_input
from ..pictures.picture import Picture
from ..text.encoder_layers import text_layers
from ..trainer.examples import captioned_examples, preview_scene
from ..trainer.preview import PreviewScene
from ..trainer.progress_bar import ProgressRange
from ..trainer.run import run_training
from ..trainer.target_layers import target_layers
from ..trainer.trainer import Trainer, TrainerOutput
from .half_pictures import half_pictures

_BASE = ("modelspec.architecture", "ss_base_model_version", "pastiche.base_family")
CONTENT_TOKEN, STYLE_TOKEN = "pastiche.content_token", "pastiche.style_token"


@dataclass(frozen=True, kw_only=True, eq=False)
class MakeTrainer(Trainer):
    """Trainer of the joint fine-tune of one content and one style half.

    Rank and layers are those of the halves. Without steps there is no fine-tune, and the base may
    be missing.

    Args:
        contents: Content halves.
        styles: Style halves.
        content_strength: Multiplier of the result's part that the content owns.
        style_strength: Multiplier of the result's part that the style owns.
        optimizer: Optimizer of the fine-tune, which overrides the settings.
        content_images: Pictures of the content.
        content_prompt: One prompt for all content pictures, or one per picture.
        style_images: Pictures in the style.
        style_prompt: One prompt for all style pictures, or one per picture.
    """

    method: ClassVar[str] = "make"

    contents: Sequence[LoraState] = list_input()
    styles: Sequence[LoraState] = list_input()
    content_strength: float = 1.0
    style_strength: float = 1.0
    optimizer: str = "Scaled AdamW"
    content_images: Sequence[Tensor] = list_input(())
    content_prompt: Sequence[str] = list_input(("",))
    style_images: Sequence[Tensor] = list_input(())
    style_prompt: Sequence[str] = list_input(("",))

    @property
    def defaults(self) -> HalfDefaults:
        """Return the defaults of the method for the base's family."""
        return self.base.family.half

    @cached_property
    def joined_lora(self) -> LoraState:
        """Return the two halves as one LoRA, at strengths of 1."""
        return join_halves(self.contents, self.styles)[0]

    @cached_property
    def factors(self) -> Mapping[str, LowRank]:
        """Return the factors of the joined LoRA by layer."""
        return half_layers(self.joined_lora)

    @cached_property
    def content_owns(self) -> Part:
        """Return the part that the content owns."""
        return check_fit(self.contents[0], self.styles[0])

    @cached_property
    def run_settings(self) -> TrainingSettings:
        """Return the user's settings with the layers of the halves and the chosen optimizer.

        Raises:
            ValueError: The base lacks a layer or has it in another shape, or only one of settings
                and halves contains the text encoder.
        """
        self._require_layers()
        settings = replace(self.settings, optimizer=self.optimizer)
        layers = {name for name in self.factors if not changes_text_encoder(name)}
        for targets in TARGETS:
            if target_layers(self.base.layers, targets).keys() == layers:
                return replace(settings, targets=targets, target_pattern="")
        return replace(settings, target_pattern=" ".join(sorted(layers)))

    @cached_property
    def config(self) -> TrainingConfig:
        """Return the configuration of the run with all defaults filled in."""
        return self.resolve_config(rank=next(iter(self.factors.values())).rank)

    @cached_property
    def content_pictures(self) -> list[Picture]:
        """Return the pictures of the content."""
        return self._pictures("content", self.content_images, self.content_prompt)

    @cached_property
    def style_pictures(self) -> list[Picture]:
        """Return the pictures in the style."""
        return self._pictures("style", self.style_images, self.style_prompt)

    def check(self) -> None:
        """Raise unless all inputs are valid.

        Raises:
            ValueError: An input is not valid.
        """
        if len(self.contents) != 1 or len(self.styles) != 1:
            raise ValueError(
                "a fine-tune must be given one content and one style half, whose pictures it "
                f"learns from, got {len(self.contents)} and {len(self.styles)}; set steps to 0 or "
                "connect one of each"
            )
        missing = [name for name in ("model", "clip", "vae") if getattr(self.base, name) is None]
        if missing:
            raise ValueError(
                f"a fine-tune needs the base, got none on {', '.join(missing)}; connect "
                f"{'it' if len(missing) == 1 else 'them'} or set steps to 0"
            )
        family = family_of(metadata_of(self.contents[0]))
        if family is not None and family != self.base.family:
            raise ValueError(
                f"the halves must fit the model, got {family.name} halves and a "
                f"{self.base.family.name} model; choose halves of this base"
            )
        _ = self.config, self.content_owns, self.content_pictures, self.style_pictures, self.layers

    def _require_layers(self) -> None:
        """Raise unless the base has the layers of the halves in their shapes."""
        text = text_layers(self.base.clip, 0.0) if self._has_text_layers() else {}
        trainable: Mapping[str, Layer] = {**self.base.layers, **text}
        missing = sorted(
            name
            for name, factors in self.factors.items()
            if name not in trainable or trainable[name].shape != factors.shape
        )
        if missing:
            raise ValueError(
                f"the halves must fit the model, got {len(missing)} of {len(self.factors)} layers "
                f"that it lacks or has in another shape, such as {missing[0]}; choose halves of "
                "this base"
            )

    def _has_text_layers(self) -> bool:
        """Return whether the halves have layers of the text encoder.

        Raises:
            ValueError: The settings and the halves disagree about the text encoder.
        """
        rate = self.settings.text_encoder_rate
        has_layers = any(changes_text_encoder(layer) for layer in self.factors)
        if has_layers and not rate:
            raise ValueError(
                "the fine-tune must train what the halves have, got halves with layers of the text "
                "encoder and text_encoder_rate 0; set it in Training Settings as for the halves"
            )
        if rate and not has_layers:
            raise ValueError(
                "the fine-tune must train what the halves have, got halves without layers of the "
                f"text encoder and text_encoder_rate {rate:g}; set it to 0 in Training Settings"
            )
        return has_layers

    def _pictures(
        self, role: str, images: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Picture]:
        names = (f"{role}_images", f"{role}_prompt")
        multiple = self.base.family.multiple
        pictures = half_pictures(images, prompts, self.resolution, multiple, names)
        if not pictures:
            raise ValueError(
                f"a fine-tune needs pictures of the {role}, got none; connect {role}_images or set "
                "steps to 0"
            )
        if not all(picture.caption for picture in pictures):
            raise ValueError(
                f"{role}_prompt must say what the {role}'s pictures show, got an empty text; write "
                "the prompt that the half was trained with"
            )
        return pictures

    def pieces(self) -> dict[str, Any]:
        """Return all values that determine the result, by name, except steps and strengths.

        Strengths are applied to the stored result, so another strength needs no training.
        """
        pictures = [*self.content_pictures, *self.style_pictures]
        return {
            **self.base_pieces(prompts=[picture.caption for picture in pictures]),
            "content": content_digest(dict(self.contents[0])),
            "style": content_digest(dict(self.styles[0])),
            "contents": len(self.content_pictures),
            "pictures": [content_digest(picture.image) for picture in pictures],
        }

    def prepare(self, begun_for: int) -> tuple[Make, PreviewScene]:
        """Return the encoded recipe and the scene of the previews."""
        base, settings = self.base, self.run_settings
        # If pictures are mirrored at random, both views of each picture are used in turn.
        contents, styles = (
            [one for view in captioned_examples(base, pictures, settings) for one in view]
            for pictures in (self.content_pictures, self.style_pictures)
        )
        recipe = Make(contents, styles, PartlyLearnable(given=self.factors), settings.samples)
        gates, prompts = {LORA: Gate()}, [self.content_pictures[0].caption]
        return recipe, preview_scene(base, settings, prompts, (gates, gates), contents[0].latent)

    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the LoRA at strengths of 1, and the halves from which it was made."""
        metadata = {
            **self.joined_lora.metadata,
            "pastiche.stages": f"break, make with {trained.steps} steps",
            "pastiche.run_id": identity,
            "pastiche.steps": trained.steps,
            "pastiche.config": {**self.run_settings.identity_fields(), **self.config.as_json()},
        }
        return {
            LORA: lora_state(trained.adapters[LORA], as_metadata(metadata)),
            "content half": self.contents[0],
            "style half": self.styles[0],
        }

    def pictures(self) -> list[Tensor]:
        """Return no pictures, because the nodes of the halves show them."""
        return []

    def lines(self, run: StoredRun) -> list[str]:
        """Return the line about a finished run that the node shows."""
        return [
            f"{self.base.family.name}: {run.steps} steps with {self.config.optimizer}, learning "
            f"rate {self.config.learning_rate:g}, {len(self.content_pictures)} content and "
            f"{len(self.style_pictures)} style pictures"
        ]


def make_loras(
    trainer: MakeTrainer, progress: ProgressRange | None = None
) -> tuple[list[LoraState], TrainerOutput]:
    """Return one LoRA for every pair of content and style, and the display of the node.

    All styles of the first content come first.

    Args:
        trainer: Trainer with the node's inputs; without steps the halves are only joined.
        progress: Part of the node's progress bar that the fine-tune fills.

    Raises:
        ValueError: Two halves don't fit together, or an input is not valid.
        RuntimeError: The fine-tune failed.
    """
    strengths = (trainer.content_strength, trainer.style_strength)
    if not trainer.steps:
        loras = join_halves(trainer.contents, trainer.styles, strengths[0], strengths[1])
        result = "1 LoRA" if len(loras) == 1 else f"{len(loras)} LoRAs"
        text = (
            f"{len(trainer.contents)} content and {len(trainer.styles)} style halves made into "
            f"{result}, without further training"
        )
        return loras, TrainerOutput({}, {"loss": []}, [], text)
    output = run_training(trainer, progress)
    trained = output.loras[LORA]
    # Joining the fine-tuned LoRA with itself scales the owned parts by the strengths.
    layers = {
        layer: join_layer(factors, factors, trainer.content_owns, *strengths)
        for layer, factors in half_layers(trained).items()
    }
    return [lora_state(layers, {**trained.metadata, **_strengths(*strengths)})], output


def join_halves(
    contents: Sequence[LoraState],
    styles: Sequence[LoraState],
    content_strength: float = 1.0,
    style_strength: float = 1.0,
) -> list[LoraState]:
    """Return one ordinary LoRA for every pair of content and style, all of one content in a row.

    At strengths of 1, every number of a result is bit-equal to a number of a half.

    Raises:
        ValueError: There is no content or no style, or two halves don't fit together.
    """
    if not contents or not styles:
        raise ValueError(
            "making needs at least one content and one style half, got "
            f"{len(contents)} and {len(styles)}; connect both"
        )
    return [
        _join(content, style, content_strength, style_strength)
        for content in contents
        for style in styles
    ]


def _join(content: LoraState, style: LoraState, *strengths: float) -> LoraState:
    content_owns = check_fit(content, style)
    ours, other = half_layers(content), half_layers(style)
    layers = {
        layer: join_layer(factors, other[layer], content_owns, *strengths)
        for layer, factors in ours.items()
    }
    return lora_state(layers, {**_metadata(content, style), **_strengths(*strengths)})


def _metadata(content: LoraState, style: LoraState) -> dict[str, str]:
    """Return the metadata of a joined LoRA: the halves' common values, and both tokens."""
    ours, other = metadata_of(content), metadata_of(style)
    tokens = [found.get(TOKEN, "") for found in (ours, other)]
    return {
        **{key: ours[key] for key in _BASE if ours.get(key) == other.get(key) and key in ours},
        "pastiche.method": "b4m",
        "pastiche.role": "made",
        "pastiche.stages": "break, make without steps",
        BASIS: ours[BASIS],
        OWNER: ours[OWNER],
        CONTENT_TOKEN: tokens[0],
        STYLE_TOKEN: tokens[1],
        "modelspec.trigger_phrase": ", ".join(filter(None, tokens)),
    }


def _strengths(content: float, style: float) -> dict[str, str]:
    return {
        "pastiche.content_strength": f"{content:g}",
        "pastiche.style_strength": f"{style:g}",
    }

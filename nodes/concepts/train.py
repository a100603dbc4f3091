"""Train a concept from pictures: the node's inputs, their checks and the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from comfy.sd import CLIP
from torch import Tensor

from ...lora_ops import Plain
from ...lora_ops.attention_regulariser import RELATIVE_WEIGHT, RELEASED_WEIGHT
from ...lora_ops.parametrizations.plain import LORA_STARTS
from ...training import Gate, LoraState, Trained, TrainingConfig, TrainingSettings, lora_state
from ...training.concept_captions import TEMPLATES, captions_without_name, with_name, wordings
from ...training.families.defaults import ConceptDefaults
from ...training.files.concept import Concept
from ...training.files.metadata import as_metadata
from ...training.gates import Layer
from ...training.optimizers.by_name import PRECONDITIONED
from ...training.recipes import EdLora
from ...training.recipes.concept import CONCEPT
from ...training.runs.run_store import StoredRun
from ...training.words import Words
from ..bridge.inputs import list_input
from ..pictures.crops import CROP_METHODS, CROPS_PER_PICTURE, Crop, crops_of
from ..pictures.fitted_image import single_images
from ..pictures.picture import Picture, pictures_of
from ..text.encoder_layers import TRAINABLE, text_layers
from ..text.layer_contexts import context_layers
from ..trainer.preview import PreviewScene
from ..trainer.target_layers import target_layers, text_key_value_layers
from ..trainer.trainer import KEPT_CAPTIONS, SHOWN_PICTURES, Trainer, picture_pieces
from .examples import CaptionEncoder, concept_examples
from .words import (
    CLIP_L_NORM,
    EMBEDDING_STARTS,
    checked_words,
    encoders_without_lora,
    initial_rows,
    require_gradients,
    vocabulary_densities,
    vocabulary_norms,
)

LEARNT = ("words, text encoder and denoiser", "words and denoiser", "words only")
DECAYS = ("linear", "as set")
RELEASED_STOP = 1.45  # the released code's norm of 0.55, relative to CLIP-L's mean norm of 0.38

WORD_ROWS = "words"  # name of the words' embeddings among the results of a run
_LISTED_LAYERS = 3  # layers that the node names if no gradient reached them
_LEFT_OUT = "pastiche.left_out"


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptTrainer(Trainer):
    """The concept trainer, with the inputs of its node.

    Args:
        images: IMAGE batches.
        name: Name of the concept, with or without its brackets.
        class_word: One word for the class of the concept.
        captions: One caption for all pictures or one for each; an empty one becomes the name.
        word_rate: Learning rate of the words' embeddings for CLIP-L, scaled for other text encoders
            by the norm of their vocabulary; 0 is the default.
        text_rate: Learning rate of the LoRA in the text encoder; 0 is the settings' rate or the
            default.
        masks: MASK batches with one mask per picture, or none.
        templates: One of ``TEMPLATES``.
        learnt: One of ``LEARNT``.
        decay: One of ``DECAYS``: ``linear`` lowers all learning rates to 0; ``as set`` uses the
            schedule of the settings.
        noise_offset: Fraction of the noise that is constant over a channel.
        attention_weight: Weight of the attention regulariser, on the released code's scale.
        fill_mask: Whether the class word's attention must also fill the mask.
        embedding_stop: Norm of the embeddings, relative to their vocabulary's, at which their
            training stops; 0 is never.
        embedding_start: One of ``EMBEDDING_STARTS``.
        lora_start: One of ``LORA_STARTS``.
        crops: One of ``CROP_METHODS``.
        density_weight: Weight of the penalty that pulls the words to dense regions of the
            vocabulary, on the released code's scale.
        text_dropout: Fraction of the steps in which the LoRA of a layer that reads only the text is
            left out.
    """

    method: ClassVar[str] = "concept"

    images: Sequence[Tensor] = list_input()
    name: str
    class_word: str
    captions: Sequence[str] = list_input()
    word_rate: float
    text_rate: float
    masks: Sequence[Tensor] = list_input(())
    templates: str = "object"
    learnt: str = LEARNT[0]
    decay: str = DECAYS[0]
    noise_offset: float = 0.01
    attention_weight: float = 0.01
    fill_mask: bool = False
    embedding_stop: float = RELEASED_STOP
    embedding_start: str = EMBEDDING_STARTS[0]
    lora_start: str = LORA_STARTS[0]
    crops: str = CROP_METHODS[0]
    density_weight: float = 0.0
    text_dropout: float = 0.0

    @property
    def defaults(self) -> ConceptDefaults:
        """Return the method's defaults for the family of the base."""
        return self.base.family.concept

    @cached_property
    def run_settings(self) -> TrainingSettings:
        """Return the user's settings with the concept's decay and noise offset."""
        settings = replace(self.settings, noise_offset=self.noise_offset)
        return replace(settings, schedule="linear") if self.decay == "linear" else settings

    @cached_property
    def resolution(self) -> int:
        """Return the side of the square to whose area larger pictures are resized."""
        return self.settings.resolution or self.base.family.plain.resolution

    @cached_property
    def config(self) -> TrainingConfig:
        """Return the configuration of the run with all defaults filled in."""
        return self.resolve_config(timesteps=self.base.family.plain.timesteps)

    @cached_property
    def words(self) -> tuple[str, str]:
        """Return the concept's name without brackets and its class word, both checked."""
        return checked_words(self.base.clip, self.name, self.class_word)

    @cached_property
    def context_layers(self) -> int:
        """Return the number of contexts that the denoiser reads; 1 if all layers share one."""
        return context_layers(self.base.model)

    @cached_property
    def words_learning_rate(self) -> float:
        """Return the learning rate of the words' embeddings for CLIP-L."""
        return self.word_rate or self.defaults.word_rate

    @cached_property
    def text_learning_rate(self) -> float:
        """Return the learning rate of the LoRA in the text encoder; 0 if there is none.

        Raises:
            ValueError: A rate is given for a base whose text encoders cannot be trained.
        """
        if self.learnt != LEARNT[0]:
            return 0.0
        clip = self.base.clip
        untrained = encoders_without_lora(clip, TRAINABLE)
        if set(untrained) != set(encoders_without_lora(clip, ())):
            default = self.settings.text_encoder_rate or self.defaults.text_rate
            return self.text_rate or default
        if self.text_rate:
            raise ValueError(
                f"text_rate is for {' and '.join(TRAINABLE)}, got {self.text_rate:g} for a base "
                f"that reads its text with {', '.join(untrained)}; set it to 0"
            )
        return 0.0

    @property
    def denoiser_learning_rate(self) -> float:
        """Return the learning rate of the LoRA in the denoiser."""
        return 0.0 if self.learnt == "words only" else self.config.learning_rate

    @property
    def text_encoder(self) -> CLIP:
        """Return the text encoder, which runs in every step."""
        return self.base.clip

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Return the layers to train: those of the denoiser, then those of the text encoder."""
        settings, rate = self.settings, self.text_learning_rate
        chosen = target_layers(self.base.layers, settings.targets, settings.target_pattern)
        denoiser = {
            name: replace(layer, learning_rate=self.denoiser_learning_rate)
            for name, layer in chosen.items()
        }
        return {**denoiser, **(text_layers(self.base.clip, rate) if rate else {})}

    @cached_property
    def dropout_layers(self) -> list[str]:
        """Return the layers whose LoRA may be left out in a step.

        Raises:
            ValueError: There is a dropout, but no layer that it could apply to.
        """
        if not self.text_dropout:
            return []
        layers = text_key_value_layers(self.layers, self.base.family)
        if not layers:
            raise ValueError(
                "text_dropout is for layers that read the text alone, the keys and values of "
                f"cross-attention, got {self.text_dropout:g} where none is trained; set it to 0"
            )
        return layers

    @cached_property
    def unnamed_dataset(self) -> list[Picture]:
        """Return the pictures with their captions, before the name is added to them.

        Raises:
            ValueError: There is no picture, a choice is unknown, or captions or masks don't match.
        """
        if not single_images(self.images):
            raise ValueError("a concept needs at least one picture, got none; connect images")
        if self.templates not in TEMPLATES:
            raise ValueError(
                f"templates must be one of {', '.join(TEMPLATES)}, got {self.templates!r}"
            )
        if self.crops not in CROP_METHODS:
            raise ValueError(
                f"crops must be one of {', '.join(CROP_METHODS)}, got {self.crops!r}; choose one of "
                "them"
            )
        captions, multiple = list(self.captions) or [""], self.base.family.multiple
        return pictures_of(self.images, self.masks, captions, self.resolution, multiple)

    @cached_property
    def dataset(self) -> list[Picture]:
        """Return the pictures with their captions, each of which contains the name."""
        name = self.words[0]
        return [replace(one, caption=with_name(one.caption, name)) for one in self.unnamed_dataset]

    @property
    def masked(self) -> bool:
        """Return whether any picture has a mask."""
        return any(picture.mask is not None for picture in self.dataset)

    @cached_property
    def wordings(self) -> list[list[str]]:
        """Return the captions of every picture, inserted into the templates."""
        return [
            wordings(one.caption, self.templates, self.seed, one.number) for one in self.dataset
        ]

    def check(self) -> None:
        """Check all inputs before anything is encoded.

        Raises:
            ValueError: An input is wrong; the message names it and says what to do.
        """
        _ = self.base.family
        self.base.require_clip()
        _ = self.words
        require_gradients(self.base.clip)
        if self.settings.optimizer in PRECONDITIONED:
            raise ValueError(
                "optimizer must be one that looks at every number alone where words are learnt, "
                f"got {self.settings.optimizer}; choose AdamW, Adafactor or SGD in Training "
                "Settings"
            )
        _ = self.config, self.dataset, self.layers, self.dropout_layers

    def pieces(self) -> dict[str, Any]:
        """Return everything that determines the concept, by name, except the number of steps."""
        name, class_word = self.words
        bare = [text.replace(f"<{name}>", name) for texts in self.wordings for text in texts]
        pieces = {
            **self.base_pieces(captions=bare),
            **picture_pieces(self.dataset),
            "name": name,
            "class_word": class_word,
            "learnt": {
                "what": self.learnt,
                "layers": self.context_layers,
                "embedding_stop": self.embedding_stop,
                "embedding_start": self.embedding_start,
                "lora_start": self.lora_start,
            },
            "crops": self.crops,
            "density": self.density_weight,
            "dropout": [self.text_dropout, self.dropout_layers],
        }
        # Picture by picture; the tokens above are those of the captions without brackets.
        pieces["captions"] = self.wordings
        pieces["settings"] |= {
            "text_rate": self.text_learning_rate,
            "word_rate": self.words_learning_rate,
        }
        if self.masked:
            pieces["attention"] = [self.attention_weight, self.fill_mask]
        return pieces

    def _crops_of(self, picture: Picture) -> Iterator[Crop]:
        """Yield the crops of a picture."""
        multiple = self.base.family.multiple
        return crops_of(picture, self.crops, self.resolution, multiple, self.seed)

    def prepare(self, begun_for: int) -> tuple[EdLora, PreviewScene]:
        """Return the recipe with its encoded examples, and the scene of the previews."""
        base, settings = self.base, self.run_settings
        encoder = CaptionEncoder(
            base, self.words[0], self.context_layers, self.masked and self.attention_weight > 0
        )
        crops = [self._crops_of(picture) for picture in self.dataset]
        with_empty = settings.caption_dropout > 0
        examples, *mirrored = concept_examples(
            encoder, crops, self.wordings, settings.flip, with_empty
        )
        recipe = EdLora(
            examples,
            self._learnt_words(),
            settings.samples,
            mirrored=mirrored[0] if mirrored else (),
            adapter=Plain(self.lora_start),
            dropped=self.dropout_layers,
            text_dropout=self.text_dropout,
        )
        latent = examples[0][0].latent
        prompt = settings.preview_prompt.strip() or self.wordings[0][0]
        gates = {CONCEPT: Gate()}
        conds = (encoder.cond(prompt, latent), encoder.cond("", latent))
        return recipe, PreviewScene(base.vae, *conds, gates, gates, latent.shape)

    def _learnt_words(self) -> Words:
        """Return the words' initial embeddings and their training settings."""
        clip = self.base.clip
        norms = vocabulary_norms(clip)
        layers, start = self.context_layers, self.embedding_start
        return Words(
            starts=initial_rows(clip, self.words[1], layers, self.seed, start),
            # A step is equally large in every text encoder, relative to the vocabulary's norm.
            learning_rates={
                encoder: self.words_learning_rate * norm / CLIP_L_NORM
                for encoder, norm in norms.items()
            },
            norms=norms,
            embedding_stop=self.embedding_stop,
            # The node's weights relate to the released code's loss; this pack's loss is smaller.
            attention_weight=self.attention_weight * RELATIVE_WEIGHT / RELEASED_WEIGHT,
            fill_mask=self.fill_mask,
            density_weight=self.density_weight * RELATIVE_WEIGHT / RELEASED_WEIGHT,
            vocabularies=vocabulary_densities(clip) if self.density_weight else {},
        )

    def results(self, trained: Trained, begun_for: int, identity: str) -> dict[str, LoraState]:
        """Return the LoRA and the words' embeddings with their metadata."""
        layers = trained.adapters[CONCEPT]
        # If no gradient reached a layer, its ``up`` is still zero and the layer changes nothing.
        learnt = {name: factors for name, factors in layers.items() if factors.up.any()}
        captions = list(dict.fromkeys(picture.caption for picture in self.dataset))
        name, class_word = self.words
        metadata = as_metadata(
            {
                **self.metadata(trained.steps, identity),
                "pastiche.concept": name,
                "pastiche.class_word": class_word,
                "pastiche.word_rate": self.words_learning_rate,
                "pastiche.text_rate": self.text_learning_rate,
                "pastiche.learnt": self.learnt,
                "pastiche.images": len(self.dataset),
                "pastiche.masked": self.masked,
                "pastiche.crops": self.crops,
                "pastiche.captions": "\n".join(captions[:KEPT_CAPTIONS]),
                _LEFT_OUT: "\n".join(layer for layer in layers if layer not in learnt),
                "modelspec.trigger_phrase": f"<{name}>",
                "ss_num_train_images": len(self.dataset),
            }
        )
        return {
            CONCEPT: lora_state(learnt, metadata),
            WORD_ROWS: LoraState(trained.embeddings, metadata),
        }

    def concept(self, loras: Mapping[str, LoraState]) -> Concept:
        """Return the concept made of a finished run's results."""
        rows = {encoder: tensor.clone() for encoder, tensor in loras[WORD_ROWS].items()}
        return Concept(*self.words, rows, loras[CONCEPT])

    def details(self) -> dict[str, Any]:
        """Return plain values about the run for its folder."""
        name, class_word = self.words
        return {**super().details(), "concept": f"<{name}> {class_word}"}

    def pictures(self) -> list[Tensor]:
        """Return the first pictures as they are trained, each as an IMAGE."""
        shown = self.dataset[:SHOWN_PICTURES]
        return [next(self._crops_of(picture))[0].pixels[None] for picture in shown]

    def lines(self, run: StoredRun) -> list[str]:
        """Return the lines that the node shows: values with their sources, words and pictures."""
        source, (name, class_word) = self.defaults.source, self.words

        def shown(label: str, value: float, given: float) -> str:
            if not value:
                return f"{label} 0 (not learnt)"
            return f"{label} {value:g}" if given else f"{label} {value:g} (default: {source})"

        rates = (
            shown("of the words", self.words_learning_rate, self.word_rate),
            shown("of the text encoder", self.text_learning_rate, self.text_rate),
            shown("of the denoiser", self.denoiser_learning_rate, self.learning_rate),
        )
        lines = [
            f"{self.base.family.name}: <{name}> as {class_word}, "
            f"{shown('steps', run.steps, self.steps)}, rank {self.config.rank}, "
            f"learning rates {', '.join(rates)}",
            f"{len(self.dataset)} pictures, {self.context_layers} rows for each of the two words",
        ]
        if self.crops != CROP_METHODS[0]:
            lines.append(f"each picture in {CROPS_PER_PICTURE} cuts: {self.crops}")
        captions = [picture.caption for picture in self.unnamed_dataset]
        if unnamed := captions_without_name(captions, name):
            lines.append(
                f"<{name}> was put in front of the captions without it: picture "
                f"{', '.join(map(str, unnamed))}"
            )
        trained = TRAINABLE if self.text_learning_rate else ()
        if untrained := encoders_without_lora(self.base.clip, trained):
            lines.append(f"the layers of {', '.join(untrained)} stay as they are")
        if left_out := run.loras[CONCEPT].metadata.get(_LEFT_OUT, "").split():
            first, more = ", ".join(left_out[:_LISTED_LAYERS]), len(left_out) - _LISTED_LAYERS
            ending = f" and {more} more" if more > 0 else ""
            lines.append(f"left out, as no gradient reached them: {first}{ending}")
        return lines

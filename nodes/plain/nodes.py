"""The node Train Plain LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training.recipes.single import LORA
from ..bridge.inputs import (
    base_inputs,
    rank_input,
    rate_input,
    run_name_input,
    seed_input,
    settings_input,
    steps_input,
    text_input,
)
from ..bridge.node_output import node_display
from ..trainer.request import read_request
from ..trainer.run import run_training
from .train import PlainTrainer


class TrainPlainLora(io.ComfyNode):
    """Trains an ordinary LoRA from captioned pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PasticheTrainPlainLora",
            display_name="Train Plain LoRA",
            category="Pastiche/train",
            description=(
                "Trains an ordinary LoRA of a subject, a style or a concept from any number of "
                "captioned pictures of any sizes. The result is saved below output/pastiche: an "
                "equal graph is not trained twice, and a run with more steps is resumed."
            ),
            search_aliases=[
                "train lora",
                "dreambooth",
                "fine tune",
                "finetune",
                "character lora",
                "concept",
                "dataset",
            ],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *base_inputs("Text encoder of the base, which encodes the captions."),
                text_input(
                    "captions",
                    "Description of the pictures, including the trigger word of the LoRA. One "
                    "text is used for all pictures; a list has one text per picture. Captions "
                    "are not used with latents, which come with their conditioning.",
                    placeholder="a photo of a sbu dog",
                ),
                steps_input(
                    "Number of training steps; each uses the next pictures of a shuffled epoch. 0 "
                    "is the model family's default: 1000 for SD1.5, SD2 and SDXL, 1500 for the "
                    "others (ours)."
                ),
                rank_input(
                    "Rank of the LoRA; alpha is equal to it. 0 is the default of 16 (ours)."
                ),
                rate_input(
                    "learning_rate",
                    "Learning rate. 0 is the default of 0.0001, as in diffusers' DreamBooth LoRA.",
                ),
                seed_input("Seed for all noise and noise levels; the same seed repeats the run."),
                run_name_input("my_lora"),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Training pictures: one picture, a list or a batch, for example from "
                    "Load Training Images (Pastiche). Large pictures are resized; none is "
                    "enlarged.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per picture, of the same size; white parts are trained. The "
                    "weight of the rest is outside_mask in Training Settings (Pastiche).",
                ),
                settings_input(),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Encoded pictures instead of images, from ComfyUI's Make Training "
                    "Dataset, Load Training Dataset or Resolution Bucket.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="Encoded captions of the latents, from the same node.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="Trained LoRA, for applying or saving."
                ),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="Loss curves loss and lora, which are equal here; ComfyUI's Plot Loss "
                    "Graph draws loss.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or return the result of an equal finished run."""
        trainer = read_request(PlainTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(output.loras[LORA], output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainPlainLora]

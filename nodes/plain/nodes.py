"""The node Train LoRA."""

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
    """The ordinary LoRA from captioned pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="PasticheTrainPlainLora",
            display_name="Train Plain LoRA",
            category="Pastiche/train",
            description=(
                "Learns an ordinary LoRA from any number of captioned pictures of any sizes: a "
                "subject, a style, a concept. The result is kept below output/pastiche: an equal "
                "graph is not trained twice, and more steps go on from where it stopped."
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
                *base_inputs("The base's text encoder, for the captions."),
                text_input(
                    "captions",
                    "What the pictures show, with the word that will call the LoRA up. "
                    "One text serves all pictures; a list gives each its own. Not used with "
                    "latents, which bring their conditioning.",
                    placeholder="a photo of a sbu dog",
                ),
                steps_input(
                    "Training steps; each takes the next pictures of a shuffled round. 0 "
                    "is the model family's default: 1000 for SD1.5, SD2 and SDXL, 1500 for the "
                    "others (ours)."
                ),
                rank_input("Size of the LoRA; alpha is the same. 0 is the default of 16 (ours)."),
                rate_input(
                    "learning_rate",
                    "How far a step goes. 0 is the default of 0.0001, that of diffusers' "
                    "DreamBooth LoRA.",
                ),
                seed_input("Seed for all noise and noise levels; the same seed repeats the run."),
                run_name_input("my_lora"),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The pictures, one or a list or batch of them, such as Load Training "
                    "Images (Pastiche) gives. Large ones are resized, none is enlarged.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One per picture and of its size: what is white counts. Training "
                    "Settings (Pastiche) says what the rest counts.",
                ),
                settings_input(),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Instead of images: from core's Make, Load Training Dataset or "
                    "Resolution Bucket.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="From the same node as the latents; as many.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For applying or saving."),
                io.LossMap.Output(
                    display_name="losses",
                    tooltip="Curves loss and lora, here the same; core's Plot Loss Graph draws it.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        trainer = read_request(PlainTrainer, inputs, cls.hidden.unique_id)
        output = run_training(trainer)
        display = node_display(trainer.node_id, output.pictures, output.text)
        return io.NodeOutput(output.loras[LORA], output.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainPlainLora]

"""The node Train LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training import TrainingSettings
from ..bridge.inputs import only, rate_input, seed_input, settings_input
from ..bridge.node_output import node_display
from .plan import PlainRequest
from .train import train_plain


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
                io.Model.Input("model", tooltip="The base to learn on; it is not changed."),
                io.Clip.Input("clip", tooltip="The base's text encoder, for the captions."),
                io.Vae.Input("vae", tooltip="The base's VAE, for the pictures."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    placeholder="a photo of a sbu dog",
                    tooltip="What the pictures show, with the word that will call the LoRA up. "
                    "One text serves all pictures; a list gives each its own. Not used with "
                    "latents, which bring their conditioning.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Training steps; each takes the next pictures of a shuffled round. 0 "
                    "is the model family's default: 1000 for SD1.5, SD2 and SDXL, 1500 for the "
                    "others (ours).",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Size of the LoRA; alpha is the same. 0 is the default of 16 (ours).",
                ),
                rate_input(
                    "learning_rate",
                    "How far a step goes. 0 is the default of 0.0001, that of diffusers' "
                    "DreamBooth LoRA.",
                ),
                seed_input("Seed for all noise and noise levels; the same seed repeats the run."),
                io.String.Input(
                    "run_name",
                    default="my_lora",
                    tooltip="Name of the run's folder below output/pastiche.",
                ),
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
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        captions: list[str],
        steps: list[int],
        rank: list[int],
        learning_rate: list[float],
        seed: list[int],
        run_name: list[str],
        images: list[Any] | None = None,
        masks: list[Any] | None = None,
        settings: list[TrainingSettings] | None = None,
        latents: list[Any] | None = None,
        conditioning: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Train, or take an equal run's result."""
        result = train_plain(
            PlainRequest(
                model=only("model", model),
                clip=only("clip", clip),
                vae=only("vae", vae),
                captions=captions,
                steps=only("steps", steps),
                rank=only("rank", rank),
                learning_rate=only("learning_rate", learning_rate),
                seed=only("seed", seed),
                run_name=only("run_name", run_name),
                images=images or (),
                masks=masks or (),
                settings=only("settings", settings or [TrainingSettings()]),
                latents=latents or (),
                conditioning=conditioning or (),
                node_id=cls.hidden.unique_id,
            )
        )
        display = node_display(cls.hidden.unique_id, result.pictures, result.text)
        return io.NodeOutput(result.lora, result.losses, ui=display)


NODES: list[type[io.ComfyNode]] = [TrainPlainLora]

"""Nodes that bring training data in."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.node_output import node_display
from .folder import folder_fingerprint, load_training_images, refusal, training_folders


class LoadTrainingImages(io.ComfyNode):
    """A folder of pictures with captions and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="PasticheLoadTrainingImages",
            display_name="Load Training Images (Pastiche)",
            category="Pastiche/data",
            description=(
                "Reads a folder of pictures under ComfyUI's input folder: pictures upright and "
                "sorted into sizes, captions from text files of the same name, masks from "
                "transparency or a picture name.mask.png. Says what it found and what is odd "
                "about it; a damaged picture is refused by name."
            ),
            search_aliases=[
                "dataset",
                "load folder",
                "image folder",
                "captions",
                "training data",
                "buckets",
                "batch load images",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=training_folders(),
                    tooltip="A folder with pictures under ComfyUI's input folder. After copying "
                    "one there press R. Its subfolders are entries of their own.",
                ),
                io.String.Input(
                    "caption",
                    default="",
                    multiline=True,
                    placeholder="a photo of a sbu dog",
                    tooltip="For pictures without a text file of the same name, such as "
                    "dog_1.txt beside dog_1.png.",
                ),
                io.Int.Input(
                    "resolution",
                    default=1024,
                    min=0,
                    max=8192,
                    step=64,
                    tooltip="Larger pictures are brought to the area of a square of this side; "
                    "smaller ones keep their size. Use the one you train at: 512 for SD1.5, 1024 "
                    "for SDXL. 0 leaves all as they are.",
                ),
                io.Int.Input(
                    "bucket_step",
                    default=64,
                    min=8,
                    max=256,
                    step=8,
                    advanced=True,
                    tooltip="Sides are cut to a multiple of this. Larger steps make fewer sizes, "
                    "so more pictures share a batch, and cut more away.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="The pictures, one each."
                ),
                io.String.Output(
                    display_name="captions", is_output_list=True, tooltip="One per picture."
                ),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="One per picture, white where it counts; all white without one.",
                ),
                io.String.Output(display_name="report", tooltip="Counts and problems, one a line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        """Refuse a folder that leads out of input or isn't there."""
        return refusal(folder) or True

    @classmethod
    def fingerprint_inputs(cls, folder: str, **others: object) -> str:
        """Return what changes when a file of the folder does."""
        return folder_fingerprint(folder)

    @classmethod
    def execute(cls, folder: str, caption: str, resolution: int, bucket_step: int) -> io.NodeOutput:
        """Read the folder."""
        found = load_training_images(folder, caption, resolution, bucket_step)
        display = node_display(cls.hidden.unique_id, [], found.report)
        return io.NodeOutput(found.images, found.captions, found.masks, found.report, ui=display)


NODES: list[type[io.ComfyNode]] = [LoadTrainingImages]

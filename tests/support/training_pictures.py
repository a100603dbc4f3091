"""Pictures for the loader of training images, and the node run as ComfyUI runs it."""

from pack.nodes.pictures.nodes import LoadTrainingImages
from PIL import Image, ImageDraw


def two_colour_picture(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """Return a picture whose left upper quarter is red and the rest blue."""
    image = Image.new("RGB", (width, height), (20, 60, 200))
    ImageDraw.Draw(image).rectangle((0, 0, width // 2 - 1, height // 2 - 1), (220, 20, 20))
    return image.convert(mode)


def load(name: str = "set", caption: str = "a thing", resolution: int = 0, bucket_step: int = 8):
    node = LoadTrainingImages.PREPARE_CLASS_CLONE(None)
    return node.execute(name, caption, resolution, bucket_step).result

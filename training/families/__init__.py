"""The supported model families by name; every family has its own file."""

from .family import Family, Sampling, Samplings
from .flux import FLUX
from .flux2 import FLUX2
from .qwen_image import QWEN_IMAGE
from .sd2 import SD2
from .sd3 import SD3
from .sd15 import SD15
from .sdxl import SDXL
from .wan21 import WAN21
from .z_image import Z_IMAGE

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (SD15, SD2, SDXL, SD3, FLUX, FLUX2, WAN21, QWEN_IMAGE, Z_IMAGE)
}

__all__ = ["FAMILIES", "Family", "Sampling", "Samplings"]

"""LoRA files that are damaged or made for something else."""

import os
import pickle

import safetensors.torch
import torch
from pack.lora_ops.keys import factor_keys
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.lora_state import LoraState
from tiny import tiny

RANK = 4
ARCHITECTURE = {
    "sd15": "stable-diffusion-v1/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "flux": "flux-1-dev/lora",
}


def lora_for(base, metadata=None):
    tensors = {}
    for layer, site in training_sites(tiny(base), "attention").items():
        keys = factor_keys(layer)
        tensors[keys.down] = torch.ones(RANK, *site.shape[1:]) * 0.01
        tensors[keys.up] = torch.ones(site.shape[0], RANK) * 0.01
    return LoraState(tensors, metadata)


WIDE = 320


KINDS = {
    "LoHa": {
        **{"hada_w1_a": (WIDE, 2), "hada_w1_b": (2, WIDE)},
        **{"hada_w2_a": (WIDE, 3), "hada_w2_b": (3, WIDE)},
    },
    "LoKr": {"lokr_w1": (8, 8), "lokr_w2": (40, 40)},
    "LoKr in factors": {
        **{"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 8)},
        **{"lokr_w2_a": (40, 2), "lokr_w2_b": (2, 40)},
    },
    "GLoRA": {
        **{"a1.weight": (WIDE, 2), "a2.weight": (2, WIDE)},
        **{"b1.weight": (WIDE, 2), "b2.weight": (2, WIDE)},
    },
    "OFT": {"oft_blocks": (80, 4, 4)},
    "BOFT": {"oft_blocks": (3, 80, 4, 4), "rescale": (WIDE, 1), "alpha": ()},
    "DoRA": {
        **{"lora_up.weight": (WIDE, 2), "lora_down.weight": (2, WIDE)},
        "dora_scale": (WIDE, 1),
    },
    "diff": {"diff": (WIDE, WIDE)},
    "set": {"set_weight": (WIDE, WIDE)},
}


ATTENTION = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def adapter(shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        f"{ATTENTION}.{part}": torch.rand(shape, generator=generator) * 0.1
        for part, shape in shapes.items()
    }


class FolderMaker:
    """An object whose pickle creates a folder when it is loaded, as a hostile file would."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def bad_files(folder):
    """Write one bad file of each kind; return the expected part of each message, by file name."""
    good = folder / "good.safetensors"
    safetensors.torch.save_file(dict(lora_for("sd15")), str(good))
    whole = good.read_bytes()
    nan = {key: tensor.clone() for key, tensor in lora_for("sd15").items()}
    next(iter(nan.values()))[0, 0] = torch.nan
    contents = {
        "truncated.safetensors": (whole[:-10], "cut short"),
        "cut_header.safetensors": (whole[:100], "cut short"),
        "page.safetensors": (b"<!DOCTYPE html><html>", "must be a safetensors file"),
        "empty.safetensors": (b"", "must be a safetensors file"),
        "pickle.safetensors": (pickle.dumps(FolderMaker(folder / "exploded")), "not opened"),
        "pickle.ckpt": (pickle.dumps(FolderMaker(folder / "exploded")), "not opened"),
        "torch.pt": (pickle.dumps(FolderMaker(folder / "exploded")), "not opened"),
        "nan.safetensors": (safetensors.torch.save(nan), "not finite"),
        "model.safetensors": (
            safetensors.torch.save({"model.diffusion_model.out.2.weight": torch.ones(4)}),
            "must belong to a LoRA layer",
        ),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: message for name, (_, message) in contents.items()}

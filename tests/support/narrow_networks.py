"""Narrow networks of families that ComfyUI's detection only accepts at their real width."""

import comfy.ldm.lumina.model
import comfy.ldm.qwen_image.model
import torch


def small_qwen(operations):
    return comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(8, 12, 12),
        dtype=torch.float32,
        operations=operations,
    )


def small_z_image(operations):
    return comfy.ldm.lumina.model.NextDiT(
        in_channels=16,
        dim=256,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        axes_dims=(32, 48, 48),
        axes_lens=(64, 64, 64),
        cap_feat_dim=48,
        qk_norm=True,
        z_image_modulation=True,
        pad_tokens_multiple=32,
        time_scale=1000.0,
        dtype=torch.float32,
        operations=operations,
    )

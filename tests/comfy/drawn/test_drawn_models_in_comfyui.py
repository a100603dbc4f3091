"""The drawn world's models compute what ComfyUI computes with their files."""

import pytest
import torch
from drawn.mmdit import ContextRows, MMDiT, checkpoint_state
from drawn.text_encoder import END, START, TextEncoder, assembled, at_end, final_norm
from drawn.vae import TinyVAE

IDS = torch.tensor([[START, 320, 3240, 525, 320, 12313] + [END] * 71])


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    encoder = TextEncoder(sorted(set(IDS.flatten().tolist())))
    torch.manual_seed(3)
    with torch.no_grad():
        for up in encoder.up.values():
            up.normal_(std=0.02)
    return encoder.eval().requires_grad_(False)


def test_the_text_encoder_is_what_sd3_reads(encoder: TextEncoder) -> None:
    from comfy.text_encoders.sd3_clip import sd3_clip

    model = sd3_clip(clip_l=True, clip_g=False, t5=False)(device="cpu", dtype=torch.float32)
    model.load_sd(assembled(encoder.trained()))
    pairs = [[(token, 1.0) for token in IDS[0].tolist()]]
    out, pooled, _ = model.encode_token_weights({"l": pairs, "g": [], "t5xxl": []})
    ours = encoder(IDS)
    assert out.shape == (1, 77, 4096)
    # The file holds fp16 weights.
    assert (out[..., :768] - ours).abs().max() < 5e-3 * ours.abs().max()
    assert not out[..., 768:].any()
    end = final_norm(at_end(ours, IDS))
    assert (pooled[..., :768] - end).abs().max() < 1e-2 * end.abs().max()


def test_the_text_encoder_is_what_sd15_reads(encoder: TextEncoder) -> None:
    from comfy.sd1_clip import SDClipModel

    model = SDClipModel(device="cpu", dtype=torch.float32)
    model.load_sd(assembled(encoder.trained()))
    pairs = [[(token, 1.0) for token in IDS[0].tolist()]]
    out = model.encode_token_weights(pairs)[0]
    ours = final_norm(encoder(IDS))
    assert (out - ours).abs().max() < 1e-2 * ours.abs().max()


@pytest.mark.parametrize("size", [(12, 12), (12, 24), (8, 16)])
def test_base_b_is_comfyuis_mmdit(size: tuple[int, int]) -> None:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.model_detection import detect_unet_config

    torch.manual_seed(0)
    model = MMDiT().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.04)
    state = checkpoint_state(model.state_dict())
    config = detect_unet_config(state, "")
    theirs = OpenAISignatureMMDITWrapper(
        **config, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast
    )
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])
    x, t = torch.randn(2, 16, *size), torch.tensor([0.2, 0.9])
    tokens, pooled = torch.randn(2, 77, 768), torch.randn(2, 768)
    ours = model(x, t, ContextRows(tokens, pooled, torch.zeros(2, 77)))
    padded_tokens = torch.nn.functional.pad(tokens, (0, 4096 - 768))
    padded_pooled = torch.nn.functional.pad(pooled, (0, 2048 - 768))
    with torch.no_grad():
        other = theirs(x, t * 1000, context=padded_tokens, y=padded_pooled)
    assert (ours - other).abs().max() < 2e-4 * other.abs().max()


@pytest.mark.parametrize("channels", [16, 4])
def test_the_vae_is_comfyuis_taesd(channels: int) -> None:
    from comfy import latent_formats
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(channels)
    ours = TinyVAE(channels)
    pictures = torch.rand(2, 3, 32, 48)
    ours.set_scale(pictures)
    theirs = TAESD(latent_channels=channels)
    theirs.load_state_dict(ours.state_dict())
    form = latent_formats.SD3() if channels == 16 else latent_formats.SD15()
    with torch.no_grad():
        latents = form.process_in(theirs.encode(pictures * 2 - 1))
        decoded = theirs.decode(form.process_out(latents)) / 2 + 0.5
    assert torch.allclose(ours.encode(pictures), latents, atol=1e-4)
    assert torch.allclose(ours.decode(latents), decoded.clamp(0, 1), atol=1e-4)

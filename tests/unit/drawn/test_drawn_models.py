"""Parts of the drawn world's models that need neither drawings nor ComfyUI."""

import math

import torch
from drawn.mmdit import MMDiT
from drawn.muon import orthogonalised
from drawn.rows import padded
from drawn.text_encoder import (
    ACTIVE,
    END,
    LAYERS,
    START,
    TOKEN_NORM,
    TextEncoder,
    assembled,
    at_end,
    seeded_weights,
)
from drawn.vae import LATENT_FORMATS, TinyVAE


def test_padding_that_stands_for_several_tokens_counts_that_often() -> None:
    torch.manual_seed(0)
    model = MMDiT()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    x, t = torch.randn(1, 16, 4, 4), torch.tensor([0.3])
    real, padding = torch.randn(5, 768), torch.randn(1, 768)
    short = padded([torch.cat([real, padding])], [5])
    whole = padded([torch.cat([real, padding.repeat(72, 1)])], [5])
    assert math.isclose(short.log_counts[0, 5].item(), math.log(72), rel_tol=1e-6)
    assert torch.allclose(whole.log_counts, torch.zeros(1, 77))
    ours, theirs = model(x, t, short), model(x, t, whole)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_a_row_of_a_batch_is_what_it_is_alone() -> None:
    torch.manual_seed(0)
    model = MMDiT()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    x, t = torch.randn(2, 16, 4, 4), torch.tensor([0.3, 0.8])
    rows = [torch.randn(9, 768), torch.randn(14, 768)]
    both = model(x, t, padded(rows, [6, 11]))
    for n in range(2):
        alone = model(x[n : n + 1], t[n : n + 1], padded(rows[n : n + 1], [(6, 11)[n]]))
        assert torch.allclose(both[n], alone[0], atol=2e-4)


def test_muon_makes_an_update_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((32, 96), (96, 32)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_the_seeded_encoder_has_clips_norm_and_nine_layers_that_pass_on() -> None:
    state = seeded_weights()
    table = state["text_model.embeddings.token_embedding.weight"]
    assert abs(table.norm(dim=1).mean().item() - TOKEN_NORM) < 0.005
    for layer in range(LAYERS):
        for name in ("self_attn.out_proj", "mlp.fc2"):
            weight = state[f"text_model.encoder.layers.{layer}.{name}.weight"]
            assert bool(weight.any()) == (layer in ACTIVE)
    assert max(ACTIVE) < LAYERS - 1


def test_an_assembled_encoder_holds_the_trained_rows_and_factors() -> None:
    encoder = TextEncoder([START, END, 320])
    with torch.no_grad():
        encoder.rows.add_(0.01)
        for up in encoder.up.values():
            up.normal_(std=0.01)
    trained = encoder.trained()
    again = TextEncoder.of(trained)
    ids = torch.tensor([[START, 320, END, END]])
    assert torch.equal(encoder(ids), again(ids))
    state = assembled(trained)
    row = state["text_model.embeddings.token_embedding.weight"][320].float()
    assert torch.allclose(row, encoder.rows[2].detach(), atol=1e-4)
    assert torch.equal(at_end(encoder(ids), ids)[0], encoder(ids)[0, 2])


def test_scaled_latents_have_mean_0_and_std_1_in_both_formats() -> None:
    for channels in LATENT_FORMATS:
        torch.manual_seed(channels)
        vae = TinyVAE(channels)
        pictures = torch.rand(4, 3, 32, 32)
        vae.set_scale(pictures)
        latents = vae.encode(pictures)
        assert abs(latents.mean().item()) < 1e-4
        assert abs(latents.std().item() - 1) < 1e-3
        decoded = vae.decode(latents)
        direct = vae.taesd_decoder(vae.taesd_encoder(pictures)).clamp(0, 1)
        assert torch.allclose(decoded, direct, atol=1e-4)

"""Where a UNet looks at words: against the layers' own softmax, and without touching the picture."""

import pytest
import torch
from pack.nodes.concepts.examples import CaptionEncoder
from pack.nodes.text.layer_contexts import context_layers
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.denoiser import open_denoiser
from tiny import tiny, tiny_clip

NAME, PLACES = "sd15_layers", (4, 5)  # start, a, photo, of, and then the two words


def forward(denoiser, watch: bool, rows: int = 2):
    """One differentiable forward, its maps and the learnt rows."""
    reader = CaptionEncoder(
        Base(tiny(NAME), tiny_clip(), None), "sks", context_layers(denoiser.patcher), watch
    )
    learnt = 0.03 * torch.randn(2, 4, 768, generator=torch.Generator().manual_seed(1))
    learnt.requires_grad_()
    latent = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    cond = reader.cond("a photo of <sks>", latent[0])({"clip_l": learnt})
    denoised = denoiser.denoise(latent, torch.full((rows,), 3.0), [cond] * rows)
    return denoised, denoiser.attention(), learnt


@pytest.mark.parametrize("recompute", [False, True])
def test_maps_are_the_layers_own_attention_and_pictures_stay_as_they_are(recompute):
    model, clip = tiny(NAME), tiny_clip()
    with open_denoiser(model, checkpointing=recompute, clip=clip) as denoiser:
        seen = []
        layers = [
            module
            for path, module in denoiser.model.diffusion_model.named_modules()
            if path.endswith("attn2")
        ]
        handles = [
            part.register_forward_hook(lambda m, args, out: seen.append(out.detach()))
            for layer in layers
            for part in (layer.to_q, layer.to_k)
        ]
        watched, maps, learnt = forward(denoiser, True)
        pairs = list(zip(seen[::2], seen[1::2], strict=True))[: len(layers)]
        for handle in handles:
            handle.remove()
        plain, none, _ = forward(denoiser, False)
        assert torch.equal(watched, plain)
        assert list(none) == []
        (one,) = maps  # all layers of the tiny model are of one size
        assert one.shape == (2, 2, 8, 8)
        expected = torch.zeros(2, 2, 64)
        for queries, keys in pairs:
            for row in range(2):
                for head in range(8):
                    q = queries[row].unflatten(1, (8, -1))[:, head].double()
                    k = keys[row].unflatten(1, (8, -1))[:, head].double()
                    shares = (q @ k.T / q.shape[1] ** 0.5).softmax(dim=-1)
                    expected[row] += shares[:, list(PLACES)].T.float() / (8 * len(pairs))
        assert torch.allclose(one.flatten(2), expected, atol=1e-6)
        one[:, :, :4].sum().backward()  # through recomputed blocks too
    assert learnt.grad.abs().sum() > 0


def test_nothing_is_watched_without_gradients():
    with open_denoiser(tiny(NAME), clip=tiny_clip()) as denoiser, torch.no_grad():
        _, maps, _ = forward(denoiser, True)
    assert list(maps) == []

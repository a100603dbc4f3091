"""Base A's denoiser and its noise levels, without drawings or ComfyUI."""

from pathlib import Path

import pytest
import torch
from drawn.eps_training import TIMESTEPS, EpsPlan, EpsStage, noise_weight, schedule
from drawn.muon import Muon, orthogonalised
from drawn.rows import padded
from drawn.unet import UNet, checkpoint_state


@pytest.fixture(scope="module")
def model() -> UNet:
    torch.manual_seed(0)
    model = UNet().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    return model


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> EpsStage:
    return EpsStage(tmp_path_factory.mktemp("stage"), "w", None, EpsPlan(10))


def test_padding_that_stands_for_several_tokens_counts_that_often(model: UNet) -> None:
    torch.manual_seed(1)
    x, t = torch.randn(1, 4, 4, 8), torch.tensor([300])
    real, padding = torch.randn(5, 768), torch.randn(1, 768)
    short = padded([torch.cat([real, padding])], [5])
    whole = padded([torch.cat([real, padding.repeat(72, 1)])], [5])
    ours, theirs = model(x, t, short), model(x, t, whole)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_a_row_of_a_batch_is_what_it_is_alone(model: UNet) -> None:
    torch.manual_seed(2)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([300, 800])
    rows = [torch.randn(9, 768), torch.randn(14, 768)]
    both = model(x, t, padded(rows, [6, 11]))
    for n in range(2):
        alone = model(x[n : n + 1], t[n : n + 1], padded(rows[n : n + 1], [(6, 11)[n]]))
        assert (both[n] - alone[0]).abs().max() < 1e-4 * alone.abs().max()


def test_one_tap_becomes_the_centre_of_nine(model: UNet) -> None:
    state, whole = model.state_dict(), checkpoint_state(model.state_dict())
    kernels = [key for key in whole if key.endswith(("in_layers.2.weight", "out_layers.3.weight"))]
    assert len(kernels) == 16
    for key in kernels:
        assert whole[key].shape[2:] == (3, 3)
    key = "middle_block.0.in_layers.2.weight"
    x = torch.randn(1, 320, 5, 5)
    one = torch.nn.functional.conv2d(x, state[key])
    nine = torch.nn.functional.conv2d(x, whole[key], padding=1)
    assert torch.allclose(one, nine, atol=1e-4)


def test_at_least_a_tenth_of_the_rows_is_below_sigma_one_half(stage: EpsStage) -> None:
    t = stage.timesteps(20_000, torch.Generator().manual_seed(0))
    assert (stage.sigmas[t] < 0.5).float().mean() > 0.1
    counts = torch.histc(t.float(), 20, 0, TIMESTEPS)
    assert (counts / len(t)).min() > 0.01  # all of the schedule is seen
    assert t.min() >= 0
    assert t.max() < TIMESTEPS


def test_the_weight_clips_the_signal_to_noise_ratio() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0])
    expected = torch.tensor([5 * 0.01, 1.0, 1.0, 1.0, 0.2 * 100])
    assert torch.allclose(noise_weight(sigma, (0.2, 5.0)), expected)
    assert noise_weight(schedule(), (0.2, 5.0)).max() < 50


def test_muon_moves_the_blocks_and_adamw_the_rest(stage: EpsStage) -> None:
    moved = {id(p) for group in stage.muon.param_groups for p in group["params"]}
    names = {name for name, p in stage.model.named_parameters() if id(p) in moved}
    assert "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight" in names
    assert "middle_block.0.in_layers.2.weight" in names
    assert not any(part in name for name in names for part in ("emb", "bias", "norm"))
    assert "out.2.weight" not in names
    assert len(names) + len(stage.others) == len(list(stage.model.parameters()))


def test_muon_flattens_a_convolution() -> None:
    torch.manual_seed(0)
    kernel, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    whole = torch.nn.Parameter(kernel.contiguous(memory_format=torch.channels_last))
    flat = torch.nn.Parameter(kernel.flatten(1).clone())
    whole.grad, flat.grad = gradient.contiguous(memory_format=torch.channels_last), None
    flat.grad = gradient.flatten(1)
    Muon([whole], 0.1).step()
    Muon([flat], 0.1).step()
    assert torch.allclose(whole.detach().flatten(1), flat.detach(), atol=1e-6)
    step = (kernel * (1 - 0.1 * 0.01) - whole.detach()).flatten(1) / 0.1
    assert torch.allclose(step, orthogonalised(gradient.flatten(1)), atol=1e-2)


def test_a_checkpoint_of_base_a_is_read_again(stage: EpsStage, tmp_path: Path) -> None:
    first = EpsStage(tmp_path, "w", None, EpsPlan(10))
    with torch.no_grad():
        first.average[0].add_(1.0)
    first.save()
    second = EpsStage(tmp_path, "w", None, EpsPlan(10))
    second.resume()
    assert torch.equal(second.average[0], first.average[0])

"""Published numbers: a scalar latent through ComfyUI's samplers, with our formula and our gate.

x is a number, its predictions are ``0.1 x``, ``0.2 x`` and ``0.3 x + 0.05`` of the scaled input, the
schedule is SDXL's with 50 steps (leading, offset 1). The figures are those of Pair Customization's
equation 10 with the style from timestep 800 on (Jones et al. 2024, arXiv:2405.01536), computed
from the formulas alone.
"""

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from pack.lora_ops import cfg, style_guidance
from pack.nodes.guidance.window import style_window

STEPS, CFG = 50, 5.0
FROM_800 = 1 - 800 / 999
GOLDEN = {
    (0.0, FROM_800): (1.91663448, 1.88367583, 100),
    (4.0, FROM_800): (0.48849734, 0.46838284, 140),
    (4.0, 0.0): (0.11547691, 0.10621281, 150),
}


class Toy:
    """A denoiser of one number; counts the rows that it is asked for."""

    def __init__(self, sampling, window):
        self.sampling, self.window, self.rows = sampling, window, 0

    def __call__(self, x, sigma, **kwargs):
        inputs = x / (sigma**2 + 1) ** 0.5
        uncond, cond = (x - sigma * eps for eps in (0.1 * inputs, 0.2 * inputs))
        scale = self.window.scale_at(float(sigma[0]), self.sampling.percent_to_sigma)
        styles = [(x - sigma * (0.3 * inputs + 0.05), scale)] if scale else []
        self.rows += 2 + len(styles)
        return style_guidance(cfg(uncond, cond, CFG), cond, styles)


@pytest.fixture(scope="module")
def sampling():
    """SDXL's noise schedule in ComfyUI."""
    return comfy.model_sampling.ModelSamplingDiscrete()


def final(sampling, sampler, window, sigmas, x):
    """Return the last latent and the rows it took."""
    toy = Toy(sampling, window)
    function = comfy.samplers.sampler_object(sampler).sampler_function
    result = function(toy, x, sigmas, extra_args={}, callback=None, disable=True)
    return float(result), toy.rows


@pytest.mark.parametrize(("scale", "start"), GOLDEN)
def test_scalar_run(sampling, scale, start):
    ddim, euler, rows = GOLDEN[scale, start]
    window = style_window(scale, start, 1.0, "")
    timesteps = torch.arange(981, 0, -20)
    assert len(timesteps) == STEPS
    levels = sampling.sigmas.double()[timesteps]
    assert timesteps[10] == 781  # the first styled one

    # Euler: x starts at init_noise_sigma, the last step goes to 0.
    start_x = (levels[0] ** 2 + 1).sqrt().view(1, 1)
    sigmas = torch.cat([levels, levels.new_zeros(1)])
    assert final(sampling, "euler", window, sigmas, start_x) == (
        pytest.approx(euler, abs=1e-5),
        rows,
    )

    # DDIM: the same steps on x of unit variance; the last goes to timestep 0's noise.
    last = sampling.sigmas.double()[:1]
    found, taken = final(sampling, "ddim", window, torch.cat([levels, last]), start_x)
    assert (found / float((last**2 + 1).sqrt()), taken) == (pytest.approx(ddim, abs=1e-5), rows)

"""Draw preview pictures during a training run."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import comfy.model_management
import comfy.samplers
import comfy.sd
import torch
from comfy.conds import CONDRegular
from comfy.k_diffusion.sampling import sample_euler
from PIL import Image
from torch import Tensor

from ...training import TrainingSettings
from ...training.families import Samplings
from ...training.files.tensor_file import replace_file
from ...training.gates import RowGates
from ...training.progress import Event
from ..bridge.vae import require_finite
from ..text.live_caption import LiveCaption
from ..text.training_cond import TrainingCond
from .denoiser import ComfyDenoiser
from .panel import LivePanel

FOLDER = "previews"
_LARGEST_SIDE = 512  # longest side of the preview that ComfyUI's progress bar sends, in pixels


@dataclass(frozen=True)
class PreviewScene:
    """The prompt and the gates of a preview.

    Args:
        vae: VAE that decodes the picture.
        cond: Conditions of the prompt.
        uncond: Conditions of the empty prompt.
        gates: Gates of the prompt's row.
        uncond_gates: Gates of the empty prompt's row.
        shape: Shape of the latent, ``(channel, ...)``.
    """

    vae: comfy.sd.VAE
    cond: TrainingCond | LiveCaption
    uncond: TrainingCond | LiveCaption
    gates: RowGates
    uncond_gates: RowGates
    shape: torch.Size


class Previews:
    """The training callback that draws a picture at regular steps, or at the user's request.

    Noise, steps and guidance are the same for all pictures, so that they differ only by what was
    learnt between them. Drawing changes neither parameters nor random numbers of the training.

    Args:
        scene: Scene to draw; None draws nothing.
        settings: Training settings; the interval and the seed of the noise are used.
        folder: Folder of the run.
        panel: Panel that shows the pictures and has the button.
        samplings: Sampling settings of the base's family.
    """

    def __init__(
        self,
        scene: PreviewScene | None,
        settings: TrainingSettings,
        folder: Path,
        panel: LivePanel,
        samplings: Samplings,
    ):
        self.scene, self.settings, self.panel = scene, settings, panel
        self.samplings = samplings
        self.folder = folder / FOLDER
        self._unseen: Image.Image | None = None

    def latest(self) -> Any:
        """Return a new picture in the form of ComfyUI's progress bar, or None; each one once."""
        picture, self._unseen = self._unseen, None
        return None if picture is None else ("JPEG", picture, _LARGEST_SIDE)

    def __call__(self, event: Event) -> None:
        """Draw a picture if one is due; a failure is reported and the training goes on."""
        requested = self.panel.take_press("sample")
        every = self.settings.preview_every
        if not requested and not (every and event.step % every == 0):
            return
        if self.scene is None:
            self.panel.note("a preview picture needs the trainer's clip and vae: connect both")
            return
        self.panel.show_activity("drawing a picture")
        file = self.folder / f"step_{event.step:06d}.png"
        try:
            picture = draw_preview(self.scene, event, self.settings, self.samplings)
            png = io.BytesIO()
            picture.save(png, "PNG")
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, png.getvalue())
        except Exception as error:  # the user's interrupt is not one and still ends the run
            self.panel.show_activity("")
            self.panel.warn(f"training goes on without a preview picture: {error}")
            return
        self._unseen = picture
        self.panel.show_picture(file, event.step)


def draw_preview(
    scene: PreviewScene, event: Event, settings: TrainingSettings, samplings: Samplings
) -> Image.Image:
    """Return a picture drawn with the present state of the run, in the size of its latents.

    Raises:
        RuntimeError: The VAE gives NaN, or there is not enough memory.
    """
    session = event.session
    denoiser = cast(ComfyDenoiser, session.denoiser)
    cuda = [denoiser.device] if denoiser.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(cuda), session.averaged():
        latent = _sample(scene, event, settings, samplings)
        try:
            pixels = _decoded(scene.vae, latent)
        finally:
            # ComfyUI may have unloaded the denoiser to make room for the VAE.
            denoiser.reload()
    require_finite(pixels, scene.vae)
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _sample(
    scene: PreviewScene, event: Event, settings: TrainingSettings, samplings: Samplings
) -> Tensor:
    """Return a latent for the VAE, ``(1, channel, ...)``, sampled like KSampler with Euler."""
    session = event.session
    denoiser = cast(ComfyDenoiser, session.denoiser)
    model, preview = denoiser.model, samplings.preview
    rows = [
        (_encoded(event, cond, gates), gates)
        for cond, gates in ((scene.cond, scene.gates), (scene.uncond, scene.uncond_gates))
    ]
    if samplings.distilled_guidance is not None:
        guidance = CONDRegular(torch.tensor([samplings.distilled_guidance]))
        rows = [(TrainingCond({**rows[0][0].model_conds, "guidance": guidance}), scene.gates)]
    separate = settings.rows_per_pass == 1 or len({cond.shape_key() for cond, _ in rows}) > 1
    passes = [[row] for row in rows] if separate else [rows]

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        found = []
        for rows in passes:
            with session.gates.gated([gates for _, gates in rows]):
                count = len(rows)
                many = x.expand(count, *x.shape[1:])
                conds = [cond for cond, _ in rows]
                found.append(denoiser.denoise(many, sigma.expand(count), conds))
        cond, *uncond = torch.cat(found).split(1)
        return uncond[0] + preview.cfg * (cond - uncond[0]) if uncond else cond

    sampling = model.model_sampling
    sigmas = comfy.samplers.calculate_sigmas(sampling, preview.scheduler, preview.steps)
    sigmas = sigmas.to(denoiser.device)
    empty = torch.zeros(1, *scene.shape)
    generator = torch.Generator().manual_seed(settings.preview_seed)
    noise = torch.randn(empty.shape, generator=generator).to(denoiser.device)
    x = sampling.noise_scaling(sigmas[0], noise, empty.to(noise), _is_first(sampling, sigmas))
    x = sample_euler(guided, x, sigmas, disable=True)
    return model.process_latent_out(sampling.inverse_noise_scaling(sigmas[-1], x))


def _encoded(event: Event, cond: TrainingCond | LiveCaption, gates: RowGates) -> TrainingCond:
    """Return the conditions of a prompt, encoded with the present state of the run."""
    session = event.session
    with session.gates.gated([gates]):
        return cast(ComfyDenoiser, session.denoiser).encoded([session.words.conditioning(cond)])[0]


def _is_first(sampling: Any, sigmas: Tensor) -> bool:
    """Return whether sampling begins at the model's maximum noise, by ComfyUI's own criterion."""
    return float(sigmas[0]) >= float(sampling.sigma_max) * (1 - 1e-5)


def _decoded(vae: comfy.sd.VAE, latent: Tensor) -> Tensor:
    """Return the VAE's picture of a latent, ``(height, width, 3)``, the first frame of a video.

    The VAE runs in a separate thread under inference mode, as in a node, because the modes that
    training has set in this thread do not allow inference tensors.
    """

    def decode() -> Tensor:
        with torch.inference_mode():
            return vae.decode(latent.float()).float().cpu()

    with ThreadPoolExecutor(max_workers=1) as thread:
        pixels = thread.submit(decode).result()
    return pixels.reshape(-1, *pixels.shape[-3:])[0]

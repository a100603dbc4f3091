"""The panel's side of a run in this process: previews, buttons, notes; nothing learnt differs."""

import json
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from gated_loras import hook_count
from pack.nodes.bridge.conditioning import encode_prompt
from pack.nodes.trainer import panel as live
from pack.nodes.trainer import preview
from pack.nodes.trainer.panel import MOST_POINTS, Curve, LivePanel, panel_id
from pack.training import TrainingConfig, TrainingSettings
from pack.training.runs.run_folder import RunFolder
from pair_inputs import identity, progress, queue, vae_for
from PIL import Image
from tiny import tiny, tiny_clip, weights_hash

import nodes as core_nodes


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    return moved_output(tmp_path / "output", monkeypatch)


def moved_output(folder: Path, monkeypatch) -> Path:
    """Let the next run find no other one."""
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


def run_id(**changes) -> str:
    """Return the id by which the page would know the run."""
    name = changes.get("run_name", "test")
    return panel_id(RunFolder(Path(), name, identity(**changes)), None)


@contextmanager
def pressing(run: str, button: str, step: int):
    """Press a button at the end of a step, before the panel hears of the step."""

    def on_step(value: int, total: int) -> None:
        if value == step:
            assert live.find_run(run).press(button)

    with progress(on_step) as steps:
        yield steps


def the_run(output: Path) -> Path:
    (folder,) = (output / "pastiche").iterdir()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd3", {"ema_decay": 0.9}),
        ("flux", {}),
        ("flux", {"checkpointing": True}),
        ("sd15", {"rows_per_pass": 1}),
    ],
)
def test_previews_change_no_bit_of_what_is_learnt(name, changes, tmp_path, monkeypatch):
    found = {}
    for every in (0, 1):
        output = moved_output(tmp_path / str(every), monkeypatch)
        settings = TrainingSettings(preview_every=every, save_every_steps=2, **changes)
        model = tiny(name, inference=True)
        before = weights_hash(model)
        seed = torch.get_rng_state()
        style, contents, losses = queue(name, model=model, settings=settings, steps=4).result
        assert torch.equal(torch.get_rng_state(), seed)
        assert weights_hash(model) == before
        folder = the_run(output)
        pictures = sorted(file.name for file in folder.glob("previews/*"))
        assert pictures == [f"step_{step:06d}.png" for step in range(1, 5) if every]
        found[every] = losses, files(folder / "checkpoints"), dict(style), dict(contents[0])
    (losses, checkpoints, *loras), (losses_drawn, checkpoints_drawn, *loras_drawn) = found.values()
    assert losses == losses_drawn
    assert checkpoints == checkpoints_drawn
    assert len(checkpoints) > 1
    for plain, drawn in zip(loras, loras_drawn, strict=True):
        assert all(torch.equal(plain[key], drawn[key]) for key in plain)


def test_a_vae_that_takes_the_base_place_on_the_device_changes_no_bit(monkeypatch, tmp_path):
    vae = vae_for("sd3")
    decode = vae.decode

    def evicting(samples):
        comfy.model_management.unload_all_models()
        return decode(samples)

    losses = {}
    for every in (0, 1):
        moved_output(tmp_path / str(every), monkeypatch)
        model = tiny("sd3", inference=True)
        key = "diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"
        weight = comfy.utils.get_attr(model.model, key)
        with torch.inference_mode():
            model.add_patches({key: ("diff", (torch.ones_like(weight),))}, 0.1)
        monkeypatch.setattr(vae, "decode", evicting)
        settings = TrainingSettings(preview_every=every)
        losses[every] = queue(model=model, vae=vae, settings=settings).result[2]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["sd3", "sd15", "flux"])
def test_a_preview_is_what_a_ksampler_draws(name, output):
    settings = TrainingSettings(preview_every=1, preview_seed=7, preview_prompt="a blue box")
    model = tiny(name)
    queue(name, model=model, steps=1, learning_rate=1e-12, style_start=0.0, settings=settings)
    (file,) = the_run(output).glob("previews/*.png")
    with Image.open(file) as opened:
        assert opened.size == (48, 32)
        drawn = torch.frombuffer(bytearray(opened.convert("RGB").tobytes()), dtype=torch.uint8)

    positive, negative = (encode_prompt(tiny_clip(), text) for text in ("a blue box", ""))
    channels = model.model.latent_format.latent_channels
    empty = {"samples": torch.zeros(1, channels, 4, 6)}
    cfg = 1.0 if name == "flux" else 5.0
    with torch.inference_mode():
        (latent,) = core_nodes.common_ksampler(
            model, 7, 20, cfg, "euler", "normal", positive, negative, empty
        )
        expected = vae_for(name).decode(latent["samples"])[0]
    difference = (drawn.view(32, 48, 3) - expected.mul(255).round()).abs()
    assert difference.max() <= 1
    assert expected.std() > 0.01


def test_previews_show_what_is_learnt_and_keep_their_noise(output):
    settings = TrainingSettings(preview_every=1)
    queue(steps=3, learning_rate=0.5, style_start=0.6, settings=settings)
    first, second, third = files(the_run(output) / "previews").values()
    assert first == second  # the style has not begun
    assert second != third


def test_sample_now_draws_without_a_rhythm_and_reaches_the_progress_bar(output):
    run, seen = run_id(), []
    with pressing(run, "sample", 1) as steps:
        inner = comfy.utils.PROGRESS_BAR_HOOK

        def hook(value, total, preview, node_id=None):
            seen.append(preview)
            inner(value, total, preview, node_id)

        comfy.utils.set_progress_bar_global_hook(hook)
        queue(steps=4)
    assert steps == [1, 2, 3, 4]
    assert list(files(the_run(output) / "previews")) == ["step_000002.png"]
    (kind, shown, largest), *others = [preview for preview in seen if preview is not None]
    assert (kind, shown.size, largest, others) == ("JPEG", (48, 32), 512, [])
    picture = live.find_run(run).snapshot()["picture"]
    assert picture == {
        "filename": "step_000002.png",
        "subfolder": f"pastiche/test-{identity()}/previews",
        "type": "output",
        "step": 2,
    }


def test_stop_and_keep_finishes_a_run_until_more_steps_are_wished(output, tmp_path, monkeypatch):
    run = run_id(style_start=0.5)
    with pressing(run, "stop", 3) as steps:
        style, _, losses = queue(steps=4, style_start=0.5).result
    assert steps == [1, 2, 3]
    assert len(losses["loss"]) == 3
    assert style.metadata["pastiche.steps"] == "3"
    assert live.find_run(run).snapshot()["state"] == "stopped"

    with progress() as steps:
        again = queue(steps=4, style_start=0.5)
    assert steps == []
    assert "trained before" in again.ui["text"][0]
    assert all(torch.equal(again.result[0][key], style[key]) for key in style)

    with progress() as steps:
        extended = queue(steps=6, style_start=0.5)
    assert steps == [4, 5, 6]
    assert "goes on from step 3" in extended.ui["text"][0]
    assert [step for step, *_ in live.find_run(run).snapshot()["points"]] == [1, 2, 3, 4, 5, 6]

    moved_output(tmp_path / "undisturbed", monkeypatch)
    undisturbed = queue(steps=6, style_start=1 / 3)
    assert undisturbed.result[2] == extended.result[2]
    for key, tensor in undisturbed.result[0].items():
        assert torch.equal(tensor, extended.result[0][key])


def test_save_now_writes_files_and_training_goes_on(output):
    undisturbed = queue(run_name="undisturbed").result[2]
    with pressing(run_id(run_name="saved"), "save", 2) as steps:
        shown = queue(run_name="saved")
    assert steps == [1, 2, 3]
    assert shown.result[2] == undisturbed
    (folder,) = (output / "pastiche").glob("saved-*/saved/step 2")
    assert {"style.safetensors", "content_1.safetensors"} <= set(files(folder))
    saved = comfy.utils.load_torch_file(str(folder / "style.safetensors"))
    assert saved.keys() == shown.result[0].keys()
    assert any(not torch.equal(saved[key], shown.result[0][key]) for key in saved)
    assert f"saved step 2 in {folder}" in shown.ui["text"][0]


def test_a_save_that_fails_is_said_and_training_goes_on(output):
    run = run_id()

    def block(value: int, total: int) -> None:
        if value == 1:
            (output / "pastiche" / f"test-{identity()}" / "saved").write_text("in the way")
            live.find_run(run).press("save")

    with progress(block) as steps:
        shown = queue()
    assert steps == [1, 2, 3]
    assert "step 1 is not saved" in shown.ui["text"][0]


@pytest.mark.parametrize("failure", ["error", "nan"])
def test_a_preview_that_fails_is_said_once_and_training_goes_on(failure, monkeypatch, caplog):
    vae = vae_for("sd3")
    decode = vae.decode

    def failing(samples):
        if failure == "nan":
            return decode(samples) * float("nan")
        raise RuntimeError("the VAE is of another family")

    monkeypatch.setattr(vae, "decode", failing)
    with progress() as steps:
        shown = queue(vae=vae, settings=TrainingSettings(preview_every=1))
    assert steps == [1, 2, 3]
    (text,) = shown.ui["text"]
    assert text.count("training goes on without a preview picture") == 1
    assert ("got NaN" if failure == "nan" else "of another family") in text
    assert live.find_run(run_id()).snapshot()["doing"] == ""
    assert "without a preview picture" in caplog.text


def test_an_interrupt_during_a_preview_ends_the_run_and_keeps_its_step(monkeypatch, output):
    sample = preview.sample_euler

    def interrupted(*arguments, **options):
        comfy.model_management.interrupt_current_processing()
        return sample(*arguments, **options)

    monkeypatch.setattr(preview, "sample_euler", interrupted)
    model = tiny("sd3")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        queue(model=model, settings=TrainingSettings(preview_every=2), steps=4)
    assert hook_count(model) == 0
    assert not comfy.model_management.in_training
    shown = live.find_run(run_id()).snapshot()
    assert shown["state"] == "broken"
    assert "step 2 is kept" in shown["notes"][-1]
    monkeypatch.setattr(preview, "sample_euler", sample)
    with progress() as steps:
        queue(model=model, steps=4)
    assert steps == [3, 4]


def test_a_run_shows_what_the_page_draws_and_obeys_no_button_when_it_is_over():
    queue(steps=4, learning_rate=0.01)
    panel = live.find_run(run_id())
    shown = json.loads(json.dumps(panel.snapshot()))
    assert {key: shown[key] for key in ("run", "name", "state", "step", "steps")} == {
        "run": run_id(),
        "name": "test",
        "state": "finished",
        "step": 4,
        "steps": 4,
    }
    assert shown["learning_rate"] == 0.01
    assert set(shown["rows"]) == {"content", "style"}
    assert [point[0] for point in shown["points"]] == [1, 2, 3, 4]
    assert shown["points"][-1][1] == pytest.approx(shown["loss"], rel=1e-5)
    assert not panel.press("stop")


def test_two_runs_do_not_mix():
    queue(seed=1, steps=2)
    queue(seed=2, steps=3)
    counts = [len(live.find_run(run_id(seed=n)).snapshot()["points"]) for n in (1, 2)]
    assert counts == [2, 3]


def test_only_the_latest_runs_are_remembered():
    config = TrainingConfig(3, 2, 0.01, 0)
    runs = [f"{number:012x}" for number in range(20)]
    panels = [LivePanel(None, RunFolder(Path("runs"), "x", run), config, None) for run in runs]
    with panels[0].open():
        for panel in panels[1:]:
            with panel.open():
                pass
        known = [panel.run for panel in live.known_runs()]
        ids = [panel.run for panel in panels]
        assert known == [ids[0], *ids[5:]]  # the running one is not forgotten
    assert live.find_run(ids[1]) is None


def test_a_long_curve_stays_small_and_true():
    curve = Curve()
    for step in range(1, 50_001):
        curve.add(step, 1.0 if step % 2 else 3.0)
    points = curve.since(0)
    assert MOST_POINTS // 2 <= len(points) <= MOST_POINTS
    assert points[-1][0] == 50_000
    assert all(abs(smooth - 2.0) < 0.1 for _, _, smooth in points[10:])
    assert curve.since(49_999) == [points[-1]]
    assert [point[0] for point in points] == sorted({point[0] for point in points})

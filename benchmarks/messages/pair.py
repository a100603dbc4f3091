"""Collect the answers of Train a Style Pair and Load Training Images to bad input."""

from __future__ import annotations

from collections.abc import Callable

import folder_paths
import pair_refusals
from pack.training.files.checkpoint import load_checkpoint
from pack.training.runs.lock import run_lock
from pair_inputs import queue
from pair_refusals import SMALL, photograph
from training_images_case import BAD_PICTURES
from training_pictures import load, two_colour_picture

from .page import Page, answer, evaluate


def _pictures(page: Page) -> None:
    folder_paths.output_directory = str(page.folder("pictures"))
    page.add_section("Train a Style Pair: pictures, prompts, settings")
    for case, (changes, _) in pair_refusals.REFUSED.items():
        inputs = {name: evaluate(value) for name, value in changes.items()}
        if case == "drive in the name":
            inputs["run_name"] = "D:style"  # keeps a path of this machine off the page
        page.add_refusal(case, lambda inputs=inputs: queue(**inputs))
    for kind in ("one pixel", "one row", "NaN"):
        inputs = {
            "before": photograph("astronaut"),
            "after": photograph("astronaut", kind),
            "settings": SMALL,
        }
        page.add_refusal(f"a photograph, {kind}", lambda inputs=inputs: queue(**inputs))
    page.add_section("The same: photographs that are taken, and what is said of them")
    for before, after in (
        (("astronaut", "RGB"), ("astronaut", "grey")),
        (("astronaut", "alpha"), ("coffee", "RGB")),
        (("coffee", "odd"), ("chelsea", "odd")),
        (("rocket", "grey and alpha"), ("camera", "RGB")),
    ):
        images = {"before": photograph(*before), "after": photograph(*after)}
        text = queue(**images, settings=SMALL, steps=1, style_start=0).ui["text"][0]
        message = next(line for line in text.split("\n") if line.startswith("pair 1"))
        page.add_answer(f"before {' '.join(before)}, after {' '.join(after)}", message)


def _runs(page: Page) -> None:
    page.add_section("A training run and its folder")
    output = page.folder("runs")
    folder_paths.output_directory = str(output)
    queue()
    (run,) = (output / "pastiche").iterdir()
    checkpoint = max(run.rglob("step_*.safetensors"))
    whole = checkpoint.read_bytes()
    for case, data in {
        "a checkpoint cut off": whole[: len(whole) // 2],
        "a checkpoint with one bit turned": whole[:-1] + bytes([whole[-1] ^ 1]),
        "a checkpoint of another version": whole.replace(b'"format":"1"', b'"format":"9"'),
    }.items():
        checkpoint.write_bytes(data)
        text = answer(lambda: load_checkpoint(checkpoint))
        page.add_answer(case, text, plain="\n" not in text and "taken" not in text)
    checkpoint.write_bytes(whole)
    result = next(run.glob("*/style.safetensors"))
    kept = result.read_bytes()
    result.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    page.add_refusal("the LoRA of a finished run was changed", queue)
    result.write_bytes(kept)
    with run_lock(run):
        page.add_refusal("the run is in use", lambda: queue(steps=4))
    page.add_refusal("a learning rate that diverges", lambda: queue(learning_rate=1e30, steps=6))
    folder_paths.output_directory = str(page.folder("read only"))
    (page.place / "read only" / "pastiche").write_text("")
    page.add_refusal("a read-only output folder", queue)


def _folders(page: Page) -> None:
    page.add_section("Load Training Images (Pastiche)")
    folder_paths.input_directory = str(page.folder("input"))
    for number, (name, (make, _)) in enumerate(BAD_PICTURES.items()):
        place = page.folder(f"input/{number}")
        two_colour_picture().save(place / "a.png")
        make(place / name)
        page.add_refusal(f"`{name}`", lambda number=number: load(str(number)))
    page.folder("input/empty")
    for name in ("empty", "..", "/etc", "nowhere"):
        page.add_refusal(f"folder `{name}`", lambda name=name: load(name))
    for case, shade, side in (("black all over", 0, 48), ("of another size", 255, 47)):
        place = page.folder(f"input/{case}")
        two_colour_picture().save(place / "a.png")
        two_colour_picture(side).convert("L").point(lambda _, shade=shade: shade).save(
            place / "a.mask.png"
        )
        page.add_refusal(f"a mask {case}", lambda case=case: load(case))


PICTURE_SECTIONS: tuple[Callable[[Page], None], ...] = (_pictures,)
RUN_SECTIONS: tuple[Callable[[Page], None], ...] = (_runs, _folders)

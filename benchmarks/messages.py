"""What the nodes say of bad input: ``python3 benchmarks/run.py messages``; a few minutes.

Every case is given to the real node, on the tests' tiny models and with the tests' own files and
pictures, and what it says is written into a table. A case that is taken instead of refused, that
breaks with anything but a plain error, or that takes more than a line, ends the run with a failure.
Writes ``benchmarks/results/messages.md``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from messages_study.concepts import CONCEPT_SECTIONS
from messages_study.fusion import FUSION_SECTIONS
from messages_study.halves import HALF_SECTIONS, called
from messages_study.regions import REGION_SECTIONS

BENCHMARKS = Path(__file__).resolve().parent
TESTS = BENCHMARKS.parent / "tests" / "support"
MUTANTS = 500
_LONGEST = 600


def main(arguments: Sequence[str]) -> int:
    """Provoke every case and write the table; return 1 if one was not answered plainly."""
    parser = argparse.ArgumentParser(prog="messages", description=__doc__)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "messages.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pastiche-messages-") as place:
        _prepare(Path(place) / "comfy")
        page = Page(Path(place))
        logging.getLogger().handlers = [Warnings(page.warnings)]
        for section in _SECTIONS:
            section(page)
    options.out.write_text(page.text(), encoding="utf-8")
    print(f"{len(page.cases)} cases, {len(page.faults)} not answered plainly: {options.out}")
    for fault in page.faults:
        print(fault, file=sys.stderr)
    return 1 if page.faults else 0


@dataclass
class Page:
    """The sections of the page so far.

    Args:
        place: A folder for the cases; its path is left out of what is written.
    """

    place: Path
    lines: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def section(self, title: str, header: str = "| case | what the node says |") -> None:
        """Begin a table."""
        self.lines += ["", f"## {title}", "", header, "| --- " * (header.count("|") - 1) + "|"]

    def row(self, *cells: object) -> None:
        """Add a line to the table."""
        texts = [str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in cells]
        self.lines.append(f"| {' | '.join(texts)} |")

    def refused(self, case: str, action: Callable[[], Any]) -> None:
        """Add what is said when ``action`` runs, which must be a plain error in one line."""
        from pack.training.runs.lock import UnwritableError

        try:
            action()
            said, plain = "taken without a word", False
        except Exception as error:
            said, plain = str(error), type(error) in (ValueError, RuntimeError, UnwritableError)
        self.answered(case, said, plain and "\n" not in said and len(said) < _LONGEST)

    def warned(self, case: str, action: Callable[[], Any], *notes: str) -> None:
        """Add what is said of ``notes`` when ``action`` runs, which must be all of them."""
        self.warnings.clear()
        try:
            action()
        except Exception as error:
            self.answered(case, f"not taken: {error!r}", plain=False)
            return
        said = [text for text in self.warnings if any(note in text for note in notes)]
        plain = bool(said) and all(any(note in text for text in said) for note in notes)
        self.answered(case, " ".join(said) or "taken without a word", plain)

    def answered(self, case: str, said: str, plain: bool = True) -> None:
        """Add what is said of a case, with the folder of the cases left out."""
        said = said.replace(str(self.place), "…")
        self.cases.append(case)
        if not plain:
            self.faults.append(f"{case}: {said}")
        self.row(case, said)

    def folder(self, name: str) -> Path:
        """Return a new folder for cases."""
        folder = self.place / name
        folder.mkdir(parents=True)
        return folder

    def text(self) -> str:
        """Return the whole page."""
        head = [
            "# What the nodes say of bad input",
            "",
            "Made by `python3 benchmarks/run.py messages` with the cases of `tests/comfy`, on its "
            "tiny models: each was given to the real node. `…` stands for the folder that the "
            "cases lay in.",
        ]
        return "\n".join([*head, *self.lines, ""])


class Warnings(logging.Handler):
    """Keeps what the pack shows below a node without refusing, and leaves all else out.

    Args:
        texts: Where it is kept.
    """

    def __init__(self, texts: list[str]):
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning of the pack."""
        said = record.getMessage()
        if said.startswith("Pastiche: "):
            self.texts.append(said.removeprefix("Pastiche: "))


def _prepare(base_directory: Path) -> None:
    """Make ComfyUI and the tests' cases importable."""
    from comfy_in_process import prepare_comfy

    prepare_comfy(base_directory)
    sys.path.append(str(TESTS))
    sys.path.insert(0, str(TESTS.parent / "oracles"))  # "regional" is a benchmark's name as well


def _pictures(page: Page) -> None:
    import folder_paths
    from pair_inputs import queue
    from pair_refusals import REFUSED, SMALL, photograph

    folder_paths.output_directory = str(page.folder("pictures"))
    page.section("Train a Style Pair: pictures, prompts, settings")
    for case, (changes, _) in REFUSED.items():
        inputs = {name: called(value) for name, value in changes.items()}
        if case == "drive in the name":
            inputs["run_name"] = "D:style"  # no path of a machine on the page
        page.refused(case, lambda inputs=inputs: queue(**inputs))
    for kind in ("one pixel", "one row", "NaN"):
        inputs = {
            "before": photograph("astronaut"),
            "after": photograph("astronaut", kind),
            "settings": SMALL,
        }
        page.refused(f"a photograph, {kind}", lambda inputs=inputs: queue(**inputs))
    page.section("The same: photographs that are taken, and what is said of them")
    for before, after in (
        (("astronaut", "RGB"), ("astronaut", "grey")),
        (("astronaut", "alpha"), ("coffee", "RGB")),
        (("coffee", "odd"), ("chelsea", "odd")),
        (("rocket", "grey and alpha"), ("camera", "RGB")),
    ):
        images = {"before": photograph(*before), "after": photograph(*after)}
        text = queue(**images, settings=SMALL, steps=1, style_start=0).ui["text"][0]
        said = next(line for line in text.split("\n") if line.startswith("pair 1"))
        page.answered(f"before {' '.join(before)}, after {' '.join(after)}", said)


def _lora_files(page: Page) -> None:
    import folder_paths
    from bad_loras import bad_files
    from mutations import KINDS, mutants
    from pack.nodes.lora.nodes import ApplyLora, LoadLora
    from tiny import tiny

    folder = page.folder("loras")
    folder_paths.folder_names_and_paths["loras"][0].insert(0, str(folder))
    page.section("Load LoRA (Pastiche)")
    for name in bad_files(folder):
        page.refused(name, lambda name=name: LoadLora.execute(name))
    page.refused("a name that is not in the list", lambda: LoadLora.execute("absent.safetensors"))
    page.section(
        f"Load LoRA and Apply LoRA: {MUTANTS} spoilt files",
        "| kind | files | refused by Load | refused by Apply | the first thing that is said of one |",
    )
    whole = (folder / "good.safetensors").read_bytes()
    made, loading, applying, example = Counter(), Counter(), Counter(), {}
    for mutant in mutants([whole], MUTANTS):
        made[mutant.kind] += 1
        (folder / "mutant.safetensors").write_bytes(mutant.data)
        stage = loading
        page.warnings.clear()
        try:
            (lora,) = LoadLora.execute("mutant.safetensors").result
            stage = applying
            ApplyLora.execute(tiny("sd15"), lora, 1.0, 1.0)
            said = "".join(page.warnings[:1])
        except ValueError as error:
            stage[mutant.kind] += 1
            said = str(error)
        except Exception as error:
            page.faults.append(f"{mutant.name}: {error!r}")
            continue
        if said:
            example.setdefault(mutant.kind, said)
    for kind in KINDS:
        said = example.get(kind, "(whole, and other than it was)")
        page.row(kind.replace("_", " "), made[kind], loading[kind], applying[kind], said)


def _applied(page: Page) -> None:
    import torch
    from bad_loras import ARCHITECTURE, KINDS, adapter, lora_for
    from pack.nodes.lora.nodes import ApplyLora
    from tiny import tiny

    def apply(base: str, lora: dict, clip: Any = None) -> Callable[[], Any]:
        return lambda: ApplyLora.execute(tiny(base), lora, 1.0, 1.0, clip=clip)

    page.section("Apply LoRA (Pastiche)")
    page.refused("SDXL's on SD1.5", apply("sd15", lora_for("sdxl")))
    named = lora_for("flux", {"modelspec.architecture": ARCHITECTURE["flux"]})
    page.refused("Flux's, which says so, on SDXL", apply("sdxl", named))
    page.refused("not a LoRA", apply("sd15", {"x": torch.ones(2)}))
    text = {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 768),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(3072, 2),
    }
    page.refused("the text encoder's alone, without CLIP", apply("sd15", text))
    spoilt = dict(lora_for("sd15"))
    next(iter(spoilt.values()))[0, 0] = float("nan")
    page.refused("NaN from another pack's loader", apply("sd15", spoilt))
    for kind, shapes in KINDS.items():
        part = next(iter(shapes))
        wrong = {**shapes, part: (*shapes[part][:-1], shapes[part][-1] + 1)}
        page.refused(f"{kind}, {part} of a wrong shape", apply("sd15", adapter(wrong)))
        missing = {name: shape for name, shape in shapes.items() if name != part}
        if missing:
            page.refused(f"{kind} without {part}", apply("sd15", adapter(missing)))


def _saved(page: Page) -> None:
    import folder_paths
    from bad_loras import lora_for
    from pack.nodes.lora.nodes import SaveLora

    page.section("Save LoRA (Pastiche)")
    lora = lora_for("sd15")
    for name in ("../x", "/abs/x", "D:x", "NUL", " "):
        page.refused(f"filename `{name}`", lambda name=name: SaveLora.execute(lora, name, "fp16"))
    page.refused("nothing in it", lambda: SaveLora.execute({}, "x", "fp16"))
    huge = {
        key: tensor * (1e8 if "up" in key else 1e-8) for key, tensor in lora_for("sd15").items()
    }
    page.refused("numbers beyond fp16", lambda: SaveLora.execute(huge, "x", "fp16"))
    known = folder_paths.folder_names_and_paths["loras"]
    blocked = page.place / "a file"
    blocked.write_text("")
    folder_paths.folder_names_and_paths["loras"] = ([str(blocked)], known[1])
    page.refused("no folder can be written to", lambda: SaveLora.execute(lora, "x", "fp16"))
    folder_paths.folder_names_and_paths["loras"] = known


def _styles(page: Page) -> None:
    from bad_loras import KINDS, adapter, lora_for
    from pack.nodes.guidance.nodes import ApplyStyleGuidance, StylePrompts
    from tiny import tiny, tiny_clip, tiny_cond

    def guide(lora: dict, schedule: str = "", window: tuple[float, float] = (0.2, 1.0)) -> Any:
        model = tiny("sd15")
        return lambda: ApplyStyleGuidance.execute(
            model, lora, tiny_cond(model), 3.0, *window, 1.0, schedule
        )

    page.section("Apply Style Guidance and Style Prompts")
    sound = lora_for("sd15")
    for schedule in ("0:1, x", "0:1; 1:0", "0:1, 2:0", "0.5:1, 0.2:0", "0:nan"):
        page.refused(f"schedule `{schedule}`", guide(sound, schedule))
    page.refused("the window ends before it starts", guide(sound, window=(0.8, 0.2)))
    page.refused("Flux's LoRA on SD1.5", guide(lora_for("flux")))
    page.refused("a LoHa", guide(adapter(KINDS["LoHa"])))
    page.refused(
        "style words absent", lambda: StylePrompts.execute(tiny_clip(), "a dog", "", dict(sound))
    )


def _runs(page: Page) -> None:
    import folder_paths
    from pack.training.files.checkpoint import load_checkpoint
    from pack.training.runs.lock import run_lock
    from pair_inputs import queue

    page.section("A training run and its folder")
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
        text = _answer(lambda: load_checkpoint(checkpoint))
        page.answered(case, text, plain="\n" not in text and "taken" not in text)
    checkpoint.write_bytes(whole)
    result = next(run.glob("*/style.safetensors"))
    kept = result.read_bytes()
    result.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    page.refused("the LoRA of a finished run was changed", queue)
    result.write_bytes(kept)
    with run_lock(run):
        page.refused("the run is in use", lambda: queue(steps=4))
    page.refused("a learning rate that diverges", lambda: queue(learning_rate=1e30, steps=6))
    folder_paths.output_directory = str(page.folder("read only"))
    (page.place / "read only" / "pastiche").write_text("")
    page.refused("a read-only output folder", queue)


def _folders(page: Page) -> None:
    import folder_paths
    from training_images_case import BAD_PICTURES
    from training_pictures import load, painted

    page.section("Load Training Images (Pastiche)")
    folder_paths.input_directory = str(page.folder("input"))
    for number, (name, (make, _)) in enumerate(BAD_PICTURES.items()):
        place = page.folder(f"input/{number}")
        painted().save(place / "a.png")
        make(place / name)
        page.refused(f"`{name}`", lambda number=number: load(str(number)))
    page.folder("input/empty")
    for name in ("empty", "..", "/etc", "nowhere"):
        page.refused(f"folder `{name}`", lambda name=name: load(name))
    for case, shade, side in (("black all over", 0, 48), ("of another size", 255, 47)):
        place = page.folder(f"input/{case}")
        painted().save(place / "a.png")
        painted(side).convert("L").point(lambda _, shade=shade: shade).save(place / "a.mask.png")
        page.refused(f"a mask {case}", lambda case=case: load(case))


def _answer(action: Callable[[], Any]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return "taken without a word"


_SECTIONS = (
    *(_pictures, _lora_files, _applied, _saved, _styles, _runs, _folders),
    *(*HALF_SECTIONS, *CONCEPT_SECTIONS, *FUSION_SECTIONS, *REGION_SECTIONS),
)

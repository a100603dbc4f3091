"""Collect the answers of the concept nodes to bad input, with the cases of the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apply_concept_refusals
import concept_files_case
import concept_imports_case
import folder_paths
import pytest
import train_concept_refusals
from apply_concept_refusals import three_concepts
from concept_case import NAME
from concept_files_case import load, many_words, save
from concept_imports_case import Program, load_damaged, with_embedding, write_authors
from concept_inputs import concept_for
from concept_prompt_case import BAD, concept, encoded
from pack.nodes.concepts.nodes_use import EncodeConceptPrompt
from tiny import tiny, tiny_clip
from training_concepts import queue

from .page import Page, evaluate


@contextmanager
def temporary_folders(page: Page, name: str) -> Iterator[tuple[Path, Path]]:
    """Replace ComfyUI's folders of LoRAs and embeddings by empty ones, and yield them."""
    known = folder_paths.folder_names_and_paths
    folders = page.folder(f"{name}/loras"), page.folder(f"{name}/embeddings")
    with pytest.MonkeyPatch.context() as patch:
        for kind, folder in zip(("loras", "embeddings"), folders, strict=True):
            patch.setitem(known, kind, ([str(folder)], known[kind][1]))
        yield folders


def _train_concept(page: Page) -> None:
    folder_paths.output_directory = str(page.folder("concepts"))
    page.add_section("Train Concept")
    for case, (changes, _) in train_concept_refusals.REFUSED.items():
        inputs = {name: evaluate(value) for name, value in changes.items()}
        page.add_refusal(case, lambda inputs=inputs: queue("sd15", **inputs))
    for case, (family, changes, _) in train_concept_refusals.UNFIT.items():
        page.add_refusal(case, lambda family=family, changes=changes: queue(family, **changes()))
    page.add_section("Train Concept: what is taken, and what is said of it")
    lines = (
        queue("sd15", captions=train_concept_refusals.UNNAMED, steps=1).ui["text"][0].split("\n")
    )
    messages = [line for line in lines if "put in front" in line]
    page.add_answer("a caption without the name", "; ".join(messages), len(messages) == 1)


def _encode_concept_prompt(page: Page) -> None:
    page.add_section("Encode Concept Prompt")
    for case, (text, concepts, _) in BAD.items():
        page.add_refusal(
            case,
            lambda text=text, concepts=concepts: encoded(
                tiny_clip(), [make() for make in concepts], text
            ),
        )
    page.add_refusal("no CLIP", lambda: EncodeConceptPrompt.execute(None, {"a": (concept(),)}, "a"))
    page.add_section("Apply Concept, and a sampler behind it")
    concepts = three_concepts()
    for case, (action, _) in apply_concept_refusals.REFUSED.items():
        page.add_refusal(case, lambda action=action: action(concepts))


def _concept_files(page: Page) -> None:
    page.add_section("Save Concept and Load Concept")
    with temporary_folders(page, "concept files"):
        for case, (action, _) in concept_files_case.REFUSED.items():
            page.add_refusal(case, action)
        wide = many_words()
        for name in concept_files_case.FILENAMES:
            page.add_refusal(
                f"filename `{name}`", lambda name=name: save(wide, name, embedding=True)
            )


def _import_concepts(page: Page) -> None:
    page.add_section("Load Concept: files of the released code, and a LoRA with its embedding")
    proof = page.place / "a program ran"
    with temporary_folders(page, "imports") as (loras, embeddings):
        for case, write in concept_imports_case.PROGRAMS.items():
            write(loras / "evil.pth", proof)
            page.add_refusal(f"a .pth with a program, {case}", lambda: load("evil.pth"))
        for case, (changes, _) in concept_imports_case.WRONG_PTH.items():
            write_authors(loras / "odd.pth", concept_for(tiny(NAME)), **changes)
            page.add_refusal(f"a .pth, {case}", lambda: load("odd.pth", name="odd"))
        for case, spoil in concept_imports_case.DAMAGED.items():
            page.add_refusal(case, lambda spoil=spoil: load_damaged(loras, spoil))
        for case, (embedding, _) in concept_imports_case.UNFIT.items():
            page.add_refusal(
                case, lambda embedding=embedding: with_embedding(embeddings, *embedding)
            )
        page.add_refusal(
            "an embedding with a program",
            lambda: with_embedding(embeddings, "evil.pt", {"*": Program(proof)}),
        )
    if proof.exists():
        page.faults.append("a program in a file of concepts ran")


CONCEPT_SECTIONS: tuple[Callable[[Page], None], ...] = (
    _train_concept,
    _encode_concept_prompt,
    _concept_files,
    _import_concepts,
)

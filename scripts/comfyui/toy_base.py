"""Put the toy base and its example pictures where a ComfyUI server finds them."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from environment import REPOSITORY, cache_folder

ASSET = REPOSITORY / "assets" / "toyworld.safetensors"
EXAMPLES = REPOSITORY / "assets" / "examples"
CHECKPOINT = "toyworld.safetensors"


def toy_checkpoint() -> Path:
    """Return the toy base as a checkpoint for the stock loaders, assembled on the first call.

    The file is cached under a digest of the asset and of the code that assembles it. It is renamed
    to its final name once it is complete.
    """
    toyworld = REPOSITORY / "benchmarks" / "toyworld"
    sources = [ASSET, toyworld / "assemble.py", toyworld / "clip.py"]
    if not ASSET.is_file():
        raise RuntimeError(f"the toy base must lie at {ASSET}, got none: get the whole repository")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    checkpoint = cache_folder() / f"toyworld-{digest}.safetensors"
    if not checkpoint.is_file():
        sys.path.insert(0, str(REPOSITORY / "benchmarks"))
        from toyworld.assemble import assemble

        temporary = checkpoint.with_name(f"{checkpoint.stem}.{os.getpid()}.safetensors")
        assemble(ASSET, temporary)
        temporary.replace(checkpoint)
    return checkpoint


def place_toy_base(base_directory: Path) -> None:
    """Link the toy base into the server's checkpoints and copy the examples into its input."""
    target = base_directory / "models" / "checkpoints" / CHECKPOINT
    # Two processes may share the folder, so the link gets a temporary name first.
    link = target.with_name(f"{CHECKPOINT}.{os.getpid()}")
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(toy_checkpoint())
    except OSError:
        # Windows gives links to administrators only.
        shutil.copyfile(toy_checkpoint(), link)
    link.replace(target)
    place_examples(base_directory)


def place_examples(base_directory: Path) -> None:
    """Copy the example pictures that the templates use into the server's input."""
    for file in sorted((*EXAMPLES.glob("*.png"), *EXAMPLES.glob("*/*"))):
        target = base_directory / "input" / file.relative_to(EXAMPLES)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


if __name__ == "__main__":
    try:
        place_toy_base(Path(sys.argv[1]))
    except RuntimeError as error:
        sys.exit(f"{error}")

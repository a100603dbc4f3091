"""What the commands promise of their environment: healed, locked, kept off a found ComfyUI."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from checks import Check, run
from comfyui.server import make_base_directory
from contact_sheet import Column, contact_sheet
from environment import comfyui_source, environment
from templates.strip_previews import without_previews
from tiers import TIERS, _counts, _summary


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes" / "pack" / "scripts").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    (folder / "requirements.txt").write_text("torch\n")
    return folder


def test_an_interrupted_install_is_started_again_from_nothing(tmp_path: Path, comfyui: Path):
    folder = tmp_path / "env"

    def interrupted(command: list[str]) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "half").touch()
        if "pip" in command:
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        environment._install(folder, comfyui, interrupted)
    assert not (folder / environment.COMPLETE).exists()

    environment._install(folder, comfyui, lambda command: folder.mkdir(exist_ok=True))
    assert sorted(path.name for path in folder.iterdir()) == [environment.COMPLETE]


def test_the_environment_is_named_by_what_is_installed(comfyui: Path):
    before = environment._digest(comfyui)
    assert environment._digest(comfyui) == before
    (comfyui / "requirements.txt").write_text("torch\nscipy\n")
    assert environment._digest(comfyui) != before


def test_a_child_keeps_the_lock_when_its_parent_is_killed(tmp_path: Path, repository: Path):
    source = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from environment.file_lock import file_lock\n"
        "with file_lock(Path(sys.argv[1])) as lock:\n"
        "    subprocess.Popen(['sleep', '2'], pass_fds=(lock,))\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", source, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, cwd=repository / "scripts", stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    started = time.monotonic()
    with environment.file_lock(tmp_path / "lock"):
        waited = time.monotonic() - started
    assert 0.5 < waited < 60


def test_comfyui_is_the_one_that_is_named(comfyui: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert comfyui_source.find_comfyui() == comfyui
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui / "nowhere"))
    with pytest.raises(RuntimeError, match=r"COMFYUI_PATH must name a folder with ComfyUI's main"):
        comfyui_source.find_comfyui()


def test_comfyui_is_the_one_that_the_pack_is_in(comfyui: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    script = comfyui / "custom_nodes" / "pack" / "scripts" / "dev.py"
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert comfyui_source.find_comfyui() == comfyui


def test_an_archive_that_was_changed_is_refused(tmp_path: Path):
    (tmp_path / "archive.tar.gz").write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="must have SHA-256 de5d0c32"):
        comfyui_source._check_digest(tmp_path / "archive.tar.gz")


def test_the_base_directory_holds_the_pack_and_can_be_made_again(tmp_path: Path, repository: Path):
    for _ in range(2):
        base = make_base_directory(tmp_path / "base")
    assert (base / "custom_nodes" / "ComfyUI-Pastiche" / "__init__.py").samefile(
        repository / "__init__.py"
    )


def test_previews_are_stripped_and_nothing_else():
    workflow = {"nodes": [{"title": "data", "image": "data:image/png;base64,AAAA"}]}
    assert without_previews(workflow) == {"nodes": [{"title": "data", "image": ""}]}


def test_a_tier_that_breaks_off_counts_as_an_error(tmp_path: Path):
    counts = _counts(tmp_path / "none.xml", 3)
    assert _summary(counts) == "0 passed, 1 errors"


def test_the_summary_counts_what_pytest_reports(tmp_path: Path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite tests="10" failures="2" errors="1" skipped="3"/></testsuites>'
    )
    assert _summary(_counts(report, 1)) == "2 failed, 4 passed, 3 skipped, 1 errors"


def test_a_check_that_finds_something_fails_and_shows_it(capsys: pytest.CaptureFixture[str]):
    sound = Check("sound", [sys.executable, "-c", "print('nothing')"])
    faulty = Check("faulty", [sys.executable, "-c", "print('line 3'); raise SystemExit(1)"], "mend")
    counts = run([sound, faulty], {})
    assert counts == {"failed": 1, "passed": 1, "skipped": 0, "errors": 0}
    shown = capsys.readouterr().out
    assert "line 3" in shown
    assert "mend" in shown
    assert "nothing" not in shown


def test_the_checks_come_before_the_tests():
    assert TIERS == ("checks", "unit", "comfy", "browser")


def test_the_contact_sheet_has_a_column_for_each_prompt(repository: Path):
    picture = (repository / "assets" / "examples" / "pair_before.png").read_bytes()
    narrow = contact_sheet(picture, picture, [], "a title")
    wide = contact_sheet(picture, picture, [Column("a ball", picture, picture)] * 3, "a title")
    assert wide.height == narrow.height
    assert wide.width > narrow.width

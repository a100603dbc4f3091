"""A run's lock: one process at a time, freed by the system when the process is killed."""

import subprocess
import sys
import time

import pytest
from pack.training.runs.lock import LOCK_FILE, run_lock

HOLD = """
import sys, time
sys.path.append({scripts!r})
from pack_loader import load_pack
load_pack("pack")
from pathlib import Path
from pack.training.runs.lock import run_lock
with run_lock(Path({folder!r})):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path, repository):
    """Another process that holds the lock of ``tmp_path / "run"``."""
    program = HOLD.format(scripts=str(repository / "scripts"), folder=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path, holder):
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError) as refused, run_lock(folder):
        pytest.fail("both hold it")
    assert f"got {folder} in use by another" in str(refused.value)
    assert "wait for it, stop it, or choose another run_name" in str(refused.value)
    with run_lock(tmp_path / "another"):
        pass
    holder.kill()  # SIGKILL: it has no chance to tidy up
    holder.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with run_lock(folder):
                return
        except RuntimeError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its process")


def test_a_second_run_of_the_same_process_is_refused(tmp_path):
    with run_lock(tmp_path), pytest.raises(RuntimeError, match="in use"), run_lock(tmp_path):
        pytest.fail("both hold it")
    with run_lock(tmp_path):
        pass


def test_what_is_said_can_be_another_sentence(tmp_path):
    with (
        run_lock(tmp_path),
        pytest.raises(RuntimeError) as refused,
        run_lock(tmp_path, "one at a time, got {folder}"),
    ):
        pytest.fail("both hold it")
    assert str(refused.value) == f"one at a time, got {tmp_path}"


def test_the_lock_is_freed_after_an_error(tmp_path):
    (tmp_path / "result").write_text("")
    for _ in range(2):
        with pytest.raises(KeyError), run_lock(tmp_path):
            raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, "result"]


def test_a_folder_with_nothing_else_in_it_goes(tmp_path):
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RuntimeError, match=r"must be writable, got: .*another output folder"),
        run_lock(tmp_path / "file" / "run"),
    ):
        pytest.fail("held nowhere")

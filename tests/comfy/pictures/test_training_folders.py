"""Where the loader of training images may read, and when it reads anew."""

import os
import shutil
from pathlib import Path

import folder_paths
import pytest
from pack.nodes.pictures.folder import folder_fingerprint, training_folders
from pack.nodes.pictures.nodes import LoadTrainingImages
from training_pictures import load, two_colour_picture


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder ``set`` under ComfyUI's input."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    place = tmp_path / "input" / "set"
    place.mkdir(parents=True)
    return place


def test_an_empty_folder_is_refused(folder):
    (folder / "notes.txt").write_text("no pictures yet")
    with pytest.raises(ValueError, match=r"must hold pictures \(.bmp.*\), got none in 'set'"):
        load()


OUTSIDE = ["..", "../elsewhere", "set/../../elsewhere", "/etc", "link", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_folders_outside_input_are_refused_before_anything_runs(name, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    two_colour_picture().save(elsewhere / "a.png")
    (folder.parent / "link").symlink_to(elsewhere)
    refusal = LoadTrainingImages.validate_inputs(name)
    assert "must lie in ComfyUI's input folder" in refusal
    assert "\n" not in refusal
    with pytest.raises(ValueError, match="must lie in ComfyUI's input folder"):
        load(name)
    assert training_folders() == []


@pytest.mark.parametrize("name", ["", "nowhere", "set/a.png"])
def test_what_is_no_folder_is_refused(name, folder):
    two_colour_picture().save(folder / "a.png")
    assert "must be a folder in ComfyUI's input folder" in LoadTrainingImages.validate_inputs(name)


def test_a_file_that_links_out_of_input_is_refused(folder, tmp_path):
    two_colour_picture().save(tmp_path / "secret.png")
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"got a link out of it: a.png"):
        load()
    (folder / "a.png").unlink()
    two_colour_picture().save(folder / "a.png")
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match=r"got a link out of it: a.txt"):
        load()


def test_folders_that_hold_pictures_are_offered(folder):
    two_colour_picture().save(folder / "a.png")
    deep = folder / "more" / "deep"
    deep.mkdir(parents=True)
    two_colour_picture().save(deep / "a.JPG")
    hidden = folder / ".thumbnails"
    hidden.mkdir()
    two_colour_picture().save(hidden / "a.png")
    assert training_folders() == ["set", "set/more/deep"]
    two_colour_picture().save(folder.parent / "loose.png")
    assert training_folders() == [".", "set", "set/more/deep"]
    assert LoadTrainingImages.validate_inputs(".") is True
    assert len(load(".")[0]) == 1
    (combo, *_) = LoadTrainingImages.GET_SCHEMA().inputs
    assert combo.options == [".", "set", "set/more/deep"]


def test_a_changed_file_changes_the_fingerprint(folder):
    two_colour_picture().save(folder / "a.png")
    seen = [folder_fingerprint("set")]
    assert folder_fingerprint("set") == seen[0]
    (folder / "a.txt").write_text("one")
    seen.append(folder_fingerprint("set"))
    (folder / "a.txt").write_text("two")
    os.utime(folder / "a.txt", ns=(1, 1))
    seen.append(folder_fingerprint("set"))
    (folder / "a.txt").rename(folder / "b.txt")
    seen.append(folder_fingerprint("set"))
    assert len(set(seen)) == len(seen)


def run_graph(server, seen: list[str]) -> None:
    graph = {
        "1": {
            "class_type": "PasticheLoadTrainingImages",
            "inputs": {"folder": "set", "caption": "x", "resolution": 0, "bucket_step": 8},
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}},
    }
    entry = server.post_prompt(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    seen.append(entry["outputs"]["2"]["text"][0])


def test_a_server_reads_a_changed_folder_anew_and_refuses_others(comfy_server):
    place = comfy_server.base_directory / "input" / "set"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    two_colour_picture().save(place / "a.png")
    seen: list[str] = []
    run_graph(comfy_server, seen)
    two_colour_picture(64, 64).save(place / "b.png")
    run_graph(comfy_server, seen)
    assert seen[0].startswith("1 pictures from set")
    assert seen[1].startswith("2 pictures from set")
    graph = {
        "1": {
            "class_type": "PasticheLoadTrainingImages",
            "inputs": {"folder": "../..", "caption": "", "resolution": 0, "bucket_step": 8},
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}},
    }
    with pytest.raises(ValueError, match="which leads out of it"):
        comfy_server.queue(graph)

"""Names of saved LoRA files: what is never overwritten, what is written again."""

import shutil

import folder_paths
import safetensors.torch
from lora_files_case import picture, save, unet_lora
from tiny import tiny

__all__ = ["picture"]  # a fixture


def test_nothing_is_overwritten_and_nothing_written_twice(loras, picture):
    model = tiny("sd15")
    first, second = unet_lora(model), unet_lora(model, seed=1)
    assert save(first, image=picture) == "my_style.safetensors"
    before = {path: path.stat().st_mtime_ns for path in loras.iterdir()}
    assert save(first, image=picture) == "my_style.safetensors"
    assert save(second) == "my_style_2.safetensors"
    assert save(second) == "my_style_2.safetensors"
    assert save(first, trigger="sbu") == "my_style_3.safetensors"
    assert save(first, precision="fp16") == "my_style_4.safetensors"
    assert save(first, "my_style.safetensors", image=picture) == "my_style.safetensors"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(loras.iterdir())) == 5
    (loras / "mine.png").write_bytes(b"a picture of the user's")
    assert save(first, "mine", image=picture) == "mine_2.safetensors"
    assert (loras / "mine.png").read_bytes() == b"a picture of the user's"


def test_a_name_taken_in_any_folder_is_taken(loras, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    folder_paths.folder_names_and_paths["loras"][0].append(str(other))
    lora = unet_lora(tiny("sd15"))
    (other / "my_style.safetensors").write_bytes(b"another")
    assert save(lora) == "my_style_2.safetensors"
    shutil.move(loras / "my_style_2.safetensors", other / "moved.safetensors")
    assert save(lora, "moved") == "moved_2.safetensors"


def test_subfolders_are_made_and_names_are_those_of_cores_list(loras):
    name = save(unet_lora(tiny("sd15")), "styles/ink/first")
    assert name in folder_paths.get_filename_list("loras")
    assert (loras / "styles" / "ink" / "first.safetensors").is_file()


def test_a_saved_file_that_was_deleted_is_written_again(comfy_server):
    folder = comfy_server.base_directory / "models" / "loras"
    safetensors.torch.save_file(dict(unet_lora(tiny("sd3"))), str(folder / "source.safetensors"))
    graph = {
        "1": {
            "class_type": "PasticheLoadLora",
            "inputs": {"lora_name": "source.safetensors"},
        },
        "2": {
            "class_type": "PasticheSaveLora",
            "inputs": {"lora": ["1", 0], "filename": "again", "precision": "fp16"},
        },
    }

    def ran():
        """Queue the graph and return the nodes that were not taken from the cache."""
        entry = comfy_server.post_prompt(graph)
        assert entry["status"]["status_str"] == "success"
        cached = [data["nodes"] for kind, data in entry["status"]["messages"] if "cached" in kind]
        return {"1", "2"} - set(cached[0])

    saved = folder / "again.safetensors"
    assert "2" in ran()
    first = saved.read_bytes()
    ran()
    assert ran() == set()
    saved.unlink()
    assert ran() == {"2"}
    assert saved.read_bytes()[-1000:] == first[-1000:]  # the date in its header may be another
    for path in (saved, folder / "source.safetensors"):
        path.unlink()

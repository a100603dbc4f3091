"""The metadata that a saved LoRA carries."""

from pack.training.families import FAMILIES
from pack.training.files.metadata import FileMetadata, family_of, file_metadata

DETAILS = FileMetadata(
    title="name", date="2026-01-01T00:00:00Z", tensor_digest="ab", rank_and_alpha=(4, 4)
)


def test_metadata_complete_the_loras_own_and_never_contradict_them():
    own = {"pastiche.role": "style", "pastiche.style_words": "in ink", "ss_steps": "9"}
    own |= {"modelspec.title": "old", "sshs_model_hash": "old", "modelspec.resolution": "768x768"}
    details = FileMetadata(**{**DETAILS.__dict__, "family": FAMILIES["SDXL"]})
    metadata = file_metadata(own, details)
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "name"
    assert metadata["modelspec.hash_sha256"] == "0xab"
    assert metadata["modelspec.resolution"] == "768x768"
    assert metadata["modelspec.trigger_phrase"] == "in ink"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    assert metadata["ss_steps"] == "9"
    assert metadata["pastiche.role"] == "style"
    assert "sshs_model_hash" not in metadata
    assert all(isinstance(value, str) for value in metadata.values())


def test_what_the_pack_keeps_is_told_under_customary_names_too():
    own = {"modelspec.architecture": FAMILIES["Flux"].architecture, "pastiche.steps": "750"}
    own |= {"pastiche.learning_rate": "1e-05", "pastiche.resolution": "512", "pastiche.seed": "7"}
    metadata = file_metadata(own, DETAILS)
    assert metadata["ss_base_model_version"] == FAMILIES["Flux"].base_version
    assert metadata["modelspec.implementation"] == "comfyui"
    assert metadata["modelspec.resolution"] == "512x512"
    assert metadata["ss_steps"] == metadata["ss_max_train_steps"] == "750"
    assert (metadata["ss_learning_rate"], metadata["ss_seed"]) == ("1e-05", "7")


def test_what_the_user_types_wins():
    own = {"pastiche.style_words": "in ink", "modelspec.trigger_phrase": "old"}
    details = FileMetadata(**{**DETAILS.__dict__, "trigger": "new", "style_words": "in oil"})
    metadata = file_metadata(own, details)
    assert metadata["modelspec.trigger_phrase"] == "new"
    assert metadata["pastiche.style_words"] == "in oil"


def test_the_base_is_read_back_from_metadata():
    for family in FAMILIES.values():
        details = FileMetadata(**{**DETAILS.__dict__, "family": family})
        assert family_of(file_metadata({}, details)) == family
        assert family_of({"ss_base_model_version": family.base_version}) == family
    assert family_of({}) is None
    assert family_of({"modelspec.architecture": "pixart/lora"}) is None

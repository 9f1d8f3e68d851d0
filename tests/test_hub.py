"""Models of the hub by their id; what fails is one sentence. The hub itself is a stand-in here."""

import sys
import types

import pytest

from ldm_dream import hub
from ldm_dream.hub import HubError, is_hub_id, upload
from ldm_dream.model_folder import ModelError, find_model
from runs import autoencoder_folder


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.mark.parametrize(
    ("name", "is_id"),
    [("me/model", True), ("dream-latent-x4-tiny", False), ("a/b/c", False), ("./x", False)],
)
def test_an_id_has_one_slash(name, is_id):
    assert is_hub_id(name) == is_id


def test_an_id_is_fetched_and_a_folder_of_that_name_goes_first(fake, tmp_path, monkeypatch):
    cached = autoencoder_folder(tmp_path / "cache")
    fake.snapshot_download = lambda repo_id, allow_patterns: str(cached)
    assert find_model("me/model") == cached
    monkeypatch.chdir(tmp_path)
    autoencoder_folder(tmp_path / "me" / "model")
    assert find_model("me/model").resolve() == (tmp_path / "me" / "model").resolve()


def test_out_of_reach_is_one_sentence(fake):
    def fails(*_, **__):
        raise OSError("Cannot reach the hub\nlong explanation")

    fake.snapshot_download = fake.create_repo = fails
    with pytest.raises(
        HubError, match=r"me/model: no such folder here.*\(Cannot reach the hub\)\.$"
    ):
        find_model("me/model")
    with pytest.raises(HubError, match=r"could not be sent to the hub \(Cannot reach the hub\)"):
        upload(None, "me/model")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"ldm_dream\[hub\]"):
        hub.download("me/model")


def test_a_folder_is_sent_whole(fake, tmp_path):
    sent = []
    fake.create_repo = lambda repo_id, private, exist_ok: sent.append((repo_id, private))
    fake.upload_folder = lambda repo_id, folder_path: (
        sent.append(folder_path) or f"https://hub/{repo_id}"
    )
    assert upload(tmp_path, "me/model", private=True) == "https://hub/me/model"
    assert sent == [("me/model", True), tmp_path]


def test_a_plain_unknown_name_does_not_ask_the_hub(fake):
    with pytest.raises(ModelError, match="bundled are"):
        find_model("no-such-model")

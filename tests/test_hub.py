"""Models of the hub are written hf:owner/name; what fails is one sentence. The hub itself is a stand-in here."""

import sys
import types

import pytest

from ldm_dream.config.files import load_config
from ldm_dream.config.model import VQGANConfig
from ldm_dream.hub import HubError, repo_id_of, upload
from ldm_dream.model_folder import (
    ModelError,
    find_model,
    load_autoencoder,
    load_model,
    resolve_autoencoder,
    save_model,
)
from ldm_dream.networks import build_network
from runs import autoencoder_folder, diffusion_run


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.mark.parametrize(
    ("name", "repo_id"),
    [
        ("hf:me/model", "me/model"),
        ("hf:me/model-1.5_x", "me/model-1.5_x"),
        ("me/model", None),
        ("dream-latent-x4-tiny", None),
        ("./hf:me/model", None),
    ],
)
def test_only_hf_names_a_model_of_the_hub(name, repo_id):
    assert repo_id_of(name) == repo_id


@pytest.mark.parametrize("name", ["hf:", "hf:model", "hf:a/b/c", "hf:/model", "hf:me/ model"])
def test_hf_wants_owner_and_name(fake, name):
    with pytest.raises(HubError, match=r"a model of the hub is written hf:owner/name\.$"):
        find_model(name)


def test_a_model_of_the_hub_is_fetched_though_a_folder_has_its_name(fake, tmp_path, monkeypatch):
    cached, asked = autoencoder_folder(tmp_path / "cache"), []
    fake.snapshot_download = lambda repo_id, allow_patterns: asked.append(repo_id) or str(cached)
    monkeypatch.chdir(tmp_path)
    here = autoencoder_folder(tmp_path / "me" / "model")
    assert find_model("hf:me/model") == cached and asked == ["me/model"]
    assert find_model("me/model").resolve() == here.resolve() and asked == ["me/model"]


def test_a_missing_folder_is_never_asked_of_the_hub(fake, tmp_path, monkeypatch):
    """The stand-in has no snapshot_download: to ask it would be an AttributeError."""
    monkeypatch.chdir(tmp_path)
    wanted = r"^weights/vq-f4: no such folder .*; for a model of the hub write hf:weights/vq-f4\.$"
    for ask in (find_model, load_model):
        with pytest.raises(ModelError, match=wanted):
            ask("weights/vq-f4")
    with pytest.raises(ModelError, match=wanted):
        load_autoencoder(VQGANConfig(pretrained="weights/vq-f4"))
    (tmp_path / "weights/vq-f4").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"neither a model folder \(with a config.yaml\)"):
        find_model("weights/vq-f4")


def test_a_config_may_name_a_model_of_the_hub(fake, tmp_path):
    cached = autoencoder_folder(tmp_path / "cache")
    fake.snapshot_download = lambda repo_id, allow_patterns: str(cached)
    path = tmp_path / "run.yaml"
    path.write_text(
        "autoencoder: {kind: vqgan, pretrained: hf:me/vq}\ntrain: {init_from: hf:me/vq}"
    )
    run = load_config(path)
    assert run.train.init_from == "hf:me/vq"
    assert resolve_autoencoder(run.autoencoder).n_embed == 16
    assert load_autoencoder(run.autoencoder).channels == 4


@pytest.mark.parametrize("named", ["folder", "../../vq", "{tmp}/vq", "../weights/vq-f4-tiny"])
def test_a_model_of_the_hub_names_no_folder_of_its_user(fake, tmp_path, monkeypatch, named):
    """A local model may name a local folder; who uploads one does not choose among others'."""
    run = diffusion_run(tmp_path)
    named = named.format(tmp=tmp_path)
    own = run.autoencoder.model_copy(update={"pretrained": named})
    state = build_network(run.network).state_dict()
    model = tmp_path / "cache/model"
    save_model(model, run.model_copy(update={"autoencoder": own}), state, "a card")
    autoencoder_folder(tmp_path / "folder")
    autoencoder_folder(tmp_path / "vq")
    monkeypatch.chdir(tmp_path)
    fake.snapshot_download = lambda repo_id, allow_patterns: str(model)
    with pytest.raises(ModelError, match="a model of the hub may name a bundled model"):
        load_model("hf:me/model")
    if named == "folder":
        assert load_model(model).autoencoder.channels == 4


def test_out_of_reach_is_one_sentence(fake):
    def fails(*_, **__):
        raise OSError("Cannot reach the hub\nlong explanation")

    fake.snapshot_download = fake.create_repo = fails
    with pytest.raises(
        HubError, match=r"^hf:me/model: not to be had from the hub \(Cannot reach the hub\)\.$"
    ):
        find_model("hf:me/model")
    with pytest.raises(HubError, match=r"could not be sent to the hub \(Cannot reach the hub\)"):
        upload(None, "me/model")


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

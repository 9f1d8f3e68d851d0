"""Models of the hub are written hf:owner/name; what fails is one sentence. The hub itself is a stand-in here."""

import errno
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.files import load_config
from ldm_dream.hub import HubError, Search, repo_id_of, upload
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
    fake.snapshot_download = lambda repo_id, **_: asked.append(repo_id) or str(cached)
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
    fake.snapshot_download = lambda repo_id, **_: str(cached)
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
    fake.snapshot_download = lambda repo_id, **_: str(model)
    with pytest.raises(ModelError, match="a model of the hub may name a bundled model"):
        load_model("hf:me/model")
    if named == "folder":
        assert load_model(model).autoencoder.channels == 4


def test_out_of_reach_is_one_sentence(fake):
    def fails(*_, **__):
        raise OSError("Cannot reach the hub\nlong explanation")

    fake.snapshot_download = fake.create_repo = fails
    with pytest.raises(
        HubError, match=r"^hf:me/model: cannot be fetched from the hub: Cannot reach the hub\.$"
    ):
        find_model("hf:me/model")
    with pytest.raises(HubError, match=r"could not be sent to the hub: Cannot reach the hub"):
        upload(None, "me/model")


def library_error(name: str, *bases: type) -> Exception:
    """As one of huggingface_hub or of the HTTP library under it."""
    return type(name, bases or (Exception,), {"__module__": "some_library"})("said")


@pytest.mark.parametrize(
    "error, says",
    [
        (library_error("ConnectError", type(library_error("TransportError"))), "check the network"),
        (library_error("SSLError", type(library_error("ConnectionError", OSError))), "network"),
        (library_error("ReadTimeout", type(library_error("TimeoutException"))), "does not answer"),
        (library_error("XetDownloadError"), "hub: said.$"),
        (RuntimeError("hf_xet: no route"), "hub: hf_xet: no route.$"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full; .*HF_HOME"),
        (PermissionError(13, "Permission denied"), "Permission denied.$"),
    ],
)
def test_whatever_a_request_fails_by_is_a_hub_error(fake, error, says):
    def fails(*_, **__):
        raise error

    fake.snapshot_download = fake.create_repo = fails
    for ask in (lambda: find_model("hf:me/model"), lambda: upload(None, "me/model")):
        with pytest.raises(HubError, match=says) as caught:
            ask()
        assert "\n" not in str(caught.value) and caught.value.__cause__ is error


def test_a_mistake_of_the_program_is_no_hub_error(fake):
    fake.snapshot_download = lambda: None  # takes no argument
    with pytest.raises(TypeError):
        find_model("hf:me/model")


class Answers(BaseHTTPRequestHandler):
    """A hub that answers all with one status."""

    status, headers_of = 404, {}

    def do_GET(self) -> None:
        self.send_response(self.status)
        for name, value in {"Content-Length": "0", **self.headers_of}.items():
            self.send_header(name, value)
        self.end_headers()

    do_POST = do_HEAD = do_GET

    def log_message(self, *_) -> None:
        """Nothing."""


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """The real huggingface_hub, asking an address on this machine."""
    from huggingface_hub import constants, hf_api

    def ask(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(hf_api.api, "endpoint", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return ask


@pytest.mark.parametrize(
    "status, headers, down, up",
    [
        (401, {}, "hf auth login", "hf auth login"),
        (403, {}, "take a token that may", "take a token that may"),
        (403, {"X-Error-Code": "GatedRepo"}, "its owner must let you in", "let you in"),
        (404, {"X-Error-Code": "RepoNotFound"}, "no such model; check the name", "no such model"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision", "could not be sent"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub_at, tmp_path, monkeypatch, status, headers, down, up
):
    monkeypatch.setattr(Answers, "status", status)
    monkeypatch.setattr(Answers, "headers_of", headers)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        hub_at(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(HubError, match=down) as fetched:
            find_model("hf:me/model", Search(revision="v1", token="hf_none"))
        with pytest.raises(HubError, match=up) as sent:
            upload(tmp_path, "me/model", token="hf_none")
        server.shutdown()
    assert "\n" not in f"{fetched.value}{sent.value}"


def test_offline_is_one_sentence(hub_at, tmp_path):
    hub_at("http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(HubError, match="not fetched before, and now: the hub cannot be reached"):
        find_model("hf:me/model", Search(token="hf_none"))
    with pytest.raises(HubError, match="could not be sent to the hub: the hub cannot be reached"):
        upload(tmp_path, "me/model", token="hf_none")
    with pytest.raises(HubError, match="do it once without local_files_only"):
        find_model("hf:me/model", Search(local_files_only=True))


def test_a_search_reaches_the_hub_for_the_model_and_its_autoencoder(fake, tmp_path):
    """The revision is that of the model alone."""
    run = diffusion_run(tmp_path)
    named = run.autoencoder.model_copy(update={"pretrained": "hf:me/vq"})
    state = build_network(run.network).state_dict()
    save_model(tmp_path / "model", run.model_copy(update={"autoencoder": named}), state, "a card")
    asked = {}

    def download(repo_id, allow_patterns, **how):
        asked[repo_id] = how
        return str(tmp_path / repo_id.removeprefix("me/"))

    fake.snapshot_download = download
    load_model("hf:me/model", Search(revision="v1", local_files_only=True, token="hf_x"))
    how = {"local_files_only": True, "token": "hf_x"}
    assert asked == {"me/model": how | {"revision": "v1"}, "me/vq": how | {"revision": None}}


@pytest.mark.parametrize("name", ["dream-latent-x4-tiny", "no-such-folder"])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(name):
    with pytest.raises(HubError, match="has no revision; leave that out"):
        find_model(name, Search(revision="v1"))


def test_a_folder_is_sent_whole(fake, tmp_path):
    sent = []
    fake.create_repo = lambda repo_id, private, exist_ok, token: sent.append((repo_id, private))
    fake.upload_folder = lambda repo_id, folder_path, token: (
        sent.append(folder_path) or f"https://hub/{repo_id}"
    )
    for name in ("me/model", "hf:me/model"):
        assert upload(tmp_path, name, private=True) == "https://hub/me/model"
    assert sent == [("me/model", True), tmp_path] * 2


def test_only_models_that_upscale_are_offered_where_one_is_asked_for():
    with pytest.raises(
        ModelError, match=r"; bundled are: dream-latent-x4-tiny, dream-photo-x4-tiny\.$"
    ):
        load_model("vq-f4-tin")
    with pytest.raises(ModelError, match=r"; did you mean vq-f4-tiny\?$"):
        find_model("vq-f4-tin")


def test_a_plain_unknown_name_does_not_ask_the_hub(fake):
    with pytest.raises(ModelError, match="bundled are"):
        find_model("no-such-model")

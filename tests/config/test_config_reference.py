"""Laws of the reference of knobs: complete, current, and a schema that agrees with the models."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest

from ldm_dream.config.explain import kinds
from ldm_dream.config.files import dump_config, load_config
from ldm_dream.config.reference import json_schema, markdown
from ldm_dream.config.run import TASKS
from ldm_dream.config.yaml_text import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
IDS = [path.relative_to(ROOT / "configs").as_posix() for path in SHIPPED]


def sections(model, found=None) -> set[type]:
    """A model and all that its sections may hold."""
    found = set() if found is None else found
    found.add(model)
    for key in model.model_fields:
        for section in kinds(model, key).values():
            if section not in found:
                sections(section, found)
    return found


MODELS = sorted(sections(TASKS["diffusion"]) | sections(TASKS["autoencoder"]), key=str)


@pytest.fixture(scope="module")
def schema():
    return json_schema()


@pytest.fixture(scope="module")
def validator(schema):
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def tool():
    spec = importlib.util.spec_from_file_location(
        "config_reference", ROOT / "tools/config_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -------------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_knob_says_in_a_sentence_what_it_means(model):
    """Also each section; only the tag that tells kinds apart is told by the docstring of its kind."""
    assert model.__doc__ and model.__doc__ != model.__mro__[1].__doc__
    for key, field in model.model_fields.items():
        if key in ("kind", "task") and len(getattr(field.annotation, "__args__", ())) == 1:
            continue
        text = field.description or ""
        assert len(text) >= 10 and text.endswith(".") and "\n" not in text, f"{key}: {text!r}"
        assert len(text) <= 180, f"{key}: {len(text)} characters: say it shorter"


def test_the_walk_finds_every_section():
    names = {model.__name__ for model in MODELS}
    assert {"DiffusionRun", "TrainConfig", "IDMConfig", "SecondOrder", "TAESDConfig"} <= names
    assert {"AutoencoderLossConfig", "Sampling", "FlowConfig"} <= names


# ------------------------------------------------------------------------------------ the documents


def test_the_documents_are_current():
    wanted = {
        "config.md": markdown(),
        "config.schema.json": json.dumps(json_schema(), indent=1) + "\n",
    }
    for name, text in wanted.items():
        assert (ROOT / "docs" / name).read_text("utf-8") == text, "run tools/config_reference.py"


def test_the_tool_writes_what_is_stale_and_check_only_tells(tmp_path, monkeypatch, capsys):
    module = tool()
    monkeypatch.setattr(module, "DOCS", tmp_path)

    def status(*args) -> int:
        monkeypatch.setattr(sys, "argv", ["config_reference.py", *args])
        with pytest.raises(SystemExit) as done:
            module.main()
        return done.value.code

    assert status("--check") == 1 and not list(tmp_path.iterdir())
    assert status() == 0 and status("--check") == 0
    (tmp_path / "config.md").write_text("older")
    capsys.readouterr()
    assert status("--check") == 1
    out = capsys.readouterr().out
    assert "config.md is not current" in out and "schema" not in out


def test_every_knob_has_a_row_and_every_link_a_heading():
    text = markdown()
    blocks = re.split(r"^## ", text, flags=re.M)[1:]
    assert len(blocks) == len(MODELS)
    rows = re.findall(r"^\| `(\w+)`", text, re.M)
    tags = {"kind", "task"}
    knobs = [key for model in MODELS for key in model.model_fields if key not in tags]
    for key in set(knobs):
        assert rows.count(key) == knobs.count(key), key
    headings = {re.sub(r"[^\w -]", "", b.splitlines()[0].lower()).replace(" ", "-") for b in blocks}
    assert len(headings) == len(blocks)
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert links and set(links) <= headings
    assert all(line.count(" | ") == 3 for line in text.splitlines() if line.startswith("| `"))


# ------------------------------------------------------------------------------------- the schema


@pytest.mark.parametrize("path", SHIPPED, ids=IDS)
def test_an_editor_accepts_each_shipped_config(path, validator):
    """As its file stands, and with all knobs written out."""
    for text in (path.read_text("utf-8"), dump_config(load_config(path))):
        assert not list(validator.iter_errors(parse_yaml(text, "a config")))


@pytest.mark.parametrize(
    "text",
    [
        "base: other.yaml",
        "process: {num_timesteps: 4}",  # its kind comes from the base
        "train: {learning_rate: 2e-4, clip_grad: null}",
        "network: {num_res_blocks: [1, 2]}",
        "data: {scales: [1, 2.5]}",
        "task: autoencoder\nloss: {codebook: 1}",
    ],
)
def test_an_editor_accepts_a_part_of_a_config(text, validator):
    assert not list(validator.iter_errors(parse_yaml(text, "a config")))


@pytest.mark.parametrize(
    "text",
    [
        "bas: other.yaml",
        "base: [a.yaml]",
        "train: {stepps: 3}",
        "train: {steps: 0}",
        "train: {steps: 1.5}",
        "train: {betas: [0.9]}",
        "train: {betas: [0.9, 0.99, 0.999]}",
        "train: {optimizer: sgd}",
        "train: {channels_last: 3}",
        "train: 5",
        "process: {kind: ddmp}",
        "process: {kind: ddpm, kappa: 1}",
        "process: {kind: flow, num_timesteps: 1}",
        "network: {kind: sr3, model_channels: 33}",
        "condition: [lr, hr]",
        "data: {degradation: {kind: blind, first: {sigma: [0, 1]}}}",
        "data: {degradation: {kind: blind, second: {sigmas: [1, 2]}}}",
        "task: autoencoder\nprocess: {kind: flow}",
        "task: difusion",
    ],
)
def test_an_editor_marks_what_the_models_refuse(text, validator, tmp_path):
    assert list(validator.iter_errors(parse_yaml(text, "a config")))
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError):
        load_config(tmp_path / "run.yaml")


def test_the_schema_requires_nothing_and_points_nowhere_else(schema):
    text = json.dumps(schema)
    assert '"required"' not in text and "$defs" not in text and "prefixItems" not in text
    references = set(re.findall(r'"\$ref": "([^"]+)"', text))
    assert references == {f"#/definitions/{name}" for name in schema["definitions"]}

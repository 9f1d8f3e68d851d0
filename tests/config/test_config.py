"""Laws of configs: inheritance, overrides, and one clear sentence for every mistake
(docs/design.md, Bad input).
"""

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.data import BlindConfig, DataConfig, SecondOrder
from ldm_dream.config.files import ConfigError, dump_config, load_config
from ldm_dream.config.networks import IDMConfig
from ldm_dream.config.process import DDPMConfig, FlowConfig, ResidualShiftConfig
from ldm_dream.config.run import AutoencoderRun, DiffusionRun
from ldm_dream.errors import UserError

IDM = "network: {kind: idm}\nprediction: eps\n"


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def load(write):
    return lambda text, *overrides: load_config(write("run.yaml", text), overrides)


@pytest.fixture
def refusal(load):
    """Text of the ConfigError that a config, with its overrides, must raise."""

    def refusal(text: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert "\n" not in message and message.endswith((".", "?", ")")), (
            f"not one sentence: {message}"
        )
        return message

    return refusal


# -------------------------------------------------------------------------------------- inheritance


def test_an_empty_config_is_the_defaults(load):
    assert load("") == DiffusionRun()


def test_task_chooses_the_kind_of_run(load):
    assert load("task: autoencoder") == AutoencoderRun()


def test_a_chain_of_bases_is_merged_key_by_key_and_the_nearest_file_wins(write):
    write("sub/a.yaml", "scale: 2\ntrain: {steps: 10, batch_size: 3}\ndata: {train: [x, y]}")
    write("b.yaml", "base: sub/a.yaml\ntrain: {steps: 20, accumulate: 2}")
    run = load_config(write("c.yaml", "base: b.yaml\ntrain: {steps: 30}\ndata: {train: [z]}"))
    assert (run.scale, run.train.steps, run.train.batch_size, run.train.accumulate) == (2, 30, 3, 2)
    assert run.data.train == ("z",), "lists are replaced, not joined"


def test_a_base_is_relative_to_the_file_that_names_it(write, monkeypatch, tmp_path_factory):
    write("a.yaml", "scale: 8")
    path = write("sub/b.yaml", "base: ../a.yaml")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_config(path).scale == 8


def test_a_run_does_not_say_of_itself_what_its_base_said(write):
    write("a.yaml", "description: DREAM\nexpected: 27 dB\ndata: {license: cc0-1.0}")
    run = load_config(write("b.yaml", "base: a.yaml\nloss: {strength: 0}"))
    assert (run.description, run.expected) == ("", "not run")
    assert run.data.license == "cc0-1.0"
    own = load_config(write("c.yaml", "base: a.yaml\nexpected: 26 dB"))
    assert (own.description, own.expected) == ("", "26 dB")


def test_a_circle_of_bases_is_refused_with_its_members(write):
    write("a.yaml", "base: b.yaml")
    with pytest.raises(ConfigError, match=r"circle: b\.yaml -> a\.yaml -> b\.yaml"):
        load_config(write("b.yaml", "base: a.yaml"))


def test_a_missing_base_names_itself_and_the_file_that_asked_for_it(write):
    with pytest.raises(
        ConfigError, match=r"nowhere\.yaml: no such config file \(the `base` of .*run\.yaml\)"
    ):
        load_config(write("run.yaml", "base: nowhere.yaml"))


def test_a_base_that_is_no_name_is_refused(refusal):
    assert "`base` is ['a.yaml']" in refusal("base: [a.yaml]")


def test_another_kind_replaces_the_section_of_the_base(write):
    write("a.yaml", "process: {kind: ddpm, beta_start: 1e-5}\ntrain: {steps: 7}")
    run = load_config(write("b.yaml", "base: a.yaml\nprocess: {kind: flow, num_timesteps: 9}"))
    assert run.process == FlowConfig(num_timesteps=9)
    assert run.train.steps == 7


def test_the_same_kind_keeps_the_keys_of_the_base(write):
    write("a.yaml", "process: {kind: ddpm, beta_start: 1e-5}")
    run = load_config(write("b.yaml", "base: a.yaml\nprocess: {kind: ddpm, num_timesteps: 9}"))
    assert run.process == DDPMConfig(beta_start=1e-5, num_timesteps=9)


def test_another_kind_of_loss_keeps_dream_on(write):
    """loss and sampler have a `kind` too, but the same keys for each: a change must not switch
    DREAM off in silence.
    """
    write("a.yaml", "loss: {kind: l1, strength: 1}\nsampler: {kind: ddim, steps: 5}")
    run = load_config(write("b.yaml", "base: a.yaml\nloss: {kind: l2}\nsampler: {kind: ancestral}"))
    assert (run.loss.kind, run.loss.strength) == ("l2", 1)
    assert (run.sampler.kind, run.sampler.steps) == ("ancestral", 5)


def test_another_kind_of_degradation_replaces_the_section(
    write,
):
    """Another kind of degradation replaces the section and each order keeps its own defaults."""
    write("a.yaml", "data: {patch: 64, degradation: {kind: blind, second: {blur_prob: 0.5}}}")
    blind = load_config(write("b.yaml", "base: a.yaml")).data.degradation
    assert blind == BlindConfig(second=SecondOrder(blur_prob=0.5)) and blind.second.sigma == (
        0.2,
        1.5,
    )
    data = load_config(write("c.yaml", "base: a.yaml\ndata: {degradation: {kind: bicubic}}")).data
    assert data == DataConfig(patch=64)


# ---------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("2E-4", 2e-4), ("+1e0", 1.0), ("2.5e-4", 2.5e-4), ("0.1", 0.1), ("1", 1.0)],
)
def test_numbers_in_any_notation_are_numbers(load, text, value):
    assert load("", f"train.learning_rate={text}").train.learning_rate == value
    assert load(f"train: {{learning_rate: {text}}}").train.learning_rate == value


def test_a_whole_number_in_exponent_notation_counts_steps(load):
    steps = load("", "train.steps=1e4").train.steps
    assert steps == 10_000 and type(steps) is int


def test_overrides_are_typed_by_yaml(load):
    run = load(
        "",
        "data.train=[a, b]",
        "train.clip_grad=null",
        "train.channels_last=false",
        "description=a text",
        "scale=2",
    )
    assert run.data.train == ("a", "b")
    assert run.train.clip_grad is None
    assert run.train.channels_last is False
    assert run.description == "a text"
    assert run.scale == 2


def test_the_last_override_wins_over_the_file(load):
    assert load("train: {steps: 5}", "train.steps=6", "train.steps=7").train.steps == 7


def test_an_override_of_kind_goes_before_the_keys_of_that_kind(load):
    expected = DDPMConfig(respace=50)
    assert (
        load(
            "process: {kind: flow, num_timesteps: 5}", "process.kind=ddpm", "process.respace=50"
        ).process
        == expected
    )
    assert (
        load(
            "process: {kind: flow, num_timesteps: 5}", "process.respace=50", "process.kind=ddpm"
        ).process
        == expected
    )


@pytest.mark.parametrize("text", ["train.steps", "=5", " =5", "base=a.yaml"])
def test_an_override_that_is_no_assignment_is_refused(refusal, text):
    assert "write it as a.b=value" in refusal("", text)


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("trian: {steps: 5}", "trian", "train"),
        ("train: {lerning_rate: 1}", "train.lerning_rate", "train.learning_rate"),
        ("process: {kind: ddpm, beta_stat: 1}", "process.beta_stat", "process.beta_start"),
        (
            "autoencoder: {kind: vqgan, embed_dims: 4}",
            "autoencoder.embed_dims",
            "autoencoder.embed_dim",
        ),
        (
            "network: {kind: resshift, model_chanels: 4}",
            "network.model_chanels",
            "network.model_channels",
        ),
        ("learning_rate: 1", "learning_rate", "train.learning_rate"),
        ("train: {strenght: 1}", "train.strenght", "loss.strength"),
        ("process: {kind: ddpm}\nkappa: 1", "kappa", None),
        (
            "task: autoencoder\nautoencoder: {n_embeds: 4}",
            "autoencoder.n_embeds",
            "autoencoder.n_embed",
        ),
        ("process: {kind: ddpm, ddpm: 1}", "process.ddpm", None),
        (
            "data: {degradation: {kind: blind, second: {sigmas: 1}}}",
            "data.degradation.second.sigmas",
            "data.degradation.second.sigma",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one(refusal, text, key, near):
    message = refusal(text)
    assert f"unknown key `{key}`; " in message
    assert (f"did you mean `{near}`?" in message) if near else ("known here: " in message)


def test_a_mistake_names_the_file_it_stands_in(write):
    base = write("a.yaml", "train: {lerning_rate: 1}")
    child = write("b.yaml", "base: a.yaml\ntrain: {steps: 5}")
    with pytest.raises(ConfigError, match="^" + re.escape(str(base))):
        load_config(child)
    child = write("b.yaml", "base: c.yaml\ntrain: {lerning_rate: 1}")
    write("c.yaml", "train: {steps: 5}")
    with pytest.raises(ConfigError, match="^" + re.escape(str(child))):
        load_config(child)
    with pytest.raises(ConfigError, match=r"^--set train\.stepps=3: unknown key"):
        load_config(write("d.yaml", ""), ["train.stepps=3"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train: {steps: many}", ["`train.steps` is 'many'", "integer"]),
        ("train: {steps: 0}", ["`train.steps` is 0", "greater than or equal to 1"]),
        ("train: {steps: }", ["`train.steps` is None", "integer"]),
        ("train: {steps: 1.5}", ["`train.steps` is 1.5", "integer"]),
        ("train: {learning_rate: .inf}", ["`train.learning_rate` is inf", "finite"]),
        ("train: {betas: [0.9]}", ["`train.betas`"]),
        ("train:", ["`train` is None", "section"]),
        ("train: 5", ["`train` is 5", "section"]),
        ("train: {steps: {x: 3}}", ["`train.steps` is {'x': 3}"]),
        ("data: {train: photos}", ["`data.train` is 'photos'", "list"]),
        ("condition: [lr, foo]", ["`condition` is 'foo'", "'lr' or 'z_lr'"]),
        ("loss: {strength: 2}", ["`loss.strength` is 2", "less than or equal to 1"]),
        (
            "prediction: epsilon",
            ["`prediction` is 'epsilon'", "'eps', 'z0', 'v', 'residual', 'eps_scale' or 'flow'"],
        ),
        ("autoencoder: {kind: vqgan, num_res_blocks: x}", ["`autoencoder.num_res_blocks` is 'x'"]),
        (
            "autoencoder: {kind: vqgan, embed_dim: 3, codebook_groups: 2}",
            ["`autoencoder`: codebook_groups=2 does not divide"],
        ),
        (
            "process: {kind: ddmp}",
            ["`process.kind` is 'ddmp'", "ddpm, residual_shift, flow", "Did you mean ddpm?"],
        ),
        ("process: {kappa: 1}", ["`process.kind` is missing", "ddpm, residual_shift, flow"]),
        ("process: {kind: [ddpm]}", ["`process.kind` is"]),
        ("process: 3", ["`process` is 3"]),
        (
            "data: {degradation: {kind: blnd}}",
            ["`data.degradation.kind` is 'blnd'", "bicubic, blind", "Did you mean blind?"],
        ),
        (
            "data: {degradation: {kind: blind, first: {sigma: [3, 1]}}}",
            ["`data.degradation.first.sigma`", "[3.0, 1.0] runs backwards"],
        ),
        (
            "data: {degradation: {kind: blind, first: {sigma: [0, 1]}}}",
            ["`data.degradation.first.sigma` is 0", "greater than or equal to 0.01"],
        ),
        (
            "data: {degradation: {kind: blind, first: {resize: [2, 3]}}}",
            ["`data.degradation.first.resize`", "leaves out 1"],
        ),
        (
            "data: {degradation: {kind: blind, final_sinc_size: [7, 20]}}",
            ["`data.degradation.final_sinc_size`", "even number"],
        ),
        (
            "data: {degradation: {kind: blind, first: {resize_weights: [0, 0, 0]}}}",
            ["all weights are 0"],
        ),
        (
            "data: {degradation: {kind: blind, first: {jpeg_quality: [0, 95]}}}",
            ["`data.degradation.first.jpeg_quality` is 0"],
        ),
        (
            "task: autoencoder\ndata: {degradation: {kind: blind}}",
            ["`data`: degradation has no effect", "leave it out"],
        ),
        ("task: autoencoder\ndata: {cache_latents: 9}", ["`data`: cache_latents has no effect"]),
        ("task: autoencoder\ntrain: {compile: true}", ["`train`: compile has no effect"]),
        (
            "data: {cache_latents: 9}",
            [": data.cache_latents has no effect with autoencoder.kind=pixel"],
        ),
        (
            "data: {scales: [1, 4]}",
            [": data.scales is for network.kind=idm", "resshift knows one scale"],
        ),
        ("data: {scales: [0.5, 4]}", ["`data.scales` is 0.5", "greater than or equal to 1"]),
        ("data: {scales: [3, 2]}", ["`data.scales`: [3.0, 2.0] runs backwards"]),
        (IDM + "scale: 4\ndata: {scales: [1, 5]}", ["data.scales=[1.0, 5.0]", "4 is the most"]),
        (IDM + "scale: 9\ndata: {scales: [1, 9]}", ["data.scales=[1.0, 9.0]", "8 is the most"]),
        (IDM + "data: {scales: [1, 4]}\ntrain: {compile: true}", ["train.compile is for one size"]),
        (
            "task: difusion",
            ["`task` is 'difusion'", "diffusion, autoencoder", "Did you mean diffusion?"],
        ),
        ("task: null", ["`task`", "diffusion, autoencoder"]),
        ("task: null\nscales: 3", ["`task`"]),
        ("5: 3", ["`5`"]),
        ("[1, 2]", ["a config is a mapping", "list"]),
        ("just words", ["a config is a mapping", "str"]),
        ("train: {steps: 5, steps: 6}", ["line 1, column 19", "'steps' is given twice"]),
        ("scale: 2\ntrain: {steps: 5", ["line 2"]),
        ("scale: 2\n\ttrain: 3", ["line 2, column 1"]),
        (
            "scale: !!python/object/apply:os.system [ls]",
            ["a tag (tag:yaml.org,2002:python/object/apply:os.system)"],
        ),
        ("description: \x00", ["not valid YAML"]),
        ("? [a, b]\n: 3", ["line 1, column 3: a list or mapping as a key"]),
    ],
)
def test_a_wrong_value_is_one_sentence_with_key_and_what_is_allowed(refusal, text, parts):
    message = refusal(text)
    assert all(part in message for part in parts), message


def test_one_mistake_is_counted_once(refusal):
    assert "more after" not in refusal("autoencoder: {kind: vqgan, num_res_blocks: x}")
    assert "(1 more after this one.)" in refusal("train: {steps: 0, batch_size: 0}")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(path)


def test_a_missing_file_names_the_nearest_one(write):
    path = write("resshift_x4.yaml", "")
    with pytest.raises(
        ConfigError,
        match=r"resshift_x2\.yaml: no such config file.*Did you mean .*resshift_x4\.yaml",
    ):
        load_config(path.with_name("resshift_x2.yaml"))
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(path.parent)


def test_a_config_error_is_a_user_error_and_a_value_error():
    assert issubclass(ConfigError, UserError) and issubclass(ConfigError, ValueError)


# --------------------------------------------------------------------------------------- round trip

RUNS = [
    DiffusionRun(network=IDMConfig(), prediction="eps", data={"scales": (1, 2.5)}),
    DiffusionRun(),
    DiffusionRun(
        autoencoder=VQGANConfig(num_res_blocks=(1, 2, 3)),
        process=DDPMConfig(beta_start=1e-7, respace=50),
    ),
    DiffusionRun(
        process=ResidualShiftConfig(kappa=1.5),
        network={"kind": "resshift", "cond_channels": 6},
        condition=("lr", "z_lr"),
        lpips_weights="a: b",
    ),
    DiffusionRun(data={"degradation": BlindConfig(second_order_prob=1)}),
    AutoencoderRun(),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: type(run).__name__)
def test_a_dumped_config_reads_back_equal(load, run):
    assert load(dump_config(run)) == run


@settings(max_examples=50, deadline=None)
@given(
    text=st.text(max_size=20)
    | st.from_regex(r"[-+]?[0-9]{1,3}[eE][-+]?[0-9]{1,2}", fullmatch=True),
    rate=st.floats(1e-9, 1e3),
)
def test_any_text_and_number_survive_the_round_trip(tmp_path_factory, text, rate):
    run = DiffusionRun(description=text, train={"learning_rate": rate})
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump_config(run), encoding="utf-8", newline="")
    assert load_config(path) == run


def test_reading_a_config_imports_no_torch():
    code = "import ldm_dream.config.run, ldm_dream.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "process, sampler, message",
    [
        (
            "ddpm",
            "{kind: resshift}",
            "sampler.kind=resshift does not fit process.kind=ddpm; set it to ancestral or ddim or dpm",
        ),
        ("regression", "{kind: dpm-solver++}", "does not fit process.kind=regression"),
        ("regression, num_timesteps: 4", "{kind: ddim}", "num_timesteps"),
        ("ddpm, respace: 50", "{steps: 51}", "sampler.steps=51 is more than the 50 of the process"),
        ("residual_shift", "{steps: 16}", "more than the 15"),
    ],
)
def test_a_sampler_that_does_not_fit_the_process_is_refused(load, process, sampler, message):
    """A sampler that does not fit the process is refused before the training."""
    with pytest.raises(ConfigError, match=message):
        load(
            f"process: {{kind: {process}}}\nsampler: {sampler}\nprediction: z0\nloss: {{strength: 0}}\n"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "prediction: eps",
            "prediction=eps does not fit process.kind=regression; set it to z0",
        ),
        ("prediction: z0\nloss: {strength: 0.5}", "regression has no noise for DREAM to rectify"),
    ],
)
def test_what_a_process_without_noise_cannot_do_is_refused(refusal, text, message):
    assert message in refusal(f"process: {{kind: regression}}\n{text}")

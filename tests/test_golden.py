"""Outputs of the official code against ours: `pytest tests/test_golden.py --golden DIR`, DIR
holding case folders at any depth.

Each case brings its own tolerances; `|got - want| <= atol + rtol |want|` must hold at every
element, `exact` means equal. A key of a case that its runner does not know fails the case. The run
ends with the list of the cases, each with its largest error as a share of the tolerance
(conftest.py).
"""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from golden import KINDS, Kind, idm_unet, kind_of, resshift_unet, sr3
from golden.reading import RECORD, Case, UnknownKey, read_case, watching
from ldm_dream.interchange.system import PublishedSystem
from ldm_dream.interchange.systems import IDM, RESSHIFT, SR3
from ldm_dream.networks import build_network
from tests import conftest
from tests.conftest import SHARED


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the cases were made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --------------------------------------------------------------------------------------- given cases


def pytest_generate_tests(metafunc):
    if "folder" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("golden")
    root = given or SHARED / "golden"
    folders = sorted(path.parent for path in root.rglob("case.json"))
    if given and not folders:
        raise pytest.UsageError(f"--golden {given}: no case.json in it or below it.")
    absent = [
        pytest.param(
            None,
            marks=pytest.mark.skip(reason=f"no golden cases: {root} is not there"),
            id="absent",
        )
    ]
    metafunc.parametrize("folder", [pytest.param(f, id=f.name) for f in folders] or absent)


def test_golden_case_is_reproduced(folder: Path, record_property):
    values = json.loads((folder / "case.json").read_text())
    kind, case = KINDS[kind_of(values)], read_case(values)
    io, weights = tensors(folder)
    outputs = run(kind, case, io, weights)

    shares, faults = {}, []
    for name, tolerance in case["tolerance"].items():
        if name not in outputs:
            if not re.fullmatch(kind.optional, name):
                faults.append(f"{name}: not produced")
            continue
        share, fault = compare(outputs[name], io[f"out.{name}"], tolerance)
        shares[name] = share
        faults += [f"{name}: {fault}"] if fault else []
    if shares:
        worst = max(shares, key=shares.get)
        record_property(
            "figures",
            f"{len(shares):4} outputs, largest error {shares[worst]:7.2%} of its tolerance ({worst})",
        )
    case.finish()
    assert not faults, f"{len(faults)} of {len(case['tolerance'])} outputs differ:\n" + "\n".join(
        faults
    )
    assert shares, f"{folder}: nothing was compared"


def tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """-> io, weights ({} for a case without a network)."""
    weights = folder / "weights.safetensors"
    return load_file(folder / "io.safetensors"), load_file(weights) if weights.exists() else {}


def run(kind: Kind, case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict:
    for tolerance in case["tolerance"].values():
        tolerance.known("exact", "atol", "rtol", "max_abs", "official_fp32_minus_fp64")
    return importlib.import_module(f"golden.{kind.module}").run(case, io, weights)


def compare(got: Tensor | float, want: Tensor, tolerance: Mapping) -> tuple[float, str]:
    """-> largest error as a share of its tolerance, and the fault in words ("" if none)."""
    got = torch.as_tensor(got, dtype=None if isinstance(got, Tensor) else want.dtype).detach()
    if got.numel() == want.numel() == 1:  # the cases store scalars as [1]
        got = got.reshape(want.shape)
    if got.shape != want.shape:
        return float("inf"), f"shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
    if tolerance.get("exact"):
        differ = (got != want).sum().item()
        return float(
            differ > 0
        ), f"{differ} of {want.numel()} elements are not equal" if differ else ""
    error, bound = (
        (got.double() - want.double()).abs(),
        tolerance["atol"] + tolerance["rtol"] * want.double().abs(),
    )
    share = torch.where(error == 0, 0.0, error / bound).nan_to_num(nan=float("inf")).flatten()
    worst = share.argmax()
    fault = f"element {worst.item()} is {got.flatten()[worst]}, wanted {want.flatten()[worst]}, {share[worst]:.3g} x tolerance"
    return share[worst].item(), fault if share[worst] > 1 else ""


def test_compare_finds_what_is_wrong():
    want, loose = torch.tensor([1.0, 2.0]), {"atol": 0.1, "rtol": 0.0}
    assert compare(want + 0.05, want, loose) == (pytest.approx(0.5, rel=1e-5), "")
    assert "element 1" in compare(torch.tensor([1.0, 2.5]), want, loose)[1]
    assert "element 0" in compare(torch.tensor([torch.nan, 2.0]), want, loose)[1]
    assert "shape" in compare(want[:1], want, loose)[1]
    assert "1 of 2" in compare(torch.tensor([1, 2]), torch.tensor([1, 3]), {"exact": True})[1]


def test_kind_is_known_by_name_or_by_content_and_else_refused():
    assert kind_of({"case": "resshift_unet_lq2x"}) == "resshift_unet"
    assert kind_of({"case": "renamed", "construct": {"class": "UNetModelSwin"}}) == "resshift_unet"
    with pytest.raises(ValueError, match="'stable_cascade' is of no known kind"):
        kind_of({"case": "stable_cascade", "construct": {"class": "Cascade"}})


# -------------------------------------------------------------------------------------- unknown keys

# dictionaries that reach no output: the levels are given, and nothing calls the MLP
NOT_READ = {"imnet_MLP_kwargs", "schedule"}


def plant(values: dict, skip: set[str], planted: list[str]) -> None:
    """A made-up key, each of its own name, into every dictionary but those under `skip`."""
    for key in values.keys() - skip:
        for inner in values[key] if isinstance(values[key], list) else [values[key]]:
            if isinstance(inner, dict):
                plant(inner, skip, planted)
    planted.append(f"made_up_{len(planted)}")
    values[planted[-1]] = 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_of_a_case_fails_by_its_name(kind):
    """At every level that is read, all of them in one message."""
    folder = SHARED / "golden" / kind
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    values = json.loads((folder / "case.json").read_text())
    skip = RECORD | (NOT_READ if kind != "sr3_sampling" else set())
    planted: list[str] = []
    plant(values, skip | {"tolerance"}, planted)
    for tolerance in values["tolerance"].values():  # whose own keys are the outputs
        plant(tolerance, skip, planted)
    case = read_case(values)
    run(KINDS[kind], case, *tensors(folder))
    with pytest.raises(UnknownKey) as error:
        case.finish()
    assert set(re.findall(r"made_up_\d+", str(error.value))) == {*planted} and len(planted) > 5


def test_a_case_tells_which_of_its_keys_were_read():
    case = Case({"a": 1, "b": {"c": 2, "d": 3}, "items": [{"e": 4}, {"f": 5}], "g": {"h": 6}})
    assert case["a"] == 1 and "g" in case and case.get("z", 7) == 7
    assert case["b"]["c"] == 2 and case["items"][0]["e"] == 4
    assert case.unread() == ["g", "b.d", "items[1].f"]
    with pytest.raises(UnknownKey, match=r"knows nothing of g, b\.d, items\[1\]\.f$"):
        case.finish()
    case.known("g")
    case["b"].only(d=3, absent=8)
    joined = case.join("both", case["b"], case["items"][1])
    assert dict(joined) == {"c": 2, "d": 3, "f": 5}
    case.finish()


def test_a_value_that_is_not_computed_is_refused_by_name():
    with pytest.raises(UnknownKey, match=r"^b\.d is 3, but the runner computes 4 only$"):
        Case({"b": {"d": 3}})["b"].only(d=4)


# ------------------------------------------------------------------------------------ intermediates


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def made_up_weights(layout: PublishedSystem, cfg) -> dict[str, Tensor]:
    """Under the published names."""
    state = build_network(cfg).state_dict()
    return {layout.published(key): random(*value.shape) - 0.5 for key, value in state.items()}


def made_up_sr3(sizes: list[int]) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    kwargs = {"in_channel": 6, "out_channel": 3, "inner_channel": 8, "norm_groups": 4}
    kwargs |= {"channel_mults": [1, 2], "attn_res": [8], "res_blocks": 1, "dropout": 0.0}
    kwargs |= {"image_size": 16}
    io = {"out.noise_embedding_0": random(1, 8)}
    for i, side in enumerate(sizes):
        io |= {f"in.x_noisy_{i}": random(1, 3, side, side), f"in.noise_level_{i}": random(1, 1)}
        io |= {f"in.condition_{i}": random(1, 3, side, side) - 0.5}
    return {"kwargs": kwargs}, io, made_up_weights(SR3, sr3.config(Case(kwargs)))


def made_up_resshift(sizes: list[int]) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    kwargs = {"image_size": 16, "in_channels": 3, "out_channels": 3, "model_channels": 32}
    kwargs |= {"channel_mult": [1, 2], "num_res_blocks": [1, 1], "attention_resolutions": [16]}
    kwargs |= {"dropout": 0.0, "swin_depth": 2, "swin_embed_dim": 32, "num_head_channels": 16}
    kwargs |= {"window_size": 4, "mlp_ratio": 2, "cond_lq": True, "lq_size": 16}
    io = {}
    for i, side in enumerate(sizes):
        io |= {f"in.x_{i}": random(1, 3, side, side), f"in.lq_{i}": random(1, 3, side, side) - 0.5}
        io |= {f"in.t_{i}": torch.tensor([3])}
    return {"kwargs": kwargs}, io, made_up_weights(RESSHIFT, resshift_unet.config(Case(kwargs)))


def made_up_idm(sizes: list[int]) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    unet = {"image_size": 16, "in_channel": 6, "out_channel": 3, "inner_channel": 8}
    unet |= {"channel_mults": [1, 2], "res_blocks": 1, "attn_res": [8], "norm_groups": 4}
    unet |= {"dropout": 0.0}
    encoder = {"n_resblocks": 2, "n_feats": 8, "res_scale": 1}
    io = {}
    for i, side in enumerate(sizes):
        io |= {f"in.{name}_{i}": random(1, 3, side, side) for name in ("x_noisy", "y0", "noise")}
        io |= {f"in.lr_{i}": random(1, 3, side // 4, side // 4), f"in.scaler_{i}": random(1)}
        io |= {f"in.noise_level_{i}": random(1, 1)}
    weights = made_up_weights(IDM, idm_unet.config(Case(unet), Case(encoder)))
    weights["denoise_fn.conv_body_down.1.1.weight"] = torch.zeros(1)  # published, and unused
    construct = {"unet_kwargs": unet, "encoder_EDSR_kwargs": encoder, "diffusion_kwargs": {}}
    return construct, io, weights


MADE_UP = [(sr3, made_up_sr3), (resshift_unet, made_up_resshift), (idm_unet, made_up_idm)]


@pytest.mark.parametrize("runner, make", MADE_UP, ids=["sr3", "resshift", "idm"])
def test_an_item_is_what_it_is_alone(runner, make):
    """Watching the intermediates of an item changes neither it nor the next, of another size."""
    sizes = [16, 24]

    def outputs_of(given: list[int]) -> dict[str, Tensor]:
        construct, io, weights = make(given)
        return runner.run(Case({"n_items": len(given), "construct": construct}), io, weights)

    both = outputs_of(sizes)
    for i, side in enumerate(sizes):
        alone = {re.sub("_0$", f"_{i}", key): value for key, value in outputs_of([side]).items()}
        shared = {key: both[key] for key in alone if key in both}
        wanted = {key: alone[key] for key in shared}
        torch.testing.assert_close(shared, wanted, rtol=0, atol=0)
        assert any(value.shape[-2:] == (side, side) for value in shared.values())


def test_watching_gives_the_last_output_and_leaves_the_network_as_it_was():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
    with watching({"relu": network[1]}) as seen:
        first, second = network(random(1, 2, 3)), network(random(1, 4, 5))
    assert first.shape == (1, 6) and second.shape == (1, 20) and seen["relu"] is second
    network(random(1, 1, 1))
    assert seen["relu"] is second and not network[1]._forward_hooks


# ------------------------------------------------------------------------------ the list at the end


def test_the_run_ends_with_a_list_where_each_case_has_its_outcome(tmp_path):
    """Good, bad and strange cases, and one that was skipped, each with the reason."""
    given, unknown = SHARED / "golden/imresize", tmp_path / "cascade"
    if not given.is_dir():
        pytest.skip(f"{given} is not there")
    for name in ("imresize_good", "imresize_bad", "imresize_strange"):
        shutil.copytree(given, tmp_path / name)
    strange = tmp_path / "imresize_strange/case.json"
    values = json.loads(strange.read_text())
    values["construct"]["colour"] = "red"
    strange.write_text(json.dumps(values))
    unknown.mkdir()
    (unknown / "case.json").write_text('{"case": "stable_cascade"}')
    bad = tmp_path / "imresize_bad/io.safetensors"
    save_file(
        {
            name: value + 1 if name.startswith("out.") else value
            for name, value in load_file(bad).items()
        },
        bad,
    )
    skipped = tmp_path / "test_skipped.py"
    skipped.write_text(
        "import pytest\n@pytest.mark.parametrize('x', ['skipped'])\n"
        "def test_golden_case_is_reproduced(x):\n    pytest.skip('no cases')"
    )
    words = ["-q", "-p", "no:cacheprovider", __file__, skipped, "-k", "reproduced"]
    command = [sys.executable, "-m", "pytest", *words, "--golden", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    lines = done.stdout.partition("= golden cases: ")[2].splitlines()[1:6]
    wanted = (
        r"cascade +FAILED  ValueError: case 'stable_cascade' is of no known kind; known: .*",
        r"imresize_bad +FAILED +\d+ outputs, largest error .*\(.+\)  AssertionError: \d+ of .* differ:",
        r"imresize_good +\d+ outputs, largest error +[\d.]+% of its tolerance \(.+\)",
        r"imresize_strange +FAILED .* golden.reading.UnknownKey: the runner knows nothing of construct.colour",
        r"skipped +SKIPPED  Skipped: no cases",
    )
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_run_without_cases_ends_without_a_list():
    place = ("tests/test_x.py", 1, "test_another")
    report = pytest.TestReport("tests/test_x.py::test_another", place, {}, "passed", None, "call")
    written: list[str] = []
    reporter = SimpleNamespace(
        stats={"passed": [report]}, section=written.append, write=written.append
    )
    conftest.pytest_terminal_summary(reporter)
    assert written == []

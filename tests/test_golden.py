"""Outputs of the official code against ours: `pytest tests/test_golden.py --golden DIR`, DIR
holding case folders at any depth.

Each case brings its own tolerances; `|got - want| <= atol + rtol |want|` must hold at every
element, `exact` means equal. The run ends with the list of the cases, each with its largest error
as a share of the tolerance (conftest.py).
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import SHARED
from golden import KINDS, kind_of


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
    case = json.loads((folder / "case.json").read_text())
    kind = KINDS[kind_of(case)]
    io = load_file(folder / "io.safetensors")
    weights = (
        load_file(folder / "weights.safetensors")
        if (folder / "weights.safetensors").exists()
        else {}
    )
    outputs = importlib.import_module(f"golden.{kind.module}").run(case, io, weights)

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
    assert not faults, f"{len(faults)} of {len(case['tolerance'])} outputs differ:\n" + "\n".join(
        faults
    )
    assert shares, f"{folder}: nothing was compared"


def compare(got: torch.Tensor | float, want: torch.Tensor, tolerance: dict) -> tuple[float, str]:
    """-> largest error as a share of its tolerance, and the fault in words ("" if none)."""
    got = torch.as_tensor(got, dtype=None if isinstance(got, torch.Tensor) else want.dtype).detach()
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


def test_the_run_ends_with_a_list_where_each_case_has_its_outcome(tmp_path):
    given, unknown = SHARED / "golden/imresize", tmp_path / "cascade"
    if not given.is_dir():
        pytest.skip(f"{given} is not there")
    for name in ("imresize_good", "imresize_bad"):
        shutil.copytree(given, tmp_path / name)
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
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "reproduced",
        "--golden",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    cascade, failed, passed = done.stdout.partition("= golden cases: ")[2].splitlines()[1:4]
    assert re.fullmatch(
        r"cascade +FAILED  ValueError: case 'stable_cascade' is of no known kind; known: .*",
        cascade,
    )
    assert re.fullmatch(
        r"imresize_bad +FAILED +\d+ outputs, largest error .*\(.+\)  AssertionError: \d+ of .* differ:",
        failed,
    )
    assert re.fullmatch(
        r"imresize_good +\d+ outputs, largest error +[\d.]+% of its tolerance \(.+\)", passed
    )


def test_the_list_names_why_a_case_was_skipped_and_is_not_there_without_cases(tmp_path):
    def run(*words: str) -> str:
        (tmp_path / "test_x.py").write_text(
            f"import pytest\n@pytest.mark.parametrize('x', [1])\ndef {words[0]}(x):\n {words[1]}"
        )
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "conftest",
            "-p",
            "no:cacheprovider",
            tmp_path,
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        return subprocess.run(command, capture_output=True, text=True, env=environment).stdout

    skipped = run("test_golden_case_is_reproduced", "pytest.skip('no cases')")
    assert re.search(r"= golden cases: .*\n1 +SKIPPED  Skipped: no cases\n", skipped), skipped
    other = run("test_another", "pass")
    assert "1 passed" in other and "golden" not in other, other

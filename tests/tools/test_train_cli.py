"""Laws of tools/train.py as a command: quick answers, one sentence for a mistake, the run folder."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def train(*args, cwd=ROOT) -> tuple[subprocess.CompletedProcess, float]:
    """-> (finished process, its CPU seconds: a busy machine does not stretch those)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "tools/train.py"), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("scale: 2\ntrain: {steps: 5}\n")
    return path


def test_help_and_dry_run_answer_within_two_seconds(config):
    for args in (["--help"], [config, "--dry-run"]):
        done, seconds = train(*args)
        assert done.returncode == 0, done.stderr
        assert seconds < 2, (
            f"train.py {args[-1]} took {seconds:.2f} s of CPU: does it import torch?"
        )


def test_dry_run_prints_config_and_run_folder_and_writes_nothing(config):
    """Dry run prints the resolved config and the run folder and writes nothing."""
    done, _ = train(
        config,
        "--set",
        "train.learning_rate=2e-4",
        "scale=8",
        "--set",
        "train.steps=6",
        "--dry-run",
        cwd=config.parent,
    )
    values = yaml.safe_load(done.stdout)
    assert (values["scale"], values["train"]["steps"], values["train"]["learning_rate"]) == (
        8,
        6,
        2e-4,
    )
    assert done.stdout.splitlines()[0].endswith(str(Path("runs/tiny")))
    assert list(config.parent.iterdir()) == [config]


def test_dry_run_names_the_run_folder_that_was_asked_for(config):
    assert train(config, "--dry-run", "--run-dir", "a/b")[0].stdout.splitlines()[0].endswith("a/b")


def test_dry_run_names_places_that_are_not_there_yet(config):
    """It is no mistake: a config may be looked at before its pictures are made."""
    (config.parent / "hr").mkdir()
    data = "data={train: [hr, new], lr: ['hr/{}_x2', 'lr/{}x2'], val: [new], val_lr: [val.txt]}"
    done, _ = train(config, "--set", data, "--dry-run", cwd=config.parent)
    assert done.returncode == 0, done.stderr
    comments = [line for line in done.stdout.splitlines() if line.startswith("# not")]
    assert comments == [f"# not there yet: {name}" for name in ("new", "lr/{}x2", "val.txt")]


@pytest.mark.parametrize(
    "args", [["--set", "train.stepps=3"], ["--set", "train.steps"], ["--set", "train.steps=-1"]]
)
def test_a_mistake_in_the_config_is_one_line_and_status_2(config, args):
    done, _ = train(config, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_missing_config_is_one_line_and_status_2(tmp_path):
    done, _ = train(tmp_path / "none.yaml")
    assert done.returncode == 2
    assert "none.yaml: no such config file" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_backend_of_the_kernels_is_one_sentence(config, monkeypatch):
    monkeypatch.setenv("DREAM_KERNELS", "cuda")
    done, _ = train(config, "--run-dir", config.parent / "run")
    assert (
        done.stderr == "error: DREAM_KERNELS=cuda is unknown; use one of auto, triton, reference.\n"
    )
    assert done.returncode == 2 and not (config.parent / "run").exists()

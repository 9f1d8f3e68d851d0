"""Laws of the choice between kernel and reference."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dream_kernels import BackendError, backend, dream_rectify, runs_triton
from dream_kernels.backend import _announce
from kernel_rules import without_interpreter

CPU = torch.zeros(1, 1, 1, 1)


def python(code, **environment):
    """Standard output and the last line of errors of a new process."""
    environment = without_interpreter() | environment
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.stdout.strip(), done.stderr.strip().rpartition("\n")[2]


def test_the_cpu_runs_the_reference_unless_told_otherwise():
    assert not runs_triton(CPU)
    with backend("triton"):
        assert runs_triton(CPU)
        with backend("reference"):
            assert not runs_triton(CPU)
        assert runs_triton(CPU)
    assert not runs_triton(CPU)


def test_compiled_code_takes_the_reference_of_ops_that_say_so(monkeypatch):
    """On a GPU, for which a stand-in speaks here."""
    on_gpu = SimpleNamespace(dtype=torch.float32, is_cuda=True, device=torch.device("cuda"))
    assert runs_triton(on_gpu) and runs_triton(on_gpu, in_compiled=False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert runs_triton(on_gpu) and not runs_triton(on_gpu, in_compiled=False)
    with backend("triton"):
        assert runs_triton(on_gpu, in_compiled=False)
    with backend("reference"):
        assert not runs_triton(on_gpu)


def test_the_choice_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError), backend("triton"):
        1 / 0  # noqa: B018
    assert not runs_triton(CPU)


def test_float64_is_never_narrowed():
    with backend("triton"):
        assert not runs_triton(CPU.double())


def test_an_unknown_backend_is_named_with_those_that_exist():
    with (
        pytest.raises(
            BackendError, match="DREAM_KERNELS=cuda is unknown; use one of auto, triton, reference"
        ),
        backend("cuda"),
    ):
        pass


def test_the_choice_is_logged_once(caplog):
    _announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="dream_kernels"), backend("triton"):
        for _ in range(3):
            runs_triton(CPU)
    assert [r.message for r in caplog.records] == ["dream_kernels on cpu: Triton's interpreter"]


def test_the_environment_chooses():
    code = "import torch, dream_kernels; print(dream_kernels.runs_triton(torch.zeros(1)))"
    assert python(code) == ("False", "")
    assert python(code, DREAM_KERNELS="triton", TRITON_INTERPRET="1") == ("True", "")
    assert (
        "set TRITON_INTERPRET=1 (slow, for tests) or use auto"
        in python(code, DREAM_KERNELS="triton")[1]
    )


def test_another_choice_compiles_anew():
    """The graph guards on the choice: what was compiled for one backend never answers for the
    other.
    """
    torch.compiler.reset()
    graphs = []
    compiled = torch.compile(
        dream_rectify, fullgraph=True, backend=lambda graph, _: graphs.append(graph.code) or graph
    )
    args = (torch.ones(1, 1, 2, 2),) * 3 + (torch.ones(1, 1, 1, 1),) * 2
    for mode in ("reference", "triton", "reference"):
        with backend(mode):
            compiled(*args)
    assert ["ops.dream" in code for code in graphs] == [False, True]

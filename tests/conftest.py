"""Options and fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

# before the first import of triton: kernels run in its interpreter
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from ldm_dream.config.process import DDPMConfig, FlowConfig, ResidualShiftConfig
from ldm_dream.process import build_process

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

PROCESSES = {
    "ddpm": DDPMConfig(num_timesteps=1000),
    "ddpm_respaced": DDPMConfig(respace=50),
    "resshift_15": ResidualShiftConfig(),
    "resshift_4": ResidualShiftConfig(num_timesteps=4, min_noise_level=0.2),
    "flow": FlowConfig(num_timesteps=20),
}


# tests with a line for each case at the end of the run, given by record_property("figures", text)
# -> title
TABLES = {
    "test_golden_case_is_reproduced": "golden cases: outputs compared, largest error as a share of its tolerance",
    "test_published_layout_imports_at_full_size": "published layouts at full size, by tools/import_checkpoint.py (peak: VmHWM)",
}


@pytest.fixture(autouse=True)
def same_numbers_on_every_cpu(monkeypatch):
    """`auto` is fp32, as on a CPU without bf16."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        type=Path,
        default=None,
        help="folder with golden cases (default: ../shared/golden)",
    )


def pytest_terminal_summary(terminalreporter):
    """The tables, with -q too: each case with its figures, and where it did not pass, that and why."""
    reports = [
        r
        for outcome in ("passed", "failed", "skipped", "error")
        for r in terminalreporter.stats.get(outcome, [])
    ]
    for test, title in TABLES.items():
        lines = [table_line(r) for r in reports if r.nodeid.partition("[")[0].endswith(f"::{test}")]
        if lines:
            terminalreporter.section(title)
            terminalreporter.write("\n".join(sorted(lines)) + "\n")


def table_line(report: pytest.TestReport) -> str:
    """`case  FAILED  figures  why`, of which a case that passed has only its name and figures."""
    case = report.nodeid.partition("[")[2].removesuffix("]")
    words = [dict(report.user_properties).get("figures", "")]
    if report.skipped:
        words = ["SKIPPED", report.longrepr[2]]  # (file, line, reason)
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        words = [
            "FAILED",
            *words,
            (crash.message if crash else report.longreprtext).partition("\n")[0],
        ]
    return f"{case:32} " + "  ".join(filter(None, words))


@pytest.fixture(params=PROCESSES)
def process(request):
    """Every process at its published schedule."""
    return build_process(PROCESSES[request.param])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)

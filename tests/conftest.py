"""Options and fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before the first import of triton: kernels run in its interpreter
    os.environ["TRITON_INTERPRET"] = "1"

from ldm_dream.config_models import DDPMConfig, FlowConfig, ResidualShiftConfig
from ldm_dream.process import build_process

SHARED = Path(__file__).resolve().parents[1].parent / "shared"

PROCESSES = {
    "ddpm": DDPMConfig(num_timesteps=1000),
    "ddpm_respaced": DDPMConfig(respace=50),
    "resshift_15": ResidualShiftConfig(),
    "resshift_4": ResidualShiftConfig(num_timesteps=4, min_noise_level=0.2),
    "flow": FlowConfig(num_timesteps=20),
}


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, default=None, help="folder with golden cases (default: ../shared/golden)")


@pytest.fixture(params=PROCESSES)
def process(request):
    """Every process at its published schedule."""
    return build_process(PROCESSES[request.param])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)

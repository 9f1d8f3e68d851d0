"""The layout rules of DESIGN section 2, and the documents, held to the truth: imports, sizes,
configs, commands, paths.
"""

import ast
import graphlib
import importlib.util
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"ldm_dream": ROOT / "ldm_dream", "dream_kernels": ROOT / "kernels/dream_kernels"}
SOURCES = [
    p
    for folder in ("ldm_dream", "kernels", "tools", "benchmarks")
    for p in sorted((ROOT / folder).rglob("*.py"))
]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DOCUMENTS = [
    p for p in sorted(ROOT.glob("*.md")) if p.name != "CHANGELOG.md"
]  # history may name what is gone
# module -> (modules of ours that it may import, packages of others); the first pattern that fits
# counts. Within a wing files import each other; test_imports_of_modules_form_no_circle orders them.
CONFIG = ["errors", "config.*"]
KERNELS = ["dream_kernels", "dream_kernels.*"]
METHOD = ["process", "denoiser", "loss", "sampler"]
MODELS = [*CONFIG, *KERNELS, *METHOD, "model_folder", "hub", "networks", "networks.*", "data.*"]
IMPORT_RULES = {
    "ldm_dream": (["upscaling.upscaler"], []),  # on use
    "ldm_dream.errors": ([], []),
    "ldm_dream.cli": (["errors"], []),
    "ldm_dream.hub": (["errors"], ["huggingface_hub"]),
    "ldm_dream.config*": (CONFIG, ["pydantic", "yaml"]),
    "ldm_dream.data*": ([*CONFIG, "data.*"], ["torch", "torchvision", "numpy", "PIL", "pyvips"]),
    "ldm_dream.networks.layers": (["errors", *KERNELS], ["torch", "einops", "timm"]),
    "ldm_dream.networks": ([*CONFIG, "networks.*"], ["torch"]),
    "ldm_dream.networks.autoencoders": ([*CONFIG, "networks.*"], ["torch"]),
    # never another network
    "ldm_dream.networks.*": ([*CONFIG, *KERNELS, "networks.layers"], ["torch", "einops", "timm"]),
    "ldm_dream.process": (CONFIG, ["torch"]),
    "ldm_dream.denoiser": ([*CONFIG, "process", "data.resize"], ["torch"]),  # is given a network
    "ldm_dream.loss": ([*CONFIG, *KERNELS, "process", "denoiser"], ["torch"]),
    "ldm_dream.sampler": ([*CONFIG, *KERNELS, "process", "denoiser"], ["torch"]),
    "ldm_dream.model_folder": (MODELS, ["torch", "yaml", "safetensors"]),
    "ldm_dream.training*": (
        [*MODELS, "training.*", "scoring.metrics", "ldm_dream"],
        ["torch", "numpy", "safetensors", "taming", "matplotlib", "tensorboard"],
    ),
    "ldm_dream.upscaling*": ([*MODELS, "upscaling.*"], ["torch", "numpy", "PIL"]),
    "ldm_dream.scoring*": (  # models come in as callables
        [*CONFIG, "data.*", "scoring.*"],
        ["torch", "torchvision", "numpy", "PIL", "lpips", "torch_fidelity"],
    ),
    "ldm_dream.interchange*": ([*MODELS, "interchange.*", "ldm_dream"], ["torch", "safetensors"]),
    "dream_kernels*": (KERNELS, ["torch", "triton"]),
    "tools.*": (["ldm_dream", "ldm_dream.*", *KERNELS], ["torch", "numpy"]),
    "benchmarks*": (
        ["ldm_dream", "ldm_dream.*", "benchmarks.*", *KERNELS],
        ["torch", "numpy", "PIL", "taming"],
    ),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """kernels/dream_kernels/vq.py -> dream_kernels.vq, ldm_dream/data/__init__.py -> ldm_dream.data"""
    parts = (
        path.relative_to(ROOT / "kernels" if ROOT / "kernels" in path.parents else ROOT)
        .with_suffix("")
        .parts
    )
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in SOURCES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path, nodes=None) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it (or in `nodes`)."""
    found = set()
    for node in nodes or ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = (
                module_name(path)
                if path.name == "__init__.py"
                else module_name(path).rpartition(".")[0]
            )
            base = (
                importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                if node.level
                else node.module
            )
            inner = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {base}
    return found


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in {*PACKAGES, "tools", "tests", "benchmarks", "configs"}


def allowed(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, p) or fnmatch(name, f"ldm_dream.{p}") for p in patterns)


# ------------------------------------------------------------------------------------------ imports


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_imports_only_what_its_place_allows(path):
    name = module_name(path)
    ours, others = next(rule for pattern, rule in IMPORT_RULES.items() if fnmatch(name, pattern))
    for target in imports(path):
        if target.partition(".")[0] in {"tests", "tools", "configs"} or (
            is_ours(target) and not allowed(target, ours)
        ):
            pytest.fail(f"{relative(path)} imports {target}; it may import of ours only {ours}")
        top = target.partition(".")[0]
        if (
            not is_ours(target)
            and top not in sys.stdlib_module_names
            and not any(fnmatch(top, p) for p in others)
        ):
            pytest.fail(f"{relative(path)} imports {top}; it may import of others only {others}")


def test_only_benchmarks_import_benchmarks():
    for path in SOURCES:
        if not relative(path).startswith("benchmarks/"):
            assert not any(name.partition(".")[0] == "benchmarks" for name in imports(path)), (
                relative(path)
            )


def test_imports_of_modules_form_no_circle():
    graph = {
        name: {t for t in imports(path) if t in MODULES and t != name}
        for name, path in MODULES.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_importing_a_file_needs_only_core_dependencies():
    """What an extra brings is imported where it is used, so that the core installation imports
    everything.
    """
    project = re.search(
        r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M
    ).group(1)
    core = {name.lower() for name in re.findall(r'"([\w-]+)', project)}
    package_of = {"yaml": "pyyaml", "PIL": "pillow"}
    for path in SOURCES:
        if not relative(path).startswith(("ldm_dream/", "tools/")):
            continue
        for name in imports(path, nodes=tree(path).body):
            top = name.partition(".")[0]
            known = (
                is_ours(name)
                or top in sys.stdlib_module_names
                or package_of.get(top, top).lower() in core
            )
            assert known, (
                f"{relative(path)} imports {top}, which is no core dependency, at its top: import it where it is used"
            )


def test_config_imports_no_torch():
    code = "import ldm_dream.config.run, sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_everything_is_importable_without_triton():
    modules = [name for name in MODULES if name.startswith("ldm_dream")] + ["dream_kernels"]
    code = f"import importlib, sys; sys.modules['triton'] = None; [importlib.import_module(m) for m in {modules}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- habits


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_reads_pickles_or_runs_text(path):
    """Pickles only in the importer and for the weights of metrics, and there with
    weights_only=True; no eval, no exec.
    """
    assert not imports(path) & {"dill", "joblib", "cloudpickle"}
    refused = {
        "eval",
        "exec",
        "__import__",
        "yaml.unsafe_load",
        "yaml.full_load",
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
    }
    for call in (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        assert name not in refused, f"line {call.lineno}: {name}"
        if name == "torch.load":
            assert relative(path) in {
                "ldm_dream/interchange/published.py",
                "ldm_dream/scoring/metrics.py",
            }, f"line {call.lineno}: torch.load here"
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert options.get("weights_only") == "True", (
                f"line {call.lineno}: torch.load without weights_only=True"
            )


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_file_is_short_and_says_what_it_is(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400, f"{len(lines)} lines: split it by idea"
    if path.parent == ROOT / "tools":
        assert sum(bool(line.strip()) for line in lines) < 80, (
            "a tool parses, calls one library function and writes"
        )
    if lines:
        assert ast.get_docstring(tree(path)), "no module docstring"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_silent(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            assert not all(isinstance(s, ast.Pass) for s in node.body), (
                f"line {node.lineno}: except with nothing but pass"
            )


def test_tools_share_one_face():
    for path in sorted((ROOT / "tools").glob("*.py")):
        functions = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
        assert {"build_parser", "main"} <= functions, relative(path)
        assert "ldm_dream.cli" in imports(path), f"{relative(path)} does not use user_errors()"


def test_every_op_has_its_reference_and_every_kernel_its_five_places():
    """An op without kernel is its reference; a kernel file also has a row, a test and a benchmark
    (_x.py: helpers).
    """
    from benchmarks.kernel_cases import CASES
    from dream_kernels import OPS

    folder = PACKAGES["dream_kernels"]
    reference = {
        node.name
        for node in tree(folder / "reference.py").body
        if isinstance(node, ast.FunctionDef)
    }
    assert set(OPS) <= reference, f"no reference: {set(OPS) - reference}"
    for name in {p.stem for p in folder.glob("[!_]*.py")} - {"reference", "backend"}:
        assert name in OPS, f"{name}: no row in OPS"
        assert (ROOT / f"tests/kernels/test_{name}.py").is_file(), (
            f"{name}: no tests/kernels/test_{name}.py"
        )
    assert set(OPS) == {name for name, case in CASES.items() if case.ours is None}, (
        "a case for every op, and no other of one op"
    )


# ------------------------------------------------------------------------------------------ configs


def test_there_are_configs_and_nothing_else_beside_them():
    assert CONFIGS
    others = [
        relative(p)
        for p in (ROOT / "configs").rglob("*")
        if p.is_file() and p.suffix not in {".yaml", ".md"}
    ]
    assert not others, others


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_every_config_states_its_own_expected_result(path):
    assert yaml.safe_load(path.read_text()).get("expected"), (
        "`expected: ` figures with their command, or `not run`"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_every_config_builds_and_its_parts_fit(path):
    import torch

    from ldm_dream.config.files import load_config
    from ldm_dream.config.run import AutoencoderRun
    from ldm_dream.networks import build_network
    from ldm_dream.networks.autoencoders import build_autoencoder
    from ldm_dream.process import build_process

    run = load_config(path)
    with torch.device("meta"):  # shapes only: the published sizes cost nothing
        autoencoder = build_autoencoder(run.autoencoder)
        if isinstance(run, AutoencoderRun):
            return
        network = build_network(run.network)
        cfg, side = run.network, run.network.image_size
        cond_side = side // run.scale if cfg.kind == "idm" else side * cfg.cond_factor
        cond = torch.zeros(1, cfg.cond_channels, cond_side, cond_side)
        output = network(
            torch.zeros(1, cfg.in_channels, side, side), torch.zeros(1, dtype=torch.int64), cond
        )
    assert output.shape == (1, cfg.out_channels, side, side)
    assert build_process(run.process).num_timesteps >= (run.sampler.steps or 1)
    if (
        getattr(run.autoencoder, "pretrained", None) is None
    ):  # else the channels are those of its folder
        channels = {"lr": 3, "z_lr": autoencoder.channels}
        assert cfg.in_channels == cfg.out_channels == autoencoder.channels
        assert cfg.cond_channels == sum(channels[name] for name in run.condition)


# ---------------------------------------------------------------------------------------- documents


def fenced(text: str) -> list[tuple[str, str]]:
    """Markdown -> (language, body) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)


def commands() -> list[tuple[str, str]]:
    """(where, command) of each line in the shell blocks of documents and in the docstrings of
    tools.
    """
    found = []
    for path in DOCUMENTS:
        for language, body in fenced(path.read_text()):
            if language in {"sh", "bash", "shell", "console"}:
                found += [
                    (relative(path), line.removeprefix("$ "))
                    for line in body.replace("\\\n", " ").splitlines()
                ]
    for path in (ROOT / "tools").glob("*.py"):
        lines = (ast.get_docstring(tree(path)) or "").splitlines()
        found += [
            (relative(path), line.strip())
            for line in lines
            if re.match(r"\s*(python|torchrun) ", line)
        ]
    return [(where, line) for where, line in found if line.strip() and not line.startswith("#")]


def parser_of(path: Path):
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build_parser()


@pytest.mark.parametrize(("where", "command"), commands())
def test_every_command_in_the_documents_is_one_that_runs(where, command, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    words = [w for w in shlex.split(command, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    for word in words:
        if word.startswith(("configs/", "tools/", "tests/", "ldm_dream/", "benchmarks/")):
            assert (ROOT / word).exists(), f"{where}: {word} does not exist"
    match [Path(words[0]).name, *words[1:]]:
        case ["python" | "python3" | "torchrun", *rest] if any(
            w.startswith("tools/") for w in rest
        ):
            tool = next(i for i, word in enumerate(rest) if word.startswith("tools/"))
            parser_of(ROOT / rest[tool]).parse_args(
                rest[tool + 1 :]
            )  # exits, and so fails, on a wrong option
        case ["python" | "python3", "-m", "benchmarks", *rest]:
            from benchmarks.__main__ import build_parser

            build_parser().parse_args(rest)
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert set(targets) <= set(rules), f"{where}: the Makefile has only {rules}"
        case ["python" | "python3", "-m", "venv" | "pip" | "pytest" | "ruff", *_] | [
            "pip" | "git" | "cd",
            *_,
        ]:
            return
        case _:
            pytest.fail(f"{where}: {command!r} is no command that this test knows how to check")


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_python_in_the_documents_compiles_and_imports(path):
    for language, body in fenced(path.read_text()):
        if language in {"python", "py"}:
            block = ast.parse(body)
            lines = [
                ast.unparse(n)
                for n in ast.walk(block)
                if isinstance(n, (ast.Import, ast.ImportFrom))
            ]
            done = subprocess.run(
                [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_paths_named_in_the_documents_exist(path):
    """Code spans that look like a file of this project, and targets of links; made files
    (.gitignore) are left out.
    """
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    tops = [p for p in ROOT.iterdir() if p.name not in {*made, ".git"}]
    names = {p.name for top in tops for p in (top, *top.rglob("*"))}
    missing = []
    for span in re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text):
        top = span.partition("/")[0]
        if top in made or top == "..":
            continue
        if "/" in span and ((ROOT / top).is_dir() or Path(span).suffix in {".py", ".yaml", ".md"}):
            missing += (
                []
                if any((folder / span).exists() for folder in (ROOT, *PACKAGES.values()))
                else [span]
            )
        elif Path(span).suffix in {".py", ".md"} and span not in names:
            missing.append(span)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target and not (path.parent / target).exists():
            missing.append(target)
    assert not missing, f"{relative(path)} names what does not exist: {missing}"

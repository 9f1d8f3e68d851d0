"""The layout of the project and its documents, held to the truth: imports, sizes, configs,
commands, paths.

Each test collects every offender and fails with the list: `file:line: what, what to do`.
"""

import ast
import graphlib
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from import_rules import IMPORT_RULES, MODULES, OURS, ROOT, SOURCES, allows, imports, rule_of, tree
from ldm_dream.commands.main import COMMANDS as commands_of_ldm_dream

KERNELS = ROOT / "kernels/dream_kernels"
COMMANDS = {
    name: ROOT / f"ldm_dream/commands/{command.file}.py"
    for name, command in commands_of_ldm_dream.items()
}
ALIAS = '"""The command `ldm-dream {}`, as a script of the checkout."""'
ALIASES = {ROOT / "tools" / path.name: name for name, path in COMMANDS.items()}
TOOLS = sorted({*(ROOT / "tools").glob("*.py")} - {*ALIASES}) + sorted(COMMANDS.values())
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MADE = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
FILES = [  # of the project, folders too; what it makes is left out
    path
    for top in sorted(ROOT.iterdir())
    if top.name not in {*MADE, ".git"}
    for path in (top, *sorted(top.rglob("*")))
]
DOCUMENTS = [  # history may name what is gone
    path for path in FILES if path.suffix == ".md" and path.name != "CHANGELOG.md"
]

FILE_LINES = 400
LONG_LINE, LONG_LINES_SHARE = 100, 0.06
PARAMETERS = 7
TOOL_STATEMENTS = 60
SENTENCE = 100


def at(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


def refuse(offenders: Iterable[str]) -> None:
    found = list(offenders)
    if found:
        pytest.fail(f"{len(found)} to fix:\n" + "\n".join(found), pytrace=False)


def nodes_of(kinds) -> Iterator[tuple[Path, ast.AST]]:
    """Every syntax node of these kinds in the sources, with its file."""
    for path in SOURCES:
        yield from ((path, node) for node in ast.walk(tree(path)) if isinstance(node, kinds))


def run_python(code: str) -> list[str]:
    """-> the error that ended a fresh interpreter, none where all went well."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return [done.stderr] if done.returncode else []


# ------------------------------------------------------------------------------------------- imports


def test_files_import_only_what_their_place_allows():
    found = []
    for module, path in MODULES.items():
        ours, others = rule_of(module)
        for imported in imports(path):
            where, top = at(path, imported.line), imported.top
            if top in OURS and not allows(ours, imported.target):
                found.append(f"{where}: imports {imported.target}; it may {', '.join(ours)}")
            elif top not in OURS | sys.stdlib_module_names and top not in others:
                found.append(f"{where}: imports {top}; of others it may {', '.join(others)}")
    refuse(found)


def test_import_rules_name_only_what_is_there():
    found = []
    for place, rule in IMPORT_RULES.items():
        gone = [n for n in (place, *rule.ours) if not any(allows([n], m) for m in MODULES)]
        found += [f"IMPORT_RULES[{place!r}]: there is no {name}; take it out" for name in gone]
    refuse(found)


def test_imports_form_no_circle():
    graph = {
        module: {found.target for found in imports(path)} & MODULES.keys() - {module}
        for module, path in MODULES.items()
    }
    found = []
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found = [f"{' is imported by '.join(error.args[1])}; cut the circle"]
    refuse(found)


def test_importing_needs_only_core_dependencies():
    """What an extra brings is imported where it is used: the core installation imports all files."""
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.S | re.M)[1]
    core = {name.lower() for name in re.findall(r'"([\w-]+)', listed)}
    package_of = {"yaml": "pyyaml", "PIL": "pillow"}
    known = {*OURS, *sys.stdlib_module_names}
    refuse(
        f"{at(path, found.line)}: {found.top} is no core dependency; import it where it is used"
        for path in SOURCES
        if path.is_relative_to(ROOT / "ldm_dream") or path in TOOLS
        for found in imports(path, tree(path).body)
        if found.top not in known and package_of.get(found.top, found.top).lower() not in core
    )


def test_config_imports_no_torch():
    refuse(
        run_python("import ldm_dream.config.run, sys; assert 'torch' not in sys.modules, 'torch'")
    )


def test_a_model_is_loaded_without_the_compiler():
    """Importing it takes a second of the two and a half to a first small picture."""
    refuse(
        run_python(
            "import sys; from ldm_dream import Upscaler\n"
            "Upscaler.from_pretrained('dream-latent-x4-tiny')\n"
            "assert 'torch._dynamo' not in sys.modules, 'torch._dynamo'"
        )
    )


def test_everything_imports_without_triton():
    modules = [name.removesuffix(".__init__") for name in MODULES if name.startswith("ldm_dream.")]
    refuse(
        run_python(
            "import importlib, sys; sys.modules['triton'] = None\n"
            f"for module in {['dream_kernels', *modules]}: importlib.import_module(module)"
        )
    )


# -------------------------------------------------------------------------------------------- habits

PICKLES = {"dill", "joblib", "cloudpickle"}
REFUSED = {"eval", "exec", "__import__", "yaml.unsafe_load", "yaml.full_load"}
REFUSED |= {"pickle.load", "pickle.loads", "pickle.Unpickler"}
READERS = ("ldm_dream/interchange/checkpoint_file.py", "ldm_dream/scoring/metrics.py")


def test_no_file_reads_pickles_or_runs_text():
    """torch.load only in the importer and for weights of metrics, and with weights_only=True."""
    found = []
    for path in SOURCES:
        bad = [i for i in imports(path) if i.top in PICKLES]
        found += [f"{at(path, i.line)}: imports {i.top}; use safetensors or JSON" for i in bad]
    for path, call in nodes_of(ast.Call):
        name, where = ast.unparse(call.func), at(path, call.lineno)
        if name in REFUSED:
            found.append(f"{where}: calls {name}; read data with yaml.safe_load or safetensors")
        if name == "torch.load":
            if not where.startswith(READERS):
                found.append(f"{where}: torch.load; only {' and '.join(READERS)} may")
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if options.get("weights_only") != "True":
                found.append(f"{where}: torch.load without weights_only=True; add it")
    refuse(found)


def test_nothing_is_silent():
    found = []
    for path, handler in nodes_of(ast.ExceptHandler):
        where = at(path, handler.lineno)
        if handler.type is None:
            found.append(f"{where}: bare except; name the errors")
        if all(isinstance(statement, ast.Pass) for statement in handler.body):
            found.append(f"{where}: except with nothing but pass; say or do something")
    refuse(found)


def test_files_are_short():
    sizes = {path: len(path.read_text().splitlines()) for path in SOURCES}
    refuse(
        f"{at(path, size)}: {size} lines; at most {FILE_LINES}, split it by idea"
        for path, size in sizes.items()
        if size > FILE_LINES
    )


def test_few_lines_are_long(capsys):
    """Tables and formulas may be wider than the text; the share of such lines is bounded."""
    total, long = 0, {}
    for path in SOURCES:
        sizes = [len(line) for line in path.read_text().splitlines()]
        total += len(sizes)
        long[path] = [n for n, size in enumerate(sizes, 1) if size > LONG_LINE]
    share = sum(map(len, long.values())) / total
    with capsys.disabled():
        print(f" {share:.1%} of {total} lines are over {LONG_LINE} characters ", end="")  # noqa: T201
    worst = sorted(long.items(), key=lambda item: -len(item[1]))
    refuse(
        f"{at(path, lines[0])}: the first of {len(lines)} lines over {LONG_LINE}; wrap some"
        for path, lines in worst
        if lines and share > LONG_LINES_SHARE
    )


def test_functions_take_few_parameters():
    """Kernels aside, whose arguments are pointers, strides and sizes."""
    found = []
    for path, function in nodes_of((ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        given = function.args
        names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > PARAMETERS and not path.is_relative_to(ROOT / "kernels"):
            found.append(
                f"{at(path, function.lineno)}: {getattr(function, 'name', 'lambda')} takes {count} "
                f"parameters; at most {PARAMETERS}, put those that belong together into one value"
            )
    refuse(found)


def test_files_say_what_they_are():
    refuse(
        f"{at(path)}: no module docstring; say what the file is for"
        for path in SOURCES
        if path.read_text().strip() and not ast.get_docstring(tree(path))
    )


def test_tools_are_thin():
    """A tool parses, calls one library function and writes. Counted in statements, since the
    formatter wraps a call of argparse into many lines: TOOL_STATEMENTS are about 80 lines unwrapped.
    """
    sizes = {path: sum(isinstance(n, ast.stmt) for n in ast.walk(tree(path))) for path in TOOLS}
    refuse(
        f"{at(path)}: {size} statements; at most {TOOL_STATEMENTS}, move work into the library"
        for path, size in sizes.items()
        if size > TOOL_STATEMENTS
    )


def test_tools_named_as_commands_are_the_commands():
    """And every file among the commands is one."""
    found = []
    for path, name in ALIASES.items():
        body = "from ldm_dream.commands.main import script\n\nif __name__ == "
        text = f'{ALIAS.format(name)}\n\n{body}"__main__":\n    script("{name}")\n'
        if path.exists() and path.read_text() != text:
            found.append(f"{at(path)}: does more than call the command {name}")
    files = {*(ROOT / "ldm_dream/commands").glob("*.py")} - {*COMMANDS.values()}
    strange = {path.name for path in files} - {"__init__.py", "main.py"}
    refuse([*found, *(f"{name}: no command leads to this file" for name in strange)])


def test_tools_share_one_face():
    found = []
    for path in TOOLS:
        functions = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
        for name in sorted({"build_parser", "main"} - functions):
            found.append(f"{at(path)}: no function {name}; add it")
        if "ldm_dream.cli" not in {i.target for i in imports(path)}:
            found.append(f"{at(path)}: does not use user_errors() of ldm_dream.cli; do")
    refuse(found)


def test_tools_say_what_they_do_in_one_sentence():
    """The first line of the docstring is what --help shows."""
    found = []
    for path in TOOLS:
        first = (ast.get_docstring(tree(path)) or "").partition("\n")[0]
        if not re.fullmatch(r"[A-Z].*[^.]\.", first) or re.search(r"[.!?] ", first):
            found.append(f"{at(path)}: {first!r} is not one whole sentence; end it in this line")
        if len(first) > SENTENCE:
            found.append(f"{at(path)}: {len(first)} characters; say it in {SENTENCE}")
    refuse(found)


def test_every_op_has_its_places():
    """An op has its reference and its case; a kernel file has a row in OPS and a test (_x: helpers)."""
    from benchmarks.kernel_cases import CASES
    from dream_kernels import OPS

    specification = KERNELS / "reference.py"
    functions = [node for node in tree(specification).body if isinstance(node, ast.FunctionDef)]
    reference = {function.name for function in functions}
    cases = {name for name, case in CASES.items() if case.ours is None}
    found = [f"{at(specification)}: no {name}; add it" for name in {*OPS} - reference]
    where = "benchmarks/kernel_cases.py:1"
    found += [f"{where}: no case of one op {name}; add it" for name in {*OPS} - cases]
    found += [f"{where}: {name} is no op; drop the case" for name in cases - {*OPS}]
    for path in sorted(KERNELS.glob("[!_]*.py")):
        if path.stem in {"reference", "backend"}:
            continue
        if path.stem not in OPS:
            found.append(f"{at(path)}: no row in OPS; add it")
        if not (ROOT / f"tests/kernels/test_{path.stem}.py").is_file():
            found.append(f"{at(path)}: no tests/kernels/test_{path.stem}.py; write it")
    refuse(found)


# ------------------------------------------------------------------------------------------- configs


def test_configs_stand_alone_and_state_their_results():
    """Nothing but configs in configs/; each says `expected:` figures with their command, or `not run`."""
    assert CONFIGS
    files = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    strange = [path for path in files if path.suffix not in {".yaml", ".md"}]
    mute = [path for path in CONFIGS if not yaml.safe_load(path.read_text()).get("expected")]
    refuse(
        [f"{at(path)}: no config; move it" for path in strange]
        + [f"{at(path)}: no `expected:`; add figures, or `not run`" for path in mute]
    )


def test_every_config_builds():
    found = []
    for path in CONFIGS:
        try:
            found += [f"{at(path)}: {fault}" for fault in faults_of_config(path)]
        except Exception as error:
            found.append(f"{at(path)}: {type(error).__name__}: {error}")
    refuse(found)


def faults_of_config(path: Path) -> Iterator[str]:
    """What does not fit together in a config that loads and builds."""
    from ldm_dream.config.files import load_config
    from ldm_dream.config.run import AutoencoderRun
    from ldm_dream.process import build_process

    run = load_config(path)
    channels = latent_channels(run.autoencoder)
    if isinstance(run, AutoencoderRun):
        return
    network, side = run.network, run.network.image_size
    made, wanted = output_shape(network, run.scale), (1, network.out_channels, side, side)
    if made != wanted:
        yield f"the network makes {made} instead of {wanted}; fix `network`"
    if build_process(run.process).num_timesteps != run.process.steps:  # which bound sampler.steps
        yield "the process has other steps than its config says; fix one of them"
    if getattr(run.autoencoder, "pretrained", None) is not None:
        return  # the channels are those of its folder
    parts = {"lr": 3, "z_lr": channels}
    if not network.in_channels == network.out_channels == channels:
        yield f"in_channels and out_channels are not the autoencoder's {channels}; set them so"
    if network.cond_channels != sum(parts[name] for name in run.condition):
        yield f"cond_channels is not what {run.condition} has; set it so"


@cache
def latent_channels(cfg) -> int:
    import torch

    from ldm_dream.networks.autoencoders import build_autoencoder

    with torch.device("meta"):
        return build_autoencoder(cfg).channels


@cache
def output_shape(cfg, scale: int) -> tuple[int, ...]:
    """Of the network at its own size. Shapes only (meta): the published sizes cost nothing."""
    import torch

    from ldm_dream.networks import build_network

    side = cfg.image_size
    cond_side = side * cfg.cond_factor if cfg.cond_factor else side // scale
    with torch.device("meta"):
        network = build_network(cfg)
        z_t, t = torch.zeros(1, cfg.in_channels, side, side), torch.zeros(1, dtype=torch.int64)
        cond = torch.zeros(1, cfg.cond_channels, cond_side, cond_side)
        features = network.prepare(cond, (side, side))
        return tuple(network(z_t, network.embed(t), *features).shape)


# ----------------------------------------------------------------------------------------- documents


class Block(NamedTuple):
    path: Path
    line: int  # of the fence
    language: str
    body: str


def blocks(*languages: str) -> Iterator[Block]:
    """Fenced blocks of the documents in one of `languages`."""
    for path in DOCUMENTS:
        text = path.read_text()
        for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.S | re.M):
            line = text.count("\n", 0, match.start()) + 1
            if match[1] in languages:
                yield Block(path, line, match[1], match[2])


def commands() -> Iterator[tuple[str, str]]:
    """(where, command) of the shell blocks in documents and of the docstrings of tools."""
    for path, start, language, body in blocks("sh", "bash", "shell", "console"):
        command = ""
        for number, line in enumerate(body.splitlines(), start + 1):
            command += line.removesuffix("\\")
            if line.endswith("\\"):
                continue
            if language != "console" or command.startswith("$ "):
                yield at(path, number), command.removeprefix("$ ")
            command = ""
    for path in TOOLS:
        lines = (ast.get_docstring(tree(path), clean=False) or "").splitlines()
        for number, line in enumerate(lines, 1):
            if re.match(r"\s*(python|torchrun|ldm-dream) ", line):
                yield at(path, number), line


@cache
def parser_of(path: Path):
    """The parser of a tool, or of the benchmarks."""
    path = COMMANDS[ALIASES[path]] if path in ALIASES else path
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build_parser()


def fault_of_command(words: list[str]) -> str:
    """Empty for a command that would run: its files are there, its program takes its options."""
    for before, word in zip(["", *words], words):
        ours = word.startswith(("configs/", "tools/", "tests/", "ldm_dream/", "benchmarks/"))
        if ours and before != "--json" and not (ROOT / word).exists():  # --json makes its file
            return f"{word} does not exist"
    match [Path(words[0]).name, *words[1:]]:
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
            strange = [t for t in targets if t not in rules and "=" not in t]
            return f"the Makefile has no {', '.join(strange)}; it has {rules}" if strange else ""
        case ["python" | "python3", "-m", "benchmarks", *rest]:
            return refusal(ROOT / "benchmarks/__main__.py", rest)
        case ["python" | "python3", "-m", "venv" | "pip" | "pytest" | "ruff", *_]:
            return ""
        case ["python" | "python3" | "torchrun", *rest] if any(
            w.startswith("tools/") for w in rest
        ):
            tool = next(i for i, word in enumerate(rest) if word.startswith("tools/"))
            return refusal(ROOT / rest[tool], rest[tool + 1 :])
        case ["python" | "python3" | "torchrun", *rest] if "ldm_dream" in rest:
            return fault_of_command(["ldm-dream", *rest[rest.index("ldm_dream") + 1 :]])
        case ["ldm-dream", name, *rest]:
            return refusal(COMMANDS[name], rest) if name in COMMANDS else f"no command {name}"
        case ["pip" | "git" | "cd" | "ls" | "export", *_]:
            return ""
    return "no command that this test can check; use one of make, ldm-dream, python tools/, -m benchmarks"


def refusal(program: Path, words: list[str]) -> str:
    """What the program's parser says to options that it does not take; empty where it takes them."""
    said = StringIO()
    try:
        with redirect_stderr(said):
            parser_of(program).parse_args(words)
    except SystemExit as end:
        return said.getvalue().strip().splitlines()[-1] if end.code else ""
    return ""


def test_every_command_in_the_documents_is_one_that_runs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    found = []
    for where, line in commands():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # a variable for this command
                del words[0]
            fault = fault_of_command(words) if words else ""
            found += [f"{where}: {command.strip()}: {fault}"] if fault else []
    refuse(found)


def test_python_in_the_documents_compiles_and_imports():
    found = []
    for path, line, _, body in blocks("python", "py"):
        try:
            block = ast.parse(body)
        except SyntaxError as error:
            found.append(f"{at(path, line + error.lineno)}: {error.msg}; fix the code")
            continue
        for node in ast.walk(block):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                fault = fault_of_import(node)
                found += [f"{at(path, line + node.lineno)}: {fault}; fix it"] if fault else []
    refuse(found)


def fault_of_import(node: ast.Import | ast.ImportFrom) -> str:
    try:
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
            return ""
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")
    except Exception as error:
        return f"{ast.unparse(node)}: {type(error).__name__}: {error}"
    return ""


def test_paths_named_in_the_documents_exist():
    """Code spans that look like a file of this project, and targets of links; made files
    (.gitignore) are left out.
    """
    names, folders = {path.name for path in FILES}, (ROOT, ROOT / "ldm_dream", KERNELS)

    def is_there(span: str) -> bool:
        top, suffix = span.partition("/")[0], Path(span).suffix
        if top in MADE or top == "..":
            return True
        if "/" in span:
            ours = (ROOT / top).is_dir() or suffix in {".py", ".yaml", ".md"}
            return not ours or any((f / span).exists() for f in folders)
        return suffix not in {".py", ".md"} or span in names

    found = []
    for path in DOCUMENTS:
        text = re.sub(  # blocks keep their lines, so that the numbers stay
            r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.S | re.M
        )
        for number, line in enumerate(text.splitlines(), 1):
            spans = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", line)
            links = [t for t in re.findall(r"\]\(([^)#\s]+)", line) if "://" not in t]
            gone = [span for span in spans if not is_there(span)]
            gone += [target for target in links if not (path.parent / target).exists()]
            found += [f"{at(path, number)}: there is no {name}; fix the name" for name in gone]
    refuse(found)

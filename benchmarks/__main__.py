"""python -m benchmarks COMMAND [options]; --help lists the commands, COMMAND --help its options."""

import argparse
import importlib

from benchmarks.choices import DATA_KINDS, ENGINES
from benchmarks.quality_options import add_quality
from ldm_dream.cli import user_errors
from ldm_dream.upscaling.defaults import DEFAULT_MODEL


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed, memory and quality, measured; rows kept, tables made of them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    kept = argparse.ArgumentParser(add_help=False)
    kept.add_argument(
        "--json",
        metavar="FILE",
        help="append one JSON line a row; in benchmarks/results only from a clean tree",
    )
    placed = argparse.ArgumentParser(add_help=False)
    placed.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    shared = argparse.ArgumentParser(add_help=False, parents=[kept, placed])

    kernels = commands.add_parser(
        "kernels",
        parents=[shared],
        help="ops beside eager and compiled torch: seconds, GB/s, peak memory",
    )
    kernels.add_argument(
        "--op",
        action="append",
        metavar="NAME",
        help="only this op; give it several times (default: all)",
    )
    kernels.add_argument(
        "--repetitions",
        type=int,
        default=30,
        metavar="N",
        help="alternating (default: %(default)s)",
    )

    step = commands.add_parser(
        "train-step",
        parents=[shared],
        help="a step with DREAM beside the official recipe, and what DREAM costs: time, memory",
    )
    step.add_argument("--config", default="configs/tiny/dream-latent-x4-tiny.yaml")
    step.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="a.b=value",
        help="change the config's knobs",
    )
    step.add_argument("--ours-only", action="store_true", help="without the official recipe")
    step.add_argument("--compile", action="store_true", help="compile our network's blocks")
    step.add_argument(
        "--profile",
        action="store_true",
        help="where our DREAM step's time goes, by kind of operation",
    )
    step.add_argument(
        "--repetitions",
        type=int,
        default=7,
        metavar="N",
        help="alternating, after one unmeasured step each",
    )

    add_quality(commands, kept, placed)

    sampling = commands.add_parser(
        "sampling",
        parents=[shared],
        help="seconds per picture against steps, tile, tiles at a time",
    )
    sampling.add_argument(
        "-n",
        "--model",
        default=DEFAULT_MODEL,
        help="model name or folder (default: %(default)s)",
    )
    sampling.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[128],
        metavar="PX",
        help="side of the LR picture (default: 128)",
    )
    sampling.add_argument(
        "--steps", type=int, nargs="+", metavar="N", help="(default: the model's)"
    )
    sampling.add_argument("--tile", type=int, nargs="+", metavar="PX", help="(default: automatic)")
    sampling.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="tiles at a time (default: 1)",
    )
    sampling.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    sampling.add_argument("--compile", action="store_true")
    sampling.add_argument(
        "--repetitions", type=int, default=5, metavar="N", help="(default: %(default)s)"
    )

    of_parts = argparse.ArgumentParser(add_help=False, parents=[shared])
    of_parts.add_argument(
        "-n", "--model", default=DEFAULT_MODEL, help="model name or folder (default: %(default)s)"
    )
    of_parts.add_argument(
        "--size", type=int, default=128, metavar="PX", help="side of the LR picture (default: 128)"
    )
    of_parts.add_argument(
        "--repetitions", type=int, default=9, metavar="N", help="(default: %(default)s)"
    )
    parts = commands.add_parser(
        "parts",
        parents=[of_parts],
        help="where the time of a picture goes: encoder, network, decoder, the rest",
    )
    parts.add_argument("--steps", type=int, metavar="N", help="(default: the model's)")
    parts.add_argument("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    engines = commands.add_parser(
        "engines",
        parents=[of_parts],
        help="these parts on a CPU by PyTorch, AOTInductor, ONNX Runtime and OpenVINO",
    )
    engines.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    engines.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=ENGINES, help="(default: all)"
    )

    vq = commands.add_parser(
        "autoencoder", parents=[shared], help="reconstruction: PSNR, SSIM, LPIPS, seconds"
    )
    vq.add_argument(
        "-n",
        "--model",
        default="vq-f4-tiny",
        help="bundled autoencoder or its folder (default: %(default)s)",
    )
    vq.add_argument(
        "--hr", required=True, action="append", metavar="DIR", help="pictures; several allowed"
    )
    vq.add_argument(
        "--match", default="", metavar="TEXT", help="only pictures whose name holds this"
    )
    vq.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    vq.add_argument("--lpips-weights", metavar="FILE")

    systems = commands.add_parser(
        "systems",
        parents=[shared],
        help="every system: 200 steps, loss at both ends, resume, upscale",
    )
    systems.add_argument("--systems", nargs="+", metavar="NAME", help="only these (default: all)")
    systems.add_argument(
        "--steps", type=int, default=200, metavar="N", help="(default: %(default)s)"
    )

    data = commands.add_parser(
        "data", parents=[shared], help="training samples a second, by pictures and workers"
    )
    data.add_argument(
        "--kind", nargs="+", metavar="NAME", choices=tuple(DATA_KINDS), help="(default: all)"
    )
    data.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4], metavar="N")
    data.add_argument("--pictures", type=int, default=64, metavar="N", help="(default: 64)")
    data.add_argument(
        "--micro-batch", type=int, default=8, metavar="N", help="samples a request (default: 8)"
    )
    data.add_argument(
        "--rounds", type=int, default=8, metavar="N", help="over kept pictures (default: 8)"
    )
    data.add_argument(
        "--batch", type=int, default=32, metavar="N", help="samples of a step (default: 32)"
    )
    data.add_argument(
        "--step-seconds", type=float, default=0.15, help="that a GPU takes (default: 0.15)"
    )

    wait = commands.add_parser(
        "data-wait", parents=[shared], help="how long a training step waits for data"
    )
    wait.add_argument("--config", default="configs/tiny/sr3-dream.yaml")
    wait.add_argument("--set", action="extend", nargs="+", default=[], metavar="a.b=value")
    wait.add_argument("--workers", type=int, nargs="+", default=[0, 1], metavar="N")
    wait.add_argument("--nice", type=int, nargs="+", default=[5], metavar="N")
    wait.add_argument("--threads", type=int, nargs="+", metavar="N", help="(default: torch's)")
    wait.add_argument("--pictures", type=int, default=48, metavar="N", help="(default: 48)")
    wait.add_argument("--steps", type=int, default=20, metavar="N", help="a turn (default: 20)")
    wait.add_argument("--repetitions", type=int, default=5, metavar="N", help="(default: 5)")

    large = commands.add_parser(
        "large-picture", help="memory of a large picture over time, by default with free networks"
    )
    large.add_argument("--height", type=int, default=4000)
    large.add_argument("--width", type=int, default=6000)
    large.add_argument("--scale", type=float, default=4)
    large.add_argument("--steps", type=int, help="(default: the model's)")
    large.add_argument("--ext", default="jpg", help="(default: jpg)")
    large.add_argument(
        "--networks", choices=("free", "real"), default="free", help="(default: free)"
    )
    large.add_argument("--minutes", type=float, metavar="M", help="then stop, if not done before")

    folder = commands.add_parser(
        "folder",
        help="pictures a second of a folder: one after the other, and with overlap",
    )
    folder.add_argument("--pictures", type=int, default=16, metavar="N", help="(default: 16)")
    folder.add_argument(
        "--size", type=int, default=256, metavar="PX", help="side of a picture (default: 256)"
    )
    folder.add_argument("--ext", default="png", help="of the results (default: png)")
    folder.add_argument(
        "--seconds", type=float, default=0.3, help="a GPU takes for a picture (default: 0.3)"
    )
    folder.add_argument("-n", "--model", help="a model on this device instead of such a GPU")
    folder.add_argument("--device", default="auto", help="of the model (default: auto)")
    folder.add_argument("--repetitions", type=int, default=3, metavar="N", help="(default: 3)")

    levels = commands.add_parser(
        "png-levels", help="cuts of photos as PNG: bytes, time to write and to read"
    )
    levels.add_argument("--hr", required=True, metavar="DIR", help="photos of 480 pixels and more")
    levels.add_argument("--count", type=int, default=16, metavar="N", help="cuts (default: 16)")
    levels.add_argument("--repetitions", type=int, default=5, metavar="N", help="(default: 5)")

    way = commands.add_parser(
        "way", help="source files that one DREAM step and one sampling call execute"
    )
    way.add_argument("--config", default="configs/tiny/dream-latent-x4-tiny.yaml")
    way.add_argument("--list", action="store_true", help="the functions too")

    tables = commands.add_parser(
        "table", help="write the documents' tables from the rows in benchmarks/results"
    )
    tables.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a document differs"
    )

    plot = commands.add_parser("plot", help="curves of steps-quality and sampling rows as SVG")
    plot.add_argument("files", nargs="+", metavar="FILE.jsonl", help="what --json has written")
    plot.add_argument("-o", "--output", default=".", metavar="DIR", help="(default: here)")

    everything = commands.add_parser(
        "all", help="the benchmarks that a fresh clone can run, and a report to paste"
    )
    everything.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    everything.add_argument(
        "--minutes", type=float, default=10, metavar="M", help="then stop (default: %(default)s)"
    )
    everything.add_argument(
        "-o", "--output", default="bench", metavar="DIR", help="(default: %(default)s)"
    )
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        if getattr(args, "json", None):
            record = importlib.import_module(".record", __package__)
            record.check_target(args.json)  # before the minutes of measuring
        # here: --help needs no torch
        module = importlib.import_module(f".{args.command.replace('-', '_')}", __package__)
        module.main(args)


if __name__ == "__main__":
    main()

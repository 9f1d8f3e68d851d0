"""python -m benchmarks kernels | train-step | steps-quality | autoencoder [--device cpu|cuda] [--json FILE]"""

import argparse
import importlib

from ldm_dream.cli import user_errors


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a training step costs, what steps buy.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    shared.add_argument("--json", metavar="FILE", help="append one JSON line a row")

    kernels = commands.add_parser(
        "kernels", parents=[shared], help="ops beside eager and compiled torch: seconds, GB/s, peak memory"
    )
    kernels.add_argument("--op", action="append", metavar="NAME", help="only this op; give it several times (default: all)")
    kernels.add_argument("--repetitions", type=int, default=30, metavar="N", help="alternating (default: %(default)s)")

    step = commands.add_parser("train-step", parents=[shared], help="standard against DREAM: seconds, samples/s, peak memory")
    step.add_argument("--config", default="configs/resshift/dream-latent-x4-tiny.yaml")
    step.add_argument("--repetitions", type=int, default=7, metavar="N", help="alternating, after one unmeasured step each")

    quality = commands.add_parser("steps-quality", parents=[shared], help="PSNR-Y, SSIM, LPIPS against sampling steps")
    quality.add_argument("-n", "--model", action="append", required=True, help="model name or folder; give it several times")
    quality.add_argument("--hr", required=True, action="append", metavar="DIR", help="original pictures; several allowed")
    quality.add_argument("--steps", type=int, nargs="+", required=True)
    quality.add_argument("--crop", type=int, default=256, help="centre crop, HR pixels (default: 256)")
    quality.add_argument("--color-fix", choices=("none", "wavelet", "adain"), default="none")
    quality.add_argument("--lpips-weights", metavar="FILE")

    vq = commands.add_parser("autoencoder", parents=[shared], help="reconstruction: PSNR, SSIM, LPIPS, seconds")
    vq.add_argument("-n", "--model", default="vq-f4-tiny", help="bundled autoencoder or its folder (default: %(default)s)")
    vq.add_argument("--hr", required=True, action="append", metavar="DIR", help="pictures; several allowed")
    vq.add_argument("--match", default="", metavar="TEXT", help="only pictures whose name holds this")
    vq.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    vq.add_argument("--lpips-weights", metavar="FILE")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with user_errors():
        module = importlib.import_module(f".{args.command.replace('-', '_')}", __package__)  # here: --help needs no torch
        module.main(args)


if __name__ == "__main__":
    main()

"""Flags: the options of `ldm-dream upscale`, and the names that users of Real-ESRGAN know them by."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm_dream.cli import natural
from ldm_dream.upscaling.defaults import BATCH_SIZE, DEFAULT_MODEL, MAX_PIXELS, TILE_PAD

NOT_HERE = {  # options of Real-ESRGAN -> why there is none here
    "--face_enhance": "there is no model for faces here",
    "--pre_pad": "pictures are mirrored at their borders by themselves",
    "--denoise_strength": "a model here has one strength",
    "-dn": "a model here has one strength",
    "--alpha_upsampler": "transparency is always enlarged by bicubic",
    "-m": "-n takes the folder or the file of a model as well as a name",
    "-j": "OMP_NUM_THREADS says how many threads work",
    "-x": "a picture is computed once here",
}


class ListModels(argparse.Action):
    def __call__(self, parser, *_: object) -> None:
        from ldm_dream.model_config import list_models  # reads configs

        sys.stdout.writelines(f"{model}\n" for model in list_models())
        parser.exit()


class NotHere(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        parser.error(f"{option_string}: {NOT_HERE[self.dest]}, so leave it out")


def add_flags(parser: argparse.ArgumentParser) -> None:
    _what(parser.add_argument_group("what"))
    _how(parser.add_argument_group("how"))
    _files(parser.add_argument_group("the files that are written"))
    _machine(parser.add_argument_group("the machine"))
    _peer(
        parser.add_argument_group(
            "names of Real-ESRGAN",
            "Its -i, -o, -n, -s, -t, --suffix, --ext and --tile_pad are as above, but nothing is put\n"
            "before a suffix. Of its others there are these:",
        )
    )


def add_device_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, xpu, mps, or one with :N, as cuda:1 (default: auto)",
    )
    add_dtype_flag(group, default="auto")


def add_dtype_flag(group: argparse._ActionsContainer, default: str | None) -> None:
    group.add_argument(
        "--dtype",
        choices=("auto", "fp32", "bf16", "fp16"),
        default=default,
        help="auto: bf16 where the device computes it faster, as CPUs with AMX do, else\n"
        "fp16 on a CUDA device, fp32 on a CPU (default: auto)",
    )


def add_sampling_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--steps", type=int, metavar="N", help="sampling steps (default: the model's)"
    )
    group.add_argument(
        "--sampler",
        metavar="S",
        help="ancestral, ddim, dpm-solver++ or resshift (default: the model's)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same picture (default: 0)")
    group.add_argument(
        "--native-scale",
        action="store_true",
        help="SR3: the network works at the wanted size itself, not at its own scale",
    )


def add_tile_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "-t",
        "--tile",
        type=_tile,
        metavar="TILE_PX",
        help="side of a tile in input pixels (default: 0, automatic)",
    )
    group.add_argument(
        "--tile-pad",
        type=int,
        default=TILE_PAD,
        metavar="PX",
        help=f"overlap a side in input pixels (default: {TILE_PAD})",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help=f"tiles computed at a time (default: {BATCH_SIZE})",
    )


def _what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="pictures (PNG, JPEG, WebP, TIFF, AVIF, GIF, BMP or JPEG 2000) and folders of them",
    )
    group.add_argument(
        "-i",
        "--input",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="INPUT",
        help="the same",
    )
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="folder; for one picture also a file name",
    )
    group.add_argument("--recursive", action="store_true", help="also pictures in subfolders")
    group.add_argument(
        "--skip-existing", action="store_true", help="leave out pictures whose output is there"
    )
    group.add_argument(
        "--share",
        action="store_true",
        help="share the pictures among all processes of this command (torchrun does so by itself)",
    )


def _how(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        "--model",
        default=DEFAULT_MODEL,
        help="bundled model, model folder, hf:owner/name, or a .pth or .safetensors file that "
        "spandrel knows (default: %(default)s)",
    )
    group.add_argument(
        "--list-models",
        action=ListModels,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the bundled models",
    )
    group.add_argument(
        "-s",
        "--scale",
        type=float,
        help="output size over input size, any number (default: the model's)",
    )
    group.add_argument(
        "--width",
        type=int,
        metavar="PX",
        help="of the output, instead of a scale; with --height the output fits into both",
    )
    group.add_argument("--height", type=int, metavar="PX", help="likewise")
    group.add_argument(
        "--megapixels", type=float, metavar="N", help="of the output, instead of a scale, e.g. 24"
    )
    add_sampling_flags(group)
    group.add_argument(
        "--color-fix",
        choices=("none", "wavelet", "adain"),
        help="(default: wavelet; for a file of another project none)",
    )


def _files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ext",
        default="auto",
        help="format: auto (as the input), png, jpg, webp, tif, avif",
    )
    group.add_argument(
        "--quality",
        type=int,
        metavar="N",
        help="of JPEG, WebP and AVIF, 1 to 100 (default: 95, 95, 85; a lossless WebP stays lossless)",
    )
    group.add_argument("--suffix", default="", help="added to names before the extension, e.g. _x4")
    group.add_argument(
        "--metadata",
        choices=("keep", "strip"),
        default="keep",
        help="EXIF (also the place, by GPS), XMP, IPTC, texts, resolution (default: keep)",
    )
    group.add_argument(
        "--json-report", type=Path, metavar="FILE", help="settings and one entry a picture as JSON"
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="of a result; a larger one is refused (default: %(default)s)",
    )


def _machine(group: argparse._ArgumentGroup) -> None:
    add_device_flags(group)
    add_tile_flags(group)
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile, on CUDA with CUDA graphs; for many pictures",
    )
    group.add_argument("-q", "--quiet", action="store_true", help="print mistakes only")


def _peer(group: argparse._ArgumentGroup) -> None:
    for names, dest, kind in (
        (("--outscale",), "scale", float),
        (("--model_name", "--model_path"), "model", str),
        (("-f", "--format"), "ext", str),
        (("-g", "--gpu-id"), "device", _gpu),
    ):
        same = f"the same as --{dest}" + " cuda:N; -1 is cpu" * (kind is _gpu)
        group.add_argument(
            *names, dest=dest, type=kind, default=argparse.SUPPRESS, metavar="X", help=same
        )
    group.add_argument(
        "--fp32",
        dest="dtype",
        action="store_const",
        const="fp32",
        default=argparse.SUPPRESS,
        help="the same as --dtype fp32",
    )
    for name in NOT_HERE:
        group.add_argument(
            name,
            dest=name,
            action=NotHere,
            nargs="?",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def _tile(side: str) -> int | None:
    return natural(side) or None


def _gpu(number: str) -> str:
    return "cpu" if number == "-1" else f"cuda:{number}"

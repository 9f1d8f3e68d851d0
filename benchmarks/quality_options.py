"""Options of the commands that measure quality: `steps-quality`, `wear`, `dream-gain`, `peers`,
`paper`, `variants`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.choices import METHODS, VARIANTS, WEARS
from benchmarks.paper_systems import FIGURES, SYSTEMS, TABLES


def _add_trainings(parser: argparse.ArgumentParser, command: str) -> None:
    """Options of a command that trains a recipe several times."""
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="a.b=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--runs", default=f"runs/{command}", metavar="DIR", help="trainings lie here"
    )


def _add_rows(parser: argparse.ArgumentParser, command: str) -> None:
    """Of a command that keeps every row at once."""
    parser.add_argument(
        "--json",
        default=f"runs/{command}/{command}.jsonl",
        metavar="FILE",
        help="rows; one that is there is not measured again (default: %(default)s)",
    )


def add_quality(
    commands: argparse._SubParsersAction,
    kept: argparse.ArgumentParser,
    placed: argparse.ArgumentParser,
) -> None:
    """kept: where rows go; placed: on which device."""
    quality = commands.add_parser(
        "steps-quality", parents=[kept, placed], help="PSNR-Y, SSIM, LPIPS against sampling steps"
    )
    quality.add_argument(
        "-n",
        "--model",
        action="append",
        required=True,
        help="model name or folder; give it several times",
    )
    quality.add_argument(
        "--hr",
        required=True,
        action="append",
        metavar="DIR",
        help="original pictures; several allowed",
    )
    quality.add_argument("--steps", type=int, nargs="+", required=True)
    quality.add_argument(
        "--crop", type=int, default=256, help="centre crop, HR pixels (default: 256)"
    )
    quality.add_argument("--color-fix", choices=("none", "wavelet", "adain"), default="none")
    quality.add_argument("--lpips-weights", metavar="FILE")

    worn = argparse.ArgumentParser(add_help=False)
    worn.add_argument(
        "--hr",
        required=True,
        action="append",
        metavar="DIR",
        help="original pictures; several allowed",
    )
    worn.add_argument("--limit", type=int, default=20, metavar="N", help="pictures (default: 20)")
    worn.add_argument("--crop", type=int, default=256, help="centre crop, HR pixels (default: 256)")
    worn.add_argument("--lpips-weights", metavar="FILE")
    wear = commands.add_parser(
        "wear",
        parents=[kept, worn, placed],
        help="LPIPS and PSNR-Y on clean, JPEG, web and camera pictures",
    )
    wear.add_argument(
        "-n",
        "--model",
        action="append",
        default=[],
        help="model name or folder; give it several times (default: bicubic alone)",
    )
    wear.add_argument("--steps", type=int, nargs="+", metavar="N", help="(default: the model's)")
    wear.add_argument(
        "--color-fix",
        nargs="+",
        choices=("none", "wavelet", "adain"),
        default=["wavelet"],
        help="(default: wavelet, as tools/upscale.py)",
    )
    gain = commands.add_parser(
        "dream-gain",
        parents=[kept, worn],
        help="a recipe trained with DREAM and without for equal time; both on worn pictures",
    )
    gain.add_argument("--vgg-weights", metavar="FILE", help="torchvision's VGG16, for DISTS")
    gain.add_argument("--config", default="configs/tiny/dream-photo-x4-tiny.yaml")
    gain.add_argument("--steps", type=int, default=400, metavar="N", help="DREAM (default: 400)")
    _add_trainings(gain, "dream-gain")

    peers = commands.add_parser(
        "peers",
        parents=[kept],
        help="published networks beside ours: scores, seconds a megapixel, memory, on the CPU",
    )
    peers.set_defaults(device="cpu")
    peers.add_argument(
        "-n",
        "--model",
        action="append",
        default=[],
        help="model name or folder of ours; give it several times",
    )
    peers.add_argument(
        "--steps", type=int, nargs="+", metavar="N", help="of our models (default: the model's)"
    )
    peers.add_argument(
        "--peers",
        nargs="*",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=f"of {', '.join(METHODS)} (default: all)",
    )
    peers.add_argument(
        "--weights",
        default="../shared/data/weights_peers_x4",
        metavar="DIR",
        help="with imdn_x4_author.pth, fast_srgan_x4_gan.pt (default: %(default)s)",
    )
    peers.add_argument(
        "--hr",
        action="append",
        metavar="DIR",
        help="original pictures; several folders are one set (default: Set5, Set14)",
    )
    peers.add_argument("--crop", type=int, help="centre crop of --hr (default: whole)")
    peers.add_argument(
        "--wear",
        nargs="+",
        choices=WEARS,
        default=list(WEARS),
        help="(default: all; Set5 is taken clean only)",
    )
    peers.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="pictures: spread over those of --hr, the first of Set5 and Set14 (default: all)",
    )
    peers.add_argument("--threads", type=int, default=2, metavar="N", help="(default: 2)")
    peers.add_argument(
        "--repetitions",
        type=int,
        default=5,
        metavar="N",
        help="timed, of the largest picture (default: %(default)s)",
    )
    peers.add_argument("--lpips-weights", metavar="FILE")
    peers.add_argument("--vgg-weights", metavar="FILE", help="torchvision's VGG16, for DISTS")
    peers.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="one picture of all results, a row for each picture and wear",
    )

    paper = commands.add_parser(
        "paper",
        help="the tables and figures of DREAM's paper: trains what is missing, scores it, writes a page",
    )
    paper.add_argument(
        "--table",
        type=int,
        nargs="*",
        choices=TABLES,
        default=None,
        help="of the paper (default, without --figure: all)",
    )
    paper.add_argument("--figure", nargs="*", choices=FIGURES, default=None)
    paper.add_argument(
        "--scale",
        choices=SYSTEMS,
        default="cpu",
        help="cpu: minutes a training; paper: as published (default: %(default)s)",
    )
    paper.add_argument(
        "--estimate",
        action="store_true",
        help="train nothing: measure a few steps of each system, and print hours and memory of training",
    )
    paper.add_argument("--systems", nargs="+", metavar="NAME", help="only these (default: all)")
    paper.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a row of another method: a model, as `upscale.py -n` takes it, or a folder of its pictures",
    )
    _add_trainings(paper, "paper")
    paper.add_argument("--lpips-weights", metavar="FILE")
    _add_rows(paper, "paper")
    paper.add_argument(
        "--page", default="runs/paper/paper.html", metavar="FILE", help="(default: %(default)s)"
    )

    variants = commands.add_parser(
        "variants",
        parents=[worn],
        help="variants of DREAM's loss, trained for equal time: scores, and at equal PSNR",
    )
    variants.add_argument("--config", default="configs/tiny/native-latent.yaml")
    variants.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
        help=f"beside the plain loss, of {', '.join(VARIANTS)} (default: all)",
    )
    variants.add_argument(
        "--steps", type=int, default=1500, metavar="N", help="of the plain loss (default: 1500)"
    )
    variants.add_argument(
        "--sampling",
        type=int,
        nargs="+",
        default=[1, 2, 3, 4],
        metavar="N",
        help="steps of sampling (default: 1 2 3 4)",
    )
    _add_trainings(variants, "variants")
    _add_rows(variants, "variants")

    conformance = commands.add_parser(
        "conformance", help="write the cases by which any implementation of DREAM can be checked"
    )
    conformance.add_argument(
        "-o", "--output", default="docs/conformance", metavar="DIR", help="(default: %(default)s)"
    )

    claims = commands.add_parser(
        "claims", help="the paper's claims as checks of the rows of `paper`"
    )
    claims.add_argument("--scale", choices=SYSTEMS, default="cpu", help="(default: %(default)s)")
    claims.add_argument(
        "--rows",
        default="runs/paper/paper.jsonl",
        metavar="FILE",
        help="that `paper` has written (default: %(default)s)",
    )

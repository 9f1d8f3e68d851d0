"""Score results or a model against HR pictures: PSNR, SSIM, LPIPS, NIQE, FID and more.

examples:
  ldm-dream evaluate --hr HR_DIR -n dream-latent-x4-tiny --lr LR_DIR
  ldm-dream evaluate --hr HR_DIR --sr RESULTS_DIR --lr LR_DIR --json scores.json
  ldm-dream evaluate --hr HR_DIR --sr RESULTS_DIR --protocol dream-legacy

Without the Inception weights of FID and KID, distances of other features stand in for them, under
their own names. docs/results.md says what each score is, and what it needs. Beside a model's means
stands how far it is from bicubic, with an interval.

exit status:
  0 all scored, 2 a mistake in the command or in what it reads (one line says which),
  130 or 143 stopped by Ctrl-C or SIGTERM
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ldm_dream.cli import command_line, given, positive, refuse_given, user_errors
from ldm_dream.errors import shown
from ldm_dream.stopping import stoppable
from ldm_dream.upscaling.flags import add_device_flags, add_sampling_flags, add_tile_flags
from ldm_dream.writing import check_outputs

# of how a picture is upscaled, handed on as they are
OPTIONS = ("steps", "sampler", "seed", "tile", "tile_pad", "batch_size", "native_scale")
OF_A_MODEL = (*OPTIONS, "color_fix", "device", "dtype", "patch", "patch_overlap")


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("evaluate", __doc__)
    add = parser.add_argument
    add("--hr", type=Path, required=True, metavar="DIR", help="original pictures")
    add("--match", default="", metavar="TEXT", help="only pictures whose name holds this")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--sr", type=Path, metavar="DIR", help="results, named as the originals (see --suffix)"
    )
    what.add_argument("-n", "--model", help="model to run, as for upscale")
    add(
        "--lr",
        type=Path,
        metavar="DIR",
        help="LR pictures, named as the originals (default: bicubic from --hr; with --sr: none)",
    )
    add(
        "--scale",
        type=int,
        metavar="N",
        help="HR over LR size, and the border that is cut (default: the model's; with --sr: 4)",
    )
    add(
        "--suffix",
        metavar="TEXT",
        help="of the names in --sr, e.g. _x4 (default: none, or the only one that fits all)",
    )
    for flag, text in {
        "--limit": "pictures, the first ones (default: all)",
        "--patch": "enlarge patches of N LR pixels one by one, as papers do (default: the whole)",
        "--patch-overlap": "LR pixels that neighbours share, where the mean is taken (default: 0)",
    }.items():
        add(flag, type=positive, metavar="N", help=text)
    model = parser.add_argument_group("how a model runs, as for upscale")
    add_sampling_flags(model)
    model.add_argument(
        "--color-fix",
        choices=("none", "wavelet", "adain"),
        help="(default: wavelet; dream-legacy, and files of other projects: none)",
    )
    add_tile_flags(model)
    add_device_flags(model)
    parser.set_defaults(**dict.fromkeys(OF_A_MODEL))  # so that it is known what was given
    add(
        "--protocol",
        choices=("standard", "dream-legacy"),
        default="standard",
        help="dream-legacy: as in DREAM's own code",
    )
    add("--lpips-net", choices=("alex", "vgg"), help="(default: alex; dream-legacy: vgg)")
    for flag, text in {
        "--lpips-weights": "state dict of that net (default: torchvision's cache)",
        "--vgg-weights": "torchvision's VGG16, for DISTS (default: torchvision's cache)",
        "--inception": "torch-fidelity's Inception weights (default: torch's cache)",
    }.items():
        add(flag, type=Path, metavar="FILE", help=text)
    add("--json", type=Path, metavar="FILE", help="write protocol, means and every row")
    return parser


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable():
        from ldm_dream.scoring import evaluation, patches, report

        refuse_given(
            args,
            OF_A_MODEL if args.sr else ["suffix"],
            "with --sr, where no model runs" if args.sr else "without --sr",
        )
        weights = args.lpips_weights, args.vgg_weights, args.inception
        check_outputs(
            [args.json] if args.json else [],
            evaluation.files_read((args.hr, args.sr, args.lr), args.model, weights),
        )
        files, notes = evaluation.find_originals(args.hr, args.match, args.limit)
        protocol = replace(
            evaluation.PROTOCOLS[args.protocol], **given(args, ["lpips_net", "color_fix"])
        )
        if args.sr:
            evaluator = evaluation.Evaluator.load(
                protocol, 4 if args.scale is None else args.scale, *weights, notes
            )
            evaluation.evaluate_folder(evaluator, files, args.sr, args.lr, args.suffix)
        else:
            from ldm_dream.dtypes import name_of
            from ldm_dream.upscaling.upscaler import Upscaler

            upscaler = Upscaler.from_pretrained(args.model, **given(args, ["device", "dtype"]))
            scale = upscaler.scale if args.scale is None else args.scale
            evaluator = evaluation.Evaluator.load(protocol, scale, *weights, notes)
            evaluator.notes += [
                f"{args.model} ran in {name_of(upscaler.dtype)} on {upscaler.device}, with the colour fix "
                f"{protocol.color_fix or upscaler.engine.color_fix}.",
                *(f"{name}: {value}." for name, value in given(args, OF_A_MODEL).items()),
            ]
            evaluation.evaluate_model(
                evaluator,
                files,
                args.lr,
                patches.in_patches(
                    lambda lr: upscaler(
                        lr, scale=scale, color_fix=protocol.color_fix, **given(args, OPTIONS)
                    ),
                    args.patch,
                    args.patch_overlap,
                ),
                Path(args.model).name,
            )
        found = evaluator.report()
        print(shown(f"{args.hr} {args.match}"), report.report_text(found), sep="\n")
        if args.json:
            report.write_report(args.json, found)

"""Turn a published checkpoint of SR3, IDM, ResShift, LDM-SR, a VQGAN or TAESD into a model folder.

examples:
  ldm-dream import autoencoder_vq_f4.pth -o models/vq-f4
  ldm-dream import I640000_E37_gen.pth -o models/sr3-face-8x
  ldm-dream import taef2_encoder.pth -o models/taef2
  ldm-dream import resshift_bicsrx4_s4.pth -o models/resshift-x4 --autoencoder models/vq-f4
  ldm-dream import models/ldm/bsr_sr/model.ckpt -o models/ldm-sr-x4

exit status:
  0 written, 2 a mistake in the command or in what it reads (one line says which),
  130 or 143 stopped by Ctrl-C or SIGTERM
"""

import argparse
from os.path import expanduser
from pathlib import Path

from ldm_dream.cli import command_line, user_errors
from ldm_dream.config.run import DiffusionRun
from ldm_dream.errors import shown
from ldm_dream.stopping import stoppable
from ldm_dream.writing import check_folder


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("import", __doc__)
    parser.add_argument(
        "published",
        type=Path,
        metavar="PUBLISHED.pth",
        help="published .pth, .ckpt, .pt or .safetensors; TAESD: either half, the other lies beside it",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="MODEL_DIR",
        help="model folder to write",
    )
    parser.add_argument(
        "--autoencoder",
        metavar="MODEL",
        help="imported VQGAN that belongs to the network: model folder, bundled name or hf:owner/name",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="a.b=value",
        help="what the file does not tell, such as network.norm_groups=16 scale=4",
    )
    return parser


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    with user_errors(), stoppable():
        # here, so that --help answers without torch
        from ldm_dream.interchange.checkpoint_file import read_checkpoint
        from ldm_dream.interchange.published import (
            check_told,
            import_first_stage,
            import_state,
            published_card,
            published_run,
            tell,
        )
        from ldm_dream.interchange.schedule import read_schedule
        from ldm_dream.model_folder import own_autoencoder, save_model

        read = [args.published] + ([Path(expanduser(args.autoencoder))] if args.autoencoder else [])
        check_folder(args.output, holds="model.safetensors", inputs=read)
        path, autoencoder = str(args.published), args.autoencoder
        published = read_checkpoint(args.published)
        config, state = import_state(published, path)
        first_stage = None if autoencoder else import_first_stage(published, path)
        schedule = read_schedule(published, path)
        run = published_run(
            config, args.published.name, autoencoder, first_stage and first_stage[0], schedule
        )
        run, assumed = tell(run, args.published.name, schedule, args.set)
        check_told(run, state, path)
        card = published_card(args.published, run, assumed)
        own = first_stage and first_stage[1]
        if autoencoder and isinstance(run, DiffusionRun):
            known, own = own_autoencoder(run.autoencoder)
            run = run.model_copy(update={"autoencoder": known})
        save_model(args.output, run, state, card, own)
    size = sum(tensor.numel() for tensor in state.values())
    kind = type(config).__name__.removesuffix("Config")
    places = shown(f"{args.published} -> {args.output}")
    print(f"{places}: {kind}, {size:,} parameters, task {run.task}")
    if assumed:
        told = ", ".join(f"{key}={value}" for key, value in assumed.items())
        print(shown(f"assumed, as of the published model (change it by --set): {told}"))
    if run.task == "diffusion":
        print(f"process: {run.process.kind}, {run.process.steps} steps; x{run.scale}")
        if run.autoencoder.kind != "pixel" and not autoencoder and not first_stage:
            config_file = shown(args.output / "config.yaml")
            print(
                f"next: import its autoencoder too and name it in {config_file} (autoencoder.pretrained)"
            )

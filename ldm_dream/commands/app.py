"""Open a web page on this machine that makes pictures larger.

examples:
  ldm-dream app
  ldm-dream app -n dream-latent-x4-tiny -n runs/mine --port 8000

Needs pip install 'ldm_dream[app]'. Ctrl-C ends the page and deletes what its visitors gave and
got.

exit status:
  0 never by itself, 2 a mistake in the command, 130 or 143 ended by Ctrl-C or SIGTERM
"""

import argparse
import sys
import time

from ldm_dream.app.place import HELD, Place, free_port, need_gradio
from ldm_dream.cli import command_line, user_errors
from ldm_dream.stopping import stoppable
from ldm_dream.upscaling.defaults import DEFAULT_MODEL
from ldm_dream.upscaling.flags import add_device_flags


def build_parser() -> argparse.ArgumentParser:
    parser = command_line("app", __doc__)
    parser.add_argument(
        "--host",
        default=Place.host,
        help="address to serve at; 0.0.0.0 is every network (default: %(default)s, this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=Place.port,
        metavar="N",
        help="0: any free one (default: %(default)s)",
    )
    parser.add_argument(
        "-n",
        "--model",
        action="append",
        metavar="NAME",
        help=f"a model, as for upscale; several may be compared (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--max-upload",
        type=int,
        default=Place.upload,
        metavar="MB",
        help="a larger file is refused (default: %(default)s)",
    )
    parser.add_argument(
        "--max-held",
        type=int,
        default=Place.held,
        metavar="MB",
        help="of all files that visitors gave; more is refused "
        f"(default: {HELD}, or --max-upload where that is more)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_device_flags(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    print("starting the page ...", flush=True)
    # here, so that --help answers at once
    from ldm_dream.app.names import shown_names

    names = args.model or [DEFAULT_MODEL]
    place = Place(args.host, args.port, args.max_upload, args.max_held, args.open)
    need_gradio()
    free_port(place)
    shown_names(names)
    # after what can be wrong: torch takes seconds
    from ldm_dream.app.server import load_models, serving

    models = load_models(names, args.device, args.dtype)
    with serving(models, place) as url:
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        if not place.is_private:
            sys.stderr.write(
                "warning: everybody who reaches this machine can use the page, without a password.\n"
            )
        while True:
            time.sleep(3600)


def main(words: list[str] | None = None) -> None:
    args = build_parser().parse_args(words)
    # the server ends its connections first
    with user_errors(), stoppable("what visitors gave and got is deleted", patience=10.0):
        run(args)

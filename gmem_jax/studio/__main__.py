"""python -m gmem_jax.studio: a page to browse and sample from memories."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from gmem_jax.commands import interrupt, startup
from gmem_jax.files import errors
from gmem_jax.studio import stubs

_EXAMPLES = """\
examples:
  python -m gmem_jax.studio --workdir=runs/digits
  python -m gmem_jax.studio --workdir=weights/gmem_xl \\
    --config=configs/xl_in1k.py:guided \\
    --change=sample.bank=weights/bank_in1k --change=sample.device_batch=4
  python -m gmem_jax.studio --workdir=runs/digits --host=0.0.0.0 \\
    --password=SECRET
"""
# Addresses that other machines cannot reach.
_LOCAL = ("127.0.0.1", "localhost", "::1")
# Images in a call: few, so that they appear soon.
_BATCH = 8


def _parser() -> argparse.ArgumentParser:
  parser = errors.Parser(
    prog="python -m gmem_jax.studio",
    description="Serves a page to browse memories, sample from them, compare"
    " and edit. It listens on this machine alone.",
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--workdir",
    required=True,
    help="a run, or converted weights: what gmem_jax.load takes",
  )
  add("--port", type=int, default=8700, help="default: %(default)s")
  add(
    "--host",
    default="127.0.0.1",
    help="address to listen on (default: %(default)s); others need --password",
  )
  add("--password", default="", help="asked of every visitor")
  add("--config", help="recipe of converted weights, which have none")
  add(
    "--bank",
    action="append",
    default=[],
    help="another bank to compare with; may be repeated",
  )
  add(
    "--against",
    action="append",
    default=[],
    metavar="WORKDIR",
    help="another run to compare with; may be repeated",
  )
  add(
    "--change",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="a key of the config; may be repeated",
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Serves until it is interrupted.

  Returns:
    The exit status: 0, or 2 after one line on standard error.
  """
  args = _parser().parse_args(argv)
  return errors.run(lambda: _serve(args))


def _serve(args: argparse.Namespace) -> None:
  if args.host not in _LOCAL and not args.password:
    raise ValueError(
      f"--host={args.host}: other machines could reach the page; give it a"
      " --password"
    )
  from gmem_jax.data import decode_image
  from gmem_jax.studio import uploads

  with uploads.folder() as folder, decode_image.quiet():
    _serve_from(args, folder)


def _serve_from(args: argparse.Namespace, folder: str) -> None:
  # Read when Gradio is imported.
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  try:
    with stubs.unwritten():
      from gmem_jax.studio import app, names, open as open_lib, uploads
  except ModuleNotFoundError as error:
    if error.name != "gradio":
      raise
    raise ModuleNotFoundError(
      "the studio needs Gradio: pip install 'gmem_jax[studio]'"
    ) from None
  young = open_lib.without_checkpoint(args.workdir)
  if young is not None:
    errors.say(
      f"--workdir={args.workdir}: the run has no checkpoint yet; until it has"
      " one and the studio is started again, there is only the tab Watch"
    )
    demo = app.build_watch(young)
  else:
    demo = _open(args, folder)
  uploads.restrict_formats()
  names.keep_typed()
  # Ends as Ctrl-C does, and so deletes what visitors brought.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    url = app.launch(demo, folder, args.host, args.port, args.password)
  except OSError:
    raise ValueError(
      f"--port={args.port}: it is taken, or --host={args.host} is no address of"
      " this machine"
    ) from None
  errors.say(f"{url}  (Ctrl-C ends it)")
  try:
    while True:
      time.sleep(3600)
  finally:
    demo.close(verbose=False)


def _open(args: argparse.Namespace, folder: str) -> Any:
  """Loads what the flags name, and builds its page."""
  from gmem_jax.studio import app, open as open_lib

  studio = open_lib.open_studio(
    args.workdir,
    args.change,
    args.config,
    folder,
    banks=args.bank,
    others=args.against,
    device_batch=_BATCH,
  )
  return app.build(studio)


if __name__ == "__main__":
  startup.skip_libtpu()
  sys.exit(interrupt.run(main))

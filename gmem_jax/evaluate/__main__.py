"""python -m gmem_jax.evaluate: scores of images, and reference statistics."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gmem_jax import progress
from gmem_jax.commands import interrupt, startup
from gmem_jax.evaluate import (
  accumulate,
  features,
  floor as floor_lib,
  networks,
  open as open_lib,
  reference,
  results,
  scores as scores_lib,
  statistics,
)
from gmem_jax.files import atomic, errors, paths
from gmem_jax.models.encoders import inception
from gmem_jax.parallel import sharding

_EXAMPLES = f"""\
examples:
  The numbers of the ADM suite, of a folder of images or of an .npz (arr_0),
  against the suite's reference batch:
    python -m gmem_jax.evaluate score samples/ VIRTUAL_imagenet256_labeled.npz
  Statistics of your own images, cropped as training data; then scores:
    python -m gmem_jax.evaluate stats photos/ photos_256.npz --crop=256
    python -m gmem_jax.evaluate score samples.npz photos_256.npz --scores=fid
  Statistics of prepared data: of the images where it holds them, else of what
  its latents decode to:
    python -m gmem_jax.evaluate stats prepared/ prepared.npz
    python -m gmem_jax.evaluate stats latents/ latents.npz --decode=weights/vae
  With the Fréchet distance in DINOv2's features:
    python -m gmem_jax.evaluate score samples/ photos/ \\
      --scores=fid,frechet_dinov2 --dinov2=weights/dinov2

The Inception network is {networks.INCEPTION_FILE}, converted:
    python -m gmem_jax.convert {networks.INCEPTION_FILE} weights/inception
An interrupted command continues when it is given again. Checkpoints are
evaluated by python -m gmem_jax.main --mode=evaluate.
"""
# Of arguments that are paths: no shell expands the ~ of --workdir=~/scores.
_PATH: Any = {"type": os.path.expanduser}
# Without "frechet", whose classifier is trained on a run's own images.
_OFFERED = [
  score
  for score, feature in scores_lib.FEATURES.items()
  if feature != "classifier"
]


def _parser() -> argparse.ArgumentParser:
  # The examples are a text of several lines, which argparse would refill.
  style: Any = {
    "epilog": _EXAMPLES,
    "formatter_class": argparse.RawDescriptionHelpFormatter,
  }
  parser = errors.Parser(
    prog="python -m gmem_jax.evaluate",
    description="Scores images, or makes the statistics to compare them with.",
    **style,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  score = commands.add_parser(
    "score", help="compare images with a reference", **style
  )
  add = score.add_argument
  add("images", metavar="IMAGES", help="a folder, or an .npz", **_PATH)
  add(
    "reference",
    metavar="REFERENCE",
    nargs="?",
    help="ADM's .npz, statistics made by `stats`, a folder or an .npz of"
    " images, prepared data that holds images; not needed for the Inception"
    " Score alone",
    **_PATH,
  )
  help_text = (
    "images that were never trained on, or their statistics: how many of them"
    " IMAGES recall, and how far IMAGES are beside them"
  )
  add("--heldout", metavar="REFERENCE", help=help_text, **_PATH)
  help_text = "score the first so many images (default: all)"
  add("--count", type=int, help=help_text)
  help_text = (
    "random halves that give each score its standard error, and random splits"
    " of the reference's images that give its floor; 0: neither (default:"
    " %(default)s)"
  )
  add("--repeats", type=int, default=10, help=help_text)
  stats = commands.add_parser(
    "stats", help="make reference statistics", **style
  )
  add = stats.add_argument
  help_text = "a folder, an .npz, or prepared data"
  add("images", metavar="IMAGES", help=help_text, **_PATH)
  add("out", metavar="OUT.npz", help="the file to write", **_PATH)
  add(
    "--crop",
    type=int,
    help="scale and crop a folder's images to squares of so many pixels, as"
    " training data",
  )
  add(
    "--decode",
    metavar="TOKENIZER",
    help="take what the latents of prepared data decode to for its images: the"
    " converted weights that made them",
    **_PATH,
  )
  add(
    "--rows",
    type=int,
    default=scores_lib.REFERENCE_ROWS,
    help="images whose features are kept for precision, recall and kernel"
    " distances (default: %(default)s, as in ADM's files)",
  )
  for command in (score, stats):
    _add_common(command.add_argument)
  return parser


def _add_common(add: Callable[..., Any]) -> None:
  default = "(default: %(default)s)"
  add(
    "--scores",
    default="fid,sfid,inception_score,precision_recall",
    help=f"of {', '.join(_OFFERED)} {default}",
  )
  weights = f"converted weights {default}"
  add("--inception", default="weights/inception", help=weights, **_PATH)
  add("--dinov2", default="weights/dinov2", help=weights, **_PATH)
  add(
    "--preprocessing",
    choices=(*inception.PREPROCESSING, "published"),
    default="adm",
    help="how images are resized for Inception: as the ADM suite (default) or"
    " as pytorch-fid; published: as pytorch-fid, against ADM's statistics",
  )
  per_call = f"images in one call on each device {default}"
  add("--device-batch", type=int, default=64, help=per_call)
  add(
    "--save-every",
    type=float,
    default=60.0,
    metavar="SECONDS",
    help=f"how often to note what is done {default}",
  )
  add(
    "--workdir",
    default="evaluation",
    help="receives the json, TensorBoard's line and what is needed to continue"
    f" {default}",
    **_PATH,
  )


def _extractor(
  args: argparse.Namespace, scores: Sequence[str]
) -> features.Extractor:
  """The networks that the scores need, on all devices."""
  names = scores_lib.networks_of(scores)
  if "classifier" in names:
    raise ValueError(
      "--scores=frechet is of a classifier of a run's own images: python -m"
      " gmem_jax.main --mode=evaluate"
    )
  if args.device_batch < 1:
    raise ValueError(f"--device-batch={args.device_batch}: must be positive")
  options = {
    "inception": ("--inception", args.inception),
    "dinov2": ("--dinov2", args.dinov2),
  }
  loaded = networks.load(names, options, args.preprocessing)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  return features.Extractor(loaded, mesh, args.device_batch)


def _score(args: argparse.Namespace) -> None:
  names = tuple(args.scores.split(","))
  if args.repeats < 0 or args.repeats == 1:
    raise ValueError(f"--repeats={args.repeats}: 0, or at least 2")
  extractor = _extractor(args, names)
  given = paths.local(args.images)
  images = open_lib.open_images(given)
  count = images.count if args.count is None else args.count
  workdir = paths.of(args.workdir)
  evaluator = scores_lib.Evaluator(names, extractor, repeats=args.repeats)
  scores_lib.require_reference(names, args.reference)
  # Before the reference, which may take an hour to measure.
  evaluator.check(images, count)
  partial, board = workdir / "partial", workdir / "tensorboard"
  with accumulate.PartialStore(partial, args.save_every) as store:
    if args.reference:
      evaluator = reference.against(
        evaluator,
        paths.local(args.reference),
        images.shape,
        store,
        published=args.preprocessing == "published",
      )
    if args.heldout:
      evaluator = reference.with_heldout(
        evaluator, paths.local(args.heldout), images.shape, store
      )
    scores = evaluator(images, count, store)
    real = None
    if args.reference:
      path = paths.local(args.reference)
      real = reference.images_of(path, images.shape[-1])
    floor = floor_lib.of_reference(evaluator, real, count, store)
    details = scores, evaluator, count, images.info
    path = results.write(
      workdir, results.name_of(given), *details, board=board, floor=floor
    )
    # Only now: killed before this line, the command continues.
    store.forget()
  print(results.table(scores, count, floor))
  print(results.written(path, board))


def _stats(args: argparse.Namespace) -> None:
  names = tuple(args.scores.split(","))
  out = atomic.new_path(args.out)
  if out.suffix != ".npz":
    raise ValueError(f"OUT={args.out!r} must end in .npz")
  extractor = _extractor(args, names)
  path = paths.local(args.images)
  images = open_lib.open_images(path, crop=args.crop, decode=args.decode)
  gaussians, rows = scores_lib.compared(names)
  if not gaussians and not rows:
    raise ValueError(f"--scores={args.scores}: they compare with no reference")
  partial = paths.of(args.workdir) / "partial"
  with accumulate.PartialStore(partial, args.save_every) as store:
    measured = reference.measure_statistics(
      images, extractor, gaussians, rows, store, args.images, count=args.rows
    )
    statistics.save(out, measured)
    store.forget()
  print(f"Wrote {out}: statistics of {measured.count} images")
  print(f"Next: python -m gmem_jax.evaluate score IMAGES {out}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  args = _parser().parse_args(argv)
  logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
  # Off a terminal, progress is a line of the log.
  logging.getLogger(progress.__name__).setLevel(logging.INFO)
  command = {"score": _score, "stats": _stats}[args.command]
  return errors.run(lambda: command(args))


if __name__ == "__main__":
  startup.skip_libtpu()
  sys.exit(interrupt.run(main))

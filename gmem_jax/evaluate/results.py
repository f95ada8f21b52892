"""Scores to a json, beside all that they depend on, and to TensorBoard."""

import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

import gmem_jax
from gmem_jax.evaluate import (
  floor as floor_lib,
  scores as scores_lib,
  statistics,
)
from gmem_jax.files import atomic, paths
from gmem_jax.parallel import processes
from gmem_jax.train import tensorboard


def name_of(path: pathlib.Path) -> str:
  """What the files of a result call the images at a path."""
  # Normalised, as the last part of "samples/.." says nothing.
  return os.path.basename(os.path.abspath(path)).removesuffix(".npz")


def write(
  directory: paths.Path,
  name: str,
  scores: Mapping[str, float],
  evaluator: scores_lib.Evaluator,
  count: int,
  images: Mapping[str, Any],
  *,
  board: paths.Path,
  step: int | None = None,
  floor: floor_lib.Floor | None = None,
) -> paths.Path:
  """Writes scores to DIRECTORY/NAME_COUNT_DIGEST.json, on the first host alone.

  The digest is of all that the scores depend on: other images or references
  get another file, the same again replace their own.

  Args:
    directory: Where the json goes.
    name: What the images are called.
    scores: Name -> score.
    evaluator: Gave the scores.
    count: Number of images.
    images: Identifies the images; JSON.
    board: TensorBoard's directory, which shows the scores at a step.
    step: The training step that the images are of. None if they are of none:
      they are then a run of their own in TensorBoard.
    floor: What real images score in their place, if that is known.

  Returns:
    The path of the json.
  """
  about = _subject(evaluator, count, images)
  text = json.dumps([sorted(scores), about], sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  path = directory / f"{name}_{count}_{digest}.json"
  if not processes.is_main():
    return path
  directory.mkdir(parents=True, exist_ok=True)
  # JSON has no NaN.
  numbers = {k: v if math.isfinite(v) else None for k, v in scores.items()}
  real = {} if floor is None else {"floor": floor._asdict()}
  atomic.write_json(path, {"scores": numbers, **real, **about, **_software()})
  # FID depends on the number of images: 10k and 50k are no one curve.
  size = short(count)
  with tensorboard.TensorBoard(
    board / path.stem if step is None else board
  ) as writer:
    for score, value in scores.items():
      writer.add_scalar(f"eval/{score}_{size}", value, step or 0)
    for score, value in floor.scores.items() if floor else ():
      writer.add_scalar(f"eval/{score}_floor_{size}", value, step or 0)
  return path


def _subject(
  evaluator: scores_lib.Evaluator, count: int, images: Mapping[str, Any]
) -> dict[str, Any]:
  """What was compared with what; tells whether two numbers are comparable."""
  heldout = evaluator.heldout
  return {
    "images": {"count": count, **images},
    "reference": _about(evaluator.reference),
    **({} if heldout is None else {"heldout": _about(heldout)}),
    "networks": evaluator.extractor.info(),
  }


def _about(reference: statistics.Statistics) -> dict[str, Any]:
  """What identifies images that others are compared with."""
  return {
    **reference.info,
    "count": reference.count,
    "rows": {name: len(rows) for name, rows in reference.rows.items()},
  }


def _software() -> dict[str, Any]:
  """What moves scores by rounding alone."""
  return {
    "versions": {
      "gmem_jax": gmem_jax.__version__,
      "jax": jax.__version__,
      "flax": importlib.metadata.version("flax"),
    },
    **processes.hardware(),
  }


def written(path: paths.Path, board: paths.Path) -> str:
  """The last lines of an evaluation: its files, and how they are compared."""
  return (
    f"Wrote {path}, and to {board}\n"
    f"Next: tensorboard --logdir={board.parent} shows it beside others."
  )


def short(count: int) -> str:
  """A number of images as in a score's name: 50k."""
  return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def table(
  scores: Mapping[str, float],
  count: int,
  floor: floor_lib.Floor | None = None,
) -> str:
  """Scores of `count` images as text, a line each, with what is known of them.

  Beside a score stand its standard error and its floor.
  """
  head = f"{'':26}{short(count) + ' images':>12}"
  if floor is not None:
    head += f"{'':12}{floor.count:,} real ones from {floor.others:,} others"
  lines = [head]
  for name, value in scores.items():
    if name.removesuffix("_error") in scores.keys() - {name}:
      continue
    line = f"{name:26}{value:12.4f}"
    error = scores.get(f"{name}_error")
    line += "" if error is None and floor is None else f" {_spread(error):11}"
    if floor is not None and name in floor.scores:
      spread = _spread(floor.deviations[name])
      line += f"{floor.scores[name]:12.4f} {spread}"
    lines.append(line.rstrip())
  return "\n".join(lines)


def _spread(value: float | None) -> str:
  return "" if value is None else f"± {value:.4f}"

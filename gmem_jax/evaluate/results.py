"""Scores to a json, beside all that they depend on, and to TensorBoard."""

import importlib.metadata
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

import gmem_jax
from gmem_jax.evaluate import scores as scores_lib
from gmem_jax.files import atomic
from gmem_jax.parallel import processes
from gmem_jax.train import metrics


def write(
  path: pathlib.Path,
  scores: Mapping[str, float],
  evaluator: scores_lib.Evaluator,
  count: int,
  images: Mapping[str, Any],
  *,
  board: pathlib.Path,
  step: int = 0,
) -> None:
  """Writes scores to a json, on the first host alone.

  `images` identifies the images; `board` is the directory of TensorBoard's
  files, which show the scores at a step.
  """
  if not processes.is_main():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  # JSON has no NaN.
  numbers = {k: v if math.isfinite(v) else None for k, v in scores.items()}
  details = _details(evaluator, count, images)
  atomic.write_json(path, {"scores": numbers, **details})
  # FID depends on the number of images: 10k and 50k are no one curve.
  size = short(count)
  with metrics.open_tensorboard(board) as writer:
    for name, value in scores.items():
      writer.add_scalar(f"eval/{name}_{size}", value, step)


def _details(
  evaluator: scores_lib.Evaluator, count: int, images: Mapping[str, Any]
) -> dict[str, Any]:
  """What tells whether two numbers may be compared."""
  reference = evaluator.reference
  return {
    "images": {"count": count, **images},
    "reference": {
      **reference.info,
      "count": reference.count,
      "rows": {name: len(rows) for name, rows in reference.rows.items()},
    },
    "networks": evaluator.extractor.info(),
    "versions": {
      "gmem_jax": gmem_jax.__version__,
      "jax": jax.__version__,
      "flax": importlib.metadata.version("flax"),
    },
    "device": jax.devices()[0].device_kind,
  }


def short(count: int) -> str:
  """A number of images as in a score's name: 50k."""
  return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def table(scores: Mapping[str, float], count: int) -> str:
  """Scores of `count` images as text, a line each."""
  lines = [f"{name:20}{value:12.4f}" for name, value in scores.items()]
  return "\n".join([f"{'':20}{short(count) + ' images':>12}", *lines])

"""When a run first reached a score: EP_FID@k, of any score.

The epochs until FID falls to k say how fast training is, where the last FID
says how far it came. An evaluation decides, so they are multiples of
`eval.every`, at `eval.count` samples: two runs are compared at equal ones.

Source: EP_FID@k of RAEv2.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gmem_jax.config import sections, thresholds
from gmem_jax.files import paths
from gmem_jax.parallel import processes
from gmem_jax.train import loop, metrics


class Reached(NamedTuple):
  """When a threshold was first reached."""

  steps: int
  images: int
  epochs: float


def all_of(config: sections.Config) -> list[thresholds.Threshold]:
  """The thresholds of a config."""
  return [thresholds.parse(text) for text in config.eval.thresholds]


def first(
  records: Sequence[Mapping[str, Any]],
  threshold: thresholds.Threshold,
  batch: int,
  size: int,
) -> Reached | None:
  """The first evaluation that is as good.

  Args:
    records: Of metrics.jsonl, in order.
    threshold: What is to be reached.
    batch: Images of a step.
    size: Images of an epoch.

  Returns:
    When, or None if it was not reached.
  """
  for record in records:
    score = record.get(f"eval/{threshold.name}")
    if isinstance(score, int | float) and threshold.is_reached(score):
      images = record["step"] * batch
      return Reached(record["step"], images, images / size)
  return None


def telling(
  evaluate: loop.EvaluateFn,
  config: sections.Config,
  workdir: paths.Path,
  size: int,
) -> loop.EvaluateFn:
  """An evaluation that also tells which thresholds it is the first to reach.

  Args:
    evaluate: The evaluation.
    config: Names the thresholds.
    workdir: Has what earlier evaluations wrote.
    size: Images of an epoch.
  """

  def evaluate_and_tell(step: int, params: Any):
    values, pictures = evaluate(step, params)
    if config.eval.thresholds and processes.is_main():
      before = metrics.read_jsonl(workdir / "metrics.jsonl")
      values = values | news(config, size, before, step, values)
    return values, pictures

  return evaluate_and_tell


def news(
  config: sections.Config,
  size: int,
  records: Sequence[Mapping[str, Any]],
  step: int,
  values: Mapping[str, float],
) -> dict[str, float]:
  """Numbers of what an evaluation is the first to reach, for the boards.

  Args:
    config: Names the thresholds.
    size: Images of an epoch.
    records: Those before.
    step: The evaluation's.
    values: Its scores by name.
  """
  found = {}
  record = {"step": step, **{f"eval/{k}": v for k, v in values.items()}}
  for threshold in all_of(config):
    batch = config.train.batch_size
    if first(records, threshold, batch, size) is not None:
      continue
    reached = first([record], threshold, batch, size)
    if reached is not None:
      tag = f"until_{threshold.name}_{threshold.value:g}"
      found |= {f"{tag}/{k}": float(v) for k, v in reached._asdict().items()}
  return found


def table(
  config: sections.Config,
  size: int,
  runs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
  """A text of when each run reached each threshold; "" if there is none.

  Args:
    config: Names the thresholds.
    size: Images of an epoch.
    runs: Name -> its records.
  """
  lines = []
  for threshold in all_of(config):
    for name, records in runs.items():
      reached = first(records, threshold, config.train.batch_size, size)
      when = "not reached"
      if reached is not None:
        when = (
          f"{reached.epochs:8.2f} epochs {reached.steps:10,} steps"
          f" {reached.images:13,} images"
        )
      lines.append(f"  {f'{threshold}, {name}':38}{when}\n")
  if not lines:
    return ""
  head = f"First evaluation ({config.eval.count} samples) that reached a score:"
  return f"{head}\n{''.join(lines)}"

"""Thresholds of scores, as the config writes them."""

import math
import re
from typing import NamedTuple

_TEXT = re.compile(r"(\w+)\s*(<=|>=)\s*(\S+)")


class Threshold(NamedTuple):
  """What a score is to reach.

  Attributes:
    name: As the evaluation calls the score: "fid", "recall".
    falling: Whether less is better.
    value: What it is compared with.
  """

  name: str
  falling: bool
  value: float

  def __str__(self) -> str:
    return f"{self.name}{'<=' if self.falling else '>='}{self.value:g}"

  def is_reached(self, score: float) -> bool:
    """Whether a score is as good."""
    return score <= self.value if self.falling else score >= self.value


def parse(text: str) -> Threshold:
  """Reads a threshold.

  Raises:
    ValueError: If it is none.
  """
  found = _TEXT.fullmatch(text.strip())
  try:
    value = float(found[3]) if found else math.nan
  except ValueError:
    value = math.nan
  if found is None or not math.isfinite(value):
    raise ValueError(
      f"config.eval.thresholds: {text!r} is none; write 'fid<=5' or"
      " 'recall>=0.6'"
    )
  return Threshold(found[1], found[2] == "<=", value)

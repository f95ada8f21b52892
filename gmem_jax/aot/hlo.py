"""Collectives in the text of a compiled program, with their bytes."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# What a kind's name ends with where it crosses from one slice to another.
BETWEEN = " between slices"
_BITS = {
  "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16,
  "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64,
  "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(
  r"(?:calls|body|to_apply|true_computation|false_computation"
  r"|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)"
)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"= s(?:32|64)\[\]\S* constant\((\d+)\)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
# The compiler may cut a collective into pieces, to overlap it with other work.
# Pieces share these numbers; one is counted for all.
_CHAIN = re.compile(r'channel_id=(\d+),.*chain_id="(\d+)"')
# Between slices a TPU program hands its part over to the host's network.
_CROSSING = re.compile(
  r'_xla_megascale_target="\{([\d,]+)\}.*_xla_megascale_transfer_type="(\w+)"'
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of a kind in one run of the program, on one device.

  Attributes:
    count: How many run.
    size: Bytes of the largest one.
    payload: Bytes of their whole (unsplit) arrays, summed.
    sent: Bytes that a device sends for them if in rings: (g - 1) / g of the
      payload in a group of g, twice that for an all-reduce.
    waiting: How many of them the device waits for and does nothing else.
    sent_waiting: What is sent of `sent` meanwhile.
  """

  kind: str
  count: int
  size: float
  payload: float
  sent: float
  waiting: int = 0
  sent_waiting: float = 0.0


def collectives(text: str, devices: int) -> list[Collective]:
  """Sums up the collectives of `compiled.as_text()` by kind.

  Loops count as often as they run. What goes from slice to slice is a kind of
  its own, whose name ends with `BETWEEN`.

  Args:
    text: The program of one slice.
    devices: Devices of that slice.
  """
  parts, entry = computations(text)
  runs: dict[str, list[_Run]] = {}
  for kind, times, line, result in _walk(parts, entry, 1):
    group = _group_size(line, devices)
    payload = _payload(kind, result, line, group)
    share = 1.0 if kind.startswith("collective-p") else (group - 1) / group
    sent = payload * share * (2 if kind.startswith("all-reduce") else 1)
    runs.setdefault(kind, []).append(
      _Run(times, payload, sent, _waits(kind, line))
    )
  return [
    Collective(
      kind,
      count=sum(run.times for run in runs[kind]),
      size=max(run.payload for run in runs[kind]),
      payload=sum(run.times * run.payload for run in runs[kind]),
      sent=sum(run.times * run.sent for run in runs[kind]),
      waiting=sum(run.times for run in runs[kind] if run.waits),
      sent_waiting=sum(
        (run.times * run.sent for run in runs[kind] if run.waits), 0.0
      ),
    )
    for kind in (*KINDS, *(kind + BETWEEN for kind in KINDS))
    if kind in runs
  ]


class _Run(NamedTuple):
  """One collective of the text, with the bytes of one time that it runs."""

  times: int
  payload: float
  sent: float
  waits: bool


def _waits(kind: str, line: str) -> bool:
  """Whether nothing else runs during a collective."""
  # Three ways to overlap: a start with a done, pieces between other work, and
  # the host's network.
  apart = "-start(" in line or _CHAIN.search(line) or kind.endswith(BETWEEN)
  return not apart


def computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Computation -> its lines, and the name of the first to run."""
  found, entry, lines = {}, "", []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      lines = found.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
    else:
      lines.append(line)
  if not entry:
    raise ValueError("the program's text has no ENTRY computation")
  return found, entry


def called(line: str) -> list[str]:
  """The computations that an instruction runs; a loop's condition is none."""
  return [
    target
    for names in _CALLED.findall(line)
    for target in names.replace("%", "").split(", ")
  ]


def _walk(
  parts: dict[str, list[str]], name: str, times: int
) -> Iterator[tuple[str, int, str, str]]:
  """(kind, times, line, result type) of the collectives under a computation."""
  seen = set()
  for line in parts.get(name, []):
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    result, opcode = match.groups()
    kind = opcode.removesuffix("-start")
    if kind in KINDS:
      # How XLA writes a reduce-scatter for TPUs.
      if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
      yield kind, times, line, result
      continue
    if opcode == "send" and (crossing := _CROSSING.search(line)):
      yield crossing[2].lower().replace("_", "-") + BETWEEN, times, line, result
      continue
    inner = times * (trips(parts, line) if opcode == "while" else 1)
    for target in called(line):
      for item in _walk(parts, target, inner):
        piece = _CHAIN.search(item[2])
        if piece and piece.groups() in seen:
          continue
        if piece:
          seen.add(piece.groups())
        yield item


def trips(parts: dict[str, list[str]], line: str) -> int:
  """How often a loop runs; 1 if the text does not tell."""
  if known := _TRIPS.search(line):
    return int(known[1])
  # Not every backend writes the count. A scan's condition compares its counter,
  # which begins at 0, with a single constant.
  condition = _CONDITION.search(line)
  lines = parts.get(condition[1], []) if condition else []
  if not any("direction=LT" in x for x in lines):
    return 1
  constants = [int(m[1]) for m in map(_CONSTANT.search, lines) if m]
  return constants[0] if len(constants) == 1 else 1


def _group_size(line: str, devices: int) -> int:
  """Devices in one group of a collective; three notations are in use.

  Between slices a group has one device of each.
  """
  if match := _CROSSING.search(line):
    return match[1].count(",") + 1
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
    return int(match[2])
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return match[1].count(",") + 1
  if match := re.search(r"replica_groups=mesh\[(.*?)\].*? \{([^}]*)\}", line):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
    return math.prod(int(sizes[a]) for a in re.findall(r"'([^']+)'", match[2]))
  return devices


def _payload(kind: str, result: str, line: str, group: int) -> float:
  """Bytes of the whole array that a collective works on."""
  sizes = [size(*array) for array in _ARRAY.findall(result)]
  if kind.endswith(BETWEEN):
    return sizes[0]  # The other is the transfer's number.
  if "-start(" in line and kind in ("all-gather", "collective-permute"):
    # (operands, results, …): the results of a gather are the larger half.
    return (
      max(sizes)
      if len(sizes) < 4 or kind != "all-gather"
      else (sum(sorted(sizes)[len(sizes) // 2 :]))
    )
  if kind == "reduce-scatter" and "reduce-scatter(" in line:
    return sum(sizes) * group
  return float(sum(sizes))


def size(dtype: str, shape: str) -> float:
  """Bytes of an array; a token has none."""
  bits = 8 if dtype.startswith("f8") else _BITS.get(dtype, 0)
  return bits / 8 * math.prod(int(n) for n in shape.split(",") if n)

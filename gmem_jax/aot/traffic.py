"""Bytes between a chip's memory and its cores, from a compiled program's text.

Each instruction reads its operands and writes its result, except that

- a fusion is one instruction, which reads of an operand that it only slices
  what it slices;
- a slice reads what it returns, an update in place writes what it is given;
- arrays that TPU programs keep on the chip (a memory space in their layout) and
  the scratch space of cuBLAS cost nothing.

What a cache saves is not known, nor the padding of TPU layouts.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

from gmem_jax.aot import hlo

_INSTRUCTION = re.compile(
  r"^\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(([^)]*)\)(.*)"
)
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"S\([1-9]")
_COMMENT = re.compile(r"/\*.*?\*/")
_WORKSPACE = re.compile(r", s8\[\d+\]\{0\}\)$")

# Instructions that move nothing: they name, or give another view of, an array.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
  "after-all", "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip
_VIEWS = {"bitcast", "reshape", "get-tuple-element"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_CALLS = {"call", "conditional", "async-start"}


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """One line of a computation.

  Attributes:
    type: Of its result.
    given: What stands between its parentheses.
    operands: Names of instructions, in order.
    rest: What follows its operands.
    line: The whole line.
  """

  name: str
  type: str
  opcode: str
  given: str
  operands: tuple[str, ...]
  rest: str
  line: str
  root: bool


def moved(text: str) -> float:
  """Bytes that one run of `compiled.as_text()` reads and writes, on one chip.

  Loops count as often as they run.
  """
  computations, entry = hlo.computations(text)
  return sum(_costs(computations, entry), 0.0)


def _costs(computations: dict[str, list[str]], name: str) -> Iterator[float]:
  """The bytes of each instruction of a computation."""
  instructions = _parse(computations[name])
  for i in instructions.values():
    if i.opcode in _FREE or i.opcode.endswith("-done"):
      continue
    called = hlo.called(i.line)
    if i.opcode == "while":
      trips = hlo.trips(computations, i.line)
      yield trips * sum(_costs(computations, called[0]), 0.0)
    elif i.opcode in _CALLS:
      for target in called:
        yield from _costs(computations, target)
    elif i.opcode == "fusion":
      reads, written = _fusion(computations, called[0])
      yield sum(reads.values(), written)
    elif i.opcode in _SLICES:
      yield 2 * _size(i.type)
    elif i.opcode == "dynamic-update-slice":
      yield 2 * _size(instructions[i.operands[1]].type)
    else:
      result = _WORKSPACE.sub(")", i.type) if "__cublas" in i.rest else i.type
      operands = (instructions[name] for name in i.operands)
      yield _size(result) + sum(_size(x.type) for x in operands)


def _parse(lines: list[str]) -> dict[str, _Instruction]:
  """Name -> instruction of a computation, in their order."""
  found = {}
  for line in lines:
    line = _COMMENT.sub("", line)
    if match := _INSTRUCTION.match(line):
      root, name, type_, opcode, given, rest = match.groups()
      operands = tuple(_NAME.findall(given))
      found[name] = _Instruction(
        name, type_, opcode, given, operands, rest, line, bool(root)
      )
  return found


def _fusion(
  computations: dict[str, list[str]], name: str
) -> tuple[dict[int, float], float]:
  """Bytes that a fusion reads of each operand, and bytes that it writes."""
  instructions = _parse(computations[name])
  users = collections.defaultdict(list)
  for i in instructions.values():
    for position, operand in enumerate(i.operands):
      users[operand].append((i, position))
  (root,) = (i for i in instructions.values() if i.root)
  written, updated = _written(instructions, root)

  def read(i: _Instruction) -> float:
    total = 0.0
    for user, position in users[i.name]:
      if user.opcode in _SLICES and position == 0:
        total += _size(user.type)
      elif user.opcode in _VIEWS:
        total += read(user)
      elif user.opcode == "fusion":
        nested = hlo.called(user.line)[0]
        total += _fusion(computations, nested)[0][position]
      else:
        return _size(i.type)
    return min(total, _size(i.type))

  reads = {
    int(i.given): 0.0 if i.name in updated else read(i)
    for i in instructions.values()
    if i.opcode == "parameter"
  }
  return reads, written


def _written(
  instructions: dict[str, _Instruction], i: _Instruction
) -> tuple[float, set[str]]:
  """Bytes written for a fusion's result, and parameters updated in place."""
  if i.opcode == "tuple":
    parts = [_written(instructions, instructions[x]) for x in i.operands]
    names = (updated for _, updated in parts)
    return sum((n for n, _ in parts), 0.0), set().union(*names)
  if i.opcode == "bitcast":
    return _written(instructions, instructions[i.operands[0]])
  if i.opcode != "dynamic-update-slice":
    return _size(i.type), set()
  target = instructions[i.operands[0]]
  while target.opcode == "bitcast":
    target = instructions[target.operands[0]]
  return _size(instructions[i.operands[1]].type), {target.name}


def _size(type_: str) -> float:
  """Bytes of a type's arrays that lie in the chip's memory."""
  sizes = (
    hlo.size(dtype, shape)
    for dtype, shape, layout in _ARRAY.findall(type_)
    if not _ON_CHIP.search(layout)
  )
  return sum(sizes, 0.0)

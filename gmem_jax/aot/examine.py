"""Compiles a program for a machine and reports what it needs there."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from gmem_jax import progress
from gmem_jax.aot import chips, flops, hlo, topology, traffic

_SIZE = r"\(?([\d.]+)([KMGT]?)\)?"
_TOO_BIG = (
  re.compile(rf"{_SIZE} exceeds available HBM {_SIZE}"),
  re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooBigError(ValueError):
  """A program does not fit its machine."""


@dataclasses.dataclass(frozen=True)
class Program:
  """A function to compile, with the shapes that it takes.

  Attributes:
    name: For the report.
    jitted: The jitted function.
    arguments: Trees of shapes with shardings.
    parts: The arguments by kind.
  """

  name: str
  jitted: Any
  arguments: tuple[Any, ...]
  parts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a program needs; None where only a compiler knows and none is there.

  Attributes:
    name: For the report.
    parts: Bytes of its arguments on a chip, by kind.
    flops: Over all chips.
    seconds: Time to compile.
    peak: Most bytes of memory in use on a chip.
    moved: Bytes that a chip's memory reads and writes; see `traffic`.
    collectives: Those of one chip.
  """

  name: str
  parts: dict[str, int]
  flops: float
  seconds: float
  peak: int | None
  moved: float | None
  collectives: list[hlo.Collective] | None
  roofline: chips.Roofline | None


def bytes_per_device(tree: Any) -> int:
  """Bytes that a tree of shapes with shardings takes on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def replicated(tree: Any, least: int) -> list[str]:
  """Paths of arrays of at least `least` bytes that every device has whole."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, x in leaves
    if x.sharding.is_fully_replicated and x.size * x.dtype.itemsize >= least
  ]


def examine(program: Program, machine: topology.Topology) -> Needs:
  """Compiles a program for a machine.

  Raises:
    TooBigError: If a chip has too little memory.
  """
  began = time.monotonic()
  parts = {n: bytes_per_device(part) for n, part in program.parts.items()}
  held = sum(parts.values())
  with progress.phases(program.name) as begin:
    begin("tracing")
    traced = program.jitted.trace(*program.arguments)
    total = flops.count(traced.jaxpr, machine.count)
    begin("lowering")
    lowered = traced.lower(lowering_platforms=(machine.platform,))
    compiled = None
    if machine.compiler:
      # By far the longest, and the compiler tells nothing before its end.
      begin(f"compiling for {machine.name}")
      try:
        compiled = lowered.compile(compiler_options=machine.options)
      except jax.errors.JaxRuntimeError as error:
        raise explained(program.name, str(error), held) from None
  seconds = time.monotonic() - began
  if compiled is None:
    _check_memory(program.name, held, machine)
    return Needs(program.name, parts, total, seconds, *(None,) * 4)
  memory = compiled.memory_analysis()
  # The compiler gives two accounts; the larger is the safe one.
  peak = max(
    memory.peak_memory_in_bytes,
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
  )
  _check_memory(program.name, peak, machine)
  text = compiled.as_text()
  moved = traffic.moved(text)
  collectives = hlo.collectives(text, machine.count // machine.slices)
  sent = sum((c.sent for c in collectives), 0.0)
  waiting = sum((c.sent_waiting for c in collectives), 0.0)
  crossing = (c.sent for c in collectives if c.kind.endswith(hlo.BETWEEN))
  between = sum(crossing, 0.0)
  return Needs(
    program.name,
    parts,
    total,
    seconds,
    peak,
    moved,
    collectives,
    chips.roofline(
      machine.chip,
      flops=total / machine.count,
      memory=moved,
      sent=sent - waiting - between,
      waiting=waiting,
      between=between,
    ),
  )


def explained(name: str, message: str, held: int) -> Exception:
  """Turns a compiler's message into one line: a `TooBigError` if about memory.

  `held` is the bytes of the program's arguments on a chip.
  """
  if "RESOURCE_EXHAUSTED" not in message:
    return ValueError(f"{name} does not compile: {message.splitlines()[0]}")
  for pattern in _TOO_BIG:
    if match := pattern.search(message):
      need, unit, has, its_unit = match.groups()
      return TooBigError(
        f"{name} does not fit: it needs"
        f" {readable(float(need) * _UNITS[unit])} of a chip that has"
        f" {readable(float(has) * _UNITS[its_unit])}; its arguments alone are"
        f" {readable(held)}"
      )
  return TooBigError(f"{name} does not fit: {message.splitlines()[0]}")


def _check_memory(name: str, need: int, machine: topology.Topology) -> None:
  """Refuses what does not fit, for compilers that do not check it."""
  if need > machine.chip.memory:
    raise TooBigError(
      f"{name} does not fit: it needs {readable(need)} of the"
      f" {readable(machine.chip.memory)} of a chip"
    )


def readable(size: float | int) -> str:
  """Bytes in a suitable unit, e.g. "1.27 GiB"."""
  unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
  return f"{size / unit:.2f} {name}"


def describe(needs: Needs, machine: topology.Topology) -> str:
  """Formats what a program needs on a machine, a line for each number."""
  chip = machine.chip
  lines = [needs.name]

  def line(name: str, text: str) -> None:
    lines.append(f"  {name:27}{text}")

  for name, size in needs.parts.items():
    line(name, f"{readable(size):>10} a chip")
  if needs.peak is None:
    line("peak memory", "unknown: jax-cuda12-plugin and -pjrt are missing")
  else:
    line(
      "peak memory",
      f"{readable(needs.peak):>10} a chip, which has {readable(chip.memory)}",
    )
  per_chip = needs.flops / machine.count
  line("matmuls", f"{per_chip / 1e12:10.3f} TFLOP a chip")
  if needs.moved is not None:
    line("memory traffic", f"{readable(needs.moved):>10} a chip")
  for c in needs.collectives or []:
    waiting = f"; a chip waits for {c.waiting} of them" if c.waiting else ""
    line(
      c.kind,
      f"{readable(c.sent):>10} sent by a chip, in {c.count}, the largest of"
      f" {readable(c.size)}{waiting}",
    )
  if needs.roofline:
    r = needs.roofline
    slices = f", between slices {r.between * 1e3:.1f}" if r.between else ""
    waits = f" and {r.waiting * 1e3:.1f} alone" if r.waiting else ""
    line(
      "time, ESTIMATE",
      f"{r.seconds * 1e3:10.1f} ms at least ({r.limit}): compute"
      f" {r.compute * 1e3:.1f}, memory {r.memory * 1e3:.1f}, network"
      f" {r.network * 1e3:.1f}{waits}{slices}",
    )
  verb = "compiled in" if machine.compiler else "lowered, not compiled, in"
  line(verb, f"{needs.seconds:10.1f} s")
  return "\n".join(lines)

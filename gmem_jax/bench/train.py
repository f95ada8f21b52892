"""The training step: its speed, beside torch's, its limits and its stages.

Times the product's own step (loss, gradient, clip, AdamW and moving average in
one compiled call) on random data on one device, in turns with the same network
in PyTorch on the same parameters, cores and dtype, where torch is installed;
both draw noise, times and dropout themselves. Before that the losses and the
gradients' norms of given draws are compared. Times are medians. The columns:

  ms         of a step
  images/s   trained on
  x torch    how many times faster than the fastest of torch's
  peak       model FLOPs a second over those of a large matrix product
  products   the time of the step's own matrix products alone, over the step's;
             like "peak" in config.model.dtype, also with config.model.float8
  memory     most bytes on the device; ours by the compiler's analysis

and below, our stages, each compiled alone, and their share of the step.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
import tqdm

from gmem_jax.bench import _products, _recipe, _results, _timing, _training
from gmem_jax.files import errors

OURS = "gmem_jax"
PEERS = ("torch", "none")
GOAL = 1.0
# Largest relative difference of losses and of gradients' norms.
CLOSE = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class Measured:
  """What was found.

  Attributes:
    seconds: Of a dispatch, by who takes it, and of our stages.
    products: Seconds of a dispatch's matrix products alone.
    peak: FLOPs a second of a large matrix product.
    memory: Most bytes on the device, by whose; None if unknown.
    apart: Relative differences of torch from us: the loss, the norm.
  """

  seconds: dict[str, float]
  products: float
  peak: float
  memory: dict[str, int | None]
  apart: dict[str, float]


def make_peers(work: _training.Work, wanted: Sequence[str]) -> list[Any]:
  """The torch steps that can run here; says why others cannot."""
  if "torch" not in wanted:
    return []
  if work.config.model.float8:
    print(
      "the network in torch has no 8-bit products: no peer", file=sys.stderr
    )
    return []
  if importlib.util.find_spec("torch") is None:
    print("torch is not installed: no peer", file=sys.stderr)
    return []
  torch_step = importlib.import_module("gmem_jax.bench._torch_step")
  params = jax.device_get(work.state.params)
  found = []
  for compiled in (True, False):
    peer = torch_step.TorchStep(
      work.config, work.network, params, compiled=compiled
    )
    try:
      # Before anything is timed: networks that differ are no comparison. And
      # torch.compile fails here, at its first call.
      peer.check = peer.loss_and_norm(_tensors(torch_step, peer, work))
    except Exception as error:  # What a missing compiler raises is torch's.
      if not compiled:
        raise
      reason = str(error).strip().splitlines()[0][:200]
      print(f"torch.compile does not work here: {reason}", file=sys.stderr)
      continue
    found.append(peer)
  return found


def _tensors(torch_step: Any, peer: Any, work: _training.Work) -> Any:
  """The draws of the comparison as tensors."""
  drawn = _training.draws(work)
  fields = (drawn.x1, drawn.x0, drawn.t, drawn.snippet)
  tokens = None if drawn.tokens is None else peer.tensor(drawn.tokens)
  return torch_step.TensorDraws(*map(peer.tensor, fields), tokens)


def peer_call(work: _training.Work, peer: Any) -> Callable[[], Any]:
  """A dispatch of a torch step: as many steps as one of ours."""
  k = work.config.train.steps_per_dispatch
  batches = [
    {name: peer.tensor(x[i]) for name, x in work.batch.items()}
    for i in range(k)
  ]
  # On the device before the clock starts, as ours are.
  bank = peer.tensor(work.bank.rows)
  # float waits for the step, as the reader of a loss would.
  return lambda: [float(peer.step(batch, bank)) for batch in batches]


def compare(
  gradient: Callable[[], Any], peers: Sequence[Any]
) -> dict[str, float]:
  """How far peers are from our loss and gradient norm, relative to them."""
  loss, grads = gradient()
  # The gradients are as large as the parameters, and not held any longer.
  ours = float(loss), float(optax.tree.norm(grads))
  return {
    name: max(abs(p.check[i] - ours[i]) / abs(ours[i]) for p in peers)
    for i, name in enumerate(("loss", "norm"))
  }


def measure(
  work: _training.Work,
  peers: Sequence[Any],
  repeats: int,
  *,
  with_stages: bool = True,
) -> Measured:
  """Compares, then times all in turns; each stage is one more compilation."""
  # Compiled when they are called.
  stages = _training.make_stages(work, _training.draws(work))
  apart = compare(stages["gradient"], peers) if peers else {}
  calls: dict[str, Callable[[], Any]] = {OURS: work.step}
  calls |= {peer.name: peer_call(work, peer) for peer in peers}
  calls |= stages if with_stages else {}
  with tqdm.tqdm(
    total=len(calls) * (repeats + 1), desc="train", file=sys.stderr
  ) as bar:

    def counted(call):
      def run(_):
        result = jax.block_until_ready(call())
        bar.update()
        return result

      return run

    timed = _timing.interleaved(
      {name: counted(call) for name, call in calls.items()}, range(repeats)
    )
  peak = _timing.measure_speeds(work.config.model.dtype).products
  memory = {OURS: work.memory} | {peer.name: peer.peak() for peer in peers}
  products = _products.seconds(work.products)
  return Measured(timed, products, peak, memory, apart)


def table(work: _training.Work, found: Measured) -> str:
  """Both tables, in Markdown; the first alone where stages were not timed."""
  k, size = work.config.train.steps_per_dispatch, work.config.train.batch_size
  rows = []
  best = fastest_peer(found)
  for name, memory in found.memory.items():
    seconds = found.seconds[name]
    rows.append(
      [
        name,
        f"{seconds / k * 1e3:.1f}",
        f"{k * size / seconds:.2f}",
        "" if best is None else f"{best / seconds:.2f}",
        f"{work.flops / seconds / found.peak:.0%}",
        f"{found.products / seconds:.0%}",
        "" if memory is None else f"{memory / 2**30:.2f} GiB",
      ]
    )
  head = ["step", "ms", "images/s", "x torch", "peak", "products", "memory"]
  steps = _timing.markdown(head, rows)
  if "forward" not in found.seconds:
    return steps
  step = found.seconds[OURS]
  stages = {
    "forward": found.seconds["forward"] * k,
    "backward": (found.seconds["gradient"] - found.seconds["forward"]) * k,
    "clip, AdamW and average": found.seconds["update"] * k,
    "matrix products": found.products,
  }
  shares = [
    [name, f"{seconds / k * 1e3:.1f}", f"{seconds / step:.0%}"]
    for name, seconds in stages.items()
  ]
  return (
    f"{steps}\n\n"
    f"{_timing.markdown(['our stage alone', 'ms', 'of the step'], shares)}"
  )


def fastest_peer(found: Measured) -> float | None:
  """Seconds of torch's fastest dispatch, or None."""
  return min(
    (found.seconds[name] for name in found.memory if name != OURS),
    default=None,
  )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line."""
  parser = errors.Parser(
    prog="python -m gmem_jax.bench train",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="examples: python -m gmem_jax.bench train --results;"
    " python -m gmem_jax.bench train --config=configs/xl_in1k.py:train"
    " --change=train.batch_size=256",
  )
  _recipe.add_arguments(parser, _recipe.XL, _recipe.describe(_recipe.SMALL))
  parser.add_argument("--peer", choices=PEERS, default="torch")
  parser.add_argument(
    "--stages",
    choices=("all", "none"),
    default="all",
    help="none: the step alone, which compiles XL once instead of four times",
  )
  parser.add_argument("--repeats", type=int, default=7)
  _results.add_argument(parser)
  args = parser.parse_args(argv)
  try:
    args.recipe = _recipe.load(args, _recipe.SMALL)
    args.changes = _recipe.changes_of(args, _recipe.SMALL)
  except ValueError as error:
    parser.error(str(error))
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark and prints its tables.

  Returns:
    0, or 1 where torch's numbers are not ours.
  """
  # torch needs some of the GPU's memory, too.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  args = parse(argv)
  work = _training.make(args.recipe)
  peers = make_peers(work, [args.peer])
  found = measure(work, peers, args.repeats, with_stages=args.stages == "all")
  versions, compared = {}, "No peer."
  if peers:
    versions["torch"] = importlib.import_module("torch").__version__
    compared = (
      f"Loss and gradient norm of torch's network differ from ours by"
      f" {found.apart['loss']:.1e} and {found.apart['norm']:.1e} of them."
    )
  dtype = work.config.model.dtype
  count = sum(x.size for x in jax.tree.leaves(work.state.params))
  words = (
    f"`python -m gmem_jax.bench train`: {pathlib.Path(args.config).name} with"
    f" {_recipe.describe(args.changes) or 'nothing changed'};"
    f" {count / 1e6:.1f} M parameters, {dtype},"
    f" {work.flops / work.config.train.steps_per_dispatch / 1e12:.3f} TFLOP a"
    f" step, large products at {found.peak / 1e12:.3f} TFLOP/s. {compared}"
    f"\n\n{_results.machine(**versions)}. Medians of {args.repeats} turns."
  )
  _results.finish(args, "train", words, table(work, found))
  return int(any(not x <= CLOSE[dtype] for x in found.apart.values()))

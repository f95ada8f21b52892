"""Guided sampling: images a second, beside the reference's network calls.

Times the product's own sampler, from noise to bytes in one compiled call, in
turns with a loop that calls the network as often as the published sampler does
(see `_reference_sampler`), compiled likewise, at the same precision. Both make
the same images, which is checked. Networks and snippets are random. Columns:

  calls      forward passes of the network for an image; a guided one is two
  s          for a call's images
  images/s
  x          how many times faster than the reference's calls

and below, what share of an image's time its decoding takes, and its PNG file
on one core (beside the device, in threads, when images are written).
"""

import argparse
import concurrent.futures
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.bench import _recipe, _reference_sampler, _results, _timing
from gmem_jax.commands import programs
from gmem_jax.config import sections
from gmem_jax.data import write_images
from gmem_jax.diffusion import schedule
from gmem_jax.files import errors
from gmem_jax.models import retrieval
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding
from gmem_jax.sample import sampler as sampler_lib
from gmem_jax.train import setup

OURS, REFERENCE = "gmem_jax", "the reference's calls"
GOAL = 3.0
# 507 calls an image are too many for two cores at the size of a training step.
SMALL = _recipe.SMALL | {
  "model.width": 144,
  "model.depth": 4,
  "model.heads": 2,
}
# Part of the bytes of the images that may differ by one, in float32; by more
# none may. bfloat16 differs more: the trajectories round differently.
_DIFFER = 0.01

Calls = dict[str, Callable[[], Any]]


def make(config: sections.Config) -> tuple[Calls, int]:
  """Compiles both samplers, and the decoder alone, for the first device.

  Returns:
    Functions of nothing: OURS and REFERENCE to uint8 images, "decode" to
    pixels; and the number of images.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 1), jax.devices()[:1])
  program = programs.sampling(config, mesh, 1)
  memory = programs.memory_shapes(config, 1, mesh)
  network = setup.network(config, memory)
  # As samples are made; the projector is for training.
  dtype, precision = config.sample.dtype, config.sample.precision
  network = sampler_lib.sampling_network(network, dtype).clone(token_dim=0)
  # Random weights, as time does not depend on their values.
  weights = jax.tree.map(_random, program.arguments[0])
  count, width = program.arguments[3].shape
  numbers = jnp.arange(count, dtype=jnp.int32)
  features = jax.random.normal(rngs.key(5, "init"), (count, width))
  rows = jnp.full(count, retrieval.OUTSIDE, jnp.int32)
  root, shape = rngs.root(config.sample.seed), memory.latent_shape

  def apply(params, x, t, snippet):
    with jax.default_matmul_precision(precision):
      return cast(jax.Array, network.apply({"params": params}, x, t, snippet))

  @jax.jit
  def reference(weights, root, numbers, features, zero):
    def normal(name, *ids):
      def one(i):
        return jax.random.normal(rngs.key(root, name, i, *ids), shape)

      return jax.vmap(one)(numbers)

    x1 = _reference_sampler.sample(
      config.sampler,
      lambda x, t, snippet: apply(weights.params, x, t, snippet),
      normal("sample/noise"),
      lambda step: normal("sample/kick", step),
      bank_lib.normalise(features),
      zero,
    )
    latents = protocols.denormalise_latents(x1, weights.stats)
    return protocols.to_uint8(weights.tokenizer.decode(latents), 128.0)

  ours = program.jitted.lower(weights, root, numbers, features, rows).compile()
  decode = jax.jit(lambda w, latents: w.tokenizer.decode(latents))
  latents = jax.random.normal(rngs.key(6, "init"), (count, *shape))
  # 0.0 is an argument, not a constant: XLA must not find out that two calls of
  # the network have one input.
  return {
    OURS: lambda: ours(weights, root, numbers, features, rows),
    REFERENCE: lambda: reference(weights, root, numbers, features, 0.0),
    "decode": lambda: decode(weights, latents),
  }, count


def _random(leaf: Any) -> jax.Array:
  """Weights that keep the variance: the images are neither grey nor flat."""
  if isinstance(leaf, jax.Array):
    return leaf
  # Unit variance at every layer; zeros, as networks begin with, would let both
  # samplers agree on noise whatever they compute.
  random = np.random.default_rng(leaf.size)
  x = random.standard_normal(leaf.shape, np.float32)
  convolution = len(leaf.shape) == 4
  inputs = leaf.shape[:-1] if convolution else leaf.shape[-2:-1]
  return jax.device_put(x / np.sqrt(np.prod(inputs or (100,))))


def png_seconds(pixels: np.ndarray) -> dict[str, float]:
  """Seconds in which PNG files of images are written.

  Returns:
    "one": one after the other; "threads": as images are written.
  """
  found = {}
  with tempfile.TemporaryDirectory(prefix="gmem_jax_png_") as name:
    paths = [pathlib.Path(name) / f"{i}.png" for i in range(len(pixels))]
    start = time.perf_counter()
    for path, image in zip(paths, pixels, strict=True):
      write_images.save_png(path, image)
    found["one"] = time.perf_counter() - start
    with concurrent.futures.ThreadPoolExecutor(write_images.THREADS) as pool:
      start = time.perf_counter()
      list(pool.map(write_images.save_png, paths, pixels))
      found["threads"] = time.perf_counter() - start
  return found


def different(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, float]:
  """The largest difference of bytes, and the share that differs at all."""
  apart = np.abs(ours.astype(int) - theirs.astype(int))
  return int(apart.max()), float((apart > 0).mean())


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line."""
  parser = errors.Parser(
    prog="python -m gmem_jax.bench sample",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="example: python -m gmem_jax.bench sample"
    " --config=configs/xl_in1k.py:ode,guided --results",
  )
  _recipe.add_arguments(parser, _recipe.XL_SAMPLE, _recipe.describe(SMALL))
  parser.add_argument("--repeats", type=int, default=3)
  _results.add_argument(parser)
  args = parser.parse_args(argv)
  try:
    args.recipe = _recipe.load(args, SMALL)
    args.changes = _recipe.changes_of(args, SMALL)
    _reference_sampler.check(args.recipe.sampler)
    if args.recipe.model.conditioning != "adaln":
      raise ValueError("config.model.conditioning: the reference has 'adaln'")
  except ValueError as error:
    parser.error(str(error))
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark and prints its tables.

  Returns:
    0, or 1 where the two samplers do not make the same images.
  """
  args = parse(argv)
  config = args.recipe
  calls, count = make(config)
  pixels = {name: np.asarray(calls[name]()) for name in (OURS, REFERENCE)}
  largest, share = different(pixels[OURS], pixels[REFERENCE])
  turns = tqdm.trange(args.repeats, desc="sample", file=sys.stderr)
  taken = {name: [] for name in calls}
  for _ in turns:
    for name, call in calls.items():
      taken[name].append(_timing.seconds(call))
  found = {name: float(np.median(times)) for name, times in taken.items()}
  png = png_seconds(pixels[OURS])
  numbers = schedule.num_calls(config.sampler)
  assert numbers is not None  # The reference's sampler was checked.
  forwards = {
    OURS: sum(numbers),
    REFERENCE: _reference_sampler.num_calls(config.sampler),
  }
  rows = [
    [
      name,
      str(forwards[name]),
      f"{found[name]:.2f}",
      f"{count / found[name]:.3f}",
      f"{found[REFERENCE] / found[name]:.2f}",
    ]
    for name in (OURS, REFERENCE)
  ]
  head = ["sampler", "calls", "s", "images/s", "x"]
  shares = [
    [name, f"{seconds / count * 1e3:.2f}", f"{seconds / found[OURS]:.1%}"]
    for name, seconds in (
      ("decoding", found["decode"]),
      ("PNG, one thread", png["one"]),
      (f"PNG, {write_images.THREADS} threads", png["threads"]),
    )
  ]
  table = (
    f"{_timing.markdown(head, rows)}\n\n"
    f"{_timing.markdown(['an image', 'ms', 'of its sampling'], shares)}"
  )
  words = (
    f"`python -m gmem_jax.bench sample`: {pathlib.Path(args.config).name} with"
    f" {_recipe.describe(args.changes) or 'nothing changed'};"
    f" {config.sampler.method}, {config.sampler.steps} points, guidance of"
    f" {config.sampler.guidance.scale} from t ="
    f" {config.sampler.guidance.start} on; {count} images a call,"
    f" {config.sample.dtype}. {share:.2%} of the bytes differ, by at most"
    f" {largest}.\n\n{_results.machine()}. Medians of {args.repeats} turns."
  )
  _results.finish(args, "sample", words, table)
  same = largest <= 1 and share <= _DIFFER
  return int(config.sample.dtype == "float32" and not same)

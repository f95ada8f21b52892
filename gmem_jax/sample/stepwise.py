"""The sampler step by step, so that images are seen while they are made.

A `sampler.Sampler` is one program from noise to pixels. Here each step of its
plan is a call, between which others may look at the images, or stop. The steps
are the same ones, compiled apart: images may differ from the sampler's in the
last bit of a float, which seldom moves a pixel.

Shapes: b images of a call, n images in all, h w c latent, H W pixels, d snippet
width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.diffusion import samplers, schedule
from gmem_jax.parallel import sharding
from gmem_jax.sample import sampler as sampler_lib


class Preview(NamedTuple):
  """Images on their way from noise.

  Attributes:
    numbers: [n] which images these are.
    step: Steps that they have taken, from 0.
    steps: Steps that they will have taken at the end.
    pixels: Decodes them as they are now, uint8 [n H W channels]; costs a run of
      the decoder.
  """

  numbers: np.ndarray
  step: int
  steps: int
  pixels: Callable[[], np.ndarray]


def previews(
  sampler: sampler_lib.Sampler,
  weights: sampler_lib.SampleWeights,
  seed: int,
  numbers: np.ndarray,
  features: np.ndarray,
  rows: np.ndarray,
) -> Iterator[Preview]:
  """Makes the images of one call, a step at each pull.

  Takes what `Sampler.__call__` takes, of images within one call's numbers; the
  last preview has the finished images. "ode_dopri5" chooses its steps inside of
  its program, and has that last one alone.
  """
  slots = numbers % sampler.call_size
  if sampler.config.method == "ode_dopri5":
    made = sampler(weights, seed, numbers, features, rows)
    yield Preview(numbers, 1, 1, lambda: made)
    return
  # As in `Sampler.__call__`: other slots repeat an image that is asked for.
  part = np.full(sampler.call_size, len(numbers) - 1)
  part[slots] = np.arange(len(numbers))
  program = _program(sampler)
  where = NamedSharding(sampler.mesh, sharding.BATCH)
  root = rngs.root(seed)
  placed, condition = program.begin(
    weights,
    sharding.place(np.asarray(numbers[part], np.int32), where),
    sharding.place(np.asarray(features[part], np.float32), where),
    sharding.place(np.asarray(rows[part], np.int32), where),
  )
  x = program.noise(root, placed)
  bare = dataclasses.replace(weights, bank=None)

  def pixels(x) -> Callable[[], np.ndarray]:
    return lambda: jax.device_get(program.decode(bare, x))[slots]

  plan = schedule.plan(sampler.config)
  for index, step in enumerate(plan):
    yield Preview(numbers, index, len(plan), pixels(x))
    times = np.asarray(step.times, np.float32)
    taken = jnp.int32(index), times, np.float32(step.length)
    x = program.step(step[:2])(bare, root, condition, placed, x, taken)
    # Or all steps would be queued before the first is looked at.
    jax.block_until_ready(x)
  x = program.close(bare, root, condition, placed, x)
  yield Preview(numbers, len(plan), len(plan), pixels(x))


@functools.lru_cache(maxsize=8)
def _program(sampler: sampler_lib.Sampler) -> "_Program":
  """Compiled once for each sampler, as samplers are."""
  return _Program(sampler)


@dataclasses.dataclass(frozen=True)
class _Program:
  """The jitted parts of a sampler."""

  sampler: sampler_lib.Sampler

  @functools.cached_property
  def begin(self) -> Any:
    """(weights, numbers, features, rows) -> (numbers, condition)."""

    def run(weights, numbers, features, rows):
      neighbours = None
      if self.sampler.retrieve is not None:
        unit = bank_lib.normalise(features)
        neighbours = self.sampler.retrieve(weights.bank, unit, rows)
      return numbers, self.sampler.condition(features, neighbours)

    return jax.jit(run)

  @functools.cached_property
  def noise(self) -> Any:
    """(root, numbers) -> x."""
    return self._split(self.sampler.noise, (P(), sharding.BATCH))

  @functools.cached_property
  def decode(self) -> Any:
    """(weights, x) -> images, on every device."""
    split = self._split(self.sampler.decode, (P(), sharding.BATCH))
    everywhere = sharding.replicated(self.sampler.mesh)
    return jax.jit(split, out_shardings=everywhere)

  @functools.cached_property
  def close(self) -> Any:
    """(weights, root, condition, numbers, x) -> x."""

    def run(weights, root, condition, numbers, x):
      with jax.default_matmul_precision(self.sampler.precision):
        flow = self.sampler.flow(weights.params, root, condition, numbers)
        config = self.sampler.config
        return samplers.close(config, flow.network, x, flow.pair)

    return self._split(run, (P(), P(), *(sharding.BATCH,) * 3))

  def step(self, method: Any) -> Any:
    """(weights, root, condition, numbers, x, step) -> x, of a step's method."""
    if method not in self._steps:
      self._steps[method] = self._make_step(method)
    return self._steps[method]

  @functools.cached_property
  def _steps(self) -> dict[Any, Any]:
    return {}

  def _make_step(self, method: Any) -> Any:
    def run(weights, root, condition, numbers, x, step):
      with jax.default_matmul_precision(self.sampler.precision):
        flow = self.sampler.flow(weights.params, root, condition, numbers)
        return samplers.take_step(
          self.sampler.config,
          flow.network,
          x,
          method,
          step,
          flow.increments,
          flow.pair,
        )

    return self._split(run, (P(), P(), *(sharding.BATCH,) * 3, P()))

  def _split(self, function: Callable[..., Any], specs: tuple[P, ...]) -> Any:
    """Jitted, each device with its images alone, as the sampler runs it."""
    return jax.jit(
      jax.shard_map(
        function,
        mesh=self.sampler.mesh,
        in_specs=specs,
        out_specs=sharding.BATCH,
        check_vma=False,
      )
    )

"""Examples per second and core of the loader; its part in a training step.

Writes data of the published shapes (latents 16 x 16 x 32, 256 tokens of width
768, both views) in a temporary directory: as the published script does, and as
--mode=prepare does in each of its forms. All fit into the page cache. Each
reader then fills batches on one core, in turns. The peer is a reader written
like the published one: a `safe_open` and slices for every item, in PyTorch
where that is installed. At last a training step is timed with the loader and
with one batch that already is on the device.
"""

import contextlib
import importlib.util
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.bank import bank as bank_lib
from gmem_jax.bench import _data_files as files
from gmem_jax.config import training
from gmem_jax.data import pipeline, store, upstream
from gmem_jax.diffusion import losses
from gmem_jax.files import errors
from gmem_jax.models import dit
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  state as train_state,
  step as train_step,
)

_PEER = "published reader"
# Layout -> most bytes, and least examples per second, over the peer's.
_GOALS = {"bf16": (0.50, 3.0), "int8": (0.26, 6.0), "pixels": (0.14, 0.0)}
# Goals are given to two digits, so they are met to two digits.
_HALF_DIGIT = 0.005
_STEP_GOAL = 0.97
_IMAGENET = 1_281_167  # images

Batches = Callable[[], Iterator[Any]]


def make_loader(
  reader: pipeline.Records, batch: int, to: Any = None
) -> Iterator[dict[str, Any]]:
  """The product's loader, as training uses it."""
  # Labels are not for training, which the product leaves out, too.
  spec = reader.spec()
  dataset = pipeline.make_dataset(
    reader,
    fields=[name for name in spec if name != "label"],
    seed=0,
    mirror_seed=0,
    batch_size=batch,
    steps_per_dispatch=1,
    process_index=0,
    process_count=1,
  )
  return pipeline.batches(dataset, 0, to)


def published_batches(
  reader: files.PublishedReader, batch: int
) -> Iterator[list[np.ndarray]]:
  """Shuffled batches of the peer, without an end."""
  random = np.random.default_rng(0)
  while True:
    order = random.permutation(len(reader.items))
    for start in range(0, len(order) - batch + 1, batch):
      yield reader.batch(order[start : start + batch].tolist())


@contextlib.contextmanager
def one_core() -> Iterator[None]:
  """Keeps this process and the threads that it starts on one core."""
  # The goals are per core, so that a machine's number of cores does not decide
  # which reader is faster.
  cores = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {max(cores)})
  try:
    yield
  finally:
    os.sched_setaffinity(0, cores)


def examples_per_second(
  makers: dict[str, Batches], *, batch: int, count: int, rounds: int
) -> dict[str, float]:
  """Examples per second of a core's work, medians; the readers in turns.

  Time is that of the processor in all threads, kernel included, so that other
  work on the machine counts little.

  Args:
    makers: Name -> makes an iterator over batches.
    batch: Examples of a batch.
    count: Batches of a reader's turn.
    rounds: Turns of each.
  """
  rates: dict[str, list[float]] = {name: [] for name in makers}
  with one_core():
    for _ in range(rounds):
      for name, make in makers.items():
        batches = make()
        next(batches)  # Threads are running, files are open.
        # All threads of the process, the kernel's part included.
        start = time.process_time()
        for _ in range(count):
          next(batches)
        rates[name].append(count * batch / (time.process_time() - start))
        # Its threads would go on reading ahead during the next reader's turn.
        del batches
  return {name: statistics.median(found) for name, found in rates.items()}


def step_ratio(
  reader: pipeline.Records, *, batch: int, steps: int, rounds: int
) -> tuple[float, float]:
  """A training step with the loader, and with a batch that is always there.

  Returns:
    (seconds of a step with the loader, seconds without), medians.
  """
  mesh = sharding.make_mesh(sharding.MeshConfig(-1, 1, 1), jax.devices()[:1])
  where = sharding.batch_sharding(mesh, steps_axis=True)
  state, step_fn = _make_step()
  bank = bank_lib.MemoryBank(rows=jnp.ones((len(reader), files.WIDTH)))
  held = sharding.to_global(files.random_batch(batch), where)
  loader = make_loader(reader, batch, where)
  times: dict[str, list[float]] = {"loader": [], "held": []}
  for turn in range(rounds + 1):  # The first compiles and is not counted.
    for name, take in (
      ("held", lambda: held),
      ("loader", lambda: next(loader)),
    ):
      # The first batch starts the loader's threads and fills its buffer; a long
      # run has done that.
      take()
      start = time.perf_counter()
      for _ in range(steps):
        state, metrics = step_fn(state, take(), bank)
      jax.block_until_ready((state, metrics))
      if turn:
        times[name].append((time.perf_counter() - start) / steps)
  return statistics.median(times["loader"]), statistics.median(times["held"])


def _make_step() -> tuple[Any, Any]:
  """A small network on the published shapes, and its step."""
  h, w, c = files.LATENT
  # Small, so that the step is short and the loader's part in it large: larger
  # networks hide more of the loader.
  network = dit.LightningDiT(
    channels=c,
    snippet_dim=files.WIDTH,
    token_dim=files.TOKENS[1],
    width=128,
    depth=4,
    heads=2,
    patch=1,
    projector_width=256,
    projector_depth=4,
  )
  tx = train_state.make_optimizer(
    training.OptimConfig(
      learning_rate=1e-4,
      schedule="constant",
      warmup_steps=0,
      decay_steps=0,
      b1=0.9,
      b2=0.95,
      eps=1e-8,
      weight_decay=0.0,
      clip_norm=1.0,
    )
  )
  loss = losses.LossConfig(
    path="linear",
    prediction="velocity",
    weighting="none",
    time="lognormal",
    cosine=True,
    projection_weight=0.5,
    train_eps=None,
  )
  stats = protocols.LatentStats(mean=jnp.zeros(c), std=jnp.ones(c))
  step_fn = train_step.repeat(
    train_step.make_train_step(
      network, tx, loss, stats, seed=0, ema_decay=0.999
    )
  )
  init = train_state.make_init(network, (h, w, c), tx, seed=0)
  return jax.jit(init)(), jax.jit(step_fn, donate_argnums=0)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark and prints its tables.

  Returns:
    0, or 1 where a goal is missed.
  """
  parser = errors.Parser(
    prog="python -m gmem_jax.bench data", description=__doc__
  )
  add = parser.add_argument
  add("--images", type=int, default=1000, help="3.4 MB of disk each")
  add("--batch", type=int, default=64, help="examples of a batch of a reader")
  add("--batches", type=int, default=30, help="of a reader's turn")
  add("--rounds", type=int, default=5)
  add("--step-batch", type=int, default=16, help="examples of a training step")
  add("--steps", type=int, default=4, help="training steps of a turn")
  add("--peer", choices=("torch", "numpy"), help="torch if it is installed")
  add("--dir", type=errors.path, help="where to write")
  args = parser.parse_args(argv)
  if min(args.batch, args.step_batch) > args.images:
    parser.error("--batch and --step-batch must not exceed --images")
  with tempfile.TemporaryDirectory(dir=args.dir) as name:
    root = pathlib.Path(name)
    sizes = {
      "published": files.write_published(root / "published", args.images)
    }
    readers: dict[str, pipeline.Records] = {
      "published": upstream.UpstreamRecords(root / "published")
    }
    for tokens in ("bf16", "int8", "pixels"):
      sizes[tokens] = files.write_prepared(root / tokens, args.images, tokens)
      readers[tokens] = store.PreparedRecords(store.open_store(root / tokens))
    has_torch = importlib.util.find_spec("torch") is not None
    args.peer = args.peer or ("torch" if has_torch else "numpy")
    peer = files.PublishedReader(root / "published", args.peer)
    makers: dict[str, Batches] = {
      _PEER: lambda: published_batches(peer, args.batch)
    }
    # As many examples as ImageNet has, for the cost of the shuffle.
    times = -(-_IMAGENET // args.images)
    for key, reader in readers.items():
      many = files.ManyTimes(reader, times)
      makers[key] = lambda many=many: make_loader(many, args.batch)
    rates = examples_per_second(
      makers, batch=args.batch, count=args.batches, rounds=args.rounds
    )
    real, held = step_ratio(
      readers["bf16"],
      batch=args.step_batch,
      steps=args.steps,
      rounds=args.rounds,
    )
  return _report(args, sizes, rates, real, held)


def _report(args, sizes, rates, real, held) -> int:
  """Prints the tables; 1 if a goal is missed."""
  missed = []
  print(
    f"{args.images} images, batches of {args.batch}, one core,"
    f" peer in {args.peer}\n"
  )
  print("| stored as | kB/image | ÷ published | goal | examples/s | ÷ peer |"
        " goal |\n|---|---|---|---|---|---|---|")  # fmt: skip
  base, peer = sizes["published"], rates[_PEER]
  print(f"| float32, {_PEER} | {base / args.images / 1e3:.0f} | 1 | | "
        f"{peer:.0f} | 1 | |")  # fmt: skip
  for key, size in sizes.items():
    share, speed = size / base, rates[key] / peer
    most, least = _GOALS.get(key, (1.0, 0.0))
    if share > most + _HALF_DIGIT or speed < least:
      missed.append(key)
    print(
      f"| {'float32, as published' if key == 'published' else key} |"
      f" {size / args.images / 1e3:.0f} | {share:.3f} |"
      f" {most if key in _GOALS else ''} | {rates[key]:.0f} | {speed:.1f} |"
      f" {f'≥ {least:g}' if least else ''} |"
    )
  ratio = held / real
  print("\n| training step | ms | rate ÷ synthetic | goal |\n|---|---|---|---|")
  print(f"| synthetic batch | {held * 1e3:.1f} | 1 | |")
  print(f"| loader, bf16 | {real * 1e3:.1f} | {ratio:.3f} | ≥ {_STEP_GOAL} |")
  if ratio < _STEP_GOAL:
    missed.append("training step")
  if missed:
    print(f"\nmissed: {', '.join(missed)}")
  return int(bool(missed))

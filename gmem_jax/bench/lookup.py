"""Time, exactness and scratch memory of the bank's lookup beside its peers.

All that is timed runs in one process, in turns, on queries that are new in
every round; a time is the median. On a CPU the bank is 131,072 x 768, on an
accelerator it is as large as ImageNet's. The columns:

  ms         median time of a search
  x PEER     how many times faster than that peer
  limit      share of what the machine allows: reading the bank once at the
             bandwidth of a copy, or the multiplications at the rate of a large
             matrix product, whichever takes longer; both measured here
  scratch    memory besides arguments and results, by the compiler's analysis
  wrong      rows that a float64 search of the stored bank has otherwise, beyond
             rounding, among those of up to 8 queries
  fallbacks  share of the queries that the certificate refused
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib, lookup
from gmem_jax.bank.kernels import topk_gpu, topk_reference
from gmem_jax.bench import _lookup_peers, _timing
from gmem_jax.files import errors

# Queries whose rows are judged: a float64 search of a large bank is slow.
_JUDGED = 8
# Rows of the published bank: ImageNet's training images.
_IMAGENET = 1_281_167
_QUERIES = (1, 8, 64, 256, 1024, 4096)


def make_banks(
  m: int, d: int, dtypes: Sequence[str]
) -> dict[str, bank_lib.MemoryBank]:
  """Banks of the same random unit rows, in each form of storage."""

  def make(dtype):
    rows = jax.random.normal(rngs.key(0, "init"), (m, d))
    scales = None
    if dtype == "int8":
      scales = jnp.max(jnp.abs(rows), axis=1) / 127
      rows = jnp.round(rows / scales[:, None])
    bank = bank_lib.MemoryBank(rows.astype(dtype), scales)
    # Padded to the GPU kernel's blocks, so that every backend can serve.
    return lookup.unit(bank, multiple=topk_gpu.ALIGN)

  return {dtype: jax.jit(make, static_argnums=0)(dtype) for dtype in dtypes}


def wrong_rows(
  query: jax.Array, bank: bank_lib.MemoryBank, found: topk_reference.TopK
) -> int:
  """Rows that a float64 search has otherwise, beyond the rounding bound."""
  query, k = query[:_JUDGED], found.rows.shape[1]
  wide = np.asarray(query.astype(jnp.float32), np.float64)
  scores, norm = [], 0.0
  # By blocks: the whole bank in float64 would need 7.9 GB.
  for start in range(0, bank.size, 65536):
    part = slice(start, min(start + 65536, bank.size))
    rows = np.asarray(bank.rows[part].astype(jnp.float32), np.float64)
    if bank.scales is not None:
      rows *= np.asarray(bank.scales[part], np.float64)[:, None]
    norm = max(norm, np.linalg.norm(rows, axis=1).max())
    scores.append(wide @ rows.T)
  exact = np.concatenate(scores, axis=1)
  best = np.argsort(-exact, axis=1, kind="stable")[:, :k]
  rows = np.asarray(found.rows[:_JUDGED])
  bound = topk_reference.rounding_bound(query, jnp.asarray(norm, jnp.float32))
  want = np.take_along_axis(exact, best, axis=1)
  have = np.take_along_axis(exact, rows, axis=1)
  return int((np.abs(want - have) > np.asarray(bound)[:, None]).sum())


def measure(
  banks: dict[str, bank_lib.MemoryBank],
  peer_dtype: str,
  q: int,
  k: int,
  args: argparse.Namespace,
  speeds: _timing.Speeds,
) -> list[list[str]]:
  """Times every search of q queries and k neighbours.

  Returns:
    Rows of the table: of the lookup on each bank, then of the peers.
  """
  # New queries in every round, so that nobody can answer from a cache.
  noise = jax.random.normal(
    rngs.key(1, "init"), (args.repeats + 1, q, args.width)
  )
  queries = [x.astype(args.query_dtype) for x in bank_lib.normalise(noise)]
  ours, facts = {}, {}
  for dtype, bank in banks.items():
    search = jax.jit(
      lookup.nearest_counted, static_argnames=("k", "implementation")
    )
    lowered = search.lower(
      queries[0], bank, k=k, implementation=args.implementation
    )
    compiled = lowered.compile()
    name = f"nearest, {dtype}"
    ours[name] = lambda x, c=compiled, b=bank: c(x, b)
    found = ours[name](queries[0])
    facts[name] = (
      _timing.scratch(compiled),
      str(wrong_rows(queries[0], bank, found)),
      f"{int(found.fallbacks) / q:.1%}",
      _timing.nbytes(bank),
    )
  # The peers search one bank: none of them reads int8 with scales.
  peers = _lookup_peers.make(banks[peer_dtype].rows, queries[0], k, args.peers)
  searches = ours | {name: peer.search for name, peer in peers.items()}
  times = _timing.interleaved(searches, queries[1:])
  table = []
  for name, seconds in times.items():
    if name in facts:
      scratch, wrong, fallbacks, size = facts[name]
    else:
      scratch, wrong, fallbacks = peers[name].scratch, "", ""
      size = _timing.nbytes(banks[peer_dtype])
    # Against the bytes and the multiplications that no exact search can avoid.
    least = speeds.least(size, 2 * q * args.rows * args.width)
    ratios = [f"{times[peer] / seconds:.2f}" for peer in peers]
    cells = [str(q), str(k), name, f"{seconds * 1e3:.2f}", *ratios]
    cells += [f"{least / seconds:.0%}", scratch, wrong, fallbacks]
    table.append(cells)
  return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line; what is not given depends on the platform."""
  parser = errors.Parser(
    prog="python -m gmem_jax.bench lookup",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="example: python -m gmem_jax.bench lookup --queries 1 64",
  )
  host = jax.default_backend() == "cpu"
  parser.add_argument(
    "--rows", type=int, default=131_072 if host else _IMAGENET
  )
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument(
    "--queries",
    type=int,
    nargs="+",
    default=_QUERIES[:3] if host else _QUERIES,
  )
  parser.add_argument(
    "--neighbours",
    type=int,
    nargs="+",
    default=(10,) if host else (1, 10, 64),
  )
  parser.add_argument(
    "--dtypes",
    nargs="+",
    choices=("float32", "bfloat16", "int8"),
    default=("float32", "int8") if host else ("bfloat16", "int8"),
    help="storage of the bank; the peers search the first",
  )
  parser.add_argument(
    "--query-dtype",
    choices=("float32", "bfloat16"),
    default="float32" if host else "bfloat16",
  )
  parser.add_argument(
    "--implementation", choices=lookup.IMPLEMENTATIONS, help="default: the best"
  )
  parser.add_argument(
    "--peers",
    nargs="*",
    choices=_lookup_peers.NAMES,
    default=_lookup_peers.NAMES,
    help="those that are installed run",
  )
  parser.add_argument("--repeats", type=int, default=11)
  args = parser.parse_args(argv)
  if args.dtypes[0] == "int8":
    parser.error("--dtypes: the peers search the first, which cannot be int8")
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the benchmark and prints its table, in Markdown.

  Returns:
    0, or 1 where a row was wrong.
  """
  # Other libraries need some of the GPU's memory, too.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  args = parse(argv)
  banks = make_banks(args.rows, args.width, args.dtypes)
  speeds = _timing.measure_speeds(args.dtypes[0])
  print(
    f"{args.rows:,} x {args.width}, queries {args.query_dtype}, jax"
    f" {jax.__version__}, Python {platform.python_version()},"
    f" {jax.devices()[0].device_kind} ({os.cpu_count()} cores);"
    f" copy {speeds.copy / 1e9:.1f} GB/s,"
    f" {args.dtypes[0]} products {speeds.products / 1e12:.2f} TFLOP/s\n"
  )
  table = []
  pairs = [(q, k) for q in args.queries for k in args.neighbours]
  for q, k in tqdm.tqdm(pairs, desc="queries x neighbours", file=sys.stderr):
    table += measure(banks, args.dtypes[0], q, k, args, speeds)
  present = _lookup_peers.present(args.peers)
  head = ["q", "k", "search", "ms", *(f"x {p}" for p in present)]
  head += ["limit", "scratch", "wrong", "fallbacks"]
  print(_timing.markdown(head, table))
  return int(any(row[-2] not in ("", "0") for row in table))

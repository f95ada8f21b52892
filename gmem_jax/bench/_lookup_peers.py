"""Other people's exact (and one approximate) searches, for comparison."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.bench import _timing

# As a user would write them; "typed" is not jitted. "product" of torch does
# not search: it shows what the matrix product alone costs.
NAMES = (
  "lax.top_k",
  "lax.top_k, typed",
  "approx_max_k",
  "torch",
  "torch product",
  "faiss-cpu",
)
# Queries that torch takes at a time: its scores are materialised.
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Peer:
  """A search to compare with.

  Attributes:
    search: Function of queries [q, d], a JAX array.
    scratch: Its temporary memory, where it is known.
  """

  search: Callable[[jax.Array], Any]
  scratch: str


def present(names: Sequence[str]) -> list[str]:
  """Those of the peers that can run here, in the order of `NAMES`."""
  host = jax.default_backend() == "cpu"
  missing = {
    name
    for name, module in (
      ("torch", "torch"),
      ("torch product", "torch"),
      ("faiss-cpu", "faiss"),
    )
    if importlib.util.find_spec(module) is None
  }
  # On an accelerator these would time the host: faiss-cpu, torch without CUDA,
  # and the dispatch of single operations.
  if not host:
    missing |= {"faiss-cpu", "lax.top_k, typed"}
    if "torch" not in missing and not _import("torch").cuda.is_available():
      missing |= {"torch", "torch product"}
  return [name for name in NAMES if name in names and name not in missing]


def make(
  rows: jax.Array, query: jax.Array, k: int, names: Sequence[str]
) -> dict[str, Peer]:
  """Makes the peers' searches of some rows."""
  made = {}
  for name in present(names):
    if name.startswith("torch"):
      made[name] = _torch(rows, k, select=name == "torch")
    elif name == "faiss-cpu":
      made[name] = _faiss(rows, k)
    else:
      made[name] = _jax(name, rows, query, k)
  return made


def _jax(name: str, rows: jax.Array, query: jax.Array, k: int) -> Peer:
  select = jax.lax.approx_max_k if name == "approx_max_k" else jax.lax.top_k

  def search(query, rows):
    # Scores in float32 as ours are: rounded to bfloat16, many would be equal.
    scores = jnp.matmul(
      query.astype(rows.dtype), rows.T, preferred_element_type=jnp.float32
    )
    return select(scores, k)

  if name.endswith("typed"):
    return Peer(lambda x: search(x, rows), "")
  # Compiled ahead: its temporary memory is part of the table.
  compiled = jax.jit(search).lower(query, rows).compile()
  return Peer(lambda x: compiled(x, rows), _timing.scratch(compiled))


def _import(name: str) -> Any:
  # Never needed, so no part of the package depends on them.
  return importlib.import_module(name)


def _torch(rows: jax.Array, k: int, *, select: bool) -> Peer:
  torch = _import("torch")
  bank = torch.from_dlpack(rows)
  # As above; torch has no such product on a CPU.
  wide = bank.is_cuda and bank.dtype != torch.float32
  options = {"out_dtype": torch.float32} if wide else {}

  def search(query):
    # dlpack shares the array: a copy to torch would be timed as search.
    query = torch.from_dlpack(query).to(bank.dtype)
    found = []
    for start in range(0, query.shape[0], _CHUNK):
      part = query[start : start + _CHUNK]
      scores = torch.mm(part, bank.T, **options)
      found.append(torch.topk(scores, k) if select else scores[0, 0])
    if bank.is_cuda:
      torch.cuda.synchronize()
    # JAX waits for what it knows only.
    return len(found)

  return Peer(search, "")


def _faiss(rows: jax.Array, k: int) -> Peer:
  faiss = _import("faiss")
  index = faiss.IndexFlatIP(rows.shape[1])
  index.add(np.asarray(rows.astype(jnp.float32)))
  return Peer(
    lambda query: index.search(np.asarray(query.astype(jnp.float32)), k), ""
  )

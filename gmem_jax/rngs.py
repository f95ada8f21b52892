"""Named random streams: the only place where keys are made.

A key is addressed by what it is for, never by when it was drawn: adding a
stream, a host or a batch size shifts no other stream. Streams are public
interface; renaming one changes every result that depends on it.
"""

import zlib

import jax
from jaxtyping import Array, Integer, Key

# Name of each stream, and its ids.
STREAMS = {
  "init": "()",
  "data/shuffle": "()",
  "data/holdout": "()",
  "data/mirror": "()",
  "train/time": "(step)",
  "train/noise": "(step)",
  "train/dropout": "(step)",
  "train/posterior": "(step)",
  "train/neighbours": "(step)",
  "prior/init": "()",
  "prior/row": "(step)",
  "prior/time": "(step)",
  "prior/noise": "(step)",
  "prior/dropout": "(step)",
  "sample/row": "(image)",
  "sample/prior": "(memory)",
  "sample/group": "(memory)",
  "sample/noise": "(image)",
  # The noise increment of an SDE step. The name is public, and stays.
  "sample/kick": "(image, step)",
  "sample/mask": "()",
  "bank/mask": "()",
  "prepare/posterior": "(2 * image + view)",
  "encoder": "()",
}


def root(seed: int) -> Key[Array, ""]:
  """Makes the key that all streams of a seed come from.

  A compiled program that takes it as an argument serves every seed.
  """
  return jax.random.key(seed)


def key(
  seed: int | Key[Array, ""], name: str, *ids: int | Integer[Array, ""]
) -> Key[Array, ""]:
  """Makes the key of one stream at one address.

  It depends on the seed, the stream's name and the ids alone; the ids, e.g. the
  training step, may be traced. Instead of the seed its `root` may be given.

  Raises:
    ValueError: If there is no such stream.
  """
  if name not in STREAMS:
    raise ValueError(f"no random stream {name!r}; streams: {sorted(STREAMS)}")
  # crc32, as Python's own hash of a string differs from process to process.
  first = root(seed) if isinstance(seed, int) else seed
  result = jax.random.fold_in(first, zlib.crc32(name.encode()))
  for i in ids:
    result = jax.random.fold_in(result, i)
  return result


def keys(
  seed: int | Key[Array, ""], name: str, ids: Integer[Array, " b"]
) -> Key[Array, " b"]:
  """One key per global id, so that image i's key never depends on its batch."""
  return jax.vmap(lambda i: key(seed, name, i))(ids)


def int32(seed: int, name: str) -> int:
  """A non-negative 31-bit integer of a stream, for libraries that want one."""
  bits = jax.random.bits(key(seed, name), dtype="uint32")
  return int(bits) & 0x7FFFFFFF

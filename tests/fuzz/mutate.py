"""Damages files: at random, and past their checksums."""

import io
import json
import pathlib
import random
import struct
import zipfile
import zlib
from typing import Any

# What a program of another kind reads in the place of a size or a type.
_SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63)
_TYPES = (
  b"<f4", b"<f8", b"|O", b"<U9", b"|V2", b"F32", b"F8_E4M3", b"BF16", b"I64",
  b"FloatStorage", b"HalfStorage", b"LongStorage", b"float32", b"bfloat16",
)  # fmt: skip
# Values of JSON that a reader may not expect, as text.
_VALUES = (
  "null", "true", "-1", "0", "3", "1e999", "NaN", "-Infinity", '""', "[]", "{}",
  '"../../../../etc/passwd"', '"\\ud800"', '"\\u001b[2J"', "9" * 5000,
  str(2**63), str(10**18), "[[1, 2], 3]", '{"a": 1}', "1.5", '"x"',
  "[" * 3000 + "]" * 3000, '"' + "x" * 100_000 + '"', "[0, 1, 2, 3, 4, 5, 6]",
)  # fmt: skip
_PLACE = "@@"


def damage(rng: random.Random, data: bytes) -> bytes:
  """Changes bytes in one to four places."""
  changed = bytearray(data)
  for _ in range(rng.randint(1, 4)):
    rng.choice(_DAMAGES)(rng, changed)
  return bytes(changed)


def _cut(rng: random.Random, data: bytearray) -> None:
  del data[rng.randrange(len(data) + 1) :]


def _drop(rng: random.Random, data: bytearray) -> None:
  at = rng.randrange(len(data) + 1)
  del data[at : at + rng.randint(1, 64)]


def _flip(rng: random.Random, data: bytearray) -> None:
  for _ in range(rng.randint(1, 8)):
    if data:
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _insert(rng: random.Random, data: bytearray) -> None:
  at = rng.randrange(len(data) + 1)
  data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))


def _repeat(rng: random.Random, data: bytearray) -> None:
  start, at = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
  data[at:at] = data[start : start + rng.randint(1, 200)] * rng.randint(1, 50)


def _size(rng: random.Random, data: bytearray) -> None:
  width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
  value = rng.choice(_SIZES) % 256**width
  at = rng.randrange(max(len(data) - width, 0) + 1)
  data[at : at + width] = value.to_bytes(width, order)


def _digits(rng: random.Random, data: bytearray) -> None:
  """Makes a number in a text larger."""
  places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
  if places:
    at = rng.choice(places)
    data[at : at + 1] = str(rng.choice(_SIZES)).encode()


def _type(rng: random.Random, data: bytearray) -> None:
  found = [name for name in _TYPES if name in data]
  if found:
    old, new = rng.choice(found), rng.choice(_TYPES)
    at = data.index(old)
    data[at : at + len(old)] = new


_DAMAGES = (
  _cut, _drop, _flip, _flip, _insert, _repeat, _size, _size, _digits, _type
)  # fmt: skip


def damage_json(rng: random.Random, text: bytes) -> bytes:
  """Puts another value, or none, in the place of one of a JSON's."""
  try:
    tree = json.loads(text)
  except ValueError:
    return damage(rng, text)
  holders = list(_holders(tree))
  if not holders:
    return rng.choice(_VALUES).encode()
  holder, key = rng.choice(holders)
  action = rng.randrange(8)
  if action == 0:
    del holder[key]
    return json.dumps(tree).encode()
  holder[key] = _PLACE
  if action == 1 and isinstance(holder, dict):  # A key of another name.
    holder[rng.choice(("", "x", "__proto__", "\x1b"))] = holder.pop(key)
  value = rng.choice(_VALUES)
  return json.dumps(tree).replace(f'"{_PLACE}"', value).encode()


def _holders(tree: Any):
  """All (container, key) of a tree."""
  items = (
    tree.items() if isinstance(tree, dict)
    else enumerate(tree) if isinstance(tree, list) else ()
  )  # fmt: skip
  for key, value in items:
    yield tree, key
    yield from _holders(value)


def damage_safetensors(rng: random.Random, data: bytes) -> bytes:
  """Changes the header; its size, which stands before it, is right again."""
  (size,) = struct.unpack("<Q", data[:8])
  text, rest = data[8 : 8 + size], data[8 + size :]
  header = json.loads(text)
  inner = header.get("__metadata__", {}).get("gmem_jax")
  if inner and rng.random() < 0.6:
    changed = damage_json(rng, inner.encode())
    header["__metadata__"]["gmem_jax"] = changed.decode(errors="replace")
    text = json.dumps(header).encode()
  else:
    text = rng.choice((damage_json, damage))(rng, text)
  return struct.pack("<Q", len(text)) + text + rest


def damage_zip(rng: random.Random, data: bytes) -> bytes:
  """Changes a member, or how it is packed; its checksum is right again."""
  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(data)) as old,
    zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new,
  ):
    names = old.namelist()
    # Most of what there is to break is in the pickle, or a header.
    pickles = [name for name in names if name.endswith("data.pkl")]
    victim = rng.choice(pickles if rng.random() < 0.8 and pickles else names)
    for info in old.infolist():
      content, name, packing = old.read(info), info.filename, info.compress_type
      if name == victim:
        action = rng.randrange(10)
        if action == 0:
          continue
        if action == 1:
          name = rng.choice(("", "/etc/x", "../x", "x" * 60_000, "a/data.pkl"))
        elif action == 2:
          packing = rng.choice(
            (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
          )
        elif action < 6:  # Headers, of arrays and pickles alike, come first.
          content = damage(rng, content[:128]) + content[128:]
        else:
          content = damage(rng, content)
      new.writestr(name, content, packing)
  return out.getvalue()


def damage_png(rng: random.Random, data: bytes) -> bytes:
  """Changes a chunk; its checksum is right again."""
  chunks, at = [], 8
  while at + 12 <= len(data):
    (size,) = struct.unpack_from(">I", data, at)
    chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
    at += size + 12
  victim = rng.randrange(len(chunks)) if rng.random() < 0.5 else 0
  kind, content = chunks[victim]
  chunks[victim] = (kind, damage(rng, content))
  if rng.random() < 0.2:
    chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
  return data[:8] + b"".join(
    struct.pack(">I", len(content))
    + kind
    + content
    + struct.pack(">I", zlib.crc32(kind + content))
    for kind, content in chunks
  )


_FORMATS = (
  (b"PK\x03\x04", damage_zip),
  (b"\x89PNG", damage_png),
)


def mutate(rng: random.Random, path: pathlib.Path) -> None:
  """Damages a file, or a file of a directory, in place."""
  if path.is_dir():
    files = sorted(p for p in path.rglob("*") if p.is_file())
    path = rng.choice(files)
    action = rng.randrange(12)
    if action == 0:
      path.unlink()
      return
    if action == 1:
      path.unlink()
      path.mkdir()
      return
    if action == 2:
      path.write_bytes(rng.choice(files).read_bytes())
      return
  data = path.read_bytes()
  clever = next((f for magic, f in _FORMATS if data.startswith(magic)), damage)
  if data.lstrip()[:1] == b"{":
    clever = damage_json
  elif path.suffix == ".safetensors":
    clever = damage_safetensors
  if rng.random() < 0.25:
    clever = damage
  try:
    changed = clever(rng, data)
  # Damaged before, so that its parts are no longer found.
  except (ValueError, LookupError, struct.error, zipfile.BadZipFile, EOFError,
          AttributeError, TypeError, OSError, zlib.error, NotImplementedError,
          RuntimeError):  # fmt: skip
    changed = damage(rng, data)
  path.write_bytes(changed)

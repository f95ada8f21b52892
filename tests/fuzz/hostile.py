"""Files made by hand to harm: to run code, to hang, to take all memory.

Each function writes one to the path that it is given.
"""

import functools
import json
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable

from tests.fuzz import hostile_images

Maker = Callable[[pathlib.Path], object]
# What the file of a kind is called.
FILES = {
  "torch": "x.pth",
  "safetensors": "x.safetensors",
  "numpy": "x.npz",
  "image": "x.png",
  "json": "x.index.json",
}
_HASH = 2**61 - 1  # Multiples of this have the hash 0.
_MANY = 100_000


def _global(name: str) -> bytes:
  module, _, name = name.rpartition(".")
  return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
  return b"X" + struct.pack("<I", len(text)) + text.encode()


def _call(name: str, *arguments: bytes) -> bytes:
  return _global(name) + b"(" + b"".join(arguments) + b"tR"


def _dict(**values: bytes) -> bytes:
  items = (_text(key) + value for key, value in values.items())
  return b"}(" + b"".join(items) + b"u"


def _doubling(levels: int = 60) -> bytes:
  """A list that is twice in the next one, and so on: 2^60 parts."""
  program = b"(]q\x00"
  for k in range(levels):
    program += b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1])
  return program + b"1h" + bytes([levels])


def _long(number: int) -> bytes:
  data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def _tensor(shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
  """Of the storage "0", whose 64 bytes are in the file."""

  def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_long, values)) + b"t"

  reference = _text("storage") + _global("torch.FloatStorage") + _text("0")
  reference = b"(" + reference + _text("cpu") + b"K\x10tQ"
  hooks = _call("collections.OrderedDict")
  return _call(
    "torch._utils._rebuild_tensor_v2",
    reference, b"K\x00", sizes(shape), sizes(strides), b"\x89", hooks,
  )  # fmt: skip


_ONE = _tensor((4, 4), (4, 1))
# Pickles by what they would do.
_PICKLES: dict[str, bytes] = {
  "os.system": _call("os.system", _text("touch gmem_jax_fuzz_ran")),
  "eval": _call("builtins.eval", _text("open('gmem_jax_fuzz_ran', 'w')")),
  "exec as a value": _dict(weight=_call("builtins.exec", _text("1/0"))),
  "import": _call("importlib.import_module", _text("antigravity")),
  "getattr": _call(
    "builtins.getattr", _call("builtins.__import__", _text("os")), _text("x")
  ),
  "Popen": _call("subprocess.Popen", _text("true")),
  "numpy's load": _call("numpy.load", _text("/etc/passwd")),
  "an instance": b"(" + _text("true") + b"ios\nsystem\n",
  "extension": b"\x82\x01",
  "a doubling list": _doubling(),
  "a doubling list in a state dict": _dict(weight=_doubling()),
  "a doubling list of norms": _dict(mean=_doubling(), std=_doubling()),
  "a doubling list of counts": _dict(
    network=_dict(a=_ONE), memorybank=_ONE, memoryfreq=_doubling()
  ),
  "a doubling list as a config": _dict(
    ema=_dict(a=_ONE), model=_dict(a=_ONE), config=_doubling()
  ),
  "a doubling list as a step": _dict(
    state_dict=_dict(a=_ONE), global_step=_doubling()
  ),
  "a doubling list as a shape": _call("torch.Size", _doubling()),
  "a doubling list as an error": _doubling() + b"Q",
  "nested lists": b"]" * _MANY + b"a" * (_MANY - 1),
  "nested tuples": b")" + b"\x85" * _MANY,
  "nested tuples as a key": b"})" + b"\x85" * _MANY + b"Ns",
  "nested dicts": b"}K\x01" * 9999 + b"N" + b"s" * 9999,
  "colliding integers": b"}("
  + b"".join(_long(k * _HASH) + b"N" for k in range(1, _MANY))
  + b"u",
  "colliding floats": b"}("
  + b"".join(
    b"G" + struct.pack(">d", float(k << 61)) + b"N" for k in range(1, 9999)
  )
  + b"u",
  "a huge memo index": b"Nr\xff\xff\xff\xff",
  "a huge string": b"\x8d" + struct.pack("<Q", 2**60) + b"a",
  "a huge integer": b"\x8b" + struct.pack("<I", 1 << 22) + b"\x7f" * (1 << 22),
  "a huge key": b"}\x8b" + struct.pack("<I", 9999) + b"\x7f" * 9999 + b"Ns",
  "digits": b"I" + b"9" * (1 << 20) + b"\n",
  "a repeated tensor": _dict(weight=_tensor((2**40,), (0,))),
  "a repeated bank": _tensor((2**31, 8), (0, 0)),
  "repeated norms": _dict(
    mean=_tensor((2**33,), (0,)), std=_tensor((2**33,), (0,))
  ),
  "repeated factors": _dict(
    C=_tensor((2**32, 4), (0, 1)), M=_tensor((4, 4), (4, 1)),
    S=_tensor((4,), (1,)),
  ),
  "a tensor outside": _dict(weight=_tensor((2**40, 2), (1, 2**40))),
  "an empty tensor": _dict(weight=_tensor((0, 2**61), (1, 1))),
  "many axes": _dict(weight=_tensor((1,) * 65, (1,) * 65)),
  "copies": b"(" + _text("x" * 9999) + b"q\x00"
  + (_global("_codecs.encode") + b"h\x00" + _text("latin1") + b"\x86R") * 3000
  + b"t",
}  # fmt: skip


def _pickle(program: bytes, path: pathlib.Path) -> None:
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", b"\x80\x04" + program + b".")
    archive.writestr("archive/data/0", bytes(64))


def _bomb(path: pathlib.Path, megabytes: int, count: int = 1) -> None:
  """A zip whose members unpack to so much."""
  header = _npy("<f8", f"({(megabytes << 17) - 16},)")
  assert len(header) == 128
  packed, crc, _ = hostile_images.zeros(megabytes)
  # The header stands where zeros would.
  packer = zlib.compressobj(9, zlib.DEFLATED, -15)
  first = packer.compress(header + bytes((1 << 20) - 128))
  first += packer.flush(zlib.Z_FULL_FLUSH)
  size_of_block = (len(packed) - 2) // megabytes
  packed = first + packed[size_of_block:]
  size = megabytes << 20
  entries, directory = b"", b""
  for k in range(count):
    name = f"mu{k}.npy".encode()
    fields = struct.pack(
      "<5H3I2H", 20, 0, 8, 0, 0x21, crc, len(packed), size, len(name), 0
    )
    directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields
    directory += struct.pack("<3H2I", 0, 0, 0, 0, len(entries)) + name
    entries += b"PK\x03\x04" + fields + name + packed
  end = struct.pack(
    "<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(entries),
    0,
  )  # fmt: skip
  path.write_bytes(entries + directory + end)


def _npy(descr: str, shape: str, version: bytes = b"\x01\x00") -> bytes:
  text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
  width = 2 if version[0] == 1 else 4
  text = text.encode()
  text = text.ljust(max(127 - 8 - width, len(text))) + b"\n"
  return b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text


def _array(data: bytes, path: pathlib.Path) -> None:
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("mu.npy", data)


_ARRAYS = {
  "terabytes": _npy("<f8", "(10000000000000,)"),
  "an overflowing shape": _npy("<f8", "(4294967296, 4294967296, 4)"),
  "a negative shape": _npy("<f8", "(-1,)"),
  "a shape of bools": _npy("<f8", "(True,)") + bytes(8),
  "objects": _npy("|O", "(1,)") + b"cos\nsystem\n(S'true'\ntR.",
  "a long header": _npy("<f8", "(" + "1," * 50_000 + ")", b"\x02\x00"),
  "a deep header": _npy("<f8", "(" * 9000 + ")" * 9000),
  "a shape computed": _npy("<f8", "(2**99,)"),
  "a shape called": _npy("<f8", "(exit(),)"),
  "a huge item": _npy("<U500000000", "(1,)"),
  "a subarray": _npy("(1000000000,)f8", "(1,)"),
  "no array": b"hello" * 20,
}


def _header(text: bytes, path: pathlib.Path, rest: bytes = bytes(4)) -> None:
  path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def _entry(**values) -> bytes:
  entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | values
  return json.dumps({"a": entry}).encode()


_MILLIONS = b'{"":0},' * 3_000_000
_HEADERS = {
  "a deep header": b'{"a":' + b"[" * _MANY + b"]" * _MANY + b"}",
  "a deep key": _entry(x=0).replace(b"0}}", b"[" * 99 + b"]" * 99 + b"}}"),
  "a million dicts": _entry(x=0).replace(
    b"0}}", b"[" + _MILLIONS[: 7 * 10**6] + b"0]}}"
  ),
  "millions of dicts": _entry(x=0).replace(b"0}}", b"[" + _MILLIONS + b"0]}}"),
  "metadata in a list": b'{"__metadata__": [1]}',
  "a huge empty": _entry(shape=[0, 2**62], data_offsets=[0, 0]),
  "many axes": _entry(shape=[1] * 5000),
  "4 bits": _entry(dtype="F4", shape=[8]),
  "overlapping": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
  b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
  "metadata that is deep": json.dumps(
    {"__metadata__": {"gmem_jax": "[" * _MANY}}
  ).encode(),
}  # fmt: skip

_JSON = {
  "deep": b"[" * _MANY,
  "deep inside": b'{"weight_map": ' + b"[" * _MANY + b"]" * _MANY + b"}",
  "millions of dicts": b'{"a": [' + _MILLIONS + b"0]}",
  "large": b'{"a": "' + b"x" * (100 << 20) + b'"}',
  "a file above": b'{"weight_map": {"a": "../../../etc/passwd"}}',
  "a device": b'{"weight_map": {"a": "/dev/zero"}}',
  "itself": b'{"weight_map": {"a": "x.index.json"}}',
  "digits": b'{"weight_map": ' + b"9" * 5_000_000 + b"}",
  "no text": b'{"weight_map": "\xff\xfe"}',
}


def _each(
  made: dict[str, bytes], write: Callable[[bytes, pathlib.Path], object]
) -> dict[str, Maker]:
  return {name: functools.partial(write, data) for name, data in made.items()}


# Kind -> name -> what writes it.
CASES: dict[str, dict[str, Maker]] = {
  "torch": _each(_PICKLES, _pickle),
  "safetensors": _each(_HEADERS, _header),
  "numpy": _each(_ARRAYS, _array) | {
    "a bomb": lambda path: _bomb(path, 450),
    "a larger bomb": lambda path: _bomb(path, 1500),
    "many bombs": lambda path: _bomb(path, 100, count=40),
  },
  "json": _each(_JSON, lambda data, path: path.write_bytes(data)),
  "image": hostile_images.CASES,
}  # fmt: skip

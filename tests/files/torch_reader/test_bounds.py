"""What a small pickle may cost: time and memory stay in proportion to it."""

import struct

import pytest

from gmem_jax.files.torch_reader import torch_file
from tests.convert import helpers

# Multiples of this have the hash 0.
HASH = 2**61 - 1


def _global(module, name):
  return f"c{module}\n{name}\n".encode()


def _long(number):
  data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def _text(text):
  return b"X" + struct.pack("<I", len(text)) + text.encode()


def _float(number):
  return b"G" + struct.pack(">d", number)


def _doubling(levels):
  """A list that is twice in the next one, and so on; pushes the last one."""
  program = b"(]q\x00"
  for k in range(levels):
    program += b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1])
  return program + b"1h" + bytes([levels])


def _dict(keys):
  return b"}(" + b"".join(key + b"N" for key in keys) + b"u."


def _set(keys):
  return b"\x8f(" + b"".join(keys) + b"\x90."


def _load(tmp_path, program, **storages):
  path = tmp_path / "x.pth"
  helpers.zip_with_pickle(path, b"\x80\x04" + program, storages)
  return torch_file.load(path)


def _storage(kind, key):
  return b"(" + _text("storage") + kind + key + b"NK\x00tQ."


TENSOR = _global("torch._utils", "_rebuild_tensor_v2")
# Enough levels for a message of 50 MB, few enough for it to come.
LISTS = _doubling(22)
PRINTED = {
  "a storage's kind": _storage(LISTS, _text("0")),
  "a storage's key": _storage(_global("torch", "FloatStorage"), LISTS),
  "a persistent id": LISTS + b"Q.",
  "a size": TENSOR + b"(" + _storage(
    _global("torch", "FloatStorage"), _text("0"))[:-1] + b"K\x00" + LISTS
    + b")\x89NtR.",
  "a device": _global("torch", "device") + LISTS + b"\x85R.",
  "a dtype": _global("numpy", "dtype") + LISTS + b"\x85R.",
  "an encoding": _global("_codecs", "encode") + _text("a") + LISTS
    + b"\x86R.",
}  # fmt: skip


@pytest.mark.parametrize("what", PRINTED)
def test_a_message_does_not_write_out_what_a_file_made(tmp_path, what):
  with pytest.raises(torch_file.TorchFileError) as caught:
    _load(tmp_path, PRINTED[what], **{"0": b""})
  message = str(caught.value).replace(str(tmp_path), "")
  assert len(message) < 500
  assert "[[" in message, message


COLLIDING = {
  "integers": ([_long(k * HASH) for k in range(1, 2000)], "bits as a key"),
  "complex numbers": (
    [
      _global("builtins", "complex")
      + _float(-1000003.0 * k) + _float(float(k)) + b"\x86R"
      for k in range(1, 300)
    ],
    "more than 256 keys, one of them a complex",
  ),
  "tuples": (
    [_long(k) + b"\x85" for k in range(1, 300)],
    "more than 256 keys, one of them a tuple",
  ),
  "a long tuple": ([b"(" + b"N" * 1000 + b"t"], "a tuple as a key"),
  "a long string": ([_text("x" * 5000)], "a key of 5000 characters"),
  "a long integer": ([_long(1 << 1000)], "an integer of 1001 bits as a key"),
}  # fmt: skip


@pytest.mark.parametrize("container", [_dict, _set])
@pytest.mark.parametrize("what", COLLIDING)
def test_keys_of_one_hash_are_refused(tmp_path, what, container):
  keys, message = COLLIDING[what]
  with pytest.raises(torch_file.TorchFileError, match=message):
    _load(tmp_path, container(keys))


def test_keys_are_counted_over_instructions(tmp_path):
  one_by_one = b"}" + b"".join(_float(k) + b"Ns" for k in range(300)) + b"."
  with pytest.raises(torch_file.TorchFileError, match="more than 256 keys"):
    _load(tmp_path, one_by_one)
  as_items = b"".join(_float(k) + b"N\x86" for k in range(300))
  program = _global("collections", "OrderedDict") + b"](" + as_items
  with pytest.raises(torch_file.TorchFileError, match="more than 256 keys"):
    _load(tmp_path, program + b"e\x85R.")


def test_usual_keys_are_read(tmp_path):
  numbers = list(range(3000))
  value = _load(tmp_path, _dict([_long(k) for k in numbers]))
  assert list(value) == numbers
  value = _load(tmp_path, _dict([_text(f"layer.{k}") for k in numbers]))
  assert len(value) == 3000
  odd = [_float(0.5), _text("a") + _long(3) + b"\x86", b"N", b"\x88"]
  assert list(_load(tmp_path, _dict(odd))) == [0.5, ("a", 3), None, True]


COPIED = {
  "dicts": _global("collections", "OrderedDict") + b"q\x01]("
    + b"".join(_long(k) + b"N\x86" for k in range(1000)) + b"eq\x02",
  "sets": _global("builtins", "set") + b"q\x01]("
    + b"".join(_long(k) for k in range(1000)) + b"eq\x02",
  "sizes": _global("torch", "Size") + b"q\x01](" + b"K\x01" * 1000 + b"eq\x02",
  "bytes": _global("_codecs", "encode") + b"q\x01" + _text("x" * 1000)
    + b"q\x02",
}  # fmt: skip


@pytest.mark.parametrize("what", COPIED)
def test_calls_do_not_copy_more_than_the_file_holds(tmp_path, what):
  """Five bytes each make a copy of a thousand items."""
  program = COPIED[what] + b"(" + b"h\x01h\x02\x85R" * 2000 + b"t."
  with pytest.raises(torch_file.TorchFileError, match="copy many times"):
    _load(tmp_path, program)
  once = COPIED[what] + b"(" + b"h\x01h\x02\x85R" * 2 + b"t."
  first, second = _load(tmp_path, once)
  assert first == second


def test_a_tensor_has_as_many_axes_as_an_array(tmp_path):
  storage = _storage(_global("torch", "FloatStorage"), _text("0"))[:-1]
  ones = b"(" + b"K\x01" * 70 + b"t"
  program = TENSOR + b"(" + storage + b"K\x00" + ones + ones + b"\x89NtR."
  with pytest.raises(torch_file.TorchFileError, match=r"dimensions .* array"):
    _load(tmp_path, program, **{"0": b""})


@pytest.mark.parametrize("code", ["f8,O", "O", "f8" * 500, "V8", "M8", "f"])
def test_numpy_types_are_numbers(tmp_path, code):
  program = _global("numpy", "dtype") + _text(code) + b"\x85R."
  with pytest.raises(torch_file.TorchFileError, match="numpy arrays of"):
    _load(tmp_path, program)

"""Safetensors files that were damaged or made to harm, and 8-bit floats."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.files import safetensors_file

TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def _file(path, header, data=b"\0" * 4):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)
  return path


def _nested(depth):
  return (
    json.dumps({"a": {**TENSOR, "x": 0}})
    .encode()
    .replace(b'"x": 0', b'"x": ' + b"[" * depth + b"]" * depth)
  )


REFUSED = {
  "a deep header": (_nested(100_000), "recursion limit"),
  "a deep tensor": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "recursion"),
  "metadata in a list": ({"a": TENSOR, "__metadata__": [1]}, "expected a map"),
  "metadata of numbers": ({"__metadata__": {"a": 1}}, "expected a string"),
  "4-bit floats": (
    {"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}},
    "'a' is of type F4, .* save it as one of F64",
  ),
  "too many axes": (
    {"a": {**TENSOR, "shape": [1] * 100}},
    "'a' has the shape .*at most 64|supported dimension",
  ),
  "an impossible axis": (
    {"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
    "'a' has the shape .0, 9223372036854775808.",
  ),
  "NaN": (b'{"a": ' + b"NaN" + b"}", "damaged"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_file_is_named(tmp_path, what):
  header, message = REFUSED[what]
  data = b"" if "0, 0" in json.dumps(header, default=repr) else b"\0" * 4
  path = _file(tmp_path / "x.safetensors", header, data)
  with pytest.raises(ValueError, match=rf"x\.safetensors.*({message})") as e:
    safetensors_file.SafetensorsFile(path)
  assert len(str(e.value)) < 700


def test_a_long_name_is_cut_in_the_message(tmp_path):
  path = _file(tmp_path / "x", {"a" * 9999: {**TENSOR, "dtype": "F4",
                                             "shape": [8]}})  # fmt: skip
  with pytest.raises(ValueError, match=r"'aaa.*is of type F4") as e:
    safetensors_file.SafetensorsFile(path)
  assert len(str(e.value)) < 700


def test_the_header_is_bounded(tmp_path):
  path = tmp_path / "x.safetensors"
  size = safetensors_file._LARGEST + 1
  with path.open("wb") as file:
    file.write(struct.pack("<Q", size))
    file.truncate(size + 100)
  with pytest.raises(ValueError, match=f"a header of {size:,} bytes"):
    safetensors_file.SafetensorsFile(path)


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    ("F8_E4M3", ml_dtypes.float8_e4m3fn),
    ("F8_E5M2", ml_dtypes.float8_e5m2),
    ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
  ],
)
def test_8_bit_floats_are_read(tmp_path, name, dtype):
  values = np.array([0.5, -1.75, 3.0, 0.0]).astype(dtype)
  entry = {"dtype": name, "shape": [2, 2], "data_offsets": [0, 4]}
  path = _file(tmp_path / "x", {"a": entry}, values.tobytes())
  found = safetensors_file.SafetensorsFile(path).tensors["a"]
  assert found.dtype == dtype
  np.testing.assert_array_equal(
    found.astype(np.float32), values.reshape(2, 2).astype(np.float32)
  )

"""The reader of PyTorch files: what it reads, and what it says otherwise."""

import collections
import pathlib
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.convert import torch_export
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.files.torch_reader.torch_types import DTYPES
from tests.convert import helpers


@pytest.fixture
def saved(tmp_path):
  """Writes a value with our own writer and returns the path."""

  def save(value):
    path = tmp_path / "file.pth"
    torch_export.save(value, path)
    return path

  return save


def test_reads_what_the_writer_writes(saved):
  value = {
    **{n: np.array([1, 2, 4]).astype(d) for n, (d, _) in DTYPES.items()},
    "matrix": np.arange(6.0).reshape(2, 3),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), ml_dtypes.bfloat16),
    "plain": [None, True, False, 3, -(2**70), 1.5, "tëxt", (1, ("a",)), {}],
    5: "number as a key",
  }
  file = torch_file.TorchFile(saved(value))
  file.verify()
  helpers.assert_same(file.value, value)


def test_tensors_are_read_only_views_of_a_map(saved):
  tensor = torch_file.load(saved(np.ones(1000, np.float32)))
  assert not tensor.flags.owndata
  with pytest.raises(ValueError, match="read-only"):
    tensor[0] = 0


def test_transposed_arrays_are_written_by_value(saved):
  array = np.arange(12, dtype=np.int32).reshape(3, 4)
  np.testing.assert_array_equal(torch_file.load(saved(array.T)), array.T)


def test_tensors_are_written_aligned(saved):
  """So that PyTorch can map them."""
  path = saved({name: np.ones(n, np.uint8) for n, name in enumerate("abcde")})
  value = torch_file.load(path)
  starts = [value[name].__array_interface__["data"][0] for name in "bcde"]
  assert {start % 64 for start in starts} == {0}
  assert len(set(starts)) == 4


def test_the_writer_refuses_what_torch_has_not(saved, tmp_path):
  with pytest.raises(TypeError, match="cannot write a set"):
    saved({"a": {1}})
  with pytest.raises(TypeError, match="no tensors of"):
    saved(np.array(["text"]))
  assert not list(tmp_path.iterdir())
  path = saved(np.ones(1))
  with pytest.raises(FileExistsError):
    torch_export.save(np.ones(1), path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_opening_reads_only_the_index(saved):
  tensors = {f"k{i}": np.ones((1024, 1024), np.float32) for i in range(40)}
  path = saved(tensors)
  before = _bytes_read()
  value = torch_file.load(path)
  read = _bytes_read() - before + _resident(path)
  assert read < path.stat().st_size / 100, read
  # The measure sees what is read.
  assert value["k3"].sum() == 2**20
  assert _resident(path) >= 4 * 2**20


def _bytes_read() -> int:
  text = pathlib.Path("/proc/self/io").read_text()
  return int(text.split("rchar: ")[1].split()[0])


def _resident(path: pathlib.Path) -> int:
  """Bytes of a mapped file that are in this process's memory."""
  lines = pathlib.Path("/proc/self/smaps").read_text().splitlines()
  start = next(k for k, line in enumerate(lines) if line.endswith(str(path)))
  size = next(line for line in lines[start:] if line.startswith("Rss:"))
  return 1024 * int(size.split()[1])


def tensor_program(offset, size, stride, numel=6, storage="FloatStorage"):
  """A pickle of one tensor, which may lie about its storage."""
  writer = torch_export._PickleWriter()
  return (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("
    + writer._all(["storage"])
    + f"ctorch\n{storage}\n".encode()
    + writer._all(["0", "cpu", numel])
    + b"tQ"
    + writer._all([offset, size, stride, False])
    + b"ccollections\nOrderedDict\n)RtR."
  )


def test_views_strides_and_shared_storages(tmp_path):
  data = np.arange(6, dtype=np.float32)
  for offset, size, stride, expected in (
    (0, (2, 3), (3, 1), data.reshape(2, 3)),
    (0, (3, 2), (1, 3), data.reshape(2, 3).T),
    (1, (2, 2), (3, 1), data.reshape(2, 3)[:, 1:]),
    (0, (3,), (2,), data[::2]),
    (4, (), (), data[4]),
    (2, (4,), (0,), np.full(4, data[2])),
    (9, (0, 3), (3, 1), np.zeros((0, 3))),
  ):
    path = helpers.zip_with_pickle(
      tmp_path / "view.pth",
      tensor_program(offset, size, stride),
      {"0": data.tobytes()},
    )
    np.testing.assert_array_equal(torch_file.load(path), expected)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"offset": 1}, "outside its storage"),
    ({"size": (2, 4)}, "outside its storage"),
    ({"stride": (4, 1)}, "outside its storage"),
    ({"offset": -1}, "offset -1 is not a size"),
    ({"stride": (-3, 1)}, "stride -3 is not a size"),
    ({"size": (-2, 3)}, "dimension -2 is not a size"),
    ({"size": (2, True)}, "dimension True is not a size"),
    ({"size": (2, 1.0)}, r"dimension 1.0 is not a size"),
    ({"size": (2**62, 2**62)}, "is not a size"),
    ({"size": (2**61, 2**61)}, "outside its storage"),
    ({"size": [2, 3]}, r"dimensions \[2, 3\] are not those of an array"),
    ({"stride": (1,)}, "with strides"),
    ({"numel": 7}, "should have 28 bytes, has 24"),
    ({"numel": -1}, "storage size -1"),
    ({"storage": "DoubleStorage"}, "should have 48 bytes, has 24"),
    ({"storage": "QInt8Storage"}, "QInt8Storage"),
  ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, change, message):
  arguments = {"offset": 0, "size": (2, 3), "stride": (3, 1), **change}
  path = helpers.zip_with_pickle(
    tmp_path / "lie.pth",
    tensor_program(**arguments),
    {"0": np.arange(6, dtype=np.float32).tobytes()},
  )
  with pytest.raises(torch_file.TorchFileError, match=message):
    torch_file.load(path)


def test_a_missing_storage_is_named(tmp_path):
  program = tensor_program(0, (2, 3), (3, 1))
  path = helpers.zip_with_pickle(tmp_path / "x.pth", program, {"1": b"abcd"})
  with pytest.raises(torch_file.TorchFileError, match="storage '0' is missing"):
    torch_file.load(path)


def test_other_classes_are_refused_by_name(tmp_path):
  value = {
    "path": pathlib.PurePosixPath("a"),
    "counter": collections.Counter("ab"),
    "ordered": collections.OrderedDict(a=3),
  }
  path = helpers.zip_with_pickle(tmp_path / "x.pth", pickle.dumps(value, 2))
  with pytest.raises(torch_file.TorchFileError) as error:
    torch_file.load(path)
  assert "pathlib.PurePosixPath" in str(error.value)
  assert "collections.Counter" in str(error.value)
  # What is accepted is not accused.
  assert "OrderedDict" not in str(error.value)
  assert "torch.save(" in str(error.value)


def test_numpy_numbers_are_read(tmp_path):
  value = {
    "array": np.arange(6, dtype=">i4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.float64(2.5),
  }
  for protocol in (2, 3, 4):
    program = pickle.dumps(value, protocol)
    path = helpers.zip_with_pickle(tmp_path / "x.pth", program)
    ours = torch_file.load(path)
    for name, array in value.items():
      np.testing.assert_array_equal(ours[name], array)


def test_files_of_other_kinds_say_what_they_are(tmp_path):
  path = tmp_path / "x.pth"
  old = bytes(257) + b"ustar" + bytes(300)
  for content, message in (
    (old, r"before version 0.1.10. Re-save it with PyTorch: torch.save"),
    (b"", "the file is empty"),
    (b"hello, world", "not a PyTorch file, it begins with b'hello, world'"),
    (b"PK\x03\x04" + bytes(100), "cut off: 104 bytes of a zip"),
  ):
    path.write_bytes(content)
    with pytest.raises(torch_file.TorchFileError, match=message):
      torch_file.load(path)
  with pytest.raises(FileNotFoundError):
    torch_file.load(tmp_path / "absent.pth")


def test_checksums_are_compared(saved):
  path = saved({"a": np.arange(1000, dtype=np.float32), "b": np.ones(3)})
  data = bytearray(path.read_bytes())
  data[data.index(np.arange(500, 510, dtype=np.float32).tobytes())] ^= 1
  path.write_bytes(data)
  file = torch_file.TorchFile(path)
  with pytest.raises(torch_file.TorchFileError, match=r"of archive/data/0$"):
    file.verify()


@pytest.mark.golden
def test_golden_files_are_read_whole(golden_dir):
  for path in helpers.golden_files(golden_dir):
    file = torch_file.TorchFile(path)
    file.verify()
    arrays = list(_arrays(file.value))
    assert arrays, path
    assert all(np.isfinite(a).all() for a in arrays), path


def _arrays(value):
  if isinstance(value, np.ndarray):
    yield value
  elif isinstance(value, dict):
    for child in value.values():
      yield from _arrays(child)

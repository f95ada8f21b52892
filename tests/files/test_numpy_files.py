"""Numpy's files: read as numpy reads them, and bounded where it is not."""

import io
import re
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.files import numpy_files

ARRAYS = {
  "rows": np.arange(12.0).reshape(3, 4),
  "columns": np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4)),
  "number": np.array(3),
  "nothing": np.zeros((0, 5), np.float32),
  "text": np.array(["a", "bcd"]),
}


def _same(ours, theirs):
  assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_as_numpy_reads_it(tmp_path, save):
  path = tmp_path / "x.npz"
  save(path, **ARRAYS)
  read = numpy_files.read_npz(path)
  assert list(read) == list(ARRAYS)
  with numpy_files.opened(path) as npz:
    mapped = {name: npz.mapped(name) for name in npz.names}
  for name, array in ARRAYS.items():
    _same(read[name], array)
    _same(mapped[name], array)
    assert read[name].flags.f_contiguous == array.flags.f_contiguous
  assert isinstance(mapped["rows"], np.memmap) == (save is np.savez)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_npy_is_read_as_numpy_reads_it(tmp_path, name):
  path = tmp_path / "x.npy"
  np.save(path, ARRAYS[name])
  _same(numpy_files.read_npy(path), ARRAYS[name])
  _same(numpy_files.read_npy(path, mapped=True), ARRAYS[name])


def _npy(header, version=1):
  if isinstance(header, str):
    form = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {header}, }}"
    header = form.encode().ljust(117) + b"\n"
  return (
    b"\x93NUMPY"
    + bytes([version, 0])
    + struct.pack("<H", len(header))
    + (header)
  )


def _saved(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


DAMAGED = {
  "no array": (b"hello" * 20, "is no array"),
  "empty": (b"", "is no array"),
  "terabytes": (_npy("(10000000000000,)"), "but 0 bytes follow"),
  "cut": (_saved(np.arange(9.0))[:-8], "but 64 bytes follow"),
  "longer": (_saved(np.arange(9.0)) + b"12345678", "but 80 bytes follow"),
  "negative": (_npy("(-1, -1)"), r"the shape \(-1, -1\)"),
  "brackets": (_npy(b"[(" * 50 + b"\n"), "the header of .* is damaged"),
  "deep": (_npy(b"[" * 9000 + b"\n"), "the header of .* is damaged"),
  "nameless": (_npy(b"\n"), "the header of .* is damaged"),
  "version": (_npy("()", version=7), "format version"),
  "objects": (_saved(np.array([{}], object)), "not plain values"),
  "fields": (_saved(np.zeros(3, "f4,i4")), "not plain values"),
  "no bytes": (_saved(np.zeros(3, "V0")), "not plain values"),
  "many axes": (_npy(f"({'1,' * 70})") + bytes(8), "."),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_array_is_named(tmp_path, name):
  data, message = DAMAGED[name]
  path = tmp_path / "x.npz"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("mu.npy", data)
  with pytest.raises(ValueError, match=rf"x\.npz.*{message}"):
    numpy_files.read_npz(path)
  path = tmp_path / "x.npy"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=rf"x\.npy.*{message}"):
    numpy_files.read_npy(path)


@pytest.mark.parametrize(
  "dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
)
def test_floats_whose_type_is_lost_are_named(tmp_path, dtype):
  array = np.ones(3).astype(getattr(ml_dtypes, dtype))
  np.save(tmp_path / "x.npy", array)
  np.savez(tmp_path / "x.npz", mu=array)
  for read, name in (("npy", "it"), ("npz", "'mu'")):
    with pytest.raises(
      ValueError, match=r"save (it|those) as float32"
    ) as error:
      getattr(numpy_files, f"read_{read}")(tmp_path / f"x.{read}")
    assert f"x.{read} is no plain numpy file" in str(error.value)
    assert name in str(error.value)


def _packed(array, method=zipfile.ZIP_DEFLATED, times=1):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as archive:
    for k in range(times):
      archive.writestr(f"m{k}.npy", _saved(array))
  return bytearray(file.getvalue())


def _damaged(place):
  data = _packed(np.random.default_rng(0).normal(size=100))
  data[place] ^= 0xFF
  return data


DAMAGED_ZIPS = {
  "no zip": (b"PK\x03\x04 and then no more", "not a zip file"),
  "lzma": (_packed(np.ones(9), zipfile.ZIP_LZMA), "compressed otherwise"),
  "bzip2": (_packed(np.ones(9), zipfile.ZIP_BZIP2), "compressed otherwise"),
  "deflate": (_damaged(60), "damaged: "),
  "checksum": (_damaged(400), "damaged: "),
}


@pytest.mark.parametrize("name", DAMAGED_ZIPS)
def test_a_damaged_zip_is_named(tmp_path, name):
  data, message = DAMAGED_ZIPS[name]
  path = tmp_path / "x.npz"
  path.write_bytes(data)
  with pytest.raises(
    ValueError, match=rf"x\.npz is no plain numpy file.*{message}"
  ):
    numpy_files.read_npz(path)


def test_a_name_may_not_come_twice(tmp_path):
  path = tmp_path / "x.npz"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("mu.npy", _saved(np.zeros(3)))
    with pytest.warns(UserWarning, match="Duplicate"):
      archive.writestr("mu.npy", _saved(np.ones(3)))
  with pytest.raises(ValueError, match="a name is in it twice"):
    numpy_files.read_npz(path)


def test_what_is_unpacked_is_bounded_in_sum(tmp_path, monkeypatch):
  monkeypatch.setattr(numpy_files, "UNPACKED", 1 << 20)
  path = tmp_path / "x.npz"
  path.write_bytes(_packed(np.zeros(1000), times=100))
  assert len(numpy_files.read_npz(path)) == 100
  path.write_bytes(_packed(np.zeros(1000), times=150))
  size = path.stat().st_size
  expected = rf"unpack to {150 * 8128:,} bytes, many times its own {size:,}"
  with pytest.raises(ValueError, match=re.escape(expected)):
    numpy_files.read_npz(path)


def test_an_absent_file_is_absent(tmp_path):
  with pytest.raises(FileNotFoundError):
    numpy_files.read_npz(tmp_path / "x.npz")
  with pytest.raises(FileNotFoundError):
    numpy_files.read_npy(tmp_path / "x.npy")

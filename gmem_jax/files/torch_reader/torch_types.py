"""What the names inside a PyTorch pickle mean: dtypes, tensors, containers.

`known` is the complete list of names that have a meaning. Every function in it
checks its arguments, which come from the file, and only makes views, numbers,
strings and plain containers.
"""

import dataclasses
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from gmem_jax.files import shown
from gmem_jax.files.torch_reader import inert_pickle, pickle_keys
from gmem_jax.files.torch_reader.pickle_keys import PickleError

# Names of torch's dtypes and, for those that have one, of the storage class.
DTYPES: dict[str, tuple[Any, str | None]] = {
  "float32": (np.float32, "FloatStorage"),
  "float64": (np.float64, "DoubleStorage"),
  "float16": (np.float16, "HalfStorage"),
  "bfloat16": (ml_dtypes.bfloat16, "BFloat16Storage"),
  "int64": (np.int64, "LongStorage"),
  "int32": (np.int32, "IntStorage"),
  "int16": (np.int16, "ShortStorage"),
  "int8": (np.int8, "CharStorage"),
  "uint8": (np.uint8, "ByteStorage"),
  "bool": (np.bool_, "BoolStorage"),
  "complex64": (np.complex64, "ComplexFloatStorage"),
  "complex128": (np.complex128, "ComplexDoubleStorage"),
  "uint16": (np.uint16, None),
  "uint32": (np.uint32, None),
  "uint64": (np.uint64, None),
  "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, None),
  "float8_e5m2": (ml_dtypes.float8_e5m2, None),
  "float8_e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, None),
  "float8_e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, None),
  "float8_e8m0fnu": (ml_dtypes.float8_e8m0fnu, None),
}
# Numpy's own limit.
_MAX_AXES = 64


@dataclasses.dataclass(frozen=True)
class StorageType:
  """The meaning of the name of a storage class."""

  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Storage:
  """A run of `numel` elements that begins at byte `start` of the file."""

  dtype: np.dtype
  numel: int
  start: int

  def check(self, available: int, name: Any) -> None:
    """Raises PickleError unless it fits into the available bytes."""
    size = _int(self.numel, "storage size") * self.dtype.itemsize
    if size > available:
      raise PickleError(
        f"storage {shown.value(name)} should have {size} bytes, has"
        f" {available}: the file is cut off or damaged"
      )


def _int(value: Any, what: str) -> int:
  # A bool is an int to isinstance, and numpy computes in 64 bits.
  if type(value) is not int or not 0 <= value < 2**62:
    raise PickleError(f"{what} {shown.value(value)} is not a size")
  return value


def storage(pid: Any) -> tuple[Any, ...]:
  """The persistent id of a storage, without its tag: (type, key, ..)."""
  # Six parts in old files. Ids may repeat, so a long one would cost its square.
  if (
    not isinstance(pid, tuple)
    or not 3 <= len(pid) <= 6
    or (pid[0] != "storage")
  ):
    raise PickleError(f"a persistent id {shown.value(pid)}")
  _, kind, key, *rest = pid
  if not isinstance(kind, StorageType):
    raise PickleError(f"a storage of kind {shown.value(kind)}")
  if not isinstance(key, str):
    raise PickleError(f"a storage with the key {shown.value(key)}")
  return kind, key, *rest


def _sizes(value: Any, what: str) -> tuple[int, ...]:
  if not isinstance(value, tuple) or len(value) > _MAX_AXES:
    raise PickleError(f"{what}s {shown.value(value)} are not those of an array")
  return tuple(_int(n, what) for n in value)


def _tensor(
  buffer: Any,
  storage: Any,
  offset: Any,
  size: Any,
  stride: Any,
  dtype: np.dtype | None = None,
) -> np.ndarray:
  """A view of a storage, checked to lie inside it."""
  if not isinstance(storage, Storage):
    raise PickleError("a tensor without a storage")
  shape, steps = _sizes(size, "dimension"), _sizes(stride, "stride")
  offset, dtype = _int(offset, "offset"), dtype or storage.dtype
  if len(shape) != len(steps):
    raise PickleError(f"shape {shape} with strides {steps}")
  numel = storage.numel * storage.dtype.itemsize // dtype.itemsize
  last = offset + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
  # Nothing of it is read, so any offset does.
  if math.prod(shape) == 0:
    return np.empty(shape, dtype)
  if last >= numel:
    raise PickleError(
      f"a tensor of shape {shape}, strides {steps}, offset {offset} is"
      f" outside its storage of {numel} elements"
    )
  start = storage.start + offset * dtype.itemsize
  strides = tuple(s * dtype.itemsize for s in steps)
  # Read-only, as the map is.
  return np.ndarray(shape, dtype, buffer, start, strides)


class _NumpyDtype(inert_pickle.Pending):
  """numpy.dtype(code), completed with its byte order."""

  def __init__(self, code: Any, *_):
    # Numbers only: the bytes of an array of objects would be pointers.
    if not isinstance(code, str) or not re.fullmatch(r"\?|[biufc]\d+", code):
      raise PickleError(f"numpy arrays of {shown.value(code)}")
    self.dtype = np.dtype(code)

  def build(self, state: Any) -> np.dtype:
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if order not in ("<", ">", "=", "|"):
      raise PickleError(f"numpy byte order {shown.value(order)}")
    return self.dtype.newbyteorder(order)


class _NumpyArray(inert_pickle.Pending):
  """An array of numbers, completed with its shape, dtype and bytes."""

  def __init__(self, *_):
    """Takes the empty shape that numpy writes ahead of the state."""

  def build(self, state: Any) -> np.ndarray:
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
      raise PickleError("a numpy array that is not of numbers")
    shape = _sizes(shape, "dimension")
    flat = np.frombuffer(data, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _numpy_scalar(dtype: Any, data: Any) -> Any:
  if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
    raise PickleError("a numpy scalar that is not a number")
  return np.frombuffer(data, dtype, 1)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
  # How Python 3 writes bytes in protocol 2.
  if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
    raise PickleError(f"bytes in the encoding {shown.value(encoding)}")
  return text.encode("latin-1")


def _items(value: Any = ()) -> tuple[Any, ...]:
  if not isinstance(value, (list, tuple)):
    raise TypeError(f"no items but a {type(value).__name__}")
  return tuple(value)


def _pairs(items: Any = ()) -> dict[Any, Any]:
  """An OrderedDict; our dicts are ordered as well."""
  keys = pickle_keys.checked_keys(key for key, _ in _items(items))
  return dict(zip(keys, (value for _, value in items), strict=True))


def _members(items: Any = ()) -> set[Any]:
  return set(pickle_keys.checked_keys(_items(items)))


def _complex(real: Any, imaginary: Any) -> complex:
  if not isinstance(real, float) or not isinstance(imaginary, float):
    raise PickleError("a complex number that is not made of two floats")
  return complex(real, imaginary)


def _device(kind: Any, index: Any = None) -> str:
  if not isinstance(kind, str):
    raise PickleError(f"a device {shown.value(kind)}")
  return kind if index is None else f"{kind}:{_int(index, 'device index')}"


def _parameter(data: Any, *_) -> np.ndarray:
  if not isinstance(data, np.ndarray):
    raise PickleError("a Parameter without a tensor")
  return data


def known(buffer: Any) -> dict[str, Any]:
  """The names that the reader accepts; tensors become views of the buffer.

  Returns:
    "module.name" -> a function that checks its arguments, or a value.
  """

  def tensor_v2(
    storage, offset, size, stride, grad=None, hooks=None, meta=None
  ):
    del grad, hooks
    if meta:
      raise PickleError(
        f"a tensor with the lazy operations {shown.value(meta)}"
      )
    return _tensor(buffer, storage, offset, size, stride)

  def tensor_v3(storage, offset, size, stride, grad, hooks, dtype, meta=None):
    del grad, hooks
    if meta or not isinstance(dtype, np.dtype):
      raise PickleError(
        f"a tensor of dtype {shown.value(dtype)} with {shown.value(meta)}"
      )
    return _tensor(buffer, storage, offset, size, stride, dtype)

  names = {
    "collections.OrderedDict": _pairs,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor": tensor_v2,
    "torch._utils._rebuild_tensor_v2": tensor_v2,
    "torch._utils._rebuild_tensor_v3": tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _items,
    "torch.device": _device,
    "torch.storage.UntypedStorage": StorageType(np.dtype(np.uint8)),
    "torch.UntypedStorage": StorageType(np.dtype(np.uint8)),
    "numpy.ndarray": None,
    "numpy.dtype": _NumpyDtype,
  }
  for module in ("builtins", "__builtin__"):
    names[f"{module}.set"] = _members
    names[f"{module}.frozenset"] = lambda items=(): frozenset(_members(items))
    names[f"{module}.complex"] = _complex
  for core in ("numpy.core", "numpy._core"):
    names[f"{core}.multiarray._reconstruct"] = _NumpyArray
    names[f"{core}.multiarray.scalar"] = _numpy_scalar
  for name, (dtype, storage) in DTYPES.items():
    names[f"torch.{name}"] = np.dtype(dtype)
    if storage is not None:
      names[f"torch.{storage}"] = StorageType(np.dtype(dtype))
      names[f"torch.cuda.{storage}"] = StorageType(np.dtype(dtype))
  return names

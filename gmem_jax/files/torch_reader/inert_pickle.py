"""Reads a pickle without running it.

Python's own unpickler is a machine that calls whatever the file names. This one
has no instruction that imports, calls or sets an attribute: a global is a name,
and the only "calls" are lookups in a table of functions the reader passes in.
Everything else becomes an inert `Opaque` record, which `load` then refuses by
name unless it is told to keep them.

Memory and time are bounded by the size of the pickle: instructions that name a
length are checked against the bytes that remain, and memo indices are keys of a
dict, not positions in an array.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SCALARS = (str, bytes, int, float, bool, complex, type(None))
_MARK = object()
# Opcodes whose argument is the value.
_LITERALS = frozenset(
  {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
  }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_TUPLE": tuple,
  "EMPTY_LIST": list,
  "EMPTY_DICT": dict,
  "EMPTY_SET": set,
  "MARK": lambda: _MARK,
}


class PickleError(ValueError):
  """The pickle is damaged, or holds what this reader does not accept."""


@dataclasses.dataclass(eq=False)
class Opaque:
  """An object of a class or function that was named but never touched.

  Attributes:
    name: "module.name" as the pickle writes it.
    args: the arguments it would have been called with; None for a bare name.
    state: what its attributes would have been set from.
    items: what would have been appended to it.
  """

  name: str
  args: Any = None
  state: Any = None
  items: list[Any] = dataclasses.field(default_factory=list)

  def __repr__(self) -> str:
    return f"<opaque {self.name}>"


@dataclasses.dataclass(frozen=True)
class _Known:
  """A name that the caller's table gives a meaning."""

  name: str
  meaning: Any


class Pending:
  """A value that a BUILD instruction completes, replacing this one."""

  memo_key: int | None = None

  def build(self, state: Any) -> Any:
    """Returns the finished value."""
    raise NotImplementedError


def checked_key(value: Any) -> Any:
  """Checks a dict key or set member: hashing it must be cheap and ours."""
  parts = value if isinstance(value, tuple) else (value,)
  if not all(isinstance(p, (*_SCALARS, Opaque)) for p in parts):
    raise PickleError(f"a {type(value).__name__} as a key of a dict or set")
  return value


class _Machine:
  """The stack machine; `run` returns the value and the names it refused."""

  def __init__(self, known: Mapping[str, Any], persistent: Callable):
    self._known, self._persistent = known, persistent
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self.opaque_names: dict[str, None] = {}

  def run(self, data: bytes) -> Any:
    for opcode, arg, _ in pickletools.genops(data):
      name = opcode.name
      if name in _LITERALS:
        self._stack.append(arg)
      elif name in _CONSTANTS:
        self._stack.append(_CONSTANTS[name]())
      elif name == "STOP":
        return self._plain(self._stack.pop())
      else:
        handler = getattr(self, f"_op_{name.lower()}", None)
        if handler is None:
          raise PickleError(f"instruction {name} is not accepted")
        handler(arg)
    raise PickleError("no STOP instruction")

  def _plain(self, value: Any) -> Any:
    """A bare known name used as a value is a name like any other."""
    if isinstance(value, _Known) and callable(value.meaning):
      return self._opaque(value.name)
    return value.meaning if isinstance(value, _Known) else value

  def _opaque(self, name: str, args: Any = None) -> Opaque:
    self.opaque_names[name] = None
    return Opaque(name, args)

  def _pop_to_mark(self) -> list[Any]:
    for start in range(len(self._stack) - 1, -1, -1):
      if self._stack[start] is _MARK:
        values = [self._plain(v) for v in self._stack[start + 1 :]]
        del self._stack[start:]
        return values
    raise PickleError("no mark on the stack")

  # Structure.
  def _op_proto(self, version: int):
    if version > 5:
      raise PickleError(f"pickle protocol {version} is newer than 5")

  def _op_frame(self, _):
    pass

  def _op_pop(self, _):
    self._stack.pop()

  def _op_pop_mark(self, _):
    self._pop_to_mark()

  def _op_dup(self, _):
    self._stack.append(self._stack[-1])

  def _op_put(self, index: int):
    value = self._memo[index] = self._stack[-1]
    if isinstance(value, Pending):
      value.memo_key = index

  _op_binput = _op_long_binput = _op_put

  def _op_memoize(self, _):
    self._op_put(len(self._memo))

  def _op_get(self, index: int):
    self._stack.append(self._memo[index])

  _op_binget = _op_long_binget = _op_get

  # Containers.
  def _tuple(self, n: int):
    values = tuple(self._plain(v) for v in self._stack[-n:])
    if len(values) != n or any(v is _MARK for v in values):
      raise PickleError("stack too short for a tuple")
    self._stack[-n:] = [values]

  def _op_tuple1(self, _):
    self._tuple(1)

  def _op_tuple2(self, _):
    self._tuple(2)

  def _op_tuple3(self, _):
    self._tuple(3)

  def _op_tuple(self, _):
    self._stack.append(tuple(self._pop_to_mark()))

  def _op_list(self, _):
    self._stack.append(self._pop_to_mark())

  def _op_dict(self, _):
    values = self._pop_to_mark()
    self._stack.append({})
    self._set_items(values)

  def _op_frozenset(self, _):
    self._stack.append(frozenset(map(checked_key, self._pop_to_mark())))

  def _extend(self, values: Sequence[Any]):
    target = self._stack[-1]
    if isinstance(target, Opaque):
      target.items += values
    elif isinstance(target, list):
      target += values
    else:
      raise PickleError(f"append to a {type(target).__name__}")

  def _op_append(self, _):
    self._extend([self._plain(self._stack.pop())])

  def _op_appends(self, _):
    self._extend(self._pop_to_mark())

  def _op_additems(self, _):
    values = self._pop_to_mark()
    if not isinstance(self._stack[-1], set):
      raise PickleError(f"add to a {type(self._stack[-1]).__name__}")
    self._stack[-1].update(map(checked_key, values))

  def _set_items(self, values: Sequence[Any]):
    target = self._stack[-1]
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if isinstance(target, Opaque):
      target.items += pairs
    elif isinstance(target, dict):
      target.update((checked_key(k), v) for k, v in pairs)
    else:
      raise PickleError(f"set an item of a {type(target).__name__}")

  def _op_setitem(self, _):
    value, key = self._stack.pop(), self._stack.pop()
    self._set_items([self._plain(key), self._plain(value)])

  def _op_setitems(self, _):
    self._set_items(self._pop_to_mark())

  # Names, and what stands for calls.
  def _global(self, module: Any, name: Any):
    if not isinstance(module, str) or not isinstance(name, str):
      raise PickleError("a global whose name is not a string")
    full = f"{module}.{name}"
    if full in self._known:
      self._stack.append(_Known(full, self._known[full]))
    else:
      self._stack.append(self._opaque(full))

  def _op_global(self, arg: str):
    self._global(*arg.split(" ", 1))

  def _op_stack_global(self, _):
    name, module = self._stack.pop(), self._stack.pop()
    self._global(module, name)

  def _op_reduce(self, _):
    args, function = self._stack.pop(), self._stack.pop()
    if isinstance(function, _Known) and callable(function.meaning):
      if not isinstance(args, tuple):
        raise PickleError(f"arguments of {function.name} are not a tuple")
      try:
        self._stack.append(function.meaning(*args))
      except TypeError as e:
        raise PickleError(f"arguments of {function.name}: {e}") from None
    elif isinstance(function, Opaque):
      self._stack.append(self._opaque(function.name, args))
    else:
      raise PickleError(f"a call of a {type(function).__name__}")

  _op_newobj = _op_reduce

  def _op_newobj_ex(self, _):
    kwargs, args = self._stack.pop(), self._stack.pop()
    self._stack.append((args, kwargs))
    self._op_reduce(None)

  def _op_inst(self, arg: str):
    args = tuple(self._pop_to_mark())
    self._global(*arg.split(" ", 1))
    self._stack.append(args)
    self._op_reduce(None)

  def _op_obj(self, _):
    values = self._pop_to_mark()
    self._stack += [values[0], tuple(values[1:])]
    self._op_reduce(None)

  def _op_build(self, _):
    state, target = self._plain(self._stack.pop()), self._stack[-1]
    if isinstance(target, Opaque):
      target.state = state
    elif isinstance(target, Pending):
      value = self._stack[-1] = target.build(state)
      if target.memo_key is not None:
        self._memo[target.memo_key] = value
    elif not isinstance(target, dict):  # attributes of a dict are dropped
      raise PickleError(f"attributes of a {type(target).__name__}")

  def _op_binpersid(self, _):
    self._stack.append(self._persistent(self._stack.pop()))


def load(
  data: bytes,
  *,
  known: Mapping[str, Any],
  persistent: Callable[[Any], Any],
  allow_opaque: bool = False,
) -> Any:
  """Reads a pickle into plain containers, numbers, strings and known values.

  Args:
    data: the pickle, any protocol up to 5.
    known: "module.name" to its meaning: a function that makes the value from
      arguments it must check itself, or the value of the bare name.
    persistent: makes the value of a persistent id.
    allow_opaque: keep other classes as `Opaque` records instead of refusing.

  Returns:
    The value.

  Raises:
    PickleError: damaged, or names other classes and `allow_opaque` is False.
  """
  machine = _Machine(known, persistent)
  try:
    value = machine.run(data)
  except PickleError:
    raise
  except (ValueError, LookupError, TypeError, OverflowError) as e:
    raise PickleError(f"damaged pickle: {e}") from e
  if machine.opaque_names and not allow_opaque:
    raise PickleError(
      f"refused to load {', '.join(machine.opaque_names)}: only tensors, plain "
      "containers, numbers and strings are read. With --allow-opaque such "
      "objects become inert records and the tensors beside them can be used"
    )
  return value

"""Reads a pickle without running it.

Python's own unpickler calls whatever the file names. This one cannot import,
call or set an attribute: a global is a name, and the only "calls" are look-ups
in a table of functions that the reader passes in. Any other name is refused.

A `pickle.Unpickler` with `find_class` overridden restricts the names only. It
still sets attributes, and it takes memory by the file's word: in CPython nine
bytes with the memo index 2^28 take 4 GB. Here memory and time are bounded by
the size of the pickle:

- instructions that name a length are checked against the bytes that remain;
- memo indices are keys of a dict, not places in an array;
- keys are cheap to hash and to compare, and few can have the same hash;
- what calls copy, which two bytes of a memo can repeat, is counted.

A value may still name another many times over, so that to walk or print it
takes for ever. `files.shown` prints such values.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from gmem_jax.files import shown
from gmem_jax.files.torch_reader.pickle_keys import checked_keys, PickleError

# What a call can copy.
_COPIED = (str, bytes, tuple, list, dict, set, frozenset)
_MARK = object()
# A memo index takes four bytes, except in protocol 0.
_MEMO = 2**32
# Items that calls may copy for each byte of the pickle.
_COPIES = 8
# Names of classes that a message lists, and their characters.
_NAMED, _LONGEST = 20, 200
# Opcodes whose argument is the value.
_LITERALS = {
  "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4",
  "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
  "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
  "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
# Opcodes that push a new value each time.
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


@dataclasses.dataclass(frozen=True)
class _Function:
  """A function of the caller's table, under the name that the file uses."""

  name: str
  call: Callable


class Pending:
  """A value that a BUILD instruction completes, replacing this one."""

  memo_key: int | None = None

  def build(self, state: Any) -> Any:
    """Returns the finished value."""
    raise NotImplementedError


class _Machine:
  """The stack machine: one method for each instruction that it accepts."""

  def __init__(
    self, data: bytes, known: Mapping[str, Any], persistent: Callable
  ):
    self._data, self._known, self._persistent = data, known, persistent
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self._copies = _COPIES * len(data)

  def run(self) -> Any:
    """Runs to the STOP instruction and returns the value."""
    for opcode, arg, _ in pickletools.genops(self._data):
      name = opcode.name
      if name in _LITERALS:
        self._stack.append(arg)
      elif name in _CONSTANTS:
        self._stack.append(_CONSTANTS[name]())
      elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        self._tuple(int(name[-1]))
      elif name == "STOP":
        return self._value(self._stack.pop())
      else:
        handler = getattr(self, f"_op_{name.lower()}", None)
        if handler is None:
          raise PickleError(f"instruction {name} is not accepted")
        handler(arg)
    raise PickleError("no STOP instruction")

  def _refuse(self, name: str) -> NoReturn:
    """Names all that is foreign, so that one look at the file is enough."""
    # Files of torch.save have protocol 2, where names are arguments of these
    # instructions. Of later protocols, which keep them on the stack, only the
    # first is known here.
    foreign = {name: None} | {
      str(arg).replace(" ", "."): None
      for opcode, arg, _ in pickletools.genops(self._data)
      if opcode.name in ("GLOBAL", "INST")
    }
    foreign = [n for n in foreign if n == name or n not in self._known]
    names = ", ".join(n[:_LONGEST] for n in foreign[:_NAMED])
    more = f" and {len(foreign) - _NAMED} more" * (len(foreign) > _NAMED)
    raise PickleError(
      f"refused to load {names}{more}: only tensors, plain containers, numbers"
      " and strings are read. With PyTorch, save the weights alone:"
      " torch.save(checkpoint['ema'], new_path)"
    )

  def _value(self, value: Any) -> Any:
    """Refuses a function where a value is expected."""
    if isinstance(value, _Function):
      self._refuse(value.name)
    return value

  def _pop_to_mark(self) -> list[Any]:
    for start in range(len(self._stack) - 1, -1, -1):
      if self._stack[start] is _MARK:
        values = [self._value(v) for v in self._stack[start + 1 :]]
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
    if not 0 <= index < _MEMO:
      raise PickleError(f"the memo index {shown.value(index)}")
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
    values = tuple(self._value(v) for v in self._stack[-n:])
    if len(values) != n or any(v is _MARK for v in values):
      raise PickleError("stack too short for a tuple")
    self._stack[-n:] = [values]

  def _op_tuple(self, _):
    self._stack.append(tuple(self._pop_to_mark()))

  def _op_list(self, _):
    self._stack.append(self._pop_to_mark())

  def _op_dict(self, _):
    values = self._pop_to_mark()
    self._stack.append({})
    self._set_items(values)

  def _op_frozenset(self, _):
    self._stack.append(frozenset(checked_keys(self._pop_to_mark())))

  def _target(self, kind: type, action: str) -> Any:
    """The top of the stack, which an instruction adds to."""
    if not isinstance(self._stack[-1], kind):
      raise PickleError(f"{action} a {type(self._stack[-1]).__name__}")
    return self._stack[-1]

  def _op_append(self, _):
    value = self._value(self._stack.pop())
    self._target(list, "append to").append(value)

  def _op_appends(self, _):
    values = self._pop_to_mark()
    self._target(list, "append to").extend(values)

  def _op_additems(self, _):
    values = self._pop_to_mark()
    target = self._target(set, "add to")
    target.update(checked_keys(values, len(target)))

  def _set_items(self, values: Sequence[Any]):
    target = self._target(dict, "set an item of")
    keys = checked_keys(values[::2], len(target))
    target.update(zip(keys, values[1::2], strict=True))

  def _op_setitem(self, _):
    value, key = self._stack.pop(), self._stack.pop()
    self._set_items([self._value(key), self._value(value)])

  def _op_setitems(self, _):
    self._set_items(self._pop_to_mark())

  # Names, and what stands for calls.
  def _global(self, name: str):
    if name not in self._known:
      self._refuse(name)
    known = self._known[name]
    self._stack.append(_Function(name, known) if callable(known) else known)

  def _op_global(self, arg: str):
    self._global(arg.replace(" ", ".", 1))

  def _op_stack_global(self, _):
    name, module = self._stack.pop(), self._stack.pop()
    if not isinstance(module, str) or not isinstance(name, str):
      raise PickleError("a global whose name is not a string")
    self._global(f"{module}.{name}")

  def _op_inst(self, arg: str):
    # Classes of Python 2, none of which is known.
    self._refuse(arg.replace(" ", ".", 1))

  def _op_reduce(self, _):
    args, function = self._stack.pop(), self._stack.pop()
    if not isinstance(function, _Function):
      raise PickleError(f"a call of a {type(function).__name__}")
    if not isinstance(args, tuple):
      raise PickleError(f"arguments of {function.name} are not a tuple")
    parts = (len(arg) for arg in args if isinstance(arg, _COPIED))
    self._copies -= len(args) + sum(parts)
    if self._copies < 0:
      raise PickleError("its calls copy many times what the file holds")
    try:
      self._stack.append(function.call(*args))
    except TypeError as e:
      raise PickleError(f"arguments of {function.name}: {e}") from None

  _op_newobj = _op_reduce

  def _op_build(self, _):
    state, target = self._value(self._stack.pop()), self._stack[-1]
    if isinstance(target, Pending):
      value = self._stack[-1] = target.build(state)
      # Later instructions may get it from the memo.
      if target.memo_key is not None:
        self._memo[target.memo_key] = value
    # A state dict has attributes (`_metadata`) that no reader needs.
    elif not isinstance(target, dict):
      raise PickleError(f"attributes of a {type(target).__name__}")

  def _op_binpersid(self, _):
    self._stack.append(self._persistent(self._stack.pop()))


def load(
  data: bytes, *, known: Mapping[str, Any], persistent: Callable[[Any], Any]
) -> Any:
  """Reads a pickle into plain containers, numbers, strings and known values.

  Args:
    data: A pickle of any protocol up to 5.
    known: "module.name" -> a function that makes the value from arguments it
      must check itself, or the value of the bare name.
    persistent: Makes the value of a persistent id.

  Raises:
    PickleError: If it is damaged, or names anything else.
  """
  try:
    return _Machine(data, known, persistent).run()
  except PickleError:
    raise
  except (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    MemoryError,
  ) as e:  # fmt: skip
    raise PickleError(f"damaged pickle: {shown.cause(e)}") from e

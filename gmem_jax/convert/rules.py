r"""Tables of names, and the engine that applies them in both directions.

A table is a sequence of `Rule`s. Each turns one family of PyTorch names into
one family of Flax paths:

    Rule(r"blocks\.(?P<i>\d+)\.attn\.qkv\.weight",
         "blocks/attn/qkv/kernel", "linear", stack="i")

`to_flax` applies a table to a state dict, `to_torch` applies it backwards. Both
are strict: one error lists every name that no rule takes, that two rules take,
or that a stack of layers lacks. None is dropped in silence.

The regular expressions are restricted so that a table can be inverted: literal
text (with `\.` for a dot) and named groups without groups inside them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from gmem_jax.convert import transforms
from gmem_jax.files import shown

# Takes the name of a tensor, and the array that it became.
OnTensor = Callable[[str, np.ndarray], Any]
# Not parameters: "buffer" is computed by the network and only kept so that the
# PyTorch file can be written back; "drop" belongs to something else entirely.
_NOT_PARAMETERS = ("buffer", "drop")
# More layers than any network has; a larger index is a damaged name.
_MAX_LAYERS = 10_000
_GROUP = re.compile(r"\(\?P<(\w+)>([^()]*)\)")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Rule:
  r"""How one family of PyTorch names becomes one family of Flax paths.

  Attributes:
    torch: Regular expression that a whole PyTorch name must match; literal text
      and named groups, e.g. r"blocks\.(?P<i>\d+)\.norm1\.weight".
    flax: '/'-joined path whose fields are the groups, e.g. "blocks_{i}/scale".
      Empty for the transforms "buffer" and "drop".
    transform: A key of `transforms.TRANSFORMS`; or "buffer": a table that the
      network computes itself, kept beside the parameters; or "drop": ignored.
    stack: Name of a group whose integer (0, 1, ..) becomes the leading axis of
      one array of all layers; it does not appear in `flax`.
  """

  torch: str
  flax: str
  transform: str = "keep"
  stack: str | None = None

  def __post_init__(self):
    allowed = (*transforms.TRANSFORMS, *_NOT_PARAMETERS)
    if self.transform not in allowed:
      raise ValueError(
        f"rule {self.torch!r}: transform {self.transform!r} is not one of"
        f" {', '.join(allowed)}"
      )
    if self.transform in _NOT_PARAMETERS:
      return
    groups = {name for name, _ in _GROUP.findall(self.torch)}
    fields = set(_FIELD.findall(self.flax))
    if groups != fields | ({self.stack} if self.stack else set()):
      raise ValueError(
        f"rule {self.torch!r}: its groups {sorted(groups)} must be the fields"
        f" {sorted(fields)} of {self.flax!r} and the stack {self.stack!r}"
      )

  @functools.cached_property
  def torch_pattern(self) -> re.Pattern[str]:
    """Matches the PyTorch names of this rule."""
    return re.compile(self.torch)

  @functools.cached_property
  def flax_pattern(self) -> re.Pattern[str]:
    """Matches the Flax paths of this rule."""
    patterns, seen, out = dict(_GROUP.findall(self.torch)), set(), []
    # Splitting at the fields gives literal text and field names in turn.
    for k, part in enumerate(_FIELD.split(self.flax)):
      if k % 2 == 0:
        out.append(re.escape(part))
      elif part in seen:
        out.append(f"(?P={part})")
      else:
        out.append(f"(?P<{part}>{patterns[part]})")
        seen.add(part)
    return re.compile("".join(out))

  def torch_name(self, groups: Mapping[str, Any]) -> str:
    """The PyTorch name for the values of the groups."""
    # Groups become their values, escaped dots plain ones.
    literal = _GROUP.sub(lambda m: f"\0{m[1]}\0", self.torch)
    parts = literal.replace("\\", "").split("\0")
    name = "".join(str(groups[p]) if k % 2 else p for k, p in enumerate(parts))
    if not self.torch_pattern.fullmatch(name):
      raise ValueError(f"rule {self.torch!r} does not match its own {name!r}")
    return name


def layer(
  torch: str, flax: str, transform: str = "linear", stack: str | None = None
) -> tuple[Rule, Rule]:
  """The rules of a layer's weight and bias."""
  return (
    Rule(rf"{torch}\.weight", f"{flax}/kernel", transform, stack),
    Rule(rf"{torch}\.bias", f"{flax}/bias", stack=stack),
  )


def norm(torch: str, flax: str, stack: str | None = None) -> tuple[Rule, Rule]:
  """The rules of a norm's scale and bias."""
  return (
    Rule(rf"{torch}\.weight", f"{flax}/scale", stack=stack),
    Rule(rf"{torch}\.bias", f"{flax}/bias", stack=stack),
  )


class NamesError(ValueError):
  """All names that do not fit, listed in one message."""

  def __init__(self, title: str, problems: Sequence[str]):
    """Joins the problems, one a line, below the title."""
    self.problems = tuple(problems)
    lines = [f"{title}: {len(problems)} problem(s)"]
    lines += map(shown.line, problems)  # Names of a file have any length.
    super().__init__("\n  ".join(lines))


def refuse(title: str, problems: Sequence[str]) -> None:
  """Raises NamesError if there are any problems."""
  if problems:
    raise NamesError(title, problems)


def _takers(
  rules: Iterable[Rule], name: str, pattern: str
) -> list[tuple[Rule, dict[str, str]]]:
  """The rules whose `pattern` attribute matches all of `name`."""
  matches = ((r, getattr(r, pattern).fullmatch(name)) for r in rules)
  return [(r, m.groupdict()) for r, m in matches if m]


def _gaps(rule: Rule, path: str, entries: Mapping[int, str]) -> list[str]:
  """One line for each layer that a stack lacks."""
  match, last = rule.flax_pattern.fullmatch(path), max(entries)
  # Listing every layer below a huge index would itself fill the memory.
  if match is None or last >= _MAX_LAYERS:
    return [f"{entries[last]}: layer {last} of {path}"]
  absent = set(range(last)) - set(entries)
  names = ({**match.groupdict(), str(rule.stack): i} for i in sorted(absent))
  return [f"{rule.torch_name(groups)}: missing" for groups in names]


def torch_name(rules: Iterable[Rule], path: str) -> str:
  """The PyTorch name of a Flax path that is no stack of layers."""
  ((rule, groups),) = _takers(rules, path, "flax_pattern")
  return rule.torch_name(groups)


def plan(
  rules: Sequence[Rule], names: Iterable[str]
) -> tuple[dict[str, tuple[Rule, list[str]]], list[str], list[str]]:
  """Assigns every PyTorch name to its Flax path, without reading any tensor.

  Returns:
    (paths, buffers, problems): for each Flax path its rule and its PyTorch
    names (several, in order, when the rule stacks), the names of the buffers,
    and one line for each name that does not fit.
  """
  slots: dict[str, tuple[Rule, dict[int, str]]] = {}
  buffers, problems = [], []
  for name in names:
    takers = _takers(rules, name, "torch_pattern")
    if len(takers) != 1:
      by = " and ".join(repr(r.torch) for r, _ in takers)
      problems.append(f"{name}: " + (f"taken by {by}" if by else "unexpected"))
      continue
    rule, groups = takers[0]
    if rule.transform in _NOT_PARAMETERS:
      buffers += [name] if rule.transform == "buffer" else []
      continue
    index = int(groups.pop(rule.stack)) if rule.stack else 0
    path = rule.flax.format(**groups)
    taken_by, entries = slots.setdefault(path, (rule, {}))
    if index in entries or taken_by is not rule:
      other = entries.get(index) or next(iter(entries.values()))
      problems.append(f"{name}: doubled, {path} already comes from {other}")
      continue
    entries[index] = name
  paths = {}
  for path, (rule, entries) in slots.items():
    problems += _gaps(rule, path, entries)
    paths[path] = rule, [entries[i] for i in sorted(entries)]
  return paths, buffers, problems


def _gather(
  rule: Rule,
  names: Sequence[str],
  state_dict: Mapping[str, Any],
  on_tensor: OnTensor,
) -> np.ndarray:
  """One Flax array from its PyTorch tensor, or from those of all layers."""
  tensors = [state_dict[name] for name in names]
  rank, forward, _ = transforms.TRANSFORMS[rule.transform]
  if rank is not None and tensors[0].ndim != rank:
    raise ValueError(
      f"shape {tensors[0].shape}, but transform {rule.transform!r} takes"
      f" {rank} axes"
    )
  first = forward(tensors[0])
  if rule.stack is None:
    # A copy: the tensor is a view of a file that is closed later.
    out = np.array(first, order="C")
    on_tensor(names[0], out)
    return out
  # Not np.stack, which would need all layers at once.
  out = np.empty((len(tensors), *first.shape), first.dtype)
  for k, tensor in enumerate(tensors):
    if tensor.shape != tensors[0].shape or tensor.dtype != first.dtype:
      raise ValueError(
        f"layer {k} is {tensor.dtype}{list(tensor.shape)}, layer 0 is"
        f" {first.dtype}{list(tensors[0].shape)}"
      )
    out[k] = forward(tensor)
    on_tensor(names[k], out[k])
  return out


def to_flax(
  rules: Sequence[Rule],
  state_dict: Mapping[str, Any],
  on_tensor: OnTensor = lambda name, array: None,
) -> dict[str, Any]:
  """Converts a PyTorch state dict into a nested dict of Flax parameters.

  Tensors are read one at a time, so a mapping whose values are memory maps is
  never whole in memory; `on_tensor` is called after each with its PyTorch name
  and what became of it. The results own their memory, are C-contiguous, and
  keep their dtypes.

  Raises:
    NamesError: Names without a rule, with several, doubled, missing from a
      stack of layers, or of a shape that their transform does not take.
  """
  paths, _, problems = plan(rules, state_dict)
  refuse("state dict does not fit its table", problems)
  flat = {}
  for path, (rule, names) in paths.items():
    try:
      flat[path] = _gather(rule, names, state_dict, on_tensor)
    except ValueError as e:
      problems.append(f"{names[0]} -> {path}: {e}")
  refuse("state dict does not fit its table", problems)
  return flax.traverse_util.unflatten_dict(flat, sep="/")


def buffers(
  rules: Sequence[Rule], state_dict: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Copies of the tensors that a "buffer" rule takes, by PyTorch name."""
  return {n: np.array(state_dict[n]) for n in plan(rules, state_dict)[1]}


def to_torch(
  rules: Sequence[Rule],
  params: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, np.ndarray]:
  """Converts Flax parameters back into a PyTorch state dict.

  The arrays are views where possible. `shapes` has the PyTorch shapes of those
  whose transform ("conv_linear") forgets them.

  Raises:
    NamesError: Paths without a rule, with several, or doubled names.
  """
  out: dict[str, np.ndarray] = {}
  problems = []
  for path, value in flax.traverse_util.flatten_dict(params, sep="/").items():
    takers = _takers(rules, path, "flax_pattern")
    if len(takers) != 1:
      by = " and ".join(repr(r.flax) for r, _ in takers)
      problems.append(f"{path}: " + (f"taken by {by}" if by else "unexpected"))
      continue
    rule, groups = takers[0]
    # One layout on the host, wherever the parameters are.
    value = np.asarray(value)
    for index, layer in enumerate(value if rule.stack else [value]):
      name = rule.torch_name({**groups, str(rule.stack): index})
      if name in out:
        problems.append(f"{name}: doubled, second from {path}")
      try:
        inverse = transforms.TRANSFORMS[rule.transform][2]
        out[name] = inverse(layer, (shapes or {}).get(name))
      except ValueError as e:
        problems.append(f"{path} -> {name}: {e}")
  refuse("parameters do not fit their table", problems)
  return out

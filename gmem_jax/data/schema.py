"""Records: what one training example holds, and sources of them.

The field names are public interface: changing one makes stored data
unreadable.
"""

from collections.abc import Mapping

import numpy as np

# Field -> what it is.
FIELDS = {
  "latent": "float32 [h, w, c]: as the tokenizer gives it, not normalised",
  "row": "int32 []: the example's own row of the memory bank",
  "label": "int32 []: its class, -1 where there is none; only for reports",
}


class InMemoryRecords:
  """Records held as one array per field; a random-access source for grain."""

  def __init__(self, fields: Mapping[str, np.ndarray]):
    """Checks and keeps the arrays.

    Args:
      fields: Arrays whose leading axis runs over the records.

    Raises:
      ValueError: On an unknown field, a missing one, or unequal lengths.
    """
    if set(fields) != set(FIELDS):
      raise ValueError(f"records have {sorted(fields)}, not {sorted(FIELDS)}")
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) != 1:
      raise ValueError(f"fields differ in length: {lengths}")
    self.fields = dict(fields)

  def __len__(self) -> int:
    return len(self.fields["row"])

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {name: value[index] for name, value in self.fields.items()}

  def __repr__(self) -> str:
    return f"InMemoryRecords({len(self)})"

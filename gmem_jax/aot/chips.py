"""Published limits of chips, and the least step time that follows."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published limits of one chip.

  Attributes:
    flops: bfloat16 matmuls, FLOP/s.
    memory: Bytes of HBM.
    bandwidth: Bytes/s between HBM and the chip.
    link: Bytes/s that the chip sends to other chips of its slice or node, all
      ports together; half of the "bidirectional" number.
    between: Bytes/s that it has of the network between slices; None where that
      is not published. That of a pod is divided by its 256 chips.
    source: Where the numbers are published.
  """

  name: str
  flops: float
  memory: int
  bandwidth: float
  link: float
  between: float | None
  source: str


_DOCS = "https://cloud.google.com/tpu/docs/"
_NVIDIA = "https://resources.nvidia.com/en-us-tensor-core"
CHIPS = {
  chip.name: chip
  for chip in (
    # v4 has six links of 50 GB/s each way.
    Chip("v4", 275e12, 32 * GIB, 1228e9, 300e9, None, _DOCS + "v4"),
    Chip("v5e", 197e12, 16 * GIB, 819e9, 200e9, 3.125e9, _DOCS + "v5e"),
    Chip("v5p", 459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, _DOCS + "v5p"),
    Chip("v6e", 918e12, 32 * GIB, 1638e9, 400e9, 12.5e9, _DOCS + "v6e"),
    # SXM5, dense; NVLink within one node.
    Chip("h100", 989e12, 80 * GIB, 3350e9, 450e9, None, _NVIDIA),
    Chip("h200", 989e12, 141 * 10**9, 4800e9, 450e9, None, _NVIDIA),
  )
}


@dataclasses.dataclass(frozen=True)
class Roofline:
  """The least seconds of a step if each limit were the only one.

  Attributes:
    compute: For the matmuls at the peak rate.
    memory: To read and write what the program moves.
    network: To send what the collectives send while other work runs, over all
      ports at once.
    waiting: To send what they send while nothing else runs.
    between: To send what crosses from slice to slice; 0 where the speed of that
      network is not published.
  """

  compute: float
  memory: float
  network: float
  between: float = 0.0
  waiting: float = 0.0

  @property
  def seconds(self) -> float:
    """A time that no real step reaches, unless caches save much memory traffic.

    All that can overlap is taken to do so perfectly.
    """
    return self.waiting + max(
      self.compute, self.memory, self.network, self.between
    )

  @property
  def limit(self) -> str:
    """Name of the limit that sets it."""
    parts = dataclasses.asdict(self)
    limit = max(parts, key=lambda name: parts[name])
    names = {"between": "between slices", "waiting": "network"}
    return names.get(limit, limit)


def roofline(
  chip: Chip,
  *,
  flops: float,
  memory: float,
  sent: float,
  waiting: float = 0.0,
  between: float = 0.0,
) -> Roofline:
  """The least time of a step, from FLOPs and bytes of one chip.

  `waiting` bytes are sent while nothing else runs, `sent` beside other work.
  """
  return Roofline(
    compute=flops / chip.flops,
    memory=memory / chip.bandwidth,
    network=sent / chip.link,
    between=between / chip.between if chip.between else 0.0,
    waiting=waiting / chip.link,
  )

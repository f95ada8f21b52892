"""Names of the FID network's file (`pt_inception-2015-12-05-6726825d.pth`)."""

from gmem_jax.convert.rules import Rule

# A layer of the stem, or a branch of a block: both hold `conv` and `bn`.
_PLACES = (
  (r"(?P<layer>Conv2d_\w+)\.", "{layer}/"),
  (r"(?P<block>Mixed_\w+)\.(?P<branch>branch\w+)\.", "{block}/{branch}/"),
)
_TENSORS = (
  (r"conv\.weight", "kernel", "conv"),
  (r"bn\.weight", "scale", "keep"),
  (r"bn\.bias", "bias", "keep"),
  (r"bn\.running_mean", "mean", "keep"),
  (r"bn\.running_var", "var", "keep"),
)

RULES = (
  *(
    Rule(torch + name, flax + leaf, transform)
    for torch, flax in _PLACES
    for name, leaf, transform in _TENSORS
  ),
  # Counters of training steps, without effect on the running statistics.
  *(
    Rule(torch + r"bn\.num_batches_tracked", "", "buffer")
    for torch, _ in _PLACES
  ),
  Rule(r"fc\.weight", "fc/kernel", "linear"),
  Rule(r"fc\.bias", "fc/bias"),
)

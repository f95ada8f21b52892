"""Names of EfficientNet-Lite0's file (`efficientnet-lite0-57934424.pth`)."""

from gmem_jax.convert.rules import layer, Rule

_BLOCK = r"_blocks\.(?P<i>\d+)\."
# A convolution and its norm, our layer, how the kernel turns.
_LAYERS = (
  (r"_conv_stem", r"_bn0", "stem", "conv"),
  (_BLOCK + r"_expand_conv", _BLOCK + r"_bn0", "blocks_{i}/expand", "conv_1x1"),
  (
    _BLOCK + r"_depthwise_conv",
    _BLOCK + r"_bn1",
    "blocks_{i}/depthwise",
    "conv",
  ),
  (
    _BLOCK + r"_project_conv",
    _BLOCK + r"_bn2",
    "blocks_{i}/project",
    "conv_1x1",
  ),
  (r"_conv_head", r"_bn1", "head", "conv_1x1"),
)
_NORM = (
  ("weight", "scale"),
  ("bias", "bias"),
  ("running_mean", "mean"),
  ("running_var", "var"),
)

RULES = (
  *(
    Rule(rf"{convolution}\.weight", f"{flax}/kernel", transform)
    for convolution, _, flax, transform in _LAYERS
  ),
  *(
    Rule(rf"{norm}\.{torch}", f"{flax}/{leaf}")
    for _, norm, flax, _ in _LAYERS
    for torch, leaf in _NORM
  ),
  # Counters of training steps, without effect on the running statistics.
  *(
    Rule(rf"{norm}\.num_batches_tracked", "", "buffer")
    for _, norm, _, _ in _LAYERS
  ),
  *layer("_fc", "fc"),
)

"""Names of DINOv2's published file (`dinov2_vitb14_pretrain.pth`)."""

from gmem_jax.convert.rules import Rule

_BLOCK = r"blocks\.(?P<i>\d+)\."

RULES = (
  Rule(r"cls_token", "cls_token"),
  Rule(r"pos_embed", "pos_embed"),
  # Replaces masked patches in DINOv2's own training; nothing reads it here.
  Rule(r"mask_token", "", "buffer"),
  Rule(r"patch_embed\.proj\.weight", "patch_embed/kernel", "conv"),
  Rule(r"patch_embed\.proj\.bias", "patch_embed/bias"),
  Rule(
    _BLOCK + r"(?P<norm>norm1|norm2)\.weight", "blocks/{norm}/scale", stack="i"
  ),
  Rule(
    _BLOCK + r"(?P<norm>norm1|norm2)\.bias", "blocks/{norm}/bias", stack="i"
  ),
  Rule(
    _BLOCK + r"attn\.(?P<layer>qkv|proj)\.weight",
    "blocks/{layer}/kernel",
    "linear",
    stack="i",
  ),
  Rule(
    _BLOCK + r"attn\.(?P<layer>qkv|proj)\.bias",
    "blocks/{layer}/bias",
    stack="i",
  ),
  Rule(
    _BLOCK + r"mlp\.(?P<layer>fc1|fc2)\.weight",
    "blocks/{layer}/kernel",
    "linear",
    stack="i",
  ),
  Rule(
    _BLOCK + r"mlp\.(?P<layer>fc1|fc2)\.bias", "blocks/{layer}/bias", stack="i"
  ),
  Rule(_BLOCK + r"(?P<scale>ls1|ls2)\.gamma", "blocks/{scale}", stack="i"),
  Rule(r"norm\.weight", "norm/scale"),
  Rule(r"norm\.bias", "norm/bias"),
)

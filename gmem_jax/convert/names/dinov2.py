"""Names of DINOv2's published file (`dinov2_vitb14_pretrain.pth`)."""

from gmem_jax.convert.rules import layer, norm, Rule

_BLOCK = r"blocks\.(?P<i>\d+)\."

RULES = (
  Rule(r"cls_token", "cls_token"),
  Rule(r"pos_embed", "pos_embed"),
  # Replaces masked patches in DINOv2's own training; nothing reads it here.
  Rule(r"mask_token", "", "buffer"),
  *layer(r"patch_embed\.proj", "patch_embed", "conv"),
  *norm(_BLOCK + r"(?P<norm>norm1|norm2)", "blocks/{norm}", "i"),
  *layer(_BLOCK + r"attn\.(?P<name>qkv|proj)", "blocks/{name}", stack="i"),
  *layer(_BLOCK + r"mlp\.(?P<name>fc1|fc2)", "blocks/{name}", stack="i"),
  Rule(_BLOCK + r"(?P<scale>ls1|ls2)\.gamma", "blocks/{scale}", stack="i"),
  *norm(r"norm", "norm"),
)

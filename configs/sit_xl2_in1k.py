r"""The first release of GMem: SiT-XL/2 over SD-VAE latents, ImageNet 256 x 256.

  python -m gmem_jax.convert SD_VAE_FT_MSE weights/sd_vae
  python -m gmem_jax.convert DINOV2_VITB14.pth weights/dinov2
  python -m gmem_jax.main --config=configs/sit_xl2_in1k.py:train --mode=prepare
  python -m gmem_jax.main --config=configs/sit_xl2_in1k.py:train \
    --workdir=runs/sit

and from the published weights, without training:

  python -m gmem_jax.convert RELEASE.pt weights/gmem_sit
  python -m gmem_jax.main --config=configs/sit_xl2_in1k.py --workdir=runs/sit \
    --mode=sample --config.sample.format=npz

Samples as published: the bank and its frequencies come with the network, each
image chooses its row from its own noise, 250 steps of Euler-Maruyama of which
the last, from 0.04 on, adds no noise: 250 network calls per image. The
published sampler keeps its state in float64, this one in float32, which moves a
latent by float32 rounding.

Data as in configs/xl_in1k.py, prepared with another tokenizer. Storage,
computed: 1.06 TB prepared; 0.55 TB with --config.data.tokens=int8, 0.30 TB with
"pixels".

Hardware: 683 M parameters, 10.9 GB of training state (computed).

Numbers, published and not measured by us: the model card of the release says
FID 4.86 within 160,000 steps, of the training and not of one file; neither it
nor the code names hardware or hours. The release has no training code: loss and
optimizer below are those of the later one, whose result for this network nobody
has published.

Options, joined by commas (`configs/sit_xl2_in1k.py:train,folder,batch256`):
  train     bfloat16, and --mode=sample samples the run in --workdir, each row
            of the bank as likely as any other.
  folder    your own images: --config.data.path=FOLDER, in any nesting.
  512       512 x 512 pixels: latents of 64 x 64, 1,024 tokens. Not published.
  batch256  batches of 256 at the rate published for SiT at that size, 1e-4,
            for as many images in all.
  ode       the release's Euler solver of the ODE, 250 steps. The release has no
            guidance.
"""

import ml_collections

OPTIONS = ("", "train", "folder", "512", "batch256", "ode")


def get_config(option: str = "") -> ml_collections.ConfigDict:
  """The recipe; every key is here.

  Args:
    option: What follows the colon on the command line: some of `OPTIONS`,
      joined by commas.
  """
  options = option.split(",")
  for one in options:
    if one not in OPTIONS:
      raise ValueError(f"option {one!r}: allowed are {OPTIONS[1:]}")
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.compile_cache = "compiled"  # in WORKDIR; "": none

  c.data = dict(
    source="tfds",  # or "folder", "upstream"; "none": only sample
    path="",  # data_dir of TFDS, or the folder
    tfds="imagenet2012",
    split="train",
    prepared="data/in1k_sd_vae",  # what --mode=prepare writes
    truncated="skip",  # JPEG that ends too soon; or "fill"
    holdout=0,
    holdout_groups=(),
    mirror=True,
    latents="posterior",  # or "sample", as published
    tokens="bf16",  # or "int8", "pixels", "none"
    shard_size=1_000,  # images
    device_batch=64,  # images in the frozen networks at a time
    independent_flips=False,  # True: as published, mirrors do not match
  )
  c.encoder = dict(
    tokenizer="sd_vae",
    tokenizer_weights="weights/sd_vae",
    tokenizer_patch=8,  # pixels; this and the next: "patch_pca" only
    tokenizer_channels=32,
    latent_stats="",  # the tokenizer's scale, 0.18215
    features="dinov2",
    features_weights="weights/dinov2",
    snippet_weights="",  # "": the feature itself; or what prepare fits
    snippet_width=768,  # of what it fits
    image_size=256,  # pixels
  )
  c.bank = dict(
    storage="float32",  # or "bfloat16", "int8" with a scale for each row
    placement="auto",  # "replicated", "sharded" rows, or as memory permits
  )
  c.model = dict(
    family="sit",
    width=1152,
    depth=28,
    heads=16,
    patch=2,  # latent pixels
    conditioning="adaln",  # or "cross", "adaln+cross", "none"
    cross_every=1,  # every n-th block attends to the neighbours
    snippet_dropout=0.2,
    projector_depth=8,
    projector_width=2048,
    swiglu=False,  # this and the next four: lightning_dit only
    rope=False,
    rms_norm=False,
    qk_norm=False,
    shift=True,
    learn_sigma=False,
    dtype="float32",  # option "train": bfloat16, as published
    residual_dtype="float32",  # between blocks; or "bfloat16": less memory
    float8=False,  # True: 8-bit matmuls; NVIDIA GPUs from Hopper on
    scan_layers=False,
    remat="none",
    attention="auto",
  )
  c.retrieval = dict(  # of the cross-attention
    neighbours=8,
    exclude_own=True,  # attend to others only
    dropout=0.1,  # of whole neighbours
  )
  c.loss = dict(
    path="linear",
    prediction="velocity",
    weighting="none",
    time="lognormal",
    cosine=True,
    projection_weight=0.5,
    train_eps=None,
  )
  c.optim = dict(
    learning_rate=2e-4,
    schedule="constant",
    warmup_steps=0,
    decay_steps=0,  # of "cosine", which ends there; 0: at train.steps
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
  )
  c.train = dict(
    steps=160_000,
    batch_size=1024,  # over all devices
    accumulation=1,  # parts of the batch, one after the other
    steps_per_dispatch=1,
    ema_decay=0.9999,
    log_every=100,
    init_from="",  # converted weights, or the directory of a run
    allow_changes=False,  # True: go on with another rate or batch size
  )
  c.mesh = dict(
    data=-1,  # all remaining devices
    fsdp=1,
    tensor=1,
    gather="layer",  # what fsdp splits; or "step": all at once
  )
  c.checkpoint = dict(
    every=10_000,  # steps
    keep_latest=2,
    keep_every=0,  # steps; 0: keep none permanently
  )
  c.sampler = dict(
    path="linear",
    prediction="velocity",
    method="sde_euler",
    steps=250,  # points of the time grid
    diffusion_form="linear",  # this and the next three: SDE only
    diffusion_norm=1.0,
    last_step="mean",
    last_step_size=0.04,
    timestep_shift=0.0,
    sample_eps=None,
    step_control="image",  # this and the next two: ode_dopri5 only
    atol=1e-6,
    rtol=1e-3,
    guidance=dict(scale=1.0, start=0.0, end=1.0, after_end="conditional"),
  )
  c.sample = dict(
    seed=0,  # image i depends on (seed, i) alone
    count=50_000,
    batch_size=256,  # images at a time, over all devices
    device_batch=32,  # images in one compiled call on each device
    weights="ema",  # of a run; converted weights are what they are
    network="weights/gmem_sit",
    bank="",  # comes with the network
    draw="noise",
    rows=(),  # bank rows to sample from; (): drawn
    per_row=1,  # samples of each row
    format="png",  # or "npz" (ADM), "both"
    grid=64,  # images in the contact sheet; 0: none
    output="",  # WORKDIR/images/...
    interpolation="spherical",  # or "linear", "concat", "mask"
    points=6,  # of --interpolate
    reading="bank",  # how --image reads files; or "published"
    dtype="float32",  # of the network, as published; or "bfloat16": faster
    precision="high",  # of float32 on accelerators; or "default", "highest"
    decode_dtype="float32",  # or "bfloat16": faster, other last bits
    group="",  # of the memories that a prior draws; "": any
  )
  c.eval = dict(
    every=0,  # steps; 0: only at the end
    count=50_000,  # images
    grid=64,  # images in the sample picture
    scores=("fid", "sfid", "inception_score", "precision_recall"),
    thresholds=(),  # ("fid<=5",): when was it reached?
    reference="reference/VIRTUAL_imagenet256_labeled.npz",
    heldout="",  # images never trained on
    inception_weights="weights/inception",
    preprocessing="adm",  # or "pytorch_fid", "published"
    device_batch=64,  # images in one call on each device
    images="",  # a folder or .npz to score instead of samples
    keep_images=False,
    save_every=60.0,  # seconds
    repeats=0,  # 10: each score's standard error, and its floor
    audit=0,  # images whose nearest training images are looked up
  )
  c.log = dict(
    wandb="",  # project on Weights & Biases
    profile="",  # steps to trace, FIRST:LAST
  )
  c.report = dict(
    unconditional=False,
  )
  # Of --mode=prior; not tried yet.
  c.prior = dict(
    width=1024,
    depth=8,
    steps=20000,
    batch_size=2048,  # rows, over all devices
    learning_rate=2e-4,
    ema_decay=0.9999,
    group_dropout=0.1,  # rows without their group
    points=33,  # of the time grid, when it samples
    guidance=1.0,  # by the group; 1: none
  )

  if "train" in options:
    c.model.update(dtype="bfloat16")
    c.sample.update(network="", bank="", draw="uniform")
  if "folder" in options:
    c.data.update(source="folder", path="data/images")
    c.data.update(prepared="data/folder_sd_vae")
  if "512" in options:
    c.encoder.update(image_size=512)
    c.data.update(prepared=f"{c.data['prepared']}_512")
  if "batch256" in options:
    c.train.update(batch_size=256, steps=640_000)
    c.optim.update(learning_rate=1e-4)
  if "ode" in options:
    c.sampler.update(method="ode_euler", steps=251)
  return c

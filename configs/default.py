"""Every key, with its unit and the reason for its value. Other configs override; those of the package add none.

The values are the paper's recipe (Tables 2 and 5, and DeiT's code where the paper says "as DeiT") for 224-pixel images.
On the command line: --config.optimizer.learning_rate=5e-4 --config.model.embedding.stce.stem_widths=16,32
"""

from ml_collections import config_dict

from . import _flat


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()

    config.seed = 0  # root of initial parameters, order of images, and every random draw
    config.dataset = "folder"  # "digits", "folder" (train/<class>/, val/<class>/), "imagenet100", "imagenet2012"
    config.task = "single_label"  # the class of an image; or "multi_label": any number of labels, by labels.csv
    config.classes = ""  # of imagenet100: "kaggle" (and ""), "cmc", "podnet", a file of ids, or its name
    config.holdout = 0.0  # share of each class's training images to evaluate on, in place of val; 0: off
    config.sampling = ""  # each training image once an epoch; "balanced" or "sqrt": rare classes more often
    config.class_weights = ""  # in the training loss: "balanced", "effective:0.999", a .csv file of them; "": all alike
    config.raw_short_side = 0  # pixels: takes what `stce prepare --raw_short_side` made of that size; 0: files
    config.data_dir = ""  # as --data_dir; "" is the user's data directory. Where, not what: never compared on resuming
    config.image_size = 224  # pixels, side of the square that the model sees
    config.progressive_sizes = ()  # pixels, rising to image_size, for equal shares of the epochs: (32, 48, 64); (): off
    config.batch_size = 128  # images of a global batch, over all devices
    config.eval_batch_size = 256  # images of a batch in evaluation; rounded up to what the devices can divide
    config.epochs = 300.0  # passes over the training images; a fraction is allowed
    config.minutes = 0.0  # as --minutes: what is given in epochs is planned so that a new run takes so long; 0: off
    config.plan = ""  # and of which list in training/candidates.py image size and model are chosen; "": as they are
    config.log_every = 50  # steps between two lines of training metrics
    config.loggers = ("tensorboard",)  # where metrics go, too: "tensorboard", "csv", "wandb", "trackio", "mlflow"
    config.eval_every = 1.0  # epochs between two evaluations; each is followed by a checkpoint
    config.patience = 0  # evaluations in a row without a better one that end the run early; 0: it has all its epochs
    config.patience_metric = "score"  # by which an evaluation is better, top-1 or of several labels mAP; or "loss"
    config.keep_checkpoints = 2  # number of the newest checkpoints that are kept, beside the best
    config.init_from = ""  # as --init_from: a run, .safetensors or .npz file with the first weights; "": none
    config.accumulate = 1  # micro-batches of a batch, to save memory; BatchNorm sees each alone
    config.deterministic = False  # on GPUs: the same bits in every run, with slower operations; CPUs always do
    # How a run is spread over devices changes its rounding alone and is not compared on resuming.
    config.fsdp_devices = 1  # devices over which parameters and optimizer state are split; 1: a copy on each
    config.step_timeout = 600.0  # seconds after which the stacks of all threads are printed if a step does not end
    # How images are loaded affects speed alone and is never compared on resuming.
    config.loader_threads = config_dict.placeholder(int)  # that decode; None: one a core
    config.loader_workers = 0  # processes that decode instead, for hosts where threads do not suffice; 0: none
    config.loader_timeout = 120.0  # seconds after which a missing batch ends the run
    config.cache_megabytes = 1024  # for train and for val; images that fit are decoded once (workers share it out)

    # A model is a preset, some parts of which may be others: a part's name chooses a module, and of the sections below
    # it only the chosen module's is read. None, of a name or an option, leaves what the preset says.
    config.model = model = _flat.ModelConfigDict()
    model.name = "vit_s_stce"  # the preset, see `stce models`
    model.dtype = config_dict.placeholder(str)  # of the computation: "float32" or "bfloat16"; parameters are float32

    model.body = body = config_dict.ConfigDict()
    body.name = config_dict.placeholder(str)  # such as "vit" or "swin", see models/bodies
    body.vit = vit = config_dict.ConfigDict()
    vit.width = config_dict.placeholder(int)  # D, channels of a token
    vit.depth = config_dict.placeholder(int)  # transformer blocks
    vit.heads = config_dict.placeholder(int)  # attention heads; must divide the width
    vit.mlp_dim = config_dict.placeholder(int)  # hidden width of the MLPs
    vit.pooling = config_dict.placeholder(str)  # "class" token, or "mean" of the tokens
    vit.position_embedding = config_dict.placeholder(str)  # "learned", "sincos2d", "rope_axial" or "rope_mixed"
    vit.registers = config_dict.placeholder(int)  # learned tokens that no head reads: 0
    vit.layer_scale = config_dict.placeholder(float)  # what branches are first multiplied by, learned; 0: none
    vit.norm = config_dict.placeholder(str)  # "layernorm" or "rmsnorm"
    vit.qk_norm = config_dict.placeholder(bool)  # norm queries and keys of each head
    vit.mlp = config_dict.placeholder(str)  # "gelu", or "swiglu" with as many parameters
    vit.norm_epsilon = config_dict.placeholder(float)  # of the norms: 1e-6
    vit.drop_path = 0.1  # stochastic depth of the last block, growing from 0 (DeiT)
    vit.dropout = 0.0  # rate in attention outputs and MLPs (DeiT: none)
    vit.patch_dropout = config_dict.placeholder(float)  # share of image tokens that training leaves out: 0
    vit.remat = config_dict.placeholder(bool)  # recompute blocks in the backward pass: less memory, a third slower
    vit.scan_layers = config_dict.placeholder(bool)  # compile one block instead of all; stacks the parameters
    body.svit = svit = config_dict.ConfigDict()
    svit.widths = config_dict.placeholder(tuple)  # channels of each stage; the first: the embedding's
    svit.depths = config_dict.placeholder(tuple)  # blocks of each stage
    svit.heads = config_dict.placeholder(tuple)  # attention heads of each stage; must divide its width
    svit.cells = config_dict.placeholder(tuple)  # side, or (rows, columns), of each stage's cells; 1: no super tokens
    svit.association_iterations = config_dict.placeholder(int)  # of the clustering
    svit.mlp_ratio = config_dict.placeholder(int)  # hidden channels of the MLPs over those of their stage
    svit.layer_scale = config_dict.placeholder(tuple)  # of each stage, what branches are first multiplied by; 0: none
    svit.head_width = config_dict.placeholder(int)  # channels that are pooled
    svit.drop_path = config_dict.placeholder(float)  # stochastic depth of the last block; None: the size's, .1, .4, .6
    svit.remat = config_dict.placeholder(bool)  # as vit.remat
    body.swin = swin = config_dict.ConfigDict()
    swin.widths = config_dict.placeholder(tuple)  # channels of each stage; the first: the embedding's
    swin.depths = config_dict.placeholder(tuple)  # blocks of each stage; every second has shifted windows
    swin.heads = config_dict.placeholder(tuple)  # attention heads of each stage; must divide its width
    swin.window = config_dict.placeholder(int)  # places along a side of the windows
    swin.mlp_ratio = config_dict.placeholder(int)  # hidden width of the MLPs over that of their stage
    swin.downsample = config_dict.placeholder(str)  # between stages: "merging", or "stce", clustering in its place
    swin.downsample_iterations = config_dict.placeholder(int)  # T of that clustering
    swin.drop_path = config_dict.placeholder(float)  # stochastic depth of the last block; None: the size's, .2, .3, .5
    swin.remat = config_dict.placeholder(bool)  # as vit.remat
    body.cvt = cvt = config_dict.ConfigDict()
    cvt.widths = config_dict.placeholder(tuple)  # channels of each stage; the first: the embedding's
    cvt.depths = config_dict.placeholder(tuple)  # blocks of each stage
    cvt.heads = config_dict.placeholder(tuple)  # attention heads of each stage; must divide its width
    cvt.mlp_ratio = config_dict.placeholder(int)  # hidden width of the MLPs over the channels of their stage
    cvt.class_token = config_dict.placeholder(bool)  # in the last stage; False: the mean of the tokens
    cvt.projection = config_dict.placeholder(str)  # of queries, keys and values: "conv", or "average"
    cvt.scale = config_dict.placeholder(str)  # of logits, by "width" (the authors' code) or "head"
    cvt.activation = config_dict.placeholder(str)  # of the MLPs: "quick_gelu" (the authors' code) or "gelu"
    cvt.downsample = config_dict.placeholder(str)  # between stages: "conv", or "stce", super-token clustering
    cvt.drop_path = config_dict.placeholder(float)  # stochastic depth, in the last stage alone; None: the size's, 0.1
    cvt.remat = config_dict.placeholder(bool)  # as vit.remat
    body.deit = deit = config_dict.ConfigDict()
    deit.distilled = config_dict.placeholder(bool)  # a second token and head, without a teacher
    deit.width = config_dict.placeholder(int)  # D, channels of a token
    deit.depth = config_dict.placeholder(int)  # transformer blocks
    deit.heads = config_dict.placeholder(int)  # attention heads; must divide the width
    deit.mlp_dim = config_dict.placeholder(int)  # hidden width of the MLPs
    deit.pooling = config_dict.placeholder(str)  # "class" token, or "mean" of the tokens
    deit.position_embedding = config_dict.placeholder(str)  # as vit.position_embedding
    deit.registers = config_dict.placeholder(int)  # as vit.registers
    deit.layer_scale = config_dict.placeholder(float)  # as vit.layer_scale
    deit.norm = config_dict.placeholder(str)  # as vit.norm
    deit.qk_norm = config_dict.placeholder(bool)  # as vit.qk_norm
    deit.mlp = config_dict.placeholder(str)  # as vit.mlp
    deit.norm_epsilon = config_dict.placeholder(float)  # as vit.norm_epsilon
    deit.drop_path = config_dict.placeholder(float)  # stochastic depth of the last block; None: the size's, 0.1
    deit.dropout = config_dict.placeholder(float)  # rate in attention outputs and MLPs
    deit.patch_dropout = config_dict.placeholder(float)  # as vit.patch_dropout
    deit.remat = config_dict.placeholder(bool)  # as vit.remat
    deit.scan_layers = config_dict.placeholder(bool)  # as vit.scan_layers
    body.cmt = cmt = config_dict.ConfigDict()
    cmt.widths = config_dict.placeholder(tuple)  # channels of each stage; the first: the embedding's
    cmt.depths = config_dict.placeholder(tuple)  # blocks of each stage
    cmt.heads = config_dict.placeholder(tuple)  # attention heads of each stage; must divide its width
    cmt.key_strides = config_dict.placeholder(tuple)  # places, in both directions, that share a key: (8, 4, 2, 1)
    cmt.mlp_ratios = config_dict.placeholder(tuple)  # hidden channels of each stage's MLPs over its own
    cmt.head_width = config_dict.placeholder(int)  # channels that are pooled: 1280
    cmt.dropout = config_dict.placeholder(float)  # rate before the head; None: the size's, .3 of b, else 0
    cmt.drop_path = config_dict.placeholder(float)  # stochastic depth of the last block; None: the size's, .08 to .25
    cmt.remat = config_dict.placeholder(bool)  # as vit.remat
    body.mobilevit = mobilevit = config_dict.ConfigDict()
    mobilevit.width = config_dict.placeholder(int)  # channels of the embedding's tokens
    mobilevit.widths = config_dict.placeholder(tuple)  # channels of each stage's map
    mobilevit.token_widths = config_dict.placeholder(tuple)  # channels of each stage's tokens, in its transformer
    mobilevit.depths = config_dict.placeholder(tuple)  # transformer blocks of each stage
    mobilevit.heads = config_dict.placeholder(tuple)  # attention heads of each stage; must divide its token width
    mobilevit.strides = config_dict.placeholder(tuple)  # of each stage: (2, 2, 2); 1 for small images
    mobilevit.expansion = config_dict.placeholder(int)  # hidden channels of inverted residuals over their inputs': 4
    mobilevit.head_width = config_dict.placeholder(int)  # channels that are pooled
    mobilevit.dropout = config_dict.placeholder(float)  # rate of what attention and MLP give; None: the size's, .05, .1
    mobilevit.head_dropout = config_dict.placeholder(float)  # rate before the head; None: .1
    mobilevit.drop_path = config_dict.placeholder(float)  # stochastic depth of the last transformer block; none
    mobilevit.remat = config_dict.placeholder(bool)  # as vit.remat
    body.focal = focal = config_dict.ConfigDict()
    focal.widths = config_dict.placeholder(tuple)  # channels of each stage; the first: the embedding's
    focal.depths = config_dict.placeholder(tuple)  # blocks of each stage
    focal.heads = config_dict.placeholder(tuple)  # attention heads of each stage; must divide its width
    focal.window = config_dict.placeholder(int)  # side of the windows: 7
    focal.focal_windows = config_dict.placeholder(tuple)  # side of the square of pooled windows, odd, of each stage
    focal.expands = config_dict.placeholder(tuple)  # width of the strips around a window, of each stage; 0: none
    focal.wrap = config_dict.placeholder(bool)  # a border sees the opposite one, as with the authors
    focal.mlp_ratio = config_dict.placeholder(int)  # hidden width of the MLPs over that of their stage
    focal.layer_scale = config_dict.placeholder(tuple)  # of each stage, what branches are first multiplied by
    focal.halving_kernel = config_dict.placeholder(int)  # of the convolution between stages: 2, or 3 (focal_conv)
    focal.drop_path = config_dict.placeholder(float)  # stochastic depth of the last block; None: the size's, 0.2
    focal.remat = config_dict.placeholder(bool)  # as vit.remat
    body.focal_conv = focal_conv = config_dict.ConfigDict()
    focal_conv.widths = config_dict.placeholder(tuple)  # as focal.widths
    focal_conv.depths = config_dict.placeholder(tuple)  # as focal.depths
    focal_conv.heads = config_dict.placeholder(tuple)  # as focal.heads
    focal_conv.window = config_dict.placeholder(int)  # as focal.window
    focal_conv.focal_windows = config_dict.placeholder(tuple)  # as focal.focal_windows
    focal_conv.expands = config_dict.placeholder(tuple)  # as focal.expands
    focal_conv.wrap = config_dict.placeholder(bool)  # as focal.wrap
    focal_conv.mlp_ratio = config_dict.placeholder(int)  # as focal.mlp_ratio
    focal_conv.layer_scale = config_dict.placeholder(tuple)  # as focal.layer_scale
    focal_conv.halving_kernel = config_dict.placeholder(int)  # as focal.halving_kernel: 3
    focal_conv.drop_path = config_dict.placeholder(float)  # as focal.drop_path
    focal_conv.remat = config_dict.placeholder(bool)  # as focal.remat
    body.dat = dat = config_dict.ConfigDict()
    dat.widths = config_dict.placeholder(tuple)  # channels of each stage; the first: the embedding's
    dat.heads = config_dict.placeholder(tuple)  # attention heads of each stage; must divide its width
    dat.kinds = config_dict.placeholder(tuple)  # letters of each stage's blocks, such as ("LS", "LD"), of L, S, D
    dat.windows = config_dict.placeholder(tuple)  # side of the windows of L and S in each stage
    dat.groups = config_dict.placeholder(tuple)  # groups of channels of D in each stage; must divide its heads
    dat.kernels = config_dict.placeholder(tuple)  # side of the kernel that makes the offsets of D in each stage
    dat.strides = config_dict.placeholder(tuple)  # steps between two samples of D in each stage
    dat.offset_ranges = config_dict.placeholder(tuple)  # how far samples of D may lie from their place; 0: anywhere
    dat.mlp_ratio = config_dict.placeholder(int)  # hidden width of the MLPs over that of their stage
    dat.drop_path = config_dict.placeholder(float)  # stochastic depth of the last block; None: the size's, 0.2
    dat.remat = config_dict.placeholder(bool)  # as vit.remat
    body.datpp = datpp = config_dict.ConfigDict()
    datpp.widths = config_dict.placeholder(tuple)  # as dat.widths
    datpp.heads = config_dict.placeholder(tuple)  # as dat.heads
    datpp.kinds = config_dict.placeholder(tuple)  # as dat.kinds, and N
    datpp.windows = config_dict.placeholder(tuple)  # as dat.windows
    datpp.groups = config_dict.placeholder(tuple)  # as dat.groups
    datpp.kernels = config_dict.placeholder(tuple)  # as dat.kernels
    datpp.strides = config_dict.placeholder(tuple)  # as dat.strides
    datpp.offset_ranges = config_dict.placeholder(tuple)  # as dat.offset_ranges
    datpp.mlp_ratio = config_dict.placeholder(int)  # as dat.mlp_ratio
    datpp.drop_path = config_dict.placeholder(float)  # as dat.drop_path
    datpp.remat = config_dict.placeholder(bool)  # as dat.remat
    datpp.neighbourhoods = config_dict.placeholder(tuple)  # side of the square of N in each stage, odd
    datpp.layer_scale = config_dict.placeholder(tuple)  # as svit.layer_scale

    model.embedding = embedding = config_dict.ConfigDict()
    embedding.name = config_dict.placeholder(str)  # such as "stce", see models/embeddings
    embedding.patch = patch = config_dict.ConfigDict()
    patch.patch_size = config_dict.placeholder(int)  # side in pixels
    embedding.conv = conv = config_dict.ConfigDict()
    conv.stem_widths = config_dict.placeholder(tuple)  # channels of each 3x3 convolution; the last: the body's width
    conv.stem_strides = config_dict.placeholder(tuple)  # and their strides (Table 4)
    embedding.conv1x1 = conv1x1 = config_dict.ConfigDict()
    conv1x1.stem_widths = config_dict.placeholder(tuple)  # as conv, but the last convolution is 1x1
    conv1x1.stem_strides = config_dict.placeholder(tuple)  # and their strides
    embedding.earlyconv = earlyconv = config_dict.ConfigDict()
    earlyconv.stem_widths = config_dict.placeholder(tuple)  # channels of each convolution; a linear layer follows
    earlyconv.stem_strides = config_dict.placeholder(tuple)  # and their strides
    embedding.stce = stce = config_dict.ConfigDict()
    stce.stem_widths = config_dict.placeholder(tuple)  # channels of each module of the stack (Table 5); (): none
    stce.stem_strides = config_dict.placeholder(tuple)  # and their strides (Table 7)
    stce.cell = config_dict.placeholder(tuple)  # (rows, columns) of the stack's output in a super token's cell
    stce.iterations = config_dict.placeholder(int)  # T of the clustering (Table 8); 0: average pooling
    stce.border = config_dict.placeholder(str)  # neighbours beyond the border count as "zero", or "mask"
    stce.differentiable = config_dict.placeholder(bool)  # gradients through the affinities
    embedding.hcformer = hcformer = config_dict.ConfigDict()
    hcformer.stem_widths = config_dict.placeholder(tuple)  # channels of each module of the stack
    hcformer.stem_strides = config_dict.placeholder(tuple)  # and their strides; the clustering halves once more
    hcformer.assignment_width = config_dict.placeholder(int)  # in which pixels and clusters are compared
    embedding.max_pool = max_pool = config_dict.ConfigDict()
    max_pool.stem_widths = config_dict.placeholder(tuple)  # as stce
    max_pool.stem_strides = config_dict.placeholder(tuple)  # as stce
    max_pool.cell = config_dict.placeholder(tuple)  # (rows, columns) of which the maximum is taken
    embedding.svit = own = config_dict.ConfigDict()
    own.stem_widths = config_dict.placeholder(tuple)  # channels of each 3x3 convolution; the last: the body's width
    own.stem_strides = config_dict.placeholder(tuple)  # and their strides
    embedding.linear_patch = linear_patch = config_dict.ConfigDict()
    linear_patch.patch_size = config_dict.placeholder(int)  # side in pixels
    embedding.overlap_patch = overlap_patch = config_dict.ConfigDict()
    overlap_patch.patch_size = config_dict.placeholder(int)  # side of the kernel in pixels: 7
    overlap_patch.patch_stride = config_dict.placeholder(int)  # pixels between two tokens: 4
    overlap_patch.patch_padding = config_dict.placeholder(int)  # pixels of zeros around the image: 2
    embedding.cmt = cmt_stem = config_dict.ConfigDict()
    cmt_stem.stem_widths = config_dict.placeholder(tuple)  # channels of each 3x3 convolution
    cmt_stem.stem_strides = config_dict.placeholder(tuple)  # and their strides; a 2x2 convolution halves once more
    embedding.mobilevit = mobilevit_stem = config_dict.ConfigDict()
    mobilevit_stem.stem_widths = config_dict.placeholder(tuple)  # channels of the 3x3 convolution and of each stage
    mobilevit_stem.stem_strides = config_dict.placeholder(tuple)  # and their strides: (2, 1, 2)
    mobilevit_stem.stem_blocks = config_dict.placeholder(int)  # inverted residuals of the last stage: 3
    mobilevit_stem.stem_expansion = config_dict.placeholder(int)  # hidden channels over their inputs': 4
    embedding.datpp = config_dict.ConfigDict()  # it has no options

    model.reduction = reduction = config_dict.ConfigDict()
    reduction.name = config_dict.placeholder(str)  # such as "evit", see models/reductions; None: no reduction
    reduction.topk = topk = config_dict.ConfigDict()
    topk.blocks = config_dict.placeholder(tuple)  # those that reduce, counted from 0: (3, 6, 9)
    topk.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    reduction.evit = evit = config_dict.ConfigDict()
    evit.blocks = config_dict.placeholder(tuple)  # those that reduce, counted from 0: (3, 6, 9)
    evit.keep_rate = config_dict.placeholder(tuple)  # r, or a rate for each block
    evit.counting = config_dict.placeholder(str)  # r is a share of the "current" tokens, or of the "initial" ones
    evit.fuse = config_dict.placeholder(bool)  # put the dropped tokens together into one
    evit.shrink_start_epoch = config_dict.placeholder(float)  # training keeps all tokens until then
    evit.shrink_epochs = config_dict.placeholder(float)  # and takes that long to come down to r; 0: r from the start
    reduction.dynamicvit = dynamicvit = config_dict.ConfigDict()
    dynamicvit.blocks = config_dict.placeholder(tuple)  # those before which it reduces, not the first, 0: (3, 6, 9)
    dynamicvit.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    dynamicvit.ratio_weight = config_dict.placeholder(float)  # of the loss that brings the share kept to the rate: 2
    reduction.sit = sit = config_dict.ConfigDict()
    sit.blocks = config_dict.placeholder(tuple)  # those before which it reduces, not the first, 0: (3, 6, 9)
    sit.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    sit.initial_tokens = config_dict.placeholder(int)  # their number; None: of image_size
    reduction.patchmerger = patchmerger = config_dict.ConfigDict()
    patchmerger.blocks = config_dict.placeholder(tuple)  # those before which it reduces, not the first, 0: (3, 6, 9)
    patchmerger.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    patchmerger.initial_tokens = config_dict.placeholder(int)  # their number; None: of image_size
    reduction.sinkhorn = sinkhorn = config_dict.ConfigDict()
    sinkhorn.blocks = config_dict.placeholder(tuple)  # those before which it reduces, not the first, 0: (3, 6, 9)
    sinkhorn.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    sinkhorn.initial_tokens = config_dict.placeholder(int)  # their number; None: of image_size
    sinkhorn.epsilon = config_dict.placeholder(float)  # of the entropy in the transport plan
    sinkhorn.rounds = config_dict.placeholder(int)  # of its scaling
    reduction.pattern = pattern = config_dict.ConfigDict()
    pattern.blocks = config_dict.placeholder(tuple)  # those before which it reduces, not the first, 0: (3, 6, 9)
    pattern.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    pattern.distance = config_dict.placeholder(str)  # from the grid's middle: "l1", "l2" or "linf"
    pattern.contiguous = config_dict.placeholder(bool)  # radii fall in equal steps, whatever keep_rate says
    pattern.min_radius = config_dict.placeholder(float)  # towards this one, in steps of the grid

    reduction.tome = tome = config_dict.ConfigDict()
    tome.blocks = config_dict.placeholder(tuple)  # those that merge, counted from 0; all
    tome.r = config_dict.placeholder(tuple)  # tokens that each block merges (13), or the first blocks' one by one
    tome.inflection = config_dict.placeholder(float)  # of one r: -1 from 2 r to 0 over the blocks, 1 the reverse
    tome.keep_rate = config_dict.placeholder(tuple)  # instead of r: r, or each block's share of the first tokens
    tome.proportional = config_dict.placeholder(bool)  # attention counts a token as often as those that it stands for
    reduction.kmedoids = kmedoids = config_dict.ConfigDict()
    kmedoids.blocks = config_dict.placeholder(tuple)  # those before which it clusters, not the first, 0: (3, 6, 9)
    kmedoids.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    kmedoids.medoid_iterations = config_dict.placeholder(int)  # how often medoids are chosen anew
    kmedoids.equal_weight = config_dict.placeholder(bool)  # attention has no say, the first medoid is drawn
    reduction.dpcknn = dpcknn = config_dict.ConfigDict()
    dpcknn.blocks = config_dict.placeholder(tuple)  # those before which it clusters, not the first, 0: (3, 6, 9)
    dpcknn.keep_rate = config_dict.placeholder(tuple)  # r, or each block's share of the first tokens
    dpcknn.neighbours = config_dict.placeholder(int)  # those that a token's density is of, itself among them
    dpcknn.equal_weight = config_dict.placeholder(bool)  # tokens weigh the same in a mean; no learned weights
    reduction.ats = ats = config_dict.ConfigDict()
    ats.blocks = config_dict.placeholder(tuple)  # those that reduce, counted from 0: (3, 6, 9)
    ats.keep_rate = config_dict.placeholder(tuple)  # of the samples, a bound on the tokens: r, or each block's share

    config.optimizer = optimizer = config_dict.ConfigDict()
    optimizer.name = "adamw"  # or "muon", "lion", "schedule_free_adamw", see docs/training.md
    optimizer.learning_rate = 1e-3  # peak (Table 2)
    optimizer.learning_rate_scaling = "none"  # "linear": the peak times batch_size / 512 (DeiT)
    optimizer.schedule = "cosine"  # after the warm-up: or "linear", "wsd", "constant"
    optimizer.decay_share = 0.2  # of "wsd": the last share of the epochs, in which the rate falls
    optimizer.warmup_epochs = 5.0  # epochs from warmup_learning_rate up to the peak, in a straight line
    optimizer.warmup_learning_rate = 1e-6  # where the warm-up begins
    optimizer.final_learning_rate = 1e-5  # where the schedule ends with the last epoch; not of "constant"
    optimizer.restart_epochs = ()  # epochs, rising, at which the schedule starts anew (SGDR): (300,); (): never
    optimizer.restart_learning_rate = 0.0  # where it starts then, without a warm-up; 0: at the peak
    optimizer.weight_decay = 0.05  # times the learning rate (Table 2, AdamW), on kernels alone
    optimizer.beta1 = 0.9  # of the mean of the gradients
    optimizer.beta2 = 0.999  # of the mean of their squares; of Lion: of the momentum
    optimizer.epsilon = 1e-8  # added to that mean's root, which divides
    optimizer.muon_momentum = 0.95  # of "muon" on matrices, where beta1 and beta2 are of the rest
    optimizer.clip_norm = 0.0  # maximum of the gradient's global norm; 0: no clipping (DeiT)
    optimizer.sam_rho = 0.0  # sharpness-aware: gradients are taken this far up the slope, in two passes; 0: off
    optimizer.layer_decay = 1.0  # learning rate of a block over that of the next one (BEiT: 0.65); 1: the same for all
    optimizer.freeze = ()  # parts that stay as they are, such as ("embedding", "blocks"); (): none
    optimizer.ema_decay = 0.99996  # of the weights' moving average (DeiT), kept beside the weights; 0: keep none
    optimizer.ema_share = 0.0  # instead of ema_decay: width of the average as a share of the run so far; 0: off

    config.divergence = divergence = config_dict.ConfigDict()
    # A step whose loss or gradient is not finite changes nothing but the step's number.
    divergence.max_skipped = 5  # of these in a row: the run returns to its last checkpoint
    divergence.loss_spike = 0.0  # and at a loss of this many times the median of the last 100 steps; 0: off
    divergence.max_rollbacks = 3  # times that a run returns and continues with other images; then it ends

    config.augment = augment = config_dict.ConfigDict()
    augment.crop = "random_resized"  # or "center": the evaluation's view
    augment.crop_area = (0.08, 1.0)  # minimum and maximum share of the image in a random crop
    augment.crop_ratio = (0.75, 4 / 3)  # minimum and maximum width over height of a random crop
    augment.resize = "fast"  # of random crops: "fast", "pillow" or "simd", see docs/data.md; evaluation is Pillow's
    augment.eval_crop_fraction = 0.875  # share of the short side that the evaluation's central square covers
    augment.eval_interpolation = config_dict.placeholder(str)  # by which that view is resized; None: "bicubic"
    augment.mean = config_dict.placeholder(tuple)  # of pixels scaled to 0..1, red green blue; None: the data set's
    augment.std = config_dict.placeholder(tuple)  # their standard deviation; None: the data set's
    augment.repeats = 3  # times that an image comes in a row, at the same length of an epoch (DeiT); 1: once
    augment.flip = 0.5  # probability of mirroring left to right
    augment.shift = 0  # pixels, maximum shift in each direction
    augment.rand_augment = "rand-m9-mstd0.5-inc1"  # RandAugment in timm's notation (DeiT); "": off
    augment.three_augment = False  # grey, solarised or blurred, one of them for every image (DeiT III)
    augment.color_jitter = 0.0  # maximum change of brightness, contrast and saturation, 0.3 in DeiT III; 0: off
    augment.erase = 0.25  # probability of filling a box with noise (random erasing, DeiT); 0: off
    augment.erase_area = (0.02, 1 / 3)  # minimum and maximum share of the image in that box
    augment.erase_ratio = (0.3, 3.3)  # minimum and maximum height over width of that box
    augment.mixup = 1.0  # alpha of mixup (Table 2); 0: off
    augment.cutmix = 0.8  # alpha of CutMix (Table 2); 0: off
    augment.switch_probability = 0.5  # of CutMix rather than mixup where both are on
    augment.mixing_off_epochs = 0.0  # epochs at the end without mixup and CutMix; 0: none
    augment.label_smoothing = 0.1  # share of the target spread over all classes (DeiT)

    return config.lock()

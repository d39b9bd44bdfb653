"""What a report says in words: titles, what the scales are, what was decided, and where the paper contradicts itself.

Numbers of the paper stand as printed (doi 10.9728/dcs.2024.25.2.485); the counts of ours are held by a test.
"""

TITLES = {
    "table1": "Table 1: learnable parameters of the embedding alone",
    "table6": "Table 6: three embeddings before one body",
    "table7": "Table 7: how deep the convolution stack goes before the clustering",
    "table8": "Table 8: iterations T of the clustering",
    "readings": "Readings that the paper leaves open",
    "reductions": "Token reductions in two bodies",
    "bodies": "Super tokens before other bodies",
    "clustering": "Does clustering help?",
    "recipe": "A recipe for small data: the search",
    "recipe_test": "A recipe for small data: the final comparison",
}
_RECIPE = ("recipe", "recipe_test")
SCALES = {
    "paper": "the paper's recipe on ImageNet100 at 224 pixels",
    "medium_128": "the paper's ViT-S and recipe for any class folders at 128 pixels, 64 tokens, 100 epochs",
    "medium": "any class folders at 64 pixels, 64 tokens, the paper's modules 1-4",
    "small": "a ladder of the same shape, scaled down for any class folders",
    "smoke": "the digits and a tiny model, to prove the machinery; it says nothing about embeddings",
    # Of these studies, whose scales are other ones.
    **{f"{table} small": "`small_folder` for any class folders at 32 pixels" for table in _RECIPE},
    **{f"{table} medium": "`small_folder` for any class folders at 64 pixels" for table in _RECIPE},
    "recipe_test medium_128": "`modern_vit_s` for any class folders at 128 pixels, on an accelerator",
}
NOTES = {
    "table1": [
        "The convolution embedding as printed in Table 4, with biases and BatchNorm, has 3,490,560 parameters; "
        "1.00M is EarlyConv's own stem (1,021,488, `vit_s_earlyconv`).",
        "The proposed embedding as printed in Table 5, with biases, BatchNorm and its linear layer, has 132,192; "
        "0.09M fits altered variants only, such as one without module 6 (95,136).",
    ],
    "table6": [
        'The paper prints what 500 epochs add ("+0.76", "+1.58"); its figures for 500 epochs here are the sums.',
        "The paper names neither seeds nor the number of runs; its differences have no interval.",
    ],
    "table7": [
        "The paper gives module 1 alone an output of 224x224, so it has stride 1 in that row; elsewhere its stride "
        "is 2. `readings` has both.",
        "Every row ends with the same token grid: cells are as large as the stack's output needs.",
    ],
    "table8": [
        "T counts affinity computations: T - 1 updates of the super tokens, then one aggregation. T = 1 is one "
        "affinity against the average-pooled cells.",
        "Average pooling alone, without any clustering, is not in the paper: it tells what the clustering itself "
        "gives.",
        "With 5,000 test images one accuracy has a standard error of about 0.5 points, and the paper's four lie "
        "within 0.56: by the number of images alone they cannot be told apart.",
        "The paper's images/s are of one RTX 3060 Ti at batch 128.",
    ],
    "readings": [
        "The paper prints no figures for these; each row is compared with what this project decided on.",
    ],
    "reductions": [
        "At a keep rate r, stage s = 0, 1, 2 keeps floor(r^(s + 1) n) of the n tokens of the embedding, as Haurum et "
        "al. (2023) count them; every row is trained from random weights by one recipe.",
        "Rows with * do not keep exactly that many: EViT has one fused token more, ToMe merges at most half of the "
        "tokens in a block, ATS keeps at most as many, each image its own number, and a fixed pattern whole rings.",
        "Multiply-adds are those of embedding, blocks and head with all tokens of the last block; the method's own are "
        "the second column. Sorting and gathering multiply nothing and take time: images/s shows what is gained.",
        "The paper's text calls its reference [16] AdaViT; its list of references has ATS there, which is what is "
        "here. AdaViT (Meng et al. 2022) and A-ViT (Yin et al. 2022) are other methods.",
    ],
    "bodies": [
        "Each body has its own embedding, super tokens with the same token grid, and average pooling of the same stack "
        "in their place, which tells what the clustering itself gives. The paper names these bodies as future work and "
        "prints no figures.",
        "One recipe for all, which is no body's own: accuracies compare embeddings within a body, not bodies.",
        "Before a body of stages super tokens have two modules of the paper's stack (16 and 32 channels) and cells of "
        "2x2, for a token stands for 4x4 pixels there, and not for 16x16.",
    ],
    "clustering": [
        "The protocol is docs/study.md of the source; it was there before the runs. Rows have the same body, recipe "
        "and number of tokens unless their name says otherwise.",
        "Average and max pooling have exactly the super tokens' parameters; a strided convolution has one module more.",
    ],
    "recipe": [
        "The protocol is docs/recipe.md of the source; it was there before the runs. Each row is the base with one "
        "change, or with those of a step of the forward selection, and trains for as long as the base.",
        "Accuracies are of images held out of the training images; no test image is read.",
    ],
    "recipe_test": [
        "The protocol is docs/recipe.md of the source. Both of a pair train on all training images for the same time.",
    ],
    "decisions": [
        "Clustering: SViT's local form, each token against the 3x3 super tokens around its cell, logits divided by "
        "sqrt(C), neighbours beyond the border with logit 0, affinities constant in the gradient.",
        "Body: EarlyConv's ViT-S (depth 12, MLP ratio 3), which fits the paper's totals, as depth 10 with ratio 4 "
        "nearly would; exact GELU; BatchNorm "
        "momentum 0.9; convolutions padded by 1 on both sides.",
        "The peak learning rate is 1e-3, not scaled by the batch size; mixup 1.0 and CutMix 0.8 as printed, though "
        "DeiT has them the other way round; all else as DeiT.",
        "Classes: the paper names none. Kaggle's ImageNet100 fits its 130,000 + 5,000 images exactly, and is the "
        "default.",
    ],
    "contradictions": [
        "Table 1's 1.00M and Table 6's 20M cannot both describe Table 4: as printed it gives a model of 21,355,876 "
        "parameters; with a 1x1 last layer 20,176,228 (`vit_s_conv1x1`).",
        "Table 1's 0.09M does not describe Table 5 (132,192).",
        'The abstract\'s "10 times fewer" parameters holds against the convolution stem, not against patches (3 '
        "times).",
        "Table 7's totals (17.7M to 17.9M) do not fit to the digit: ours are 17,866,852 without a stack, 17,923,396"
        " with modules 1-4, and 18,034,564 with one more convolution. Table 6 has 17M for what Table 7 has 17.9M "
        "for.",
    ],
}

"""A model as one file of plain PyTorch.

The files `*.pytorch` of this folder are the pieces: PyTorch's form of everything in `stce_jax.models`, in evaluation
mode. They are Python, but text to this package, which never imports PyTorch. Their modules have the names of their
linen twins, so that one rule brings the weights over (`weights`). `embeddings`, `reductions` and `bodies` say which
pieces a model is made of, as a `call.Call`; `assembly` takes these and no others into one file.

A new embedding, reduction or body has its PyTorch form in a piece here, and a line in the table of its kind.
"""

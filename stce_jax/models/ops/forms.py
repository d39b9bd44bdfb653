"""Forms of operations for GPUs that wait to be measured on one: none of them is used unless somebody chooses it.

`with gpu_forms(("bias_gelu",)):` around what is traced chooses some on CUDA devices; other devices keep theirs. A form
that pays becomes what its operation does on GPUs, and leaves this table; `benchmarks/gpu_forms.py` measures them.
"""

import jax

GPU_FORMS = {  # name -> what it does
    "residual_norm": "the residual sum and the LayerNorm after it in one pass, forward and backward",
    "bias_gelu": "a linear layer's bias and the GELU after it in one pass, and the bias's gradient with GELU's",
    "padded_attention": "tokens padded before the products of attention: nothing is cut, padded and cut again",
    "blocks_of_2": "the first convolution over blocks of 2x2 pixels: 12 channels in place of 3",
    "blocks_of_4": "the first convolution over blocks of 4x4 pixels: 48 channels, four of its outputs at once",
}
gpu_forms = jax.make_user_context(())


def chosen(form: str) -> bool:
    """Whether a form, a name of `GPU_FORMS`, was chosen for what is being traced."""
    assert form in GPU_FORMS, form
    return form in gpu_forms.value

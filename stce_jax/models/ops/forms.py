"""Forms of operations for GPUs that wait to be measured on one: none of them is used unless somebody chooses it.

`with gpu_forms("bias_gelu"):` around what is traced chooses some on CUDA devices; other devices compute the same, up to
rounding. A form that pays becomes what its operation does on GPUs, and leaves this table; `benchmarks/gpu_forms.py`
measures them. Kernels have first derivatives in reverse mode alone.
"""

import contextlib
from collections.abc import Iterator

import jax

from stce_jax.errors import ConfigError

GPU_FORMS = {  # name -> what it does
    "residual_norm": "the residual sum and the LayerNorm after it in one pass, forward and backward",
    "bias_gelu": "a linear layer's bias and the GELU after it in one pass, and the bias's gradient with GELU's",
    "padded_attention": "tokens padded before the products of attention: less is cut, padded and cut again",
    "blocks_of_2": "the first convolution over blocks of 2x2 pixels: 12 channels in place of 3",
    "blocks_of_4": "the first convolution over blocks of 4x4 pixels: 48 channels, four of its outputs at once",
}
_chosen = jax.make_user_context(())


@contextlib.contextmanager
def gpu_forms(*names: str) -> Iterator[None]:
    """Chooses forms for what is traced within.

    Args:
      names: of `GPU_FORMS`. Of "blocks_of_2" and "blocks_of_4", which are for one convolution, the first is taken.

    Raises:
      ConfigError: there is no form of a name.
    """
    for name in names:
        if name not in GPU_FORMS:
            raise ConfigError(f"there is no form {name!r} for GPUs; there are {', '.join(GPU_FORMS)}")
    with _chosen(names):
        yield


def chosen(form: str) -> bool:
    """Whether a form, a name of `GPU_FORMS`, was chosen for what is being traced."""
    return form in _chosen.value

"""What a program for GPUs reads and writes, counted from its text."""

import pytest
from gpu_program import PARTS, bytes_of, kernels

PROGRAM = """
%fused_reduce (param_0: bf16[8,4]) -> f32[8] {
  ROOT %reduce = f32[8]{0} reduce(%param_0, %zero), dimensions={1}
}

ENTRY %main (inputs: bf16[8,4], kernel: bf16[4,16]) -> f32[8] {
  %inputs = bf16[8,4]{1,0} parameter(0), metadata={op_name="inputs"}
  %kernel = bf16[4,16]{1,0} parameter(1)
  %gemm.1 = bf16[8,16]{1,0} fusion(%inputs, %kernel), calls=%gemm_fusion_dot.3, metadata={op_name="blocks_0/mlp/in/dot"}
  %both = (bf16[8,16]{1,0}, u8[0]{0}) custom-call(%gemm.1), custom_call_target="__cudnn$fmhaSoftmax"
  %first = bf16[8,16]{1,0} get-tuple-element(%both), index=0
  %add.2 = bf16[8,16]{1,0} fusion(%first, %gemm.1), calls=%fused_add, metadata={op_name="blocks_0/mlp/add"}
  ROOT %sums = f32[8]{0} fusion(%add.2), calls=%fused_reduce, metadata={op_name="blocks_0/mlp_norm/reduce_sum"}
}
"""


@pytest.mark.parametrize(
    ("shapes", "size"),
    [("f32[]", 4), ("bf16[2,3]{1,0}", 12), ("(f32[5]{0}, pred[2,2]{1,0:T(8)}, token[])", 24), ("u8[0]{0}", 0)],
)
def test_bytes_of_arrays(shapes, size):
    assert bytes_of(shapes) == size


def test_kernels_are_counted_with_what_they_take_and_give():
    found = {name: (size, part) for size, part, name, _ in kernels(PROGRAM)}
    assert found == {
        "gemm.1": (64 + 128 + 256, "products"),
        "both": (256 + 256, "attention"),
        "add.2": (3 * 256, "MLP"),
        "sums": (256 + 32, "norms, sums"),
    }
    assert {part for _, part in found.values()} <= set(PARTS)

"""The script that measures forms for GPUs: it keeps only what is right and faster."""

import argparse

import gpu_forms
import numpy as np
import pytest
from measure import Seconds

ARGUMENTS = argparse.Namespace(
    forms=["residual_norm", "bias_gelu", "padded_attention"], minutes=1, rounds=8, seconds=0.1, dtype="float32"
)


@pytest.mark.parametrize(
    ("speed", "apart", "kept"),
    [(1.2, 0.0, "yes"), (0.8, 0.0, "no"), (1.2, 1.0, "no: wrong"), (1.2, np.nan, "no: wrong")],
)
def test_a_form_is_kept_where_it_is_right_and_faster(monkeypatch, speed, apart, kept):
    tried = []

    def make_step(_, forms):
        tried.append(forms)
        return argparse.Namespace(call=forms)

    def interleave(calls, rounds, *, shortest):
        noise = 1.0 + 0.01 * np.sin(np.arange(rounds))
        return {name: Seconds(list(noise * speed ** -len(forms)), []) for name, forms in calls.items()}

    monkeypatch.setattr(gpu_forms, "make_step", make_step)
    monkeypatch.setattr(gpu_forms, "interleave", interleave)
    monkeypatch.setattr(gpu_forms, "loss_and_gradients", lambda _, forms: {"kernel": np.ones(3) + apart * len(forms)})
    rows = gpu_forms.measure_forms(ARGUMENTS)
    assert [row["kept"] for row in rows] == [kept] * 3
    expected = {"yes": [(), *(tuple(ARGUMENTS.forms[:count]) for count in (1, 2, 3))], "no: wrong": [()]}
    assert tried == expected.get(kept, [(), *((form,) for form in ARGUMENTS.forms)])

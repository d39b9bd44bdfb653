"""Options that a verb does not have, as users of other tools type them: the answer is what to write here."""

import pytest
from helpers import run_cli

from stce_jax.cli import VERBS, make_parser
from stce_jax.commands import unknown

TRAIN = ("train", "--config=digits", "--workdir=W")


@pytest.mark.parametrize(
    "words, answer",
    [
        (("--epochs=3",), "'--epochs'; write --config.epochs=3"),
        (("--epochs", "3"), "'--epochs'; write --config.epochs=3"),
        (("--Epochs=3",), "'--Epochs'; write --config.epochs=3"),
        (("--lr=1e-3",), "'--lr'; write --config.optimizer.learning_rate=1e-3"),
        (("--lr", "-1"), "'--lr'; write --config.optimizer.learning_rate=-1"),
        (("-b", "64"), "'-b'; write --config.batch_size=64"),
        (("--batch-size=64",), "'--batch-size'; write --config.batch_size=64"),
        (("--wd=0.1", "--config.seed=1"), "'--wd'; write --config.optimizer.weight_decay=0.1"),
        (("--config.seed", "1", "--wd=0.1"), "'--wd'; write --config.optimizer.weight_decay=0.1"),
        (("--data-dir=D",), "'--data-dir'; write --data_dir=D"),
        (("--amp",), "'--amp'; write --config.model.dtype=VALUE"),
        (("--resume",), "'--resume'; a run resumes by itself: give its --workdir"),
        (("--output-dir=D",), "'--output-dir'; write --workdir=DIR"),
        (("--finetune=x.pth",), "'--finetune'; write --init_from=RUN, or a file or folder of weights"),
        (("--gpus=2",), "'--gpus'; every GPU that the process sees is used; set CUDA_VISIBLE_DEVICES to choose some"),
        (("--wrkdir=V",), "'--wrkdir'; did you mean --workdir=V?"),
        (("--labelsmoothing=0.1",), "'--labelsmoothing'; did you mean --config.augment.label_smoothing=0.1?"),
        (("--qqqq=1",), "'--qqqq'; see stce train --help"),
        (("more",), "'more'; see stce train --help"),
        (("--config.seed", "1", "more"), "'more'; see stce train --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_training(words, answer, capsys):
    assert run_cli(capsys, *TRAIN, *words) == (2, "", f"stce: unknown argument {answer}\n")


@pytest.mark.parametrize(
    "words, answer",
    [
        (("predict", "a.png", "--workdir=W", "--top-k=3"), "'--top-k'; write --topk=3"),
        (("benchmark", "vit_ti_patch", "--batch-size=8"), "'--batch-size'; did you mean --batch_sizes=8?"),
        (("evaluate", "--workdir=W", "--lr=3"), "'--lr'; see stce evaluate --help"),
        (("show-data", "--config=digits", "--output=W", "--epochs=3"), "'--epochs'; write --config.epochs=3"),
    ],
)
def test_other_verbs(words, answer, capsys):
    assert run_cli(capsys, *words) == (2, "", f"stce: unknown argument {answer}\n")


def test_what_a_value_may_look_like_is_no_option():
    assert unknown.first_unknown(["--config.seed", "-1", "--config.x=2"], True) is None
    assert unknown.first_unknown(["--noconfig.deterministic"], True) is None
    assert unknown.first_unknown(["--config.seed=1"], False) == ("--config.seed", "1")


def test_hostile_words_are_one_short_line(capsys):
    for word in ("--\x1b[2J=1", "--" + "x" * 100_000, "--lr=\x1b]0;x\x07", "-", "--"):
        code, out, error = run_cli(capsys, *TRAIN, word)
        assert (code, out) == (2, "") or word == "--"
        assert error.count("\n") <= 1 and len(error) < 2100 and "\x1b" not in error


def test_options_have_one_spelling_and_former_ones_are_taken():
    (verbs,) = (action for action in make_parser()._actions if hasattr(action, "choices") and action.choices)
    options = {name for verb in VERBS for action in verbs.choices[verb]._actions for name in action.option_strings}
    assert not [name for name in options - {"-h"} if "-" in name[2:]], "options are written with underscores"
    for former, today in unknown.FORMER.items():
        assert today.partition("=")[0] in options and former not in options
        assert unknown.with_todays_names([f"{former}=a=b", former, "x"]) == [f"{today}=a=b", today, "x"]

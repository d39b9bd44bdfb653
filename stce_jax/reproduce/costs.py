"""What the rows of a sweep cost: parameters, multiply-adds and speed, beside what the paper prints."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from stce_jax.analysis.costs import count_model, count_multiply_adds, count_parameters
from stce_jax.models.embeddings.stem import strided_grid
from stce_jax.paths import read_json
from stce_jax.reproduce.cells import Row, load_rows, scales_of
from stce_jax.reproduce.documents import Block, paragraph
from stce_jax.reproduce.results import Result
from stce_jax.training import assemble as runs
from stce_jax.training.state import abstract_variables

PAPERS_CLASSES = 100
NEIGHBOURS = 9
NONE = "–"
_MEASURED = {"model", "what", "error", "ratio", "ratio_margin", "images_per_second", "batch_size", "dtype", "device"}

Count = Callable[[str], Mapping[str, Any]]  # of a run


def cost_rows(results: Sequence[Result], speed: Sequence[Mapping[str, Any]], count: Count) -> list[dict[str, str]]:
    """The lines of a table of costs, a row each."""
    lines = []
    for result in results:
        row, counted = result.row, count(result.row.run)
        line = {"row": row.label}
        if "parameters" in row.paper:
            line |= {"parameters, paper": row.paper["parameters"]}
        if "papers_parameters" in counted:
            line |= {"ours at the paper's size": f"{counted['papers_parameters']:,}"}
        if row.scale != "paper" or row.more:
            line |= {"here" if "papers_parameters" in counted else "parameters": f"{counted['parameters']:,}"}
        line |= {"multiply-adds": f"{counted['multiply_adds'] / 1e6:,.1f}M"}
        if "images_per_second" in {key for of in results for key in of.row.paper}:
            line |= {"paper, images/s": str(row.paper.get("images_per_second", NONE))}
        for what in ("inference", "training") if speed else ():
            line |= {f"{what}, images/s": speed_text(row.run, speed, what)}
        line |= {
            "training with loading, images/s": mean_text(result.images_per_second),
            "minutes a run": mean_text(result.seconds, unit=60, digits=1),
        }
        lines.append(line)
    return lines


def count_row(row: Row, classes: int) -> dict[str, int]:
    """`count_model` of a row's model, and "papers_parameters": its counterpart's at the paper's size, if it has one."""
    config = row.config()
    counted = count_model(runs.build_model(config, classes), config.image_size)
    if "paper" not in scales_of(row.table):  # a study of other models
        return counted
    return counted | {"papers_parameters": count_parameters(parameters(papers_row(row)))}


def count_embedding(config: Any) -> dict[str, int]:
    """{"parameters", "multiply_adds"} of the embedding alone of a config's model, of one image.

    Multiply-adds of a clustering are 2 x 9 n C T for n places of C channels and T iterations: nine neighbours, once for
    affinities and once for means, whatever the form in which it is computed.
    """
    embedding: Any = runs.build_model(config, PAPERS_CLASSES).embedding
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    variables = jax.eval_shape(lambda images: embedding.init(jax.random.key(0), images, train=False), images)
    clustering = 0
    if hasattr(embedding, "iterations"):
        rows, columns = strided_grid(config.image_size, config.image_size, embedding.stem_strides)
        clustering = 2 * NEIGHBOURS * rows * columns * (3, *embedding.stem_widths)[-1] * embedding.iterations
        embedding = embedding.clone(iterations=0)
    apply = functools.partial(embedding.apply, train=False)
    return {
        "parameters": count_parameters(variables["params"]),
        "multiply_adds": count_multiply_adds(apply, variables, images) + clustering,
    }


def papers_row(row: Row) -> Row:
    """The row's counterpart at the paper's size."""
    (papers,) = (found for found in load_rows(row.table, "paper") if found.run == row.run)
    return papers


def parameters(row: Row) -> Any:
    """The shapes of the parameters of a row at the paper's size."""
    config = row.config()
    return abstract_variables(runs.build_model(config, PAPERS_CLASSES), config.image_size)["params"]


def speed_text(run: str, speed: Sequence[Mapping[str, Any]], what: str) -> str:
    """How fast a run's model is, with its ratio to the first; why there is no number, where there is none."""
    for measured in speed:
        if measured["model"] == run and measured["what"] == what:
            if measured["error"]:
                return measured["error"]
            margin = f" ± {100 * measured['ratio_margin']:.1f}%" if measured["ratio_margin"] else ""
            ratio = "" if measured["ratio"] is None else f" ({100 * measured['ratio']:.1f}%{margin})"
            return f"{measured['images_per_second']:,.0f}{ratio}"
    return NONE


def how_timed(results: Sequence[Result], speed: Sequence[Mapping[str, Any]]) -> list[Block]:
    """How the speeds of a table were measured; nothing if they were not."""
    if not speed:
        return []
    first, labels = speed[0], {result.row.run: result.row.label for result in results}
    return [
        paragraph(
            f"Images/s of inference and training: `stce benchmark`, batches of {first['batch_size']}, "
            f"{first['dtype']}, on one {first['device']}, the models in turn; in brackets the ratio to "
            f"`{labels.get(first['model'], first['model'])}` with its 95% interval."
        )
    ]


def read_speed(workdir: Path, tables: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """{table: rows of `stce benchmark`} of the tables that were measured."""
    found = {}
    for name in tables:
        with contextlib.suppress(OSError, ValueError):  # not there, or damaged: it is measured again
            rows = read_json(speed_file(workdir, name))
            if isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= _MEASURED for row in rows):
                found[name] = rows
    return found


def speed_file(workdir: Path, name: str) -> Path:
    """Where the speed of a table's models is kept."""
    return workdir / "speed" / f"{name}.json"


def mean_text(values: Sequence[float | None], *, unit: float = 1, digits: int = 0) -> str:
    """The mean of what is known, in a unit."""
    known = [value / unit for value in values if value is not None]
    return f"{sum(known) / len(known):,.{digits}f}" if known else NONE

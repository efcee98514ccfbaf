"""The evaluation at a glance: identity against prompt, and pictures of all modes side by side."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from fd_jax.demo.grid import Cell, Pixels, Subject
from fd_jax.demo.report import Evaluation, swept
from fd_jax.demo.scoring import MEASURES
from fd_jax.evaluation.intervals import mean
from fd_jax.images.sheets import INK, scaled

_SIDE, _GAP, _LEFT, _LETTERS = 128, 6, 90, 20
_APART = 0.045  # of the height of a plot, from one label to the next


def plot(path: Path, evaluation: Evaluation) -> None:
    """Draws identity against prompt accuracy: a point for each mode, a line through the sweep.

    Args:
        path: PNG file, replaced if it exists.
        evaluation: What was measured. Each measure of identity has a panel of its own.
    """
    # Not pyplot, which would choose a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = [key for key in ("identity", "sface") if key in evaluation.scores["snf"]]
    figure = Figure(figsize=(6 * len(measures), 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.ravel(figure.subplots(1, len(measures)))
    modes = [run.name for run in evaluation.runs if run.name == run.sampler.mode]
    for panel, measure in zip(panels, measures, strict=True):
        points = {
            name: (mean(scores["prompt"]), mean(scores[measure]))
            for name, scores in evaluation.scores.items()
        }
        sweep = swept(evaluation.runs)
        line = [[axis.value for axis in points[run.name]] for run in sweep]
        label = "snf, other borders (alpha, beta)"
        panel.plot(*np.transpose(line), ".-", color="silver", zorder=0, label=label)
        for number, name in enumerate(modes):
            errors = [[[axis.value - axis.low], [axis.high - axis.value]] for axis in points[name]]
            at = [axis.value for axis in points[name]]
            style = {"marker": "osD^v"[number], "capsize": 3, "linestyle": "none"}
            panel.errorbar(*at, yerr=errors[1], xerr=errors[0], label=name, **style)
        panel.set_xlabel("prompt accuracy")
        panel.set_ylabel(MEASURES[measure].title)
        panel.grid(alpha=0.3)
        _label(panel, [f"{run.sampler.alpha:g}, {run.sampler.beta:g}" for run in sweep], line)
    panels[0].legend(fontsize=8)
    figure.savefig(path)


def _label(panel: Any, labels: Sequence[str], points: Sequence[Sequence[float]]) -> None:
    """Writes labels beside a panel, in the order of their points' heights, with a line to each."""
    order = sorted(range(len(points)), key=lambda i: points[i][::-1])
    panel.autoscale_view()  # else it waits until it is drawn, and moves the points
    heights = panel.transAxes.inverted().transform(panel.transData.transform(points))[:, 1]
    first = heights.mean() - _APART * (len(points) - 1) / 2
    first = np.clip(first, 0, max(1 - _APART * (len(points) - 1), 0))
    for place, i in enumerate(order):
        panel.annotate(
            labels[i],
            points[i],
            (1.03, first + _APART * place),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color="gray",
            arrowprops={"arrowstyle": "-", "color": "silver", "lw": 0.6, "relpos": (0, 0.5)},
        )


def chosen_cells(cells: Sequence[Cell]) -> list[int]:
    """Returns the numbers of two cells each of one and two people, seen and unseen."""
    groups: dict[tuple, list[int]] = {}
    for i, cell in enumerate(cells):
        groups.setdefault((cell.kind, len(cell.people)), []).append(i)
    chosen = []
    for number, group in enumerate(groups.values()):
        scenes = len({cells[i].scene for i in group})
        # Scenes of the first seed, others in each group.
        chosen += [group[(2 * number + step) % scenes] for step in (0, scenes // 2)]
    return chosen


def sheet(
    pictures: Mapping[str, Sequence[Pixels]], cells: Sequence[Cell], subjects: Sequence[Subject]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns pictures with a row for each mode, and prompts and photographs on top.

    Args:
        pictures: By mode, one for each cell.
        cells: What they were made from, a column each.
        subjects: Everybody.
    """
    stride = _SIDE + _GAP
    font = ImageFont.load_default(12)
    prompts = [
        "\n".join(textwrap.wrap(f"{cell.prompt.replace(' <|image|>', '')} ({cell.kind})", _LETTERS))
        for cell in cells
    ]
    heading = 16 * max(prompt.count("\n") + 1 for prompt in prompts) + _GAP
    top = heading + _SIDE // 2 + _GAP
    size = _LEFT + len(cells) * stride, top + len(pictures) * stride
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    for column, (cell, prompt) in enumerate(zip(cells, prompts, strict=True)):
        x = _LEFT + column * stride
        draw.text((x, _GAP), prompt, fill=INK, font=font)
        for place, person in enumerate(cell.people):
            photograph = scaled(subjects[person].photograph, _SIDE // 2 - 2)
            whole.paste(photograph, (x + place * _SIDE // 2, heading))
    for row, (name, made) in enumerate(pictures.items()):
        y = top + row * stride
        draw.text((_GAP, y + _SIDE // 2), name, fill=INK, font=font)
        for column, picture in enumerate(made):
            whole.paste(_square(picture), (_LEFT + column * stride, y))
    return np.array(whole)


def _square(picture: Pixels) -> Image.Image:
    return Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)

"""Draws the evaluation: a plot of identity over prompt accuracy, and a sheet of all modes."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from fd_jax.demo.grid import EvalCase, Pixels, Subject
from fd_jax.demo.report import Evaluation, swept
from fd_jax.demo.scoring import MEASURES
from fd_jax.evaluation.intervals import mean
from fd_jax.images.sheets import INK, scaled

_SIDE, _GAP, _LEFT, _LETTERS = 128, 6, 90, 20
_LABEL_GAP = 0.045  # between labels, as a share of the plot's height


def plot(path: Path, evaluation: Evaluation) -> None:
    """Plots identity over prompt accuracy: a point for each mode, a line through the sweep.

    Args:
        path: PNG file, replaced if it exists.
        evaluation: The scores. Each measure of identity has its own panel.
    """
    # pyplot would choose a backend for the whole process.
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
    """Writes labels beside a panel, sorted by the height of their points, with a line to each."""
    order = sorted(range(len(points)), key=lambda i: tuple(points[i][::-1]))
    panel.autoscale_view()  # otherwise the points move when the figure is drawn
    heights = panel.transAxes.inverted().transform(panel.transData.transform(points))[:, 1]
    first = heights.mean() - _LABEL_GAP * (len(points) - 1) / 2
    first = np.clip(first, 0, max(1 - _LABEL_GAP * (len(points) - 1), 0))
    for place, i in enumerate(order):
        panel.annotate(
            labels[i],
            points[i],
            (1.03, first + _LABEL_GAP * place),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color="gray",
            arrowprops={"arrowstyle": "-", "color": "silver", "lw": 0.6, "relpos": (0, 0.5)},
        )


def cases_on_sheet(cases: Sequence[EvalCase]) -> list[int]:
    """Returns the indices of eight cases: two each of one and two people, seen and unseen."""
    groups: dict[tuple, list[int]] = {}
    for i, case in enumerate(cases):
        groups.setdefault((case.kind, len(case.people)), []).append(i)
    chosen = []
    for number, group in enumerate(groups.values()):
        scenes = len({cases[i].scene for i in group})
        # Scenes of the first seed, different ones in each group.
        chosen += [group[(2 * number + step) % scenes] for step in (0, scenes // 2)]
    return chosen


def sheet(
    pictures: Mapping[str, Sequence[Pixels]], cases: Sequence[EvalCase], subjects: Sequence[Subject]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws images in a row for each mode, below their prompts and references.

    Args:
        pictures: Images by mode, one for each case.
        cases: Inputs of the images, a column each.
        subjects: People of all cases.
    """
    stride = _SIDE + _GAP
    font = ImageFont.load_default(12)
    prompts = [
        "\n".join(textwrap.wrap(f"{case.prompt.replace(' <|image|>', '')} ({case.kind})", _LETTERS))
        for case in cases
    ]
    heading = 16 * max(prompt.count("\n") + 1 for prompt in prompts) + _GAP
    top = heading + _SIDE // 2 + _GAP
    size = _LEFT + len(cases) * stride, top + len(pictures) * stride
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)
    for column, (case, prompt) in enumerate(zip(cases, prompts, strict=True)):
        x = _LEFT + column * stride
        draw.text((x, _GAP), prompt, fill=INK, font=font)
        for place, person in enumerate(case.people):
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

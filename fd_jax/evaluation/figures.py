"""Draws the evaluation: a plot of identity over prompt, and a sheet of all modes."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from fd_jax.evaluation.cases import Case, Person, Pixels
from fd_jax.evaluation.report import Evaluation, borders, swept
from fd_jax.images.sheets import INK, scaled

_SIDE, _GAP, _LEFT, _LETTERS = 128, 6, 90, 20
_LABEL_GAP = 0.045  # between labels, as a share of the plot's height


def plot(path: Path, evaluation: Evaluation) -> None:
    """Plots identity over prompt: a point for each run, a line through the sweep of borders.

    Args:
        path: PNG file, replaced if it exists.
        evaluation: The scores, with a measure of prompt and one of identity at least. Each
            measure of identity has its own panel.
    """
    # pyplot would choose a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures, [prompt, *_] = evaluation.keys("identity"), evaluation.keys("prompt")
    figure = Figure(figsize=(6 * len(measures), 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.ravel(figure.subplots(1, len(measures)))
    sweep = sorted(swept(evaluation.runs), key=borders)
    for panel, measure in zip(panels, measures, strict=True):
        points = {
            name: (evaluation.mean(name, prompt), evaluation.mean(name, measure))
            for name in evaluation.scores
        }
        line = [[axis.value for axis in points[run.name]] for run in sweep]
        if len(sweep) > 1:
            label = "snf, other borders (alpha, beta)"
            panel.plot(*np.transpose(line), ".-", color="silver", zorder=0, label=label)
        for number, name in enumerate(evaluation.names()):
            errors = [[[axis.value - axis.low], [axis.high - axis.value]] for axis in points[name]]
            at = [axis.value for axis in points[name]]
            style = {"marker": "osD^vP*X"[number % 8], "capsize": 3, "linestyle": "none"}
            panel.errorbar(*at, yerr=errors[1], xerr=errors[0], label=name, **style)
        panel.set_xlabel(evaluation.measures[prompt].title)
        panel.set_ylabel(evaluation.measures[measure].title)
        panel.grid(alpha=0.3)
        if len(sweep) > 1:
            labels = [f"{s.alpha:g}, {s.beta:g}" for run in sweep if (s := run.sampler)]
            _label(panel, labels, line)
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


def cases_on_sheet(cases: Sequence[Case]) -> list[int]:
    """Returns the indices of some cases: two each of a kind and number of people."""
    groups: dict[tuple, list[int]] = {}
    for i, case in enumerate(cases):
        groups.setdefault((case.kind, len(case.people)), []).append(i)
    chosen = []
    for number, group in enumerate(groups.values()):
        prompts = len({cases[i].prompt_number for i in group})
        # Different prompts in each group.
        chosen += [group[(2 * number + step) % prompts] for step in (0, prompts // 2)]
    return list(dict.fromkeys(chosen))


def sheet(
    pictures: Mapping[str, Sequence[Pixels]], cases: Sequence[Case], people: Sequence[Person]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws images in a row for each mode, below their prompts and references.

    Args:
        pictures: Images by mode, one for each case.
        cases: Inputs of the images, a column each.
        people: People of all cases.
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
            photograph = scaled(people[person].photograph, _SIDE // 2 - 2)
            whole.paste(photograph, (x + place * _SIDE // 2, heading))
    for row, (name, made) in enumerate(pictures.items()):
        y = top + row * stride
        draw.text((_GAP, y + _SIDE // 2), name, fill=INK, font=font)
        for column, picture in enumerate(made):
            whole.paste(_square(picture), (_LEFT + column * stride, y))
    return np.array(whole)


def _square(picture: Pixels) -> Image.Image:
    return Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)

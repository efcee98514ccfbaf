"""HTML of what the page shows: stages, progress, frames and pictures, all inside the message."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fd_jax.errors import InputError
from fd_jax.images.trace_sheet import trace_panels, trace_sheet
from fd_jax.sampling.stages import STAGE_NAMES, SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig
from fd_jax.web.jobs import Frame, Job, Status
from fd_jax.web.results import Result

_PANEL_SIDE = 256
_MEANING = {
    "Predicted image": "the picture that the noise predicts at this step",
    "TDM saliency": "where the text-driven model responds to the prompt",
    "SDM saliency": "where the subject-augmented model responds to the photographs",
    "Noise taken from": "the mask: blue takes the noise of the TDM, orange that of the SDM",
}
_WORK = {
    "scene": "the TDM alone builds the scene",
    "fusion": "both models, the mask divides the work",
    "subject": "the SDM alone finishes the person",
}


def stages_view(sampler: SamplerConfig, schedule: ScheduleConfig) -> str:
    """Returns a bar of the three stages, as long as they last."""
    steps = make_steps(sampler, schedule)
    n = len(steps.stage)
    parts, texts = [], []
    for stage, name in enumerate(STAGE_NAMES):
        count = int(np.sum(steps.stage == stage))
        if count:
            parts.append(f'<span class="fd-{name}" style="flex:{count}">{name} {count}</span>')
            work = f": {_WORK[name]}" if sampler.mode == "snf" else ""
            texts.append(f"{name}, {count} of {n} evaluations{work}")
    return (
        f'<div class="fd-stages" role="img" aria-label="Stages: {"; ".join(texts)}">'
        f"{''.join(parts)}</div><p>{'; '.join(texts)}. A picture takes {steps.num_evaluations} "
        "evaluations of a UNet.</p>"
    )


def status_view(status: Status) -> str:
    """Returns the bar and what is going on, in words."""
    share = status.done / status.total if status.total else 0.0
    if status.state == "waiting":
        text = "Waiting" + (f", {status.ahead} requests are before yours" if status.ahead else "")
    elif status.state == "sampling":
        left = "" if status.seconds_left is None else f", about {status.seconds_left:.0f} s left"
        text = f"Evaluation {status.done} of {status.total}{left}"
    else:
        share = 1.0 if status.state == "done" else share
        text = {"done": "Done", "cancelled": "Cancelled", "failed": "Failed"}[status.state]
        text += f": {status.message}" if status.message else ""
    return (
        f'<progress max="1" value="{share:.3f}" aria-label="Progress of sampling"></progress>'
        f'<p role="status" data-state="{status.state}">{html.escape(text)}</p>'
    )


def message_view(error: InputError | str) -> str:
    """Returns a message at the place of the progress."""
    return f'<p role="alert" class="fd-alert">{html.escape(str(error))}</p>'


def frame_view(frame: Frame) -> str:
    """Returns the panels of one evaluation, with what they mean."""
    panels = trace_panels(*_stacked([frame]), side=_PANEL_SIDE)
    figures = [
        _figure(_uri(_png(images[0])), f"{label}, evaluation {frame.step}", label, _MEANING[label])
        for label, images in panels.items()
    ]
    heading = f"<p>Evaluation {frame.step}: {frame.stage} stage</p>"
    return f'{heading}<div class="fd-panels">{"".join(figures)}</div>'


def sheet_view(job: Job) -> str:
    """Returns how the first picture formed, a column for each frame."""
    frames = job.status.frames
    sheet = trace_sheet(
        *_stacked(frames),
        steps=[f"{frame.step} {frame.stage}" for frame in frames],
        title=job.request.prompt,
    )
    alt = "Predicted image, saliency of both models and mask at each shown evaluation"
    return (
        "<details><summary>How the first picture formed</summary>"
        f'<div class="fd-sheet"><img alt="{alt}" src="{_uri(_png(Image.fromarray(sheet)))}"></div>'
        "</details>"
    )


def pictures_view(results: Sequence[Result], prompt: str, notes: Sequence[str]) -> str:
    """Returns the pictures with a link to save each."""
    figures = []
    for result in results:
        uri = _uri(result.png)
        alt = html.escape(f"{result.label}: {prompt}")
        name = html.escape(result.name)
        figures.append(
            f'<figure><img alt="{alt}" src="{uri}"><figcaption>{html.escape(result.label)}<br>'
            f'<a download="{name}" href="{uri}" aria-label="Save picture {name}">Save</a>'
            "</figcaption></figure>"
        )
    warnings = "".join(f'<p class="fd-alert">{html.escape(note)}</p>' for note in notes)
    return f'{warnings}<div class="fd-pictures">{"".join(figures)}</div>'


def _stacked(frames: Sequence[Frame]) -> tuple[Any, Any, Any, Any]:
    names = "predicted", "tdm_saliency", "sdm_saliency", "sdm_weight"
    a, b, c, d = (np.stack([getattr(frame, name) for frame in frames]) for name in names)
    return a, b, c, d


def _figure(uri: str, alt: str, caption: str, meaning: str) -> str:
    return (
        f'<figure><img alt="{alt}" src="{uri}">'
        f"<figcaption><b>{caption}</b><br>{meaning}</figcaption></figure>"
    )


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

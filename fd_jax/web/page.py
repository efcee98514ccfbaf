"""The page and its API, on Gradio."""

import base64
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr  # pyright: ignore[reportMissingImports]

from fd_jax import assets
from fd_jax.data.captions import SUBJECT_MARKER
from fd_jax.errors import InputError
from fd_jax.images.png import read_settings
from fd_jax.inference.inputs import MAX_SEED
from fd_jax.inference.prompt_file import read_prompt_file
from fd_jax.sampling.stages import Mode, SamplerConfig, Solver
from fd_jax.web import views
from fd_jax.web.jobs import Job
from fd_jax.web.requests import file_bytes, parse_settings
from fd_jax.web.service import Service

_INTRODUCTION = f"""# fd_jax: two models share a picture

Two diffusion models make one picture. The **text-driven model (TDM)** builds the scene of the
prompt, the **subject-augmented model (SDM)** makes the people of your photographs. In the
**scene** stage the TDM works alone, in the **subject** stage the SDM. In the **fusion** stage
between them both predict the noise, and at each place the model whose guidance response is the
more salient there is followed: that is the **mask**.

Give each person's word a marker, such as `a man {SUBJECT_MARKER}`, and a photograph for each
marker.
"""
_DROP = """<label class="fd-drop">Photographs, up to four: choose files or drop them here
<input type="file" multiple accept="image/*,.heic,.heif,.avif,.jp2"></label>
<ol aria-label="Photographs in the order of the markers"></ol>
<button type="button" class="fd-marker">Put &lt;|image|&gt; into the prompt</button>
<p role="status"></p>"""
_REOPEN = """<label class="fd-drop">Reopen a picture: its PNG file brings back prompt and settings
<input type="file" accept="image/png"></label>"""
_ALPHAS, _BETAS = (0.0, 0.15, 0.3, 0.45), (0.45, 0.6, 0.8, 1.0)
_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0)
_FOLDER = Path(__file__).parent


def build_page(service: Service) -> gr.Blocks:
    """Returns the page, with the API behind it."""
    defaults = service.images.sampler
    blocks = gr.Blocks(title="fd_jax", analytics_enabled=False)
    with blocks:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column():
                photographs = gr.HTML(
                    [],
                    html_template=_DROP,
                    js_on_load=_script("photographs.js"),
                    elem_classes="fd-photographs",
                    max_bytes=int(service.limits.max_photograph_mb * 1e6),
                )
                prompt = gr.Textbox(label="Prompt", lines=2, elem_id="fd-prompt")
                example = gr.Button("Fill in an example", elem_id="fd-example")
                fields = _controls(defaults, service)
                with gr.Row():
                    start = gr.Button("Sample", variant="primary", elem_id="fd-sample")
                    cancel = gr.Button("Cancel", variant="stop", elem_id="fd-cancel")
                with gr.Row():
                    borders = gr.Button("Grid of alpha and beta", elem_id="fd-grid")
                    scales = gr.Button("Row of guidance scales")
                    modes = gr.Button("Compare the five modes", elem_id="fd-modes")
                reopen = gr.HTML(html_template=_REOPEN, js_on_load=_script("reopen.js"))
            with gr.Column():
                stages = gr.HTML(views.stages_view(defaults, service.pipe.schedule))
                status = gr.HTML(elem_id="fd-status")
                pictures = gr.HTML(elem_id="fd-results")
                live = gr.HTML(elem_id="fd-live")
                sheet = gr.HTML(elem_id="fd-how")
        private: Any = {"api_visibility": "private", "show_progress": "hidden"}
        inputs = [photographs, prompt, *fields.values()]
        outputs = [status, pictures, live, sheet]
        grids = {
            start: {},
            borders: {"alpha": list(_ALPHAS), "beta": list(_BETAS)},
            scales: {"guidance_scale": list(_SCALES)},
            modes: {"mode": list(get_args(Mode))},
        }
        for button, grid in grids.items():
            button.click(
                _sampling(service, tuple(fields), grid),
                inputs,
                outputs,
                concurrency_limit=None,
                trigger_mode="once",
                **private,
            )
        cancel.click(_cancelling(service), None, status, queue=False, **private)
        example.click(_example, None, [photographs, prompt], queue=False, **private)
        reopen.submit(
            _reopening(service, tuple(fields)),
            reopen,
            [status, prompt, *fields.values()],
            queue=False,
            **private,
        )
        watched = [name for name in fields if name in _names(SamplerConfig)]
        for name in watched:
            fields[name].change(
                _showing_stages(service, watched),
                [fields[name] for name in watched],
                stages,
                queue=False,
                **private,
            )
        gr.api(service.sample, api_name="sample", concurrency_limit=None)
        blocks.unload(_leaving(service))
    return blocks


def _controls(defaults: SamplerConfig, service: Service) -> dict[str, Any]:
    """Returns the fields of the page by the names that a request has."""
    most, steps = service.scheduler.max_images, service.limits.max_num_steps
    named: dict[str, Any] = {}
    named["mode"] = gr.Radio(list(get_args(Mode)), value=defaults.mode, label="Mode")
    with gr.Row():
        named["alpha"] = gr.Slider(0, 1, defaults.alpha, step=0.05, label="Alpha: fusion begins")
        named["beta"] = gr.Slider(0, 1, defaults.beta, step=0.05, label="Beta: fusion ends")
    with gr.Row():
        named["guidance_scale"] = gr.Slider(
            0, 15, defaults.guidance_scale, step=0.5, label="Guidance scale"
        )
        named["num_steps"] = gr.Slider(1, steps, defaults.num_steps, step=1, label="Steps")
    with gr.Row():
        named["solver"] = gr.Dropdown(list(get_args(Solver)), value=defaults.solver, label="Solver")
        named["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
        if most > 1:
            named["num_images"] = gr.Slider(1, most, 1, step=1, label="Pictures")
        else:  # a slider has two ends
            named["num_images"] = gr.Number(1, label="Pictures", precision=0, interactive=False)
    with gr.Accordion("More settings", open=False):
        named["negative_prompt"] = gr.Textbox("", label="Negative prompt")
        named["sdm_weight"] = gr.Slider(
            0, 1, defaults.sdm_weight, step=0.05, label="Weight of the SDM in mode weighted"
        )
        for name in ("fusion_start", "fusion_end"):
            label = f"{name}, in place of {'alpha' if name == 'fusion_start' else 'beta'}"
            named[name] = gr.Number(getattr(defaults, name), label=label, precision=0)
        named["first_image"] = gr.Number(0, label="Number of the first picture", precision=0)
    return named


def _sampling(service: Service, names: Sequence[str], grid: dict[str, list]) -> Any:
    def run(request: gr.Request, photographs: Any, prompt: str, *values: Any) -> Iterator[list]:
        given = dict(zip(names, values, strict=True))
        settings = {name: given.pop(name) for name in _names(SamplerConfig) if name in given}
        if {"alpha", "beta"} & set(grid):  # borders in numbers would replace those of the grid
            settings |= {"fusion_start": None, "fusion_end": None}
        if grid:
            given["num_images"] = 1
        try:
            job = service.submit(
                prompt=prompt,
                photographs=photographs or [],
                settings=settings | grid,
                owner=request.session_hash,
                wants_frames=True,
                **given,
            )
        except InputError as error:
            yield [views.message_view(error), "", "", ""]
            return
        try:
            yield from _shown(service, job, prompt)
        finally:
            job.cancel()  # unless it is over: nobody looks any more

    return run


def _shown(service: Service, job: Job, prompt: str) -> Iterator[list]:
    kept = gr.skip()
    num_frames = 0
    yield [views.status_view(job.status), "", "", ""]
    for status in job.follow():
        live = kept
        if len(status.frames) > num_frames:
            num_frames = len(status.frames)
            live = views.frame_view(status.frames[-1])
        if status.state != "done":
            yield [views.status_view(status), kept, live, kept]
            continue
        results = service.pictures(job)
        shown = views.pictures_view(results, prompt, job.notes)
        sheet = views.sheet_view(job) if status.frames else kept
        yield [views.status_view(status), shown, live, sheet]


def _cancelling(service: Service) -> Any:
    def cancel(request: gr.Request) -> Any:
        count = service.cancel(request.session_hash)
        return gr.skip() if count else views.message_view("Nothing is being sampled.")

    return cancel


def _leaving(service: Service) -> Any:
    def leave(request: gr.Request) -> None:
        service.cancel(request.session_hash)

    return leave


def _reopening(service: Service, names: Sequence[str]) -> Any:
    def read(file: Any) -> list:
        kept = [gr.skip() for _ in names]
        try:
            if not isinstance(file, dict):
                raise InputError("there is no picture, expected a PNG file")
            name = str(file.get("name", "picture"))[:255]
            content = io.BytesIO(file_bytes(name, file.get("data"), service.limits))
            content.name = name
            texts = read_settings(content)
            own, sampler = parse_settings(texts)
        except InputError as error:
            return [views.message_view(error), gr.skip(), *kept]
        values = dataclasses.asdict(sampler) | {
            "negative_prompt": own["negative_prompt"],
            "seed": own["seed"],
            "first_image": own["image_number"],
            "num_images": 1,
        }
        people = ", ".join(map(str, own["references"])) or "none"
        text = f"Reopened {name}. Its photographs, in this order: {people}."
        if differing := service.differences(texts):
            text += f" This server differs in {differing}."
        return [views.message_view(text), own["prompt"], *(values[name] for name in names)]

    return read


def _showing_stages(service: Service, names: Sequence[str]) -> Any:
    def show(*values: Any) -> str:
        settings = dict(zip(names, values, strict=True))
        try:
            sampler = dataclasses.replace(service.images.sampler, **settings)
            return views.stages_view(sampler, service.pipe.schedule)
        except InputError as error:
            return views.message_view(error)

    return show


def _example() -> list:
    """Returns photographs and prompt of an example that the package brings."""
    lines, _ = read_prompt_file(assets.PROMPTS)
    line = next(line for line in lines if len(line.references) > 1)
    photographs = [
        {"name": path.name, "data": _data_uri(path.read_bytes())} for [path] in line.references
    ]
    return [photographs, line.prompt]


def _data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _names(config: type[SamplerConfig]) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _script(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")

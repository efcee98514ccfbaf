"""Requests are sampled in batches of compiled sizes, may be cancelled, and leave nothing behind."""

import io
import threading
import time

import jax
import numpy as np
import pytest

from fd_jax import SamplerConfig, read_settings
from fd_jax.errors import InputError
from fd_jax.inference.inputs import ImageKey
from fd_jax.web.requests import parse_settings
from fd_jax.web.results import finished_pictures
from fd_jax.web.scheduler import BusyError, Scheduler


class Gate:
    """Holds up sampling, and notes the sizes of the batches."""

    def __init__(self, pipe, monkeypatch):
        self.batches = []
        self.opened = threading.Event()
        sample = pipe.sample_batches

        def held(inputs, keys, **options):
            assert self.opened.wait(60)
            self.batches.append((len(keys), options["batch_size"]))
            return sample(inputs, keys, **options)

        monkeypatch.setattr(pipe, "sample_batches", held)


@pytest.fixture
def gate(scheduler, monkeypatch):
    gate = Gate(scheduler.pipe, monkeypatch)
    yield gate
    gate.opened.set()


def finish(*jobs):
    """Statuses of the last one; waits for all."""
    return [list(job.follow()) for job in jobs][-1]


def test_a_picture_is_that_of_the_pipeline(scheduler, ask, people):
    job = scheduler.submit(ask(seed=5))
    finish(job)

    inputs = scheduler.pipe.make_inputs(
        ["a man <|image|> in the snow"],
        [people[:1]],
        [""],
        subject_resolution=28,
        crop_references=False,
    )
    [expected] = scheduler.pipe.sample_batches(  # in parts too, so that the programs are the same
        inputs,
        [ImageKey(0, 5, 0)],
        sampler=[SamplerConfig(num_steps=12)],
        size=(8, 8),
        batch_size=1,
        trace=True,
        on_part=lambda part: None,
    )
    assert job.status.state == "done"
    np.testing.assert_array_equal(expected[0], job.pixels[0])


def test_frames_show_what_the_models_see(scheduler, ask, monkeypatch):
    monkeypatch.setattr(scheduler, "_decode_seconds", 0.0)  # so that every part has one
    job = scheduler.submit(ask(), wants_frames=True)
    statuses = finish(job)

    assert statuses[-1].state == "done"
    frames = job.status.frames
    assert [frame.step for frame in frames] == [5, 10, 12]
    stages = {frame.step: frame.stage for frame in frames}
    assert stages[12] == "subject"
    assert np.isnan(frames[-1].tdm_saliency).all()
    np.testing.assert_allclose(frames[-1].sdm_saliency.sum(), 1, rtol=1e-4)
    assert frames[-1].sdm_weight.min() == 1
    assert np.abs(frames[-1].predicted.astype(int) - job.pixels[0]).max() <= 1


def test_requests_are_put_together(scheduler, ask, gate):
    """Of several users, prompts, seeds and guidance; one after the other gives the same."""
    requests = [
        ask(seed=1),
        ask("a woman <|image|> reading", seed=2, settings={"guidance_scale": 2.0}),
        ask(num_images=2, seed=3),
        ask(num_images=3),
        ask(),
    ]
    first = scheduler.submit(ask())  # is taken at once, and held up
    time.sleep(0.2)
    jobs = [scheduler.submit(request) for request in requests]
    assert [job.status.ahead for job in jobs] == [0, 1, 2, 3, 4]
    gate.opened.set()
    finish(first, *jobs)

    assert gate.batches == [(1, 1), (4, 4), (4, 4)]
    alone = [scheduler.submit(request) for request in requests]
    finish(*alone)
    for job, other in zip(jobs, alone, strict=True):
        for pixels, expected in zip(job.pixels, other.pixels, strict=True):
            assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert np.abs(jobs[0].pixels[0].astype(int) - jobs[1].pixels[0]).max() > 1


def test_other_borders_are_sampled_apart(scheduler, ask, gate):
    """A batch would evaluate both models wherever one picture needs them."""
    first = scheduler.submit(ask())
    time.sleep(0.2)
    jobs = [
        scheduler.submit(ask(num_images=2, settings={"alpha": alpha})) for alpha in (0.3, 0.5, 0.3)
    ]
    gate.opened.set()
    finish(first, *jobs)

    assert gate.batches == [(1, 1), (4, 4), (2, 4)]


def test_a_grid_is_one_batch(scheduler, ask, gate):
    gate.opened.set()
    modes = ["snf", "weighted", "delayed", "tdm"]
    job = scheduler.submit(ask(settings={"mode": modes}))
    finish(job)

    assert gate.batches == [(4, 4)]
    assert [image.label for image in job.request.images] == [f"mode {mode}" for mode in modes]


def test_cancelling_ends_sampling_at_the_next_part(scheduler, ask, monkeypatch):
    """And the server goes on with the next request."""
    generate, parts = scheduler.pipe.compiled.generate, []

    def counted(*arguments, on_part, **options):
        def follow(*part):
            parts.append(part)
            job.cancel()
            on_part(*part)

        return generate(*arguments, on_part=follow, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.pipe.compiled, "generate", counted)
        job = scheduler.submit(ask(), wants_frames=True)
        assert finish(job)[-1].state == "cancelled"
        other = scheduler.submit(ask())
        while not parts:
            time.sleep(0.01)
    assert finish(other)[-1].state == "done"
    assert len(parts) >= 1
    assert job.pixels == []


def test_one_of_a_batch_may_be_cancelled(scheduler, ask, gate):
    first = scheduler.submit(ask())
    time.sleep(0.2)
    jobs = [scheduler.submit(ask(seed=seed, num_images=2)) for seed in (1, 2, 3)]
    jobs[1].cancel()
    gate.opened.set()
    finish(first, *jobs)

    assert [job.status.state for job in jobs] == ["done", "cancelled", "done"]
    assert gate.batches == [(1, 1), (4, 4)]


def test_a_full_queue_refuses(scheduler, ask, gate):
    first = scheduler.submit(ask())
    time.sleep(0.2)
    jobs = [scheduler.submit(ask()) for _ in range(6)]
    with pytest.raises(BusyError, match="6 requests are waiting"):
        scheduler.submit(ask())
    jobs[0].cancel()
    jobs.append(scheduler.submit(ask()))
    gate.opened.set()
    finish(first, *jobs)


def test_what_fails_is_told_and_the_server_goes_on(scheduler, ask, monkeypatch, capsys):
    def broken(*_, **__):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.pipe.compiled, "generate", broken)
        statuses = finish(scheduler.submit(ask()))
    assert statuses[-1].state == "failed"
    assert statuses[-1].message == "MemoryError: no room"
    assert "MemoryError" in capsys.readouterr().err
    assert finish(scheduler.submit(ask()))[-1].state == "done"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a man"}, "no marker"),
        ({"prompt": "a man <|image|> and a woman <|image|>"}, "2 markers .* and 1 photographs"),
        ({"settings": {"num_steps": [5, 6]}}, "differ in their solver or number of steps"),
    ],
)
def test_mistakes_are_told_before_the_queue(scheduler, ask, fields, message):
    with pytest.raises(InputError, match=message):
        scheduler.submit(ask(**fields))


def test_values_compile_nothing_new_after_the_warm_up(scheduler, ask, people):
    compiled = []

    def listen(name: str, seconds: float, **_) -> None:
        if "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jobs = [
            scheduler.submit(ask(num_images=3, settings={"solver": "pndm"}), wants_frames=True),
            scheduler.submit(ask(settings={"mode": ["snf", "tdm", "sdm"], "num_steps": 7})),
            scheduler.submit(ask("a <|image|> and b <|image|>", people[:2], seed=3)),
        ]
        finish(*jobs)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [job.status.state for job in jobs] == ["done"] * 3
    assert compiled == []


def test_pictures_hold_their_settings(scheduler, images, ask):
    job = scheduler.submit(ask(num_images=2, seed=4, settings={"mode": "delayed"}))
    finish(job)

    results = finished_pictures(scheduler.pipe, images, {"models": "bundled"}, job)
    assert [result.label for result in results] == ["seed 4, picture 0", "seed 4, picture 1"]
    own, sampler = parse_settings(read_settings(io.BytesIO(results[1].png)))
    assert own["references"] == ["P003.jpg"]
    assert (own["prompt"], own["seed"], own["image_number"]) == (job.request.prompt, 4, 1)
    assert sampler == job.samplers[1]


def test_closing_cancels_what_waits(pipe, images, ask, monkeypatch):
    gate = Gate(pipe, monkeypatch)
    scheduler = Scheduler(pipe, images, (1,))
    jobs = [scheduler.submit(ask()) for _ in range(2)]
    time.sleep(0.2)
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    time.sleep(0.1)
    gate.opened.set()
    closer.join(60)

    assert [job.status.state for job in jobs] == ["cancelled", "cancelled"]
    with pytest.raises(BusyError, match="closing"):
        scheduler.submit(ask())

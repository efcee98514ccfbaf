"""Requests from outside: limits, grids, photographs, settings of pictures."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fd_jax import SamplerConfig, read_settings
from fd_jax.errors import InputError
from fd_jax.images.png import encode_png
from fd_jax.inference.pictures import ImageConfig, OutputConfig, Picture
from fd_jax.inference.writer import PictureWriter
from fd_jax.web.requests import Limits, parse_request, parse_settings

LIMITS = Limits(max_photograph_mb=0.01, max_prompt_length=60, max_num_steps=60)
DEFAULTS = SamplerConfig()


def parse(**fields):
    given = {"prompt": "a man <|image|>", "photographs": []} | fields
    return parse_request(LIMITS, DEFAULTS, 16, **given)


def image_file(fmt="PNG", side=8):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (9, 90, 200)).save(file, fmt)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "x" * 61}, "prompt has 61 characters, expected 60 at most"),
        ({"negative_prompt": "x" * 61}, "negative_prompt has 61 characters"),
        ({"prompt": 3}, "prompt is a int, expected text"),
        ({"num_images": 17}, r"num_images is 17, expected a whole number in 1\.\.16"),
        ({"num_images": 2.5}, "num_images is 2.5"),
        ({"seed": -1}, "seed is -1"),
        ({"photographs": "a"}, "photographs is a str, expected a list"),
        ({"photographs": [{}] * 5}, "there are 5 photographs, expected 4 at most"),
        ({"photographs": ["/etc/passwd"]}, "photograph 0 is no object with name and data"),
        ({"photographs": [{"name": "a", "data": "A" * 14000}]}, "a has 0.0 MB, expected 0.01 at"),
        ({"photographs": [{"name": "a", "data": "/etc/passwd"}]}, "a: data is no base64"),
        ({"photographs": [{"name": "a", "data": "AAAA"}]}, "photograph a .*no image of a known"),
        ({"settings": {"num_steps": 61}}, "num_steps is 61, expected 60 at most"),
        ({"settings": {"num_step": 6}}, "did you mean 'num_steps'"),
        ({"settings": {"smoothing": "gaussian"}}, "smoothing is 'gaussian', expected 'box'"),
        ({"settings": {"sdm_cache_interval": 2}}, "sdm_cache_interval is 2, expected 1"),
        ({"settings": {"alpha": 0.9}}, "expected 0 <= alpha <= beta"),
        ({"settings": {"alpha": []}}, "settings have 0 combinations"),
        ({"settings": {"guidance_scale": list(range(17))}}, "are 17 pictures, expected 16"),
        ({"settings": {"alpha": [0.8, 0.9], "beta": [0.5]}}, "alpha is above beta in all"),
        ({"settings": [1]}, "settings is a list"),
    ],
)
def test_what_cannot_be_used_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        parse(**fields)


def test_lists_make_a_grid_from_the_same_noise():
    """Combinations with alpha above beta do not exist."""
    request = parse(settings={"alpha": [0.0, 0.5], "beta": [0.4, 0.8], "guidance_scale": 3}, seed=7)

    found = [(i.sampler.alpha, i.sampler.beta, i.label) for i in request.images]
    assert found == [
        (0.0, 0.4, "alpha 0.0, beta 0.4"),
        (0.0, 0.8, "alpha 0.0, beta 0.8"),
        (0.5, 0.8, "alpha 0.5, beta 0.8"),
    ]
    assert {(i.seed, i.number, i.sampler.guidance_scale) for i in request.images} == {(7, 0, 3)}


def test_pictures_of_a_seed_are_numbered():
    request = parse(num_images=3, first_image=5, seed=2)

    assert [(image.seed, image.number) for image in request.images] == [(2, 5), (2, 6), (2, 7)]


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_photographs_are_decoded_from_base64(head):
    photograph = {"name": "../../etc/me.png", "data": head + image_file()}
    [reference] = parse(photographs=[photograph]).references

    assert reference.name == "me.png"
    assert reference.pixels.shape == (8, 8, 3)
    assert reference.pixels[0, 0].tolist() == [9, 90, 200]


def test_photographs_go_through_the_listed_decoders():
    with pytest.raises(InputError, match=r"photograph me\.pcx .*expected JPEG, PNG"):
        parse(photographs=[{"name": "me.pcx", "data": image_file("PCX")}])


@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig(),
        SamplerConfig(
            num_steps=9,
            alpha=0.1,
            beta=0.9,
            fusion_start=2,
            fusion_end=7,
            guidance_scale=1.5,
            solver="dpmsolver++",
            mode="weighted",
            sdm_weight=0.25,
            smoothing="gaussian",
            tdm_cache_interval=2,
        ),
    ],
)
def test_settings_come_back_from_the_png_file(pipe, sampler):
    writer = PictureWriter(ImageConfig(sampler=sampler), OutputConfig(), {"models": "bundled"})
    own = {
        "prompt": 'a man <|image|> says "7", \u00e9\u4e2d',
        "negative_prompt": "0.5",
        "references": ["null", "a b.jpg"],
        "seed": 2**32 - 1,
        "image_number": 3,
    }
    content = encode_png(np.zeros((4, 4, 3), np.uint8), writer.settings(pipe, **own))

    found, again = parse_settings(read_settings(io.BytesIO(content)))
    assert found == own
    assert again == sampler


def test_settings_of_an_earlier_version_are_read(pipe):
    """Which knew fewer of them."""
    sampler = SamplerConfig(num_steps=9)
    writer = PictureWriter(ImageConfig(sampler=sampler), OutputConfig(), {"models": "bundled"})
    own = {"prompt": "a", "negative_prompt": "", "references": [], "seed": 1, "image_number": 0}
    settings = dict(writer.settings(pipe, **own))
    del settings["tdm_cache_interval"], settings["sdm_cache_interval"]
    content = encode_png(np.zeros((4, 4, 3), np.uint8), settings)

    assert parse_settings(read_settings(io.BytesIO(content)))[1] == sampler

    del settings["num_steps"]
    content = encode_png(np.zeros((4, 4, 3), np.uint8), settings)
    with pytest.raises(InputError, match="no setting num_steps"):
        parse_settings(read_settings(io.BytesIO(content)))


def test_settings_of_other_pictures_are_refused():
    content = encode_png(np.zeros((4, 4, 3), np.uint8), {"prompt": "a"})
    with pytest.raises(InputError, match="no setting negative_prompt, expected a PNG file of this"):
        parse_settings(read_settings(io.BytesIO(content)))
    with pytest.raises(InputError, match="picture cannot be read, expected a PNG file"):
        read_settings(io.BytesIO(b"hello"))


def test_a_picture_has_settings_of_the_command(pipe):
    """The fields that are read back are those that a picture of the command has."""
    picture = Picture("a.png", "a", "", (), 0, 0)
    assert {"prompt", "negative_prompt", "references", "seed", "image_number"} == set(
        picture.settings()
    )

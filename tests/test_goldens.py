"""Parity with the released PyTorch code: every network, and whole trajectories."""

import jax
import numpy as np
import pytest

from fd_jax import FaceDiffuser, sharding
from fd_jax.checkpoints.diffusers import load_folder
from fd_jax.checkpoints.placement import Placement
from fd_jax.compilation import compiler_options
from fd_jax.inference.inputs import make_inputs
from fd_jax.networks import make_networks
from tests.helpers.flat_files import SDM_PARTS, load_flat_file, read_configs
from tests.helpers.released_weights import write_checkpoints

pytestmark = pytest.mark.golden

TRAJECTORIES = ("sample_ddim", "sample_ddim_one", "sample_pndm")


def relative(found, expected) -> float:
    """Relative L2 distance, in float64."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, -3, -1))


@pytest.fixture(scope="module")
def golden_checkpoints(goldens, tmp_path_factory):
    return write_checkpoints(goldens, tmp_path_factory.mktemp("released"))


class SDM:
    """The networks of the SDM's file, VAE included, each as a compiled function."""

    def __init__(self, checkpoints):
        configs, _ = read_configs(checkpoints["base"], checkpoints["image_encoder"])
        self.configs, self.networks = configs, make_networks(configs)
        where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
        placement = Placement("float32", lambda path, shape: where)
        abstract = {key: getattr(self.networks, key).abstract for key in SDM_PARTS}
        self.params, _ = load_flat_file(
            checkpoints["sdm"], SDM_PARTS, abstract, placement, wanted=list(SDM_PARTS)
        )

    def __call__(self, name: str, method: str, *inputs):
        network = getattr(self.networks, name)
        call = jax.jit(lambda params, *xs: getattr(network.bind(params), method)(*xs))
        return call(self.params[name], *inputs)


@pytest.fixture(scope="module")
def sdm(golden_checkpoints):
    return SDM(golden_checkpoints)


@pytest.fixture(scope="module")
def modules(goldens):
    return np.load(goldens / "modules.npz")


def test_text_encoder(sdm, modules):
    text = sdm("text_encoder", "__call__", modules["input_ids"].astype(np.int32))
    assert relative(text, modules["text_hidden"]) < 1e-5


def test_image_encoder(sdm, modules):
    pixels = channels_last(modules["object_pixel_values"])
    embeds = sdm("image_encoder", "__call__", pixels.reshape(-1, *pixels.shape[2:]))
    expected = modules["object_embeds"]
    assert relative(embeds, expected.reshape(-1, expected.shape[-1])) < 1e-5


def test_subject_fusion(sdm, modules):
    embeds = modules["object_embeds"]
    rows, slots = embeds.shape[:2]
    has_subject = np.arange(slots)[None] < modules["num_objects"].reshape(-1, 1)
    index = np.zeros((rows, slots), np.int32)
    index[has_subject] = np.nonzero(modules["image_token_mask"])[1]
    inputs = modules["text_hidden"], embeds.reshape(rows, slots, -1), index, has_subject
    augmented = sdm("subject_fusion", "__call__", *inputs)
    assert relative(augmented, modules["augmented"]) < 1e-5


def test_unet(sdm, modules):
    x, t = channels_last(modules["unet_latents"]), modules["unet_timesteps"].astype(np.int32)
    eps = sdm("unet", "__call__", x, t, modules["augmented"])
    assert relative(eps, channels_last(modules["unet_out"])) < 1e-5


def test_vae_encoder(sdm, modules):
    posterior = sdm("vae", "encode", channels_last(modules["vae_image"]))
    assert relative(posterior.mean, channels_last(modules["vae_mean"])) < 1e-5
    assert relative(posterior.logvar, channels_last(modules["vae_logvar"])) < 1e-5


def test_vae_decoder(sdm, modules):
    z = channels_last(modules["vae_latent"])
    image = sdm("vae", "decode", z * np.float32(sdm.configs.vae.scaling_factor))
    assert relative(image, channels_last(modules["vae_decoded"])) < 1e-5


def test_base_folders_load(golden_checkpoints, sdm):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    placement = Placement("float32", lambda path, shape: where)
    base = golden_checkpoints["base"]
    folders = {name: base / name for name in ("unet", "vae", "text_encoder")}
    for kind, folder in (folders | {"image_encoder": golden_checkpoints["image_encoder"]}).items():
        abstract = getattr(sdm.networks, kind).abstract
        params, left = load_folder(kind, folder, abstract, placement)
        assert jax.tree.structure(params) == jax.tree.structure(abstract)
        assert bool(left) == (kind == "image_encoder")  # CLIP's other tower


@pytest.fixture(scope="module")
def golden_pipe(golden_checkpoints):
    mesh = sharding.make_mesh(jax.devices()[:1])
    # Fifty steps run long enough for LLVM's optimizations to pay.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fd_jax.inference.compiled.compiler_options",
            lambda *program: compiler_options(*program) | {"xla_backend_optimization_level": "1"},
        )
        # The attention that one CPU without the tests' eight devices takes by itself.
        return FaceDiffuser.from_pretrained(**golden_checkpoints, mesh=mesh, attention="by_head")


@pytest.fixture(scope="module", params=TRAJECTORIES)
def trajectory(request, goldens, golden_pipe):
    """A golden, the arguments that repeat it, and the latents they give with its pixels."""
    golden = dict(np.load(goldens / f"{request.param}.npz"))
    references = [golden[f"reference_{i}"] for i in range(golden["object_pixel_values"].shape[1])]
    solver = "pndm" if "pndm" in request.param else "ddim"
    arguments = {
        "prompts": str(golden["prompt"]),
        "references": references,
        "negative_prompt": str(golden["negative_prompt"]),
        "num_steps": int(golden["steps"]),
        "fusion_start": int(golden["start_merge_step"]) + 1,
        "fusion_end": int(golden["final_step"]) + 1,
        "guidance_scale": float(golden["guidance_scale"]),
        "solver": solver,
        "latents": channels_last(golden["init_latents"]),
        "height": golden["init_latents"].shape[2] * golden_pipe.architecture.vae.downscale,
        "width": golden["init_latents"].shape[3] * golden_pipe.architecture.vae.downscale,
        "subject_resolution": golden["object_pixel_values"].shape[-1],
        "crop_references": False,
    }
    pixels = iter(channels_last(golden["object_pixel_values"][0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fd_jax.inference.inputs.subject_pixels", lambda photograph, resolution: next(pixels)
        )
        samples = golden_pipe(**arguments, trace=True)
    return golden, arguments, samples.latents, samples.trace


def test_requests(trajectory, golden_pipe):
    """Tokens, marked words and pixels, from prompt and photographs."""
    golden, arguments, _, _ = trajectory
    requests = make_inputs(
        golden_pipe.tokenizer,
        [arguments["prompts"]],
        [arguments["references"]],
        [""],
        subject_resolution=arguments["subject_resolution"],
    )
    np.testing.assert_array_equal(requests.input_ids, golden["input_ids"])
    count = len(arguments["references"])
    index = requests.subject_token_index[0, :count]
    np.testing.assert_array_equal(index, np.nonzero(golden["image_token_mask"][0])[0])
    pixels = requests.subject_pixels[:, :count]
    np.testing.assert_allclose(
        pixels, channels_last(golden["object_pixel_values"]), atol=1 / 255 + 1e-6
    )


def test_contexts(trajectory, golden_pipe):
    golden, arguments, _, _ = trajectory
    requests = make_inputs(
        golden_pipe.tokenizer,
        [arguments["prompts"]],
        [arguments["references"]],
        [arguments["negative_prompt"]],
        subject_resolution=arguments["subject_resolution"],
    )
    pixels = np.zeros_like(requests.subject_pixels)
    count = len(arguments["references"])
    pixels[:, :count] = channels_last(golden["object_pixel_values"])
    compiled = golden_pipe.compiled
    contexts = compiled._encode(compiled.params, requests._replace(subject_pixels=pixels))
    assert relative(contexts[1], golden["text_only_embeds"]) < 1e-5
    assert relative(contexts[2], golden["augmented_embeds"]) < 1e-5


def test_timesteps(trajectory):
    golden, _, _, trace = trajectory
    np.testing.assert_array_equal(trace.steps.solver.t, golden["timesteps"])


def test_latents(trajectory):
    golden, _, latents, _ = trajectory
    assert relative(latents[0], channels_last(golden["latents"][-1])) < 1e-4


@pytest.mark.parametrize(
    "trajectory",
    [
        pytest.param("sample_ddim", marks=pytest.mark.slow),
        "sample_ddim_one",
        pytest.param("sample_pndm", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_latents_from_photographs(trajectory, golden_pipe):
    """Of these some pixels may differ by a level, as in `test_requests`."""
    golden, arguments, _, _ = trajectory
    # The trace is not wanted, but the function that returns it is compiled already.
    latents = golden_pipe(**arguments, trace=True).latents
    assert relative(latents[0], channels_last(golden["latents"][-1])) < 5e-3


def test_picture(trajectory, golden_pipe):
    golden, _, latents, _ = trajectory
    image = golden_pipe.decode(latents)[0]
    assert image.min() >= 0
    assert image.max() <= 1
    levels = np.round(image[::4, ::4] * 255)
    difference = np.abs(levels - golden["image"])
    assert np.mean(difference <= 2) >= 0.999

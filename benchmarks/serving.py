"""Compares a server under load with the batch sampler alone, in the same process.

    pip install gradio
    PYTHONPATH=. python benchmarks/serving.py

Eight clients send 50 requests of 1 to 4 pictures to the page's server on this machine, by HTTP.
Then the same pictures are sampled without a server, in batches of the largest size; and two more
such rounds show whether memory grows. At the end one picture is sampled in parts with and without
frames.
"""

import argparse
import base64
import concurrent.futures
import json
import socket
import threading
import time
import urllib.request

import numpy as np

from fd_jax import FaceDiffuser, SamplerConfig, assets, distributed
from fd_jax.inference.inputs import ImageKey
from fd_jax.inference.pictures import ImageConfig
from fd_jax.web.launch import launch
from fd_jax.web.requests import Limits
from fd_jax.web.scheduler import Scheduler
from fd_jax.web.service import Service

PERSON = assets.PEOPLE / "P005/P005.jpg"
PROMPT = "a man <|image|> at the beach"


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def request(address: str, count: int, seed: int) -> float:
    """Sends a request, waits for its pictures, and returns the seconds it took."""
    photograph = {"name": PERSON.name, "data": base64.b64encode(PERSON.read_bytes()).decode()}
    body = json.dumps({"data": [PROMPT, [photograph], "", count, 0, seed, None]}).encode()
    begin = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(f"{address}/gradio_api/call/sample", body, headers)
    with urllib.request.urlopen(call, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/sample/{event}", timeout=600) as stream:
        lines = stream.read().decode().splitlines()
    last = max(i for i, line in enumerate(lines) if line == "event: complete")
    [answer] = json.loads(lines[last + 1].removeprefix("data: "))
    assert len(answer["pictures"]) == count, answer
    return time.perf_counter() - begin


def memory() -> float:
    """Returns the resident memory of this process in MB."""
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    arguments = parser.parse_args()
    distributed.enable_compile_cache()
    sampler = SamplerConfig(num_steps=arguments.num_steps)
    images = ImageConfig(sampler=sampler, crop_references=False)
    pipe = FaceDiffuser.from_pretrained()
    scheduler = Scheduler(pipe, images, arguments.sizes)
    scheduler.warm_up()
    service = Service(pipe, scheduler, images, Limits(), {"models": "bundled"})
    port = free_port()
    threading.Thread(
        target=launch, args=(service,), kwargs={"host": "127.0.0.1", "port": port}, daemon=True
    ).start()
    address = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{address}/config", timeout=10).close()
            break
        except OSError:
            time.sleep(0.2)
    counts = np.random.default_rng(0).integers(1, 5, arguments.requests).tolist()
    request(address, 1, 0)

    used = [memory()]
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(arguments.clients) as clients:
        waits = list(clients.map(lambda i: request(address, counts[i], i), range(len(counts))))
        served = time.perf_counter() - begin
        used.append(memory())
        for _ in range(2):
            some = range(0, len(counts), 3)
            list(clients.map(lambda i: request(address, counts[i], i), some))
            used.append(memory())

    size = scheduler.max_images
    inputs = pipe.make_inputs([PROMPT], [[PERSON]], [""], crop_references=False)
    keys = [ImageKey(0, i, n) for i, count in enumerate(counts) for n in range(count)]
    options = {"sampler": sampler, "size": pipe.latent_size(None, None), "batch_size": size}
    for samples in pipe.sample_batches(inputs, keys[:1], **options):
        samples.pixels  # noqa: B018 - compiles
    begin = time.perf_counter()
    for samples in pipe.sample_batches(inputs, keys, **options):
        samples.pixels  # noqa: B018 - decodes
    alone = time.perf_counter() - begin

    total = len(keys)
    print(f"{len(counts)} requests, {total} pictures of {sampler.num_steps} steps, no failure")
    print(f"served {served:.1f} s: {total / served:.2f} pictures/s")
    print(f"batch sampler alone {alone:.1f} s: {total / alone:.2f} pictures/s")
    print(f"throughput of the server: {alone / served:.2f} of the batch sampler's")
    print(f"wait of a request: median {np.median(waits):.1f} s, longest {max(waits):.1f} s")
    print("memory before, after 50 requests, and after each further 17, MB:", *map(round, used))
    compare_frames(service)
    scheduler.close()


def compare_frames(service: Service, rounds: int = 3) -> None:
    """Prints what frames cost a picture: watched against the sampler that nobody follows."""
    pipe = service.pipe
    inputs = pipe.make_inputs([PROMPT], [[PERSON]], [""], crop_references=False)
    options = {"sampler": SamplerConfig(), "size": pipe.latent_size(None, None), "batch_size": 1}
    times: dict[str, list[float]] = {"alone": [], "watched": []}
    photograph = {"name": PERSON.name, "data": base64.b64encode(PERSON.read_bytes()).decode()}
    for _ in range(rounds + 1):  # the first compiles
        begin = time.perf_counter()
        [samples] = pipe.sample_batches(inputs, [ImageKey(0, 0, 0)], **options)
        samples.pixels  # noqa: B018 - decodes
        times["alone"].append(time.perf_counter() - begin)
        given = {"prompt": PROMPT, "photographs": [photograph], "settings": {"num_steps": 50}}
        begin = time.perf_counter()
        job = service.submit(wants_frames=True, **given)
        *_, last = job.follow()
        times["watched"].append(time.perf_counter() - begin)
    alone, watched = (min(times[name][1:]) for name in ("alone", "watched"))
    print(
        f"one picture of 50 steps: alone {alone:.2f} s, watched {watched:.2f} s with "
        f"{len(last.frames)} frames: {watched / alone:.2f}"
    )


if __name__ == "__main__":
    main()

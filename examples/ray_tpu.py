"""Trains on all hosts of a TPU slice with Ray: one task a host, which holds all of its chips.

python examples/ray_tpu.py 4 --config sdm_ffhq --workdir gs://my-bucket/runs/sdm ...
"""

import subprocess
import sys

import ray


@ray.remote(max_retries=0)
def train(arguments: list[str]) -> int:
    command = ["fd-train", *arguments, "--processes.distributed"]
    return subprocess.run(command, check=False).returncode


num_hosts, arguments = int(sys.argv[1]), sys.argv[2:]
ray.init(address="auto")
chips = int(max(node["Resources"].get("TPU", 0) for node in ray.nodes()))
tasks = [train.options(resources={"TPU": chips}).remote(arguments) for _ in range(num_hosts)]
sys.exit(max(map(abs, ray.get(tasks))))

"""Throughput of a run: images, FLOPs, and waiting for data per second."""

import time

from jax.sharding import Mesh

from fd_jax.training.flops import peak_flops


class RateMeter:
    """Measures throughput from one line of the log to the next.

    Args:
        batch_size: Global batch size.
        step_flops: Model FLOPs of a step.
        mesh: Devices.
    """

    def __init__(self, batch_size: int, step_flops: int, mesh: Mesh):
        self._batch_size = batch_size
        self._step_flops = step_flops
        self._num_devices = mesh.size
        self._peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._last: tuple[int, float, float] | None = None  # step, time, seconds waited

    def start(self, step: int, waited: float) -> None:
        """Starts after the first step, which compiles and does not count.

        Args:
            step: Number of steps done.
            waited: Seconds that steps have waited for data so far.
        """
        if self._last is None:
            self._last = (step, time.perf_counter(), waited)

    def exclude(self, seconds: float) -> None:
        """Leaves out time that was spent on something other than steps."""
        if self._last is not None:
            step, start, waited = self._last
            self._last = (step, start + seconds, waited)

    def read(self, step: int, waited: float) -> dict[str, float | None]:
        """Returns the rates since the last call, None where no step was taken.

        Args:
            step: Number of steps done.
            waited: Seconds that steps have waited for data so far.
        """
        now = time.perf_counter()
        last_step, last_time, last_waited = self._last or (step, now, waited)
        self._last = (step, now, waited)
        if step == last_step:
            images = flops = wait = None
        else:
            seconds = now - last_time
            images = (step - last_step) * self._batch_size / seconds
            flops = (step - last_step) * self._step_flops / seconds
            wait = (waited - last_waited) / seconds
        utilization = None
        if self._peak is not None and flops is not None:
            utilization = flops / (self._peak * self._num_devices)
        return {
            "images_per_second": images,
            "images_per_second_per_chip": None if images is None else images / self._num_devices,
            "model_flops_per_second": flops,
            "model_flops_utilization": utilization,
            "data_wait_share": wait,
        }

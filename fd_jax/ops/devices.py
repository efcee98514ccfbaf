"""The devices that a function is traced for."""

import jax


def devices_traced_for() -> tuple[str, int]:
    """Returns their platform and number: those of the mesh, or else the process's default ones."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend(), jax.device_count()
    # Ahead-of-time compilation: ask the mesh, as the host may lack the target devices.
    return mesh.abstract_device.platform, mesh.size

"""Eight CPU devices for all tests, set before JAX starts."""

from sharding.mesh import request_cpu_devices

request_cpu_devices(8)

"""How the tests of this folder draw their examples: the same ones in every run, and each may take its time.

A busy machine is slow now and then, and a run is not to fail by what it happened to draw.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

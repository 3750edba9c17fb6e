"""The catalogue: every probe there is."""

from __future__ import annotations

from functools import cache

from pytest_devicelab.audit.fingerprint.edges import edge_probes
from pytest_devicelab.audit.fingerprint.elementwise import elementwise_probes
from pytest_devicelab.audit.fingerprint.functions import function_probes
from pytest_devicelab.audit.fingerprint.fusion import fusion_probes
from pytest_devicelab.audit.fingerprint.half import half_probes
from pytest_devicelab.audit.fingerprint.half_sums import half_sum_probes
from pytest_devicelab.audit.fingerprint.probe import Probe
from pytest_devicelab.audit.fingerprint.products import product_probes
from pytest_devicelab.audit.fingerprint.requantize import requantize_probes
from pytest_devicelab.audit.fingerprint.resampling import resampling_probes
from pytest_devicelab.audit.fingerprint.single import single_probes


@cache
def all_probes() -> tuple[Probe, ...]:
    """Return every probe, in the order fingerprints list them; names are unique."""
    return (
        *requantize_probes(),
        *edge_probes(),
        *product_probes(),
        *elementwise_probes(),
        *function_probes(),
        *resampling_probes(),
        *fusion_probes(),
        *half_probes(),
        *half_sum_probes(),
        *single_probes(),
    )

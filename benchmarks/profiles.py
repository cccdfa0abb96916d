"""Where time goes, by torch's profiler.

Owns which operators count as a matrix product and which as attention. The profiler slows what lies
between operators, so only the time inside of these two kinds is taken from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

_PRODUCT = re.compile(r"^(aten::(mm|addmm|linear|matmul)|mkldnn::.*linear.*|.*packed.*linear.*)$")
_ATTENTION = re.compile(
    r"^(aten::(bmm|baddbmm|_softmax(_backward_data)?|_scaled_dot_product.*)|.*attention.*)$"
)


def seconds_by_kind(work: Callable[[], object]) -> dict[str, float]:
    """Seconds that `work` spends in each kind of operator, over all threads that call operators."""
    # the engine computes in a thread of its own
    threads = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=threads) as profiled:
        work()
    totals = {"product": 0.0, "attention": 0.0}
    for event in profiled.key_averages():
        if _PRODUCT.match(event.key):
            totals["product"] += event.self_cpu_time_total / 1e6
        elif _ATTENTION.match(event.key):
            totals["attention"] += event.self_cpu_time_total / 1e6
    return totals

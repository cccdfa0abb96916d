"""Where a decoding step's time goes, by torch's profiler.

Owns which operators count as a matrix product and which as attention. The profiler slows what lies
between operators, so only the time inside of these two kinds is taken from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

_PRODUCT = re.compile(r"^(aten::(mm|addmm|linear|matmul)|mkldnn::.*linear.*|.*packed.*linear.*)$")
_ATTENTION = re.compile(r"^(aten::(bmm|baddbmm|_softmax|_scaled_dot_product.*)|.*attention.*)$")


def seconds_by_kind(play: Callable[[int], object], *, few: int, many: int) -> dict[str, float]:
    """Seconds of one decoding step in matrix products and in attention: the difference of `many`
    tokens and `few`, a token.
    """
    long, short = _totals(play, many), _totals(play, few)
    return {kind: (long[kind] - short[kind]) / (many - few) for kind in long}


def _totals(play: Callable[[int], object], answer_tokens: int) -> dict[str, float]:
    # the engine computes in a thread of its own
    threads = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=threads) as profiled:
        play(answer_tokens)
    totals = {"product": 0.0, "attention": 0.0}
    for event in profiled.key_averages():
        if _PRODUCT.match(event.key):
            totals["product"] += event.self_cpu_time_total / 1e6
        elif _ATTENTION.match(event.key):
            totals["attention"] += event.self_cpu_time_total / 1e6
    return totals

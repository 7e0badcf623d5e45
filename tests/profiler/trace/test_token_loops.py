"""Models that step through a sequence token by token say how long a sequence may be."""

from functools import partial

from tests.profiler.trace.tiny_configs import tiny_config
from whatfits.profiler.trace.configs import describe
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.token_loops import TOKEN_BY_TOKEN, token_loop
from whatfits.profiler.trace.training_step import trace_micro_batch


def test_events_of_mamba_grow_with_every_token() -> None:
    text = tiny_config("mamba")
    options = StepOptions(config=text, architecture=describe(text).architecture)
    trace = partial(trace_micro_batch, options=options)

    loop = token_loop(trace, {"L": 2, "b": 2})
    events = sum(len(tokens) for tokens in trace({"L": 2, "b": 2, "s": 48}).parts.values())

    assert options.architecture in TOKEN_BY_TOKEN
    assert loop.events(48) == events
    assert loop.longest(events) == 48
    assert loop.longest(events - 1) == 47
    assert loop.longest(0) == 0

"""What the recorder counts, and what it leaves out."""

from collections.abc import Sequence

import torch

from whatfits.profiler.trace.events import Alloc, Free, Mark
from whatfits.profiler.trace.storages import DeviceStep, StorageRecorder


def make_recorder(device_type: str = "meta", steps: Sequence[DeviceStep] = ()) -> StorageRecorder:
    return StorageRecorder(
        device_type=device_type,
        current_module=lambda: "here",
        temporaries=lambda func, *_: steps if func is torch.ops.aten.mm.default else [],
        in_place=lambda *_: None,
        scalar_answer=lambda _tensor: True,
    )


def test_a_storage_lives_from_its_op_to_its_last_reference() -> None:
    recorder = make_recorder()
    with recorder:
        first = torch.empty(10, device="meta")
        view = first.view(2, 5)
        del first
        assert [type(t) for t in recorder.tokens] == [Alloc]
        del view

    alloc, free = recorder.tokens
    assert isinstance(alloc, Alloc)
    assert (alloc.nbytes, alloc.op, alloc.module) == (40, "empty", "here")
    assert free == Free(alloc.block)


def test_storages_of_zero_bytes_of_other_devices_and_from_before_are_no_events() -> None:
    recorder = make_recorder()
    before = torch.empty(3, device="meta")
    recorder.ignore(before)
    with recorder:
        kept = (torch.empty(0, device="meta"), torch.zeros(5), before.add_(1))

    assert recorder.tokens == []
    assert [recorder.block_of(t) for t in kept] == [None, None, None]


def test_hidden_temporaries_are_freed_in_reverse_after_the_result() -> None:
    recorder = make_recorder(steps=[DeviceStep("allocate", 7), DeviceStep("allocate", 9)])
    matrix = torch.empty(4, 4, device="meta")
    with recorder:
        product = torch.mm(matrix, matrix)

    result, *hidden = recorder.tokens
    assert isinstance(result, Alloc)
    assert result.nbytes == product.untyped_storage().nbytes()
    assert [(t.nbytes, t.internal) for t in hidden if isinstance(t, Alloc)] == [(7, True), (9, True)]
    assert [t.block for t in hidden if isinstance(t, Free)] == [2, 1]


def test_hidden_temporaries_can_come_before_the_result_and_go_in_any_order() -> None:
    steps = [
        DeviceStep("allocate", 7),
        DeviceStep("allocate", 9),
        DeviceStep("free", 0),
        DeviceStep("output", 0),
        DeviceStep("allocate", 0),
        DeviceStep("allocate", 5),
    ]
    matrix = torch.empty(4, 4, device="meta")
    recorder = make_recorder(steps=steps)
    with recorder:
        kept = torch.mm(matrix, matrix)

    sizes = {t.block: t.nbytes for t in recorder.tokens if isinstance(t, Alloc)}
    signed = [
        sizes[t.block] * (1 if isinstance(t, Alloc) else -1)
        for t in recorder.tokens
        if not isinstance(t, Mark)
    ]
    assert signed == [7, 9, -7, kept.untyped_storage().nbytes(), 5, -5, -9]


def test_a_question_to_the_device_is_answered_and_one_to_the_host_is_computed() -> None:
    with make_recorder():
        assert torch.empty((), dtype=torch.bool, device="meta").item() is True
        assert torch.tensor(41).add(1).item() == 42


def test_marks_stand_between_the_events() -> None:
    recorder = make_recorder()
    with recorder:
        tensor = torch.empty(1, device="meta")
        block = recorder.block_of(tensor)
        assert block is not None
        recorder.mark("gradient_ready", "weight", block)

    assert recorder.tokens[1] == Mark("gradient_ready", "weight", 0)

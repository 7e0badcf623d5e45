"""The replay against device histories; see snapshots/README.md for where they come from."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden.replay_histories import SNAPSHOTS, History, HistoryReplay, load_history, main
from whatfits.estimator.memory.replay import ReplayResult, Replays, replay
from whatfits.estimator.memory.replay_events import ReplayEvents
from whatfits.estimator.memory.replay_expandable import ExpandableAllocator
from whatfits.estimator.specs import AllocatorMode
from whatfits.estimator.units import MIB

# placements, segments or mapped ranges, releases, counted from the rows of each file
RECORDED = {
    "Constructor-Sun_code_location__memory_snapshot__b5ef67ce__dev0": (2434, 175, 0),
    "Constructor-Sun_code_location__memory_snapshot__b5ef67ce__dev1": (199, 40, 1),
    "Constructor-Sun_code_location__memory_snapshot__b5ef67ce__dev2": (392, 78, 0),
    "HugePandaCoder_octree-nca-groupeq__inference2_peso_oct__e024498d": (782, 22, 1),
    "Maphsge4_select_n__snapshot__ec5be110": (3058, 584, 39),
    "Wedsonlin_assignment2-systems__medium_512_training_memory_snapshot__61dcd14d": (7591, 1, 0),
    "kkaitlyn111_cs336-a2-systems__memory_ctx128_fullstep___332e0bb4": (6770, 782, 1),
    "mryab_efficient-dl-systems__liger_ce_snapshot__c7eaff3e": (17, 2, 0),
    "shreyansh26_MLSys-Experiments__profile_grad__2b1505da": (12, 7, 0),
    "silmont2000_assignment2-systems__mem_snapshot__b61be409": (36, 9, 0),
}
WITHOUT_RELEASES = [name for name, (_, _, releases) in RECORDED.items() if releases == 0]
SELECT_N = "Maphsge4_select_n__snapshot__ec5be110"
OCTREE = "HugePandaCoder_octree-nca-groupeq__inference2_peso_oct__e024498d"
OUT_OF_MEMORY = "Constructor-Sun_code_location__memory_snapshot__b5ef67ce__dev1"


def _load(name: str) -> History:
    return load_history(SNAPSHOTS / f"{name}.jsonl.gz")


def _events(history: History) -> ReplayEvents:
    """The allocations and frees of a history, and nothing of where the device put them."""
    bases = {index: segment.base for index, segment in enumerate(history.initial)}
    block_at = {
        (index, offset): block
        for index, segment in enumerate(history.initial)
        for block, offset, _, _ in segment.blocks
    }
    kinds, blocks, sizes, streams = [], [], [], []
    for action, segment, offset, size, stream, *rest in history.rows:
        if action == "S":
            bases[segment] = rest[0]
        elif action == "a":
            block_at[segment, offset] = rest[0]
        if action in "af":
            kinds.append(1 if action == "a" else 2)
            blocks.append(rest[0] if action == "a" else block_at.pop((segment, offset)))
            sizes.append(size)
            streams.append(stream)
    return ReplayEvents(
        kinds=np.array(kinds, np.int8),
        blocks=np.array(blocks, np.int64),
        sizes=np.array(sizes, np.int64),
        streams=np.array(streams, np.int64),
    )


def _replay_alone(history: History, capacity_bytes: int | None) -> ReplayResult:
    mode = AllocatorMode.EXPANDABLE if history.header["expandable"] else AllocatorMode.CLASSIC
    return replay(_events(history), mode=mode, capacity_bytes=capacity_bytes, initial=history.initial)


def _recorded_peaks(history: History) -> tuple[int, int, int]:
    header = history.header
    return header["peak_requested"], header["peak_allocated"], header["peak_reserved"]


def _peaks(result: ReplayResult) -> tuple[int, int, int]:
    return result.peak_requested_bytes, result.peak_allocated_bytes, result.peak_reserved_bytes


def test_every_history_is_listed() -> None:
    assert sorted(RECORDED) == sorted(path.name.removesuffix(".jsonl.gz") for path in SNAPSHOTS.glob("*.gz"))


@pytest.mark.parametrize("name", RECORDED)
def test_every_placement_segment_release_and_final_block_is_the_device_s(name: str) -> None:
    comparison = HistoryReplay(_load(name)).run()

    assert comparison.misses == []
    assert (comparison.placements, comparison.segments, comparison.releases) == RECORDED[name]
    assert comparison.placements_exact == comparison.placements
    assert comparison.segments_exact == comparison.segments
    assert comparison.releases_exact == comparison.releases
    assert comparison.final_blocks_exact == comparison.final_blocks > 0
    assert comparison.is_exact


@pytest.mark.parametrize("name", WITHOUT_RELEASES)
def test_peaks_are_the_device_s_when_segment_addresses_are_made_up(name: str) -> None:
    history = _load(name)

    assert _peaks(_replay_alone(history, None)) == _recorded_peaks(history)


@pytest.mark.parametrize(
    ("name", "capacity_mib"),
    [
        (SELECT_N, 21_476),  # the largest sum the device granted
        (SELECT_N, 21_510),  # the smallest it refused is 21,512
        (OCTREE, 23_238),
        (OCTREE, 25_742),
    ],
)
def test_a_capacity_between_granted_and_refused_predicts_every_release(name: str, capacity_mib: int) -> None:
    history = _load(name)

    result = _replay_alone(history, capacity_mib * MIB)

    assert result.failed_at is None
    assert result.num_alloc_retries == RECORDED[name][2]
    assert _peaks(result) == _recorded_peaks(history)


def test_the_recorded_out_of_memory_error_is_predicted() -> None:
    history = _load(OUT_OF_MEMORY)
    place, row = next((i, row) for i, row in enumerate(history.rows) if row[0] == "O")
    device_free, request = row[2], row[3]
    capacity = (
        device_free + history.header["peak_reserved"]
    )  # reserved was at its peak when the device gave up
    events = _events(History(name=history.name, header=history.header, rows=history.rows[:place]))
    attempted = ReplayEvents(
        kinds=np.append(events.kinds, np.int8(1)),
        blocks=np.append(events.blocks, 10**6),
        sizes=np.append(events.sizes, request),
    )

    result = replay(attempted, mode=AllocatorMode.EXPANDABLE, capacity_bytes=capacity)

    assert result.failed_at == len(events.kinds)
    assert result.num_alloc_retries == 2  # the first gave 6 ranges back and succeeded
    assert result.peak_reserved_bytes == history.header["peak_reserved"]


@pytest.mark.parametrize("name", [SELECT_N, OCTREE])
def test_what_is_required_is_no_more_than_the_device_had(name: str) -> None:
    history = _load(name)
    events = _events(history)

    required = Replays(events, initial=history.initial).required_reserved_bytes()

    assert required <= history.header["peak_reserved"]
    assert replay(events, capacity_bytes=required, initial=history.initial).failed_at is None


class WithoutTailRule(ExpandableAllocator):
    """Plain best fit, also where a block could still grow."""

    def _choose(self, free: list[int], index: int) -> int:
        return index


def test_without_the_tail_rule_an_expandable_history_differs() -> None:
    history_replay = HistoryReplay(_load(OUT_OF_MEMORY))
    history_replay.allocator = WithoutTailRule(place_segment=history_replay._place_address_range)

    assert not history_replay.run().is_exact


@pytest.mark.parametrize("row_to_change", ["a", "S", "F"])
def test_one_changed_row_is_reported(row_to_change: str) -> None:
    history = _load(OCTREE)
    freed = {row[5] for row in history.rows if row[0] == "f"}
    row = next(
        row for row in history.rows if row[0] == row_to_change and (row[0] != "a" or row[5] not in freed)
    )
    row[2 if row_to_change == "a" else 3] += 512

    comparison = HistoryReplay(history).run()

    assert not comparison.is_exact


def test_the_command_prints_totals_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SNAPSHOTS)]) == 0

    classic, expandable = capsys.readouterr().out.splitlines()[-2:]
    assert "18266/18266" in classic  # sums of RECORDED
    assert "3025/3025" in expandable


def test_the_command_fails_where_there_is_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "total" in capsys.readouterr().out


def test_initial_blocks_have_ids_of_their_own() -> None:
    history = _load(SELECT_N)
    ids = [block for segment in history.initial for block, _, _, _ in segment.blocks]

    assert len(set(ids)) == len(ids)
    assert max(ids) < 0 <= min(row[5] for row in history.rows if row[0] == "a")

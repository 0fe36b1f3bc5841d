"""Progress where there is no terminal; seeds, thread pools and versions."""

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from robgib import runtime
from robgib.models.adapt import seeded


def test_progress_in_a_file_is_lines_of_text(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now[0])
    with runtime.progress_bars(True, always=True) as report:
        for done in range(0, 101):
            report("attacking", done, 100, "pgd")
            report("attacking at eps=0.1", done, 100)
            now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "attacking: 0/100 (pgd)",
        "attacking: 30/100 (pgd)",
        "attacking: 60/100 (pgd)",
        "attacking: 90/100 (pgd)",
        "attacking: 100/100, 100 s (pgd)",
    ]


def test_no_progress_is_nothing(capsys):
    with runtime.progress_bars(False, always=True) as report:
        assert report is None
    with runtime.progress_bars(True) as report:
        assert report is None  # no terminal, and not asked for
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is another device here")
def test_a_seed_is_not_remembered_for_devices_that_are_not_there():
    """Each call of torch.manual_seed keeps its stack until a device comes."""
    before = len(torch.cuda._queued_calls)
    draws = []
    for _ in range(2):
        with seeded(7):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert len(torch.cuda._queued_calls) == before


def test_all_pools_have_one_thread_and_their_own_afterwards():
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(limits=2):
            before = [pool["num_threads"] for pool in threadpool_info()]
            for _ in range(2):  # the second time they are known
                with runtime.one_thread():
                    assert {pool["num_threads"] for pool in threadpool_info()} <= {1}
                assert [pool["num_threads"] for pool in threadpool_info()] == before
    finally:
        torch.set_num_threads(own)

"""Requests as they come: their times, and trace files that are none."""

import json
import math

import numpy as np
import pytest

from profiles.serving.arrivals import Asked, check_lengths, closed, poisson, read_trace
from sharding.error_types import UsageError

ONE = Asked(128, 64)


def test_poisson_arrivals_come_at_their_rate_and_independently():
    times = np.array([each.arrival_s for each in poisson([ONE] * 40_000, 5.0).asked])
    gaps = np.diff(times, prepend=0)
    assert (gaps > 0).all()
    assert np.mean(gaps) == pytest.approx(1 / 5, rel=0.02)
    assert np.std(gaps) == pytest.approx(1 / 5, rel=0.03)  # exponential: as wide as its mean
    assert np.mean(gaps > 1 / 5) == pytest.approx(math.exp(-1), rel=0.03)
    counts = np.bincount(times.astype(int))[:-1]  # in each second: as variable as they are many
    assert np.var(counts) == pytest.approx(np.mean(counts), rel=0.06)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02


def test_the_same_seed_gives_the_same_arrivals_and_another_gives_others():
    first, again, other = (poisson([ONE] * 5, 2.0, seed).asked for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(UsageError, match=r"rate is .*positive number"):
        poisson([ONE], rate)


def test_the_mean_context_is_that_of_all_tokens_of_all_answers():
    asked = [Asked(10, 4), Asked(100, 1)]
    by_token = [10, 11, 12, 13, 100]
    assert closed(asked, 1).mean_context == round(np.mean(by_token))
    assert closed([ONE], 1).mean_context == round(128 + 63 / 2)


def test_a_trace_is_read_in_the_order_of_arrival(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [
        {"prompt_length": 7, "generated_tokens": 3, "arrival_s": 2},
        {"prompt_length": 9, "generated_tokens": 1, "arrival_s": 0.5},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_trace(path) == [Asked(9, 1, 0.5), Asked(7, 3, 2)]


GOOD = '{"prompt_length": 7, "generated_tokens": 3}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{GOOD}\n\nprompt 7\n", "line 3 of .* is 'prompt 7', which is no JSON"),
        (f"{GOOD}\n[7, 3]", "line 2 of .* no JSON object"),
        ('{"prompt_length": 7}', "line 1 of .* without a positive generated_tokens"),
        ('{"prompt_length": 0, "generated_tokens": 3}', "line 1 of .* positive prompt_length"),
        ('{"prompt_length": true, "generated_tokens": 3}', "line 1 of .* positive prompt_length"),
        (GOOD.replace("}", ', "arrival_s": -1}'), "line 1 of .* arrival_s of -1"),
        (GOOD.replace("}", ', "arrival_s": NaN}'), "line 1 of .* arrival_s of nan"),
        (f"{GOOD}\n" + GOOD.replace("}", ', "arrival_s": 1}'), "arrival_s .* is 1 of 2"),
        ("\n", "number of requests in .* is 0"),
    ],
)
def test_a_trace_that_is_none_is_refused_by_its_line(text, said, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_trace(path)


def test_a_trace_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"trace file is .*No such file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no text"):
        read_trace(tmp_path / "binary")


def test_requests_that_a_row_has_no_room_for_are_refused_with_their_lengths():
    check_lengths([ONE, Asked(100, 92)], 192)
    with pytest.raises(UsageError, match="128 and 64, 192 together, but context is 191"):
        check_lengths([Asked(1, 1), ONE], 191)

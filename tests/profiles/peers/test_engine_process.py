"""Processes of engines, planted ones; tests of the times themselves are in tests/speed."""

import functools

import pytest

from profiles.peers.comparison import compare, engine_rows, random_prompts, ratios
from profiles.peers.engine_process import ENGINES, EngineError, EngineProcess
from profiles.peers.messages import Job, Work

PLANTED = dict.fromkeys(ENGINES, "tests.profiles.peers.planted_engine")
OPEN = functools.partial(EngineProcess, modules=PLANTED, timeout_s=300)
WORK = Work(random_prompts(100, 2, 3), 4)


def job(engine: str, **more) -> Job:
    return Job(engine=engine, model="none.gguf", form="gguf", batch=2, **more)


@pytest.fixture(scope="module")
def outcomes():
    names = "floorline", "transformers", "transformers-compiled", "llama.cpp", "llama.cpp-quantized"
    return compare([job(name) for name in names], WORK, 3, open_process=OPEN)


@pytest.fixture(scope="module")
def rows(outcomes):
    return {row["name"]: row for row in engine_rows(outcomes, 2)}


def test_each_engine_has_a_row_of_its_rounds(rows):
    assert rows["floorline"]["status"] == "ok" and rows["floorline"]["same_text"]
    assert rows["floorline"]["step_s"]["samples"] == [0.002] * 3
    assert rows["floorline"]["tokens_per_s"] == pytest.approx(2 / 0.002)
    assert rows["transformers"]["first_token_s"]["median"] == pytest.approx(0.04)
    assert rows["transformers"]["same_text"] and rows["transformers"]["sequences_compared"] == 2


def test_engines_are_given_the_dtype_and_the_platform_of_floorline(outcomes):
    assert outcomes[0].job.dtype == ""  # its own default
    assert [each.job.dtype for each in outcomes[1:]] == ["bfloat16"] * 4
    assert [each.job.platform for each in outcomes[1:]] == ["cpu"] * 4


def test_another_text_says_where_it_begins(rows):
    assert not rows["transformers-compiled"]["same_text"]
    assert rows["transformers-compiled"]["first_difference"] == {"sequence": 0, "token": 1}


def test_texts_are_compared_up_to_an_end(outcomes):
    found = {row["name"]: row for row in engine_rows(outcomes, 2, frozenset({5}))}
    assert "same_text" not in found["transformers-compiled"]  # the first token ends the text


def test_an_engine_that_dies_keeps_its_rounds_and_says_why(rows):
    dead = rows["llama.cpp"]
    assert dead["status"] == "failed" and len(dead["step_s"]["samples"]) == 1
    assert "exit code of llama.cpp is 139 (Segmentation fault of a peer); " in dead["message"]


def test_a_missing_package_names_what_installs_it(rows):
    assert rows["llama.cpp-quantized"]["status"] == "missing"
    assert "a_package_that_is_not_there is missing; pip" in rows["llama.cpp-quantized"]["message"]
    assert "step_s" not in rows["llama.cpp-quantized"]


def test_ratios_are_those_of_the_same_rounds(outcomes):
    found = {each["name"]: each for each in ratios(outcomes)}
    assert found.keys() == {"transformers", "transformers-compiled", "llama.cpp"}
    assert found["transformers"]["step"] == pytest.approx(2)
    assert found["llama.cpp"]["first_token"] == pytest.approx(1)


def test_an_engine_can_be_loaded_for_each_round_alone():
    opened, most, here = [], [], set()

    class Counted(EngineProcess):
        def __init__(self, job):
            super().__init__(job, PLANTED)
            opened.append(job.engine)
            here.add(self)
            most.append(len(here))

        def close(self):
            here.discard(self)
            super().close()

    jobs = [job("floorline"), job("transformers")]
    found = compare(jobs, WORK, 2, together=False, open_process=Counted)
    assert [len(each.rounds) for each in found] == [2, 2]
    assert opened == ["floorline", "transformers"] * 2 + ["transformers", "floorline"]
    assert max(most) == 1


def test_an_engine_that_hangs_is_ended():
    with OPEN(job("transformers-generate")) as process:
        process._timeout_s = 0.5  # of rounds; its start takes what it takes
        with pytest.raises(EngineError, match=r"transformers-generate is above 0.5 s; ask"):
            process.round(WORK)
    assert process._process.returncode == -9

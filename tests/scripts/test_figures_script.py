"""`figures.py` as users run it."""

import pytest

from tests.scripts.running import run_many

SMALL = ["--model=llama3-8b", "--topology=v5e:2x2", "--max_chips=4", "--batch=64"]
ALL = ("latency", "cost", "contexts", "chips", "pareto", "sparsity", "communication")
CASES = {
    "all": [*SMALL, "--context=512,0", "--json=-", "--layout=weight_stationary_1d",
            "--attention=heads"],
    "two": [*SMALL, "--figures=latency,engines,cost", "--batch=1,8,64", "--json=two.json",
            "--price_per_chip_hour=3"],
    "sized": ["--model=deepseek-v3-even", "--topology=h200:8", "--weight_dtype=fp8", "--batch=64",
              "--figures=sparsity,communication", "--context=0"],
    "engines": ["--figures=engines"],
    "large": ["--model=llama3-405b", "--topology=h100:1", "--figures=latency", "--batch=4",
              "--layout=weight_stationary_1d", "--attention=heads", "--json=-"],
}  # fmt: skip
REFUSALS = {
    "figure": (["--figures=latency,speed"], "--figures is 'speed'; use latency, cost"),
    "slice": (["--topology=v5e:3x3"], "topology is v5e:3x3, a slice that v5e does not come in"),
    "slices": (["--slices=v5e:2x2,x:1"], "chip or device kind is 'x'"),
    "model": (["--model=nosuch"], "model is 'nosuch'"),
    "layout": (["--layout=3d"], "layout is '3d'; use one of weight_stationary_1d"),
    "mesh": ([*SMALL, "--mesh=1x1x2"], "mesh is 1x1x2, of 2 devices, but v5e:2x2 has 4; use sizes"),
    "batch": (["--batch=1,x"], "--batch is '1,x'; use positive integers"),
    "long": (
        ["--context=0,8192"],
        "--context is 8,192 and 1 more token, beyond the 8,192 tokens that",
    ),
    "context": (["--context=-1"], "--context is '-1'; use whole numbers, 0 or more"),
    "prices": (
        [*SMALL, "--slices=v5e:2x2,h100:1", "--hbm_bandwidth=1e12"],
        "--hbm_bandwidth is given for several chips alike, v5e, h100",
    ),
    "experts": ([*SMALL, "--expert_parallel"], "--expert_parallel is true, but llama3-8b has no"),
    "sizes": (
        ["--model=deepseek-v3-even", "--topology=h200:8", "--attention=batch"],
        "--attention is batch, but deepseek-v3-even is known by its sizes alone",
    ),
    "price": (["--price_per_chip_hour=-1"], "--price_per_chip_hour is -1.0; use USD"),
    "prompts": (["--prefill_layout=auto"], "--prefill_layout is auto, but the curves are of"),
    "output": ([*SMALL, "--output_dir=file"], "output path is file"),
    "json": ([*SMALL, "--json=out"], "--json is out, not a regular file"),
    "engines of a batch": (
        ["--figures=engines", "--batch=8"],
        "--batch is given, but engines alone are of published services; leave it out",
    ),
    "engines by a calibration": (
        ["--figures=engines", "--calibration=nosuch.json"],
        "--calibration is given, but engines alone are of published services; leave it out",
    ),
    "engines and others": (
        ["--figures=engines,latency", "--batch=0"],
        "--batch is '0'; use positive integers",
    ),
    "engines and a mesh": (
        [*SMALL, "--figures=engines,latency", "--mesh=1x1x2"],
        "mesh is 1x1x2, of 2 devices, but v5e:2x2 has 4; use sizes",
    ),
    "no document": (["--figures=engines", "--json=-"], "--json is -, but engines alone have no"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    (folder / "file").touch()
    (folder / "out").mkdir()
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    cases = {name: [f"--output_dir=out/{name}", *arguments] for name, arguments in CASES.items()}
    refusals = {f"refuse {n}": [f"--output_dir=refused/{n}", *a] for n, (a, _) in REFUSALS.items()}
    return run_many("figures.py", cases | refusals, folder=folder)


def written(folder, name: str) -> set[str]:
    return {path.name for path in (folder / "out" / name).iterdir()}


def test_every_figure_is_a_file_of_its_name(ended, folder):
    assert ended["all"].code == 0
    assert written(folder, "all") == {f"{name}.png" for name in ALL}
    assert all(f"wrote out/all/{name}.png" in ended["all"].stderr for name in ALL)


def test_the_document_has_records_at_batches_and_contexts_and_the_curves(ended):
    document = ended["all"].document
    points = document["points"]
    assert [(p["context"], p["batch"]) for p in points] == [
        (context, 1 << power) for context in (512, 0) for power in range(7)
    ]
    assert all(p["expected_s"] > p["floor_s"] and p["topology"] == "v5e:2x2" for p in points)
    assert (
        document["calibration"]["name"] == "tpu-v5e-2025" and document["price_per_chip_hour"] == 1.2
    )
    curves = document["curves"]
    assert set(curves) == {"steps", *ALL[3:]}
    steps = curves["steps"][0]
    place = steps["batches"].index(64)
    last = next(p for p in points if (p["context"], p["batch"]) == (512, 64))
    assert steps["floor"][place] == pytest.approx(last["floor_s"], rel=1e-5)
    assert steps["expected"][place] == pytest.approx(last["expected_s"], rel=1e-5)
    assert document["command"][1:] == ["--output_dir=out/all", *CASES["all"]]


def test_figures_batches_and_the_price_are_those_asked_for(ended, folder):
    assert ended["two"].code == 0
    assert written(folder, "two") == {"latency.png", "cost.png", "engines.png"}
    assert (folder / "two.json").exists() and "3 USD per chip-hour (given)" in ended["two"].stderr


def test_what_cannot_be_drawn_of_a_model_known_by_its_sizes_is_skipped_with_a_reason(ended, folder):
    assert ended["sized"].code == 0
    assert written(folder, "sized") == {"sparsity.png"}
    assert (
        "skipped out/sized/communication.png: deepseek-v3-even is known by" in ended["sized"].stderr
    )


def test_published_services_are_drawn_without_a_model(ended, folder):
    assert ended["engines"].code == 0
    assert written(folder, "engines") == {"engines.png"}


def test_a_model_that_does_not_fit_is_drawn_and_its_records_say_so(ended, folder):
    assert written(folder, "large") == {"latency.png"}
    assert {p["status"] for p in ended["large"].document["points"]} == {"does_not_fit"}


def test_jax_makes_no_devices(ended):
    assert not any(run.jax_started for run in ended.values())


@pytest.mark.parametrize("name", REFUSALS)
def test_wrong_use_is_refused_in_one_line_and_nothing_is_written(ended, folder, name):
    found = ended[f"refuse {name}"]
    assert found.error.startswith(REFUSALS[name][1])
    assert found.code == (1 if name in ("output", "json") else 2)
    assert not list((folder / "refused").rglob("*.png")) if (folder / "refused").exists() else True


SYSTEMS = {
    "systems": ["--model=deepseek-v3-even", "--topology=gb200:72", "--weight_dtype=fp8", "--json=-",
                "--batch=64", "--figures=pipeline,racks,training,mfu", "--chips_batch=144"],
    "no systems": ["--model=llama3-8b", "--topology=l4:1", "--batch=1",
                   "--figures=pipeline,racks"],
}  # fmt: skip


@pytest.mark.slow  # by default `test_system_figures` draws them
def test_systems_are_drawn_if_they_are_named_where_rates_are_known(folder):
    cases = {name: [f"--output_dir=out/{name}", *arguments] for name, arguments in SYSTEMS.items()}
    ended = run_many("figures.py", cases, folder=folder)
    assert ended["systems"].code == 0
    names = {"pipeline", "racks", "training", "mfu"}
    assert written(folder, "systems") == {f"{name}.png" for name in names}
    curves = ended["systems"].document["curves"]
    assert curves["pipeline"]["batch"] == 144 and curves["racks"]["per_chip"] == 2
    told = ended["no systems"].stderr
    assert "racks.png: llama3-8b has no experts" in told
    assert not list((folder / "out/no systems").glob("*"))
    assert "pipeline.png: rates of a fabric and of a network of l4 are not both known" in told

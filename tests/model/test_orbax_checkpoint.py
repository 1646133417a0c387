"""Saving and restoring: other meshes and dtypes, processes, cuts and damage."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp

from model.catalog import find_model
from model.dtypes import Dtypes
from model.parameters import initialise
from model.transformer import Transformer
from model.weights import WeightsError
from model.weights.orbax_checkpoint import MANIFEST, OrbaxFolder, save
from sharding.catalog import LAYOUTS
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement
from tests.processes import run_processes
from tests.scripts.running import NO_CACHE, QUICK, environment

ROOT = Path(__file__).parents[2]
CONFIG = find_model("tiny")
SAVED_ON = "2x4"


def put(mesh: str, dtype=jnp.float32):
    """Model, placement and mesh of `CONFIG`."""
    shape = parse_mesh(mesh)
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], CONFIG.sizes, shape)
    return Transformer(CONFIG, Dtypes(dtype)), placement, make_mesh(shape)


def random_parameters(seed=0):
    return initialise(*put(SAVED_ON), seed)


def values(parameters):
    return {path: np.asarray(array) for path, array in flatten_dict(parameters).items()}


def same(ours, theirs):
    ours, theirs = values(ours), values(theirs)
    return ours.keys() == theirs.keys() and all(
        ours[path].tobytes() == theirs[path].tobytes() for path in ours
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax") / "model"
    save(folder, CONFIG, random_parameters(), {"tokenizer.json": b"{}"})
    return folder


@pytest.mark.parametrize("mesh", ["8x1", "1x1", "2x2x2"])
def test_a_model_saved_on_one_mesh_is_bit_equal_on_another(saved, mesh):
    found = OrbaxFolder(saved)
    assert found.config == CONFIG
    restored = found.restore(*put(mesh))
    assert same(restored, random_parameters())
    _, placement, on = put(mesh)
    array = restored["layers"][0]["mlp"]["down"]
    assert array.sharding == jax.NamedSharding(on, placement.weights("DF"))
    assert (found.tokenizer / "tokenizer.json").read_bytes() == b"{}"


def test_another_dtype_is_what_casting_would_give(saved):
    restored = values(OrbaxFolder(saved).restore(*put("1x1", jnp.bfloat16)))
    for path, array in values(random_parameters()).items():
        np.testing.assert_array_equal(restored[path], array.astype(jnp.bfloat16))


def test_saving_again_replaces_the_model_and_leaves_nothing_else(tmp_path):
    save(tmp_path / "m", CONFIG, random_parameters(0))
    save(tmp_path / "m", CONFIG, random_parameters(1))
    assert same(OrbaxFolder(tmp_path / "m").restore(*put("1x1")), random_parameters(1))
    assert len(list((tmp_path / "m").iterdir())) == 2


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(WeightsError, match=r"thesis\.tex"):
        save(tmp_path, CONFIG, random_parameters())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_damage_is_loaded(saved, tmp_path):
    """Every bit of every file is under a checksum."""
    draw, target = random.Random(0), put("1x1")
    files = sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file())
    good = tmp_path / "good"
    shutil.copytree(saved, good)
    for trial in range(120):
        path = good / draw.choice(files)
        before = path.read_bytes()
        raw = bytearray(before)
        if trial % 4 == 0 and raw:
            del raw[draw.randrange(len(raw)) :]
        elif raw:
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.unlink() if trial % 10 == 9 or bytes(raw) == before else path.write_bytes(raw)
        try:
            restored = OrbaxFolder(good).restore(*target)
        except WeightsError as error:
            assert "\n" not in str(error)
        else:
            # White space and the like between the manifest's values may change.
            assert path.name == MANIFEST and same(restored, random_parameters())
        path.write_bytes(before)
    assert same(OrbaxFolder(good).restore(*target), random_parameters())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', '{"format": "a"}'])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(WeightsError):
        OrbaxFolder(tmp_path)


@pytest.mark.parametrize(
    "moment",
    ["ocp.save", "os.replace",
     *(pytest.param(between, marks=pytest.mark.slow) for between in ("_digests", "os.fsync"))],
)  # fmt: skip
def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch, moment):
    save(tmp_path / "m", CONFIG, random_parameters(0))
    with monkeypatch.context() as patch:
        patch.setattr(f"model.weights.orbax_checkpoint.{moment}", _fail)
        with pytest.raises(WeightsError, match=r"cannot be written to \(No space left on device\)"):
            save(tmp_path / "m", CONFIG, random_parameters(1))
        with pytest.raises(WeightsError):
            save(tmp_path / "new", CONFIG, random_parameters(1))
    assert len(list((tmp_path / "m").iterdir())) == 2  # nothing of what was cut off
    assert not (tmp_path / "new").exists()
    assert same(OrbaxFolder(tmp_path / "m").restore(*put("1x1")), random_parameters(0))
    save(tmp_path / "m", CONFIG, random_parameters(1))
    assert len(list((tmp_path / "m").iterdir())) == 2


def _fail(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_librarys_message_is_cut_down_to_the_reason(tmp_path, monkeypatch):
    def fail(path, _):
        path.mkdir()
        raise ValueError(
            f'EXHAUSTED: Failed writing: "{path}/{"d" * 200}": No space left on device'
        )

    monkeypatch.setattr("model.weights.orbax_checkpoint.ocp.save", fail)
    with pytest.raises(WeightsError, match=r"m cannot be written to \(No space left on device\); "):
        save(tmp_path / "m", CONFIG, random_parameters())
    assert list(tmp_path.iterdir()) == []


def test_of_two_saves_at_once_the_whole_one_stands_and_the_other_says_so(tmp_path, monkeypatch):
    folder, write = tmp_path / "m", ocp.save

    def meanwhile(path, arrays):
        monkeypatch.setattr("model.weights.orbax_checkpoint.ocp.save", write)
        write(path, arrays)
        save(folder, CONFIG, random_parameters(1))
        (path / "written" / "later").mkdir(parents=True)  # as threads do that know nothing of it

    monkeypatch.setattr("model.weights.orbax_checkpoint.ocp.save", meanwhile)
    with pytest.raises(WeightsError, match="m was saved to by another process meanwhile"):
        save(folder, CONFIG, random_parameters(0))
    assert same(OrbaxFolder(folder).restore(*put("1x1")), random_parameters(1))
    assert len(list(folder.iterdir())) == 2


def test_a_save_that_is_whole_stays_where_a_slower_one_tidies_up(tmp_path, monkeypatch):
    folder, replace = tmp_path / "m", os.replace

    def overtaken(manifest, target):
        monkeypatch.setattr("model.weights.orbax_checkpoint.os.replace", replace)
        replace(manifest, target)
        save(folder, CONFIG, random_parameters(1))
        # Only now does the first go on to remove what is beside its own.

    monkeypatch.setattr("model.weights.orbax_checkpoint.os.replace", overtaken)
    save(folder, CONFIG, random_parameters(0))
    assert same(OrbaxFolder(folder).restore(*put("1x1")), random_parameters(1))
    assert len(list(folder.iterdir())) == 2


_SAVER = """
import os, sys
sys.path[:0] = [{root!r}, {here!r}]
from sharding.mesh import request_cpu_devices
request_cpu_devices(8)
from test_orbax_checkpoint import CONFIG, MANIFEST, random_parameters, save
replace = os.replace

def told(source, target, **more):
    if os.path.basename(target) == MANIFEST:
        print("written", flush=True)
        sys.stdin.readline()
    replace(source, target, **more)

parameters, os.replace = random_parameters(1), told
print("ready", flush=True)
sys.stdin.readline()
save(sys.argv[1], CONFIG, parameters)
print("saved", flush=True)
sys.stdin.readline()
"""
"""Saves; waits for a line before it begins, before the new model is to stand, and at its end."""


def kill_a_save(script: Path, folder: Path, last: str, more_s: float = 0.0) -> dict[str, float]:
    """Lets a save go on from each of its words to the next, and kills it a little after the last.

    Returns:
      Seconds from each line to the word that came of it.
    """
    took: dict[str, float] = {}
    with subprocess.Popen(
        [sys.executable, script, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(**QUICK | NO_CACHE),  # for the same random numbers
        bufsize=0,
    ) as process:
        try:
            for word in ("ready", "written", "saved"):
                began = time.perf_counter()
                assert process.stdout.readline().decode() == f"{word}\n"
                took[word] = time.perf_counter() - began
                process.stdin.write(b"go on\n")
                if word == last:
                    time.sleep(more_s)
                    break
        finally:
            process.kill()
    return took


@pytest.mark.slow
def test_a_save_killed_at_any_moment_leaves_the_old_model_or_the_new_one(tmp_path):
    """20 kills spread over a save's time, on a folder that holds another model.

    Until the save is told to let the new model stand the old one does, however fast the machine is.
    """
    folder, script = tmp_path / "model", tmp_path / "saver.py"
    script.write_text(_SAVER.format(root=str(ROOT), here=str(Path(__file__).parent)))
    models = {"old": random_parameters(0), "new": random_parameters(1)}
    save(folder, CONFIG, models["old"])

    def left(*moment) -> tuple[str, dict[str, float]]:
        took = kill_a_save(script, folder, *moment)
        restored = OrbaxFolder(folder).restore(*put("1x1"))
        (found,) = (name for name, model in models.items() if same(restored, model))
        save(folder, CONFIG, models["old"])
        assert len(list(folder.iterdir())) == 2  # what was cut off is gone
        return found, took

    found, took = left("saved")
    assert found == "new"
    draw = random.Random(0)
    for _ in range(14):
        assert left("ready", draw.uniform(0, 1.1 * took["written"]))[0] == "old"
    for _ in range(5):
        assert left("written", draw.uniform(0, 1.1 * took["saved"]))[0] in models


_PROCESS = """
from tests.model.test_orbax_checkpoint import CONFIG, OrbaxFolder, put, save
import numpy as np
from flax.traverse_util import flatten_dict
(folder,) = ARGUMENTS
parameters = OrbaxFolder(folder).restore(*put("2x4"))
shards = {
    f"{'.'.join(map(str, path))}@{shard.index}": np.asarray(shard.data)
    for path, array in flatten_dict(parameters).items()
    for shard in array.addressable_shards
}
np.savez(f"{folder}-shards-{PROCESS}.npz", **shards)
save(folder + "-again", CONFIG, parameters)
"""


@pytest.mark.slow
def test_two_processes_restore_and_save_the_same_model(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    run_processes(_PROCESS, folder)
    whole = {".".join(map(str, path)): v for path, v in values(random_parameters()).items()}
    for number in range(2):
        shards = np.load(f"{folder}-shards-{number}.npz")
        for key in shards.files:
            name, index = key.split("@")
            part = whole[name][eval(index, {"slice": slice})]
            assert shards[key].tobytes() == part.tobytes()
    again = OrbaxFolder(f"{folder}-again")
    assert same(again.restore(*put("1x1")), random_parameters())
    assert json.loads((again.path / MANIFEST).read_text())["format"] == 1

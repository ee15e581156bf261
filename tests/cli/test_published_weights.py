"""Commands on published weights: list, download and info."""

import dataclasses
import hashlib
import sys

import numpy as np
import pytest
from safetensors.numpy import save

from ssd_jax.cli.main import main as program
from ssd_jax.cli.run import run_main
from ssd_jax.cli.weights import main
from ssd_jax.weights import download
from ssd_jax.weights.registry import ENTRIES
from tests.models.reference import reference_state
from tests.weights.published import make_file
from tests.weights.server import FileServer


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Function that runs a command; returns (exit status, standard output, standard error)."""
    monkeypatch.setenv(download.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    for name in (download.MIRROR_VARIABLE, download.OFFLINE_VARIABLE, "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, main=main):
        monkeypatch.setattr(sys, "argv", ["weights", *map(str, arguments)])
        return run_main(main), *capsys.readouterr()

    return run


PUBLISHED = ("ssd300-vgg16-voc-amdegroot", "vgg16-imagenet-keras")


@pytest.fixture
def entries(monkeypatch):
    """Entries that a test may change."""
    entries = dict(ENTRIES)
    for module in ("cli.weights", "weights.registry"):
        monkeypatch.setattr(f"ssd_jax.{module}.ENTRIES", entries)
    return entries


@pytest.fixture
def published(entries):
    """Server of two entries with generated files."""
    with FileServer() as server:
        for name in PUBLISHED:
            entry = entries[name]
            data = make_file(entry)
            server.files[entry.file] = data
            changes = {"urls": (f"{server.url}/{entry.file}",), "size": len(data)}
            changes |= {"md5": hashlib.md5(data).hexdigest()} if entry.md5 else {}
            entries[name] = dataclasses.replace(entry, **changes)
        yield server


def test_list_shows_every_entry_within_80_columns(run):
    status, out, err = run("list")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in lines] == ["name", *ENTRIES]
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("ssd300-vgg16-coco "))
    assert row.split()[1:] == ["90", "COCO", "25.1", "AP", "143", "MB", "BSD-3-Clause", "-"]
    assert "\x1b" not in out


def test_list_marks_cached_files(run, published):
    assert run("download", "vgg16-imagenet-keras")[0] == 0
    lines = run("list")[1].splitlines()[1:]
    assert [line.split()[0] for line in lines if line.split()[-1] == "yes"] == [
        "vgg16-imagenet-keras"
    ]


def test_download_prints_the_paths(run, published, tmp_path):
    names = ("vgg16-imagenet-keras", "ssd300-vgg16-voc-amdegroot")
    status, out, err = run("download", *names)
    assert (status, err) == (0, "")
    folder = tmp_path / "home" / "weights"
    assert out.splitlines() == [f"{name}: {folder / ENTRIES[name].file}" for name in names]
    assert all((folder / ENTRIES[name].file).is_file() for name in names)


def test_download_of_all(run, published, entries):
    for name in set(ENTRIES) - set(PUBLISHED):
        del entries[name]
    assert run("download", "--all")[0] == 0
    assert len(published.requests) == 2


def test_one_failure_does_not_stop_the_others(run, published):
    del published.files[ENTRIES["vgg16-imagenet-keras"].file]
    status, out, err = run("download", "vgg16-imagenet-keras", "ssd300-vgg16-voc-amdegroot")
    assert status == 2
    assert out.startswith("ssd300-vgg16-voc-amdegroot: ")
    assert err.startswith(
        "weights: vgg16-imagenet-keras cannot be downloaded from http://127.0.0.1"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("download",), "name the weights to download, or use --all; see ssd-jax weights list"),
        (("download", "--all", "vgg16-imagenet"), "name the weights to download, or use --all"),
        (("download", "vgg16-imagnet"), "unknown weights: vgg16-imagnet; perhaps you meant vgg16-"),
        (("info",), "NAME is missing"),
        (("info", "vgg17-imagenet"), "unknown weights: vgg17-imagenet; perhaps you meant vgg16-"),
        (("info", "no.pth"), "file not found: no.pth"),
        (("info", "./vgg16-imagenet"), "file not found: vgg16-imagenet"),
        (("list", "x"), "unexpected argument 'x'"),
        (("lst",), "unknown command 'lst'; perhaps you meant list"),
    ],
)
def test_errors_are_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_unknown_name_prevents_every_download(run, published):
    assert run("download", "vgg16-imagenet-keras", "zzz")[0] == 2
    assert published.requests == []


def test_info_of_an_entry_states_the_facts(run):
    status, out, _ = run("info", "mobilenet-ssd-voc")
    entry = ENTRIES["mobilenet-ssd-voc"]
    assert status == 0
    for fact in (
        *(entry.description, "23,147,564 bytes", *entry.urls, entry.sha256, entry.sha1),
        *("caffe-mobilenet-ssd (cannot be imported yet)", "bgr", "20 VOC", entry.licence.source),
        *("72.7 mAP on VOC07 test", entry.score.source, entry.note, "not downloaded"),
    ):
        assert fact in out
    out = run("info", "ssd300-vgg16-voc")[1]
    assert "unknown; that of the first download is pinned" in out
    assert "(about 211 MB)" in out
    out = run("info", "vgg16-imagenet-amdegroot")[1]
    assert "licence   unknown" in out
    assert "classes   none: base, ImageNet" in out


def test_info_of_a_cached_entry_describes_the_file(run, published, entries, golden):
    name = "ssd300-vgg16-voc-amdegroot"
    file = ENTRIES[name].file.replace(".pth", ".safetensors")
    data = save(reference_state(golden))
    published.files[file] = data
    urls = (f"{published.url}/{file}",)
    entries[name] = dataclasses.replace(entries[name], file=file, urls=urls, size=len(data))
    assert run("download", name)[0] == 0
    status, out, _ = run("info", name)
    assert status == 0
    assert f"{file} (verified)\n" in out
    assert "contents  ssd.pytorch SSD300, 20 classes, VOC's priors\n" in out
    assert "classes   aeroplane, bicycle" in out
    assert "arrays    71, 26,285,486 numbers" in out
    assert "    conf.0.weight    84x512x3x3       float32\n" in out
    (download.cache_folder() / file).write_bytes(data[:-1])
    status, out, err = run("info", name)
    assert (status, out) == (2, "")
    assert "the file was removed" in err


def test_info_of_a_cached_entry_that_cannot_be_read(run, published):
    assert run("download", "vgg16-imagenet-keras")[0] == 0
    status, out, _ = run("info", "vgg16-imagenet-keras")
    assert status == 0
    assert "  contents  " in out


def test_info_of_a_file(run, tmp_path):
    arrays = {"conv1_1/w": np.zeros((3, 3, 3, 64), "f"), "conv1_1/b": np.zeros(64, "f")}
    np.savez(tmp_path / "a.npz", **arrays)
    status, out, _ = run("info", tmp_path / "a.npz")
    assert status == 0
    assert out.startswith(f"  file      {tmp_path / 'a.npz'}\n")
    assert "lacks conv1_2 and 11 more of VGG16" in out
    assert out.endswith(
        "    conv1_1/w  3x3x3x64         float32\n    conv1_1/b  64               float32\n"
    )


def test_program_lists_the_commands(run):
    status, out, _ = run("--help", main=program)
    assert status == 0
    assert "List, download, describe, import, export or upload weights." in out

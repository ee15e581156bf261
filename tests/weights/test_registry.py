"""Entries of published weights: consistency, look-up, and the table in the docs."""

import importlib.util
import re
from pathlib import Path

import pytest

from ssd_jax.config_file import find_configs
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.registry import ENTRIES, Licence, PublishedWeights, find_entry

ROOT = Path(__file__).parents[2]
HEX = {"SHA-256": 64, "SHA-1": 40, "MD5": 32}
OWNERS = ("amdegroot", "chainercv", "features", "keras", "lufficc", "mmdet", "timm")


@pytest.fixture(params=ENTRIES.values(), ids=list(ENTRIES))
def entry(request):
    return request.param


def test_names_say_network_and_data(entry):
    assert ENTRIES[entry.name] is entry
    pattern = rf"[a-z0-9]+(-[a-z0-9]+)*-(voc|coco|imagenet)(-({'|'.join(OWNERS)}))?"
    assert re.fullmatch(pattern, entry.name)
    assert entry.dataset.lower() in entry.name


def test_files_are_distinct_and_plain_names():
    files = [entry.file for entry in ENTRIES.values()]
    assert len(set(files)) == len(files)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+\.[a-z0-9]+", file) for file in files)


def test_urls_are_encrypted_and_lead_to_the_file(entry):
    assert all(url.startswith("https://") for url in entry.urls)
    suffix = entry.file.rpartition(".")[2]
    assert all(url.endswith(suffix) for url in entry.urls if "drive.google" not in url)


def test_hashes_are_whole_or_prefixes_in_the_name_of_the_file(entry):
    for name, value in entry.hashes:
        assert re.fullmatch(r"[0-9a-f]+", value)
        if len(value) < HEX[name]:
            assert name == "SHA-256"
            assert f"-{value}." in entry.file


def test_hash_in_the_name_of_the_file_is_that_of_the_entry(entry):
    published = re.search(r"-([0-9a-f]{8})\.pth$", entry.file)
    if published:
        assert entry.sha256.startswith(published[1])


def test_claims_have_sources(entry):
    for claim in (entry.score, entry.licence):
        assert claim is None or claim.source.startswith("https://")
    assert entry.size is None or entry.rounded_size is None
    assert entry.size or entry.rounded_size or entry.size_text == "unknown"


def test_config_exists_and_has_the_data_and_the_size(entry):
    if entry.config is None:
        return
    assert entry.config in find_configs()
    if entry.classes is not None:
        assert entry.config.startswith(entry.name.split("-")[0])
        assert entry.dataset.lower() in entry.config


def test_published_results_of_the_issue():
    scores = {name: entry.score.value for name, entry in ENTRIES.items() if entry.score}
    assert scores == {
        "ssd300-vgg16-voc": 77.7,
        "ssd300-vgg16-voc-amdegroot": 77.43,
        "ssd300-vgg16-voc-chainercv": 77.8,
        "ssd300-vgg16-coco": 25.1,
        "ssd300-vgg16-coco-lufficc": 25.2,
        "ssd300-vgg16-coco-mmdet": 25.5,
        "ssd512-vgg16-voc": 80.7,
        "ssd512-vgg16-voc-chainercv": 79.7,
        "ssd512-vgg16-coco": 29.0,
        "ssd512-vgg16-coco-mmdet": 29.5,
        "vgg16-imagenet": 71.592,
        "mobilenet-ssd-voc": 72.7,
        "ssdlite320-mobilenet-v3-coco": 21.3,
    }


def test_unknown_name_lists_similar_ones():
    assert find_entry("vgg16-imagenet") is ENTRIES["vgg16-imagenet"]
    with pytest.raises(
        WeightsError,
        match=r"unknown weights: ssd300-vgg-coco; perhaps you meant .*"
        r"ssd300-vgg16-coco.*; ssd-jax weights list shows all names",
    ):
        find_entry("ssd300-vgg-coco")
    with pytest.raises(WeightsError, match=r"unknown weights: zzz; ssd-jax weights list"):
        find_entry("zzz")


def test_texts():
    values = {
        "name": "n", "description": "d", "urls": ("https://x/a/b.pth?download=1",),
        "layout": "vgg16", "channels": "rgb", "dataset": "VOC", "licence": Licence("MIT", "x"),
    }  # fmt: skip
    entry = PublishedWeights(**values, classes=20, rounded_size=201 << 20)
    assert (entry.file, entry.classes_text, entry.size_text) == ("b.pth", "20 VOC", "211 MB")
    entry = PublishedWeights(**values, classes=None, size=58_889_256)
    assert (entry.classes_text, entry.size_text) == ("VOC", "58.9 MB")


def load_generator():
    spec = importlib.util.spec_from_file_location("weights_table", ROOT / "docs/weights_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_in_the_docs_is_current():
    text = (ROOT / "docs/weights.md").read_text()
    assert load_generator().replace_table(text) == text, "run python docs/weights_table.py"


def test_table_in_the_docs_has_every_entry():
    table = load_generator().make_table()
    assert len(table.splitlines()) == len(ENTRIES) + 2
    for entry in ENTRIES.values():
        assert f"`{entry.name}`" in table
        assert all(url in table for url in entry.urls)

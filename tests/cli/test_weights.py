"""Commands that import and export weights: results and errors."""

import pickle
import sys
import zipfile

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from ssd_jax.checkpoints.reader import read_config, restore_model
from ssd_jax.cli.run import run_main
from ssd_jax.cli.weights import main
from ssd_jax.config import ConfigError, UserError
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import WeightFile, read_arrays
from ssd_jax.weights.importers import import_arrays
from tests.models.reference import reference_image, reference_state
from tests.weights.torch_files import legacy_file, zip_file


@pytest.fixture(scope="module")
def state(golden):
    """ssd.pytorch's state dict of the golden forward case."""
    return reference_state(golden)


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    """The same as a checkpoint."""
    folder = tmp_path_factory.mktemp("ssd")
    save_file(state, folder / "ssd.safetensors")
    main(["import", str(folder / "ssd.safetensors"), "--out", str(folder / "run"), *RGB])
    return folder / "run" / "checkpoints" / "0"


RGB = ("--channels", "rgb")


def assert_forward_is_golden(golden, checkpoint):
    expected = np.load(golden / "forward.npz")
    config = read_config(checkpoint)
    model, variables = restore_model(checkpoint, config)
    loc, conf = jax.jit(model.apply)(variables, reference_image())
    index = expected["prior_index"]
    for ours, theirs in ((loc, expected["loc"]), (conf, expected["conf"])):
        assert np.abs(np.asarray(ours)[:, index] - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_imported_checkpoint_gives_the_recorded_outputs(golden, checkpoint):
    assert_forward_is_golden(golden, checkpoint)


@pytest.mark.nightly
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_imported_pth_gives_the_recorded_outputs(golden, state, tmp_path, zipped):
    torch = pytest.importorskip("torch")
    tensors = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(tmp_path / "a.pth") == zipped
    main(["import", str(tmp_path / "a.pth"), "--out", str(tmp_path / "run"), *RGB])
    assert_forward_is_golden(golden, tmp_path / "run" / "checkpoints" / "0")


def test_imported_config_is_that_of_ssd_pytorch(checkpoint, golden):
    from ssd_jax.models.ssd import model_priors

    config = read_config(checkpoint)
    assert config.model.classes[0] == "aeroplane"
    assert config.model.classes[19] == "tvmonitor"
    assert (config.eval.topk_candidates, config.eval.detections_per_image) == (200, 4000)
    expected = np.load(golden / "priors.npz")
    np.testing.assert_allclose(
        model_priors(config.model, config.priors), expected["voc300"], atol=1e-6
    )


def test_other_numbers_of_classes_use_coco_priors(state, golden):
    from ssd_jax.models.ssd import model_priors

    few = {n: v[: len(v) // 21 * 3] if n.startswith("conf") else v for n, v in state.items()}
    imported = import_arrays("a.pth", WeightFile(few, {}), channels="rgb", classes=("cat", "dog"))
    assert imported.config.model.classes == ("cat", "dog")
    priors = model_priors(imported.config.model, imported.config.priors)
    np.testing.assert_allclose(priors, np.load(golden / "priors.npz")["coco300"], atol=1e-6)


def test_bgr_is_reversed(state):
    rgb, bgr = (
        import_arrays("a", WeightFile(state, {}), channels=c).params for c in ("rgb", "bgr")
    )
    first = [p["base"]["conv1_1"]["conv"]["kernel"] for p in (rgb, bgr)]
    np.testing.assert_array_equal(first[0][:, :, ::-1], first[1])
    np.testing.assert_array_equal(
        rgb["base"]["conv1_2"]["conv"]["kernel"], bgr["base"]["conv1_2"]["conv"]["kernel"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "suffix"),
    [("ssd.pytorch", ".pth"), ("torchvision", ".pth"), ("safetensors", ".safetensors")],
)
def test_import_of_an_export_is_bit_identical(checkpoint, tmp_path, target, suffix):
    out = tmp_path / f"out{suffix}"
    main(["export", str(checkpoint), "--to", target, "--out", str(out)])
    main(["import", str(out), "--out", str(tmp_path / "again"), *RGB])
    again = tmp_path / "again" / "checkpoints" / "0"
    if target == "safetensors":
        assert read_config(again) == read_config(checkpoint)
    flat = [
        traverse_util.flatten_dict(restore_model(path, read_config(path))[1]["params"])
        for path in (checkpoint, again)
    ]
    assert flat[0].keys() == flat[1].keys()
    for path, value in flat[0].items():
        np.testing.assert_array_equal(value, flat[1][path], err_msg=str(path))


def test_export_to_ssd_pytorch_equals_the_imported_file(checkpoint, state, tmp_path):
    main(
        ["export", str(checkpoint), "--to", "ssd.pytorch", "--out", str(tmp_path / "o.safetensors")]
    )
    written = load_file(tmp_path / "o.safetensors")
    assert written.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "conf.5.bias"), r"a.pth lacks conf.5.bias"),
        (lambda s: without(s, "conf.0.bias"), r"a.pth lacks conf.0.bias"),
        (
            lambda s: s | {"priors": np.zeros(3, "f")},
            "a.pth has priors, which belongs to no layer of the network",
        ),
        (lambda s: s | {"vgg.0.weight": np.zeros((64, 3, 3, 2), "f")}, r"vgg.0.weight has shape"),
        (lambda s: s | {"conf.0.bias": np.zeros(83, "f")}, r"conf.0.bias has shape \(83,\)"),
        (lambda s: s | {"conf.0.bias": np.zeros(4, "f")}, r"conf.0.bias has shape \(4,\)"),
        (lambda s: s | {"vgg.0.bias": np.full(64, np.nan, "f")}, "vgg.0.bias is not finite"),
        (lambda s: s | {"vgg.0.bias": np.zeros(64, int)}, "vgg.0.bias is of type int64"),
        (
            lambda s: {"fc.weight": np.zeros(3, "f")},
            "has an unknown layout, with the arrays fc.weight",
        ),
    ],
)
def test_error_of_a_state_dict_that_does_not_fit(state, change, message):
    with pytest.raises(WeightsError, match=message):
        import_arrays("a.pth", WeightFile(change(state), {}), channels="rgb")


def test_ssd_pytorch_requires_the_channel_order(state):
    with pytest.raises(WeightsError, match=r"--channels rgb, or bgr, .* converted from Caffe: bgr"):
        import_arrays("a.pth", WeightFile(state, {}))


def test_number_of_classes_must_match(state):
    with pytest.raises(WeightsError, match=r"names 1 classes and a.pth has 20"):
        import_arrays("a.pth", WeightFile(state, {}), channels="rgb", classes=("cat",))


def command(monkeypatch, capsys, *arguments):
    """(exit status, standard error) of the command."""
    monkeypatch.setattr(sys, "argv", ["weights", *map(str, arguments)])
    status = run_main(main)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pth", None, "file not found"),
        ("page.pth", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("page.npz", b"<html>", "is a web page"),
        ("some.bin", b"123", "has an unknown suffix"),
        ("short.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "cannot be read"),
        ("short.npz", b"PK\x03\x04 and no more", "cannot be read"),
        ("short.pth", b"PK\x03\x04 and no more", "cannot be read"),
        ("text.pth", b"123", "is not a file of PyTorch"),
        ("empty.npz", b"", "cannot be read"),
    ],
)
def test_file_without_weights_is_one_error_line(
    tmp_path, monkeypatch, capsys, name, content, message
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "run"
    status, error = command(monkeypatch, capsys, "import", tmp_path / name, "--out", out)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_folder_instead_of_a_file(tmp_path, monkeypatch, capsys):
    status, error = command(monkeypatch, capsys, "import", tmp_path, "--out", tmp_path / "run")
    assert status == 2
    assert "is a folder" in error


def test_existing_folder_is_kept(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.npz").write_bytes(b"x")
    status, error = command(monkeypatch, capsys, "import", tmp_path / "x.npz", "--out", tmp_path)
    assert status == 2
    assert "exists; name a new folder" in error
    out = tmp_path / "x.npz"
    with pytest.raises(UserError, match=r"x.npz exists"):
        main(["export", str(checkpoint), "--to", "ssd.pytorch", "--out", str(out)])
    assert out.read_bytes() == b"x"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("make_file", [zip_file, legacy_file])
def test_pickle_is_not_executed(tmp_path, monkeypatch, capsys, make_file):
    file, trace = tmp_path / "evil.pth", tmp_path / "trace"
    file.write_bytes(make_file(pickle.dumps({"vgg.0.weight": Evil(trace)}, 2)))
    status, error = command(monkeypatch, capsys, "import", file, "--out", tmp_path / "run")
    assert status == 2
    assert "it was not loaded, since a pickle can run code" in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [file]


def test_zip_that_would_unpack_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ssd_jax.weights.files.MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10_000))
    with pytest.raises(WeightsError, match=r"bomb.npz would unpack to"):
        read_arrays(tmp_path / "bomb.npz")


def test_unsupported_network_is_an_export_error(checkpoint, tmp_path):
    from ssd_jax.config import from_json, to_json
    from ssd_jax.weights.exporters import export_arrays
    from tests.tiny import TINY

    config = from_json(to_json(TINY))
    with pytest.raises(ConfigError, match=r"--to torchvision: model.image_size is 64"):
        export_arrays(config, {"params": {}}, "torchvision")

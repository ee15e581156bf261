"""The command that builds datasets; TensorFlow, which it needs, only where it is installed."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds

from ssd_jax.cli.data import main
from ssd_jax.cli.run import run_main
from ssd_jax.config import ConfigError
from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.coco import CocoSource
from ssd_jax.data.formats.voc import VocSource
from ssd_jax.data.tfds import prepare as command
from ssd_jax.data.tfds.source import TfdsSource
from tests.data.folders import make_coco, make_folder, write_object, write_xml
from tests.data.tfds.test_source import assert_same
from tests.data.tfds_sets import VOC_CLASSES, make_tfds, voc_record

REPOSITORY = Path(__file__).parents[3]
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs pip install 'ssd_jax[prepare]'"
)


@pytest.fixture
def without_tensorflow(monkeypatch):
    def find_spec(name):
        return None if name == "tensorflow" else SimpleNamespace(name=name)

    monkeypatch.setattr(
        command, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=find_spec))
    )


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


class TestArguments:
    def test_help(self, capsys):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["prepare", "--help"])
        assert "--from FOLDER" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ([], "a name is missing; .*e.g. voc/2007"),
            (["voc/2007", "--form", "x"], "unknown argument --form; perhaps you meant --from"),
            (["voc/2007", "--from"], "--from needs a value"),
        ],
    )
    def test_invalid_arguments(self, arguments, match):
        with pytest.raises(ConfigError, match=match):
            main(["prepare", *arguments])

    def test_root_and_folder(self, monkeypatch):
        seen = []
        monkeypatch.setattr(command, "prepare", lambda *values: seen.append(values))
        main(["prepare", "voc/2007", "--from", "devkit", "--root", "sets"])
        main(["prepare", "voc/2012", "coco/2017"])
        assert seen == [
            ("voc/2007", "sets", Path("devkit")),
            ("voc/2012", "", None),
            ("coco/2017", "", None),
        ]


class TestBefore:
    def test_prepared_already(self, tmp_path, capsys, without_tensorflow):
        folder = make_tfds(tmp_path, {"train": [voc_record("a")]})
        before = files(tmp_path)
        main(["prepare", "voc/2007", "--root", str(tmp_path), "--from", "nowhere"])
        assert capsys.readouterr().out == f"voc/2007 is prepared already, in {folder}\n"
        assert files(tmp_path) == before

    def test_prepared_in_another_format(self, tmp_path):
        folder = make_tfds(tmp_path, {"train": [voc_record("a")]})
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(DataError, match="is prepared as tfrecord"):
            main(["prepare", "voc/2007", "--root", str(tmp_path)])

    @pytest.mark.parametrize("more", [[], ["--from"]])
    def test_without_tensorflow(self, tmp_path, more, without_tensorflow, monkeypatch, capfd):
        make_folder(tmp_path / "VOC2007", {"a": write_xml()})
        arguments = ["prepare", "voc/2007", "--root", str(tmp_path / "tfds"), *more]
        monkeypatch.setattr(sys, "argv", ["data", *arguments, *([str(tmp_path)] if more else [])])
        assert run_main(main) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err == (
            "data: preparing a dataset needs tensorflow; run pip install 'ssd_jax[prepare]'\n"
        )
        assert not (tmp_path / "tfds").exists()

    def test_folder_without_the_dataset(self, tmp_path):
        with pytest.raises(DataError, match=r"--from .* has no VOC2007/ImageSets/Main/train\.txt"):
            main(["prepare", "voc/2007", "--root", str(tmp_path), "--from", str(tmp_path)])


class TestAnnouncement:
    def make_builder(self, root: Path, size: int) -> SimpleNamespace:
        def ask(downloads):
            paths = downloads.download_and_extract({"a": "http://x/a.tar", "b": ["http://x/b.zip"]})
            paths["a"] / "folder", paths["b"][0]
            downloads.download("http://x/a.tar")

        infos = {f"http://x/{n}": SimpleNamespace(size=size) for n in ("a.tar", "b.zip", "c.zip")}
        return SimpleNamespace(
            data_dir=str(root / "voc/2007/5.0.0"),
            data_dir_root=root / "sets",
            url_infos=infos,
            _split_generators=ask,
        )

    def test_download_is_announced(self, tmp_path, capsys):
        command._announce_download("voc/2007", self.make_builder(tmp_path, 50_000_000))
        assert capsys.readouterr().out.splitlines() == [
            "0.05 GB  http://x/a.tar",
            "0.05 GB  http://x/b.zip",
            f"voc/2007: downloading 0.10 GB to {tmp_path}/sets/downloads and building "
            f"{tmp_path}/voc/2007/5.0.0; this takes about 0.30 GB of disk; downloads/ may be "
            "removed afterwards",
        ]

    def test_full_disk(self, tmp_path, monkeypatch):
        free = SimpleNamespace(free=2_900_000_000)
        monkeypatch.setattr(command.shutil, "disk_usage", lambda folder: free)
        builder = self.make_builder(tmp_path, 500_000_000)
        with pytest.raises(DataError, match=r"has 2\.90 GB free, and x takes about 3\.00 GB"):
            command._announce_download("x", builder)

    def test_builders_may_open_their_downloads(self, tmp_path, capsys):
        builder = self.make_builder(tmp_path, 5)
        builder._split_generators = lambda _: Path("/no/such/file").stat()
        command._announce_download("x", builder)
        assert capsys.readouterr().out.startswith("x: downloading unknown size to ")


@needs_tensorflow
class TestBuild:
    def run(self, *arguments: object, program: str = "") -> subprocess.CompletedProcess:
        start = ["-c", program] if program else ["-m", "ssd_jax", "data"]
        return subprocess.run(
            [sys.executable, *start, "prepare", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )

    def test_voc_from_a_folder(self, tmp_path):
        devkit, root = tmp_path / "VOCdevkit", tmp_path / "tfds"
        texts = {
            "000005": write_xml(write_object("dog", (1, 1, 100, 80)), write_object("cat")),
            "000007": write_xml(),
        }
        make_folder(devkit / "VOC2007", texts)
        done = self.run("voc/2007", "--root", root, "--from", devkit)
        assert done.returncode == 0, done.stderr
        assert "voc/2007: there will be no split test" in done.stdout
        assert "voc/2007:train has 2 images" in done.stdout
        folder = root / "voc/2007/5.0.0"
        assert (folder / "ssd_jax-train.npz").is_file()
        assert {p.name for p in root.iterdir()} == {"voc"}
        builder = tfds.builder_from_directory(folder)
        assert builder.info.full_name == "voc/2007/5.0.0"
        source = TfdsSource(str(root), "voc/2007:train", VOC_CLASSES)
        assert_same(source, VocSource(devkit, "2007:train", VOC_CLASSES))
        again = self.run("voc/2007", "--root", root, "--from", devkit)
        assert (again.returncode, again.stdout) == (
            0,
            f"voc/2007 is prepared already, in {folder}\n",
        )

    def test_coco_from_a_folder(self, tmp_path):
        categories = [{"id": k + 7, "name": f"thing {k}"} for k in range(80)]
        boxes = [(1, 7, (1.5, 2, 30.25, 40)), (1, 86, (0, 0, 100, 80), {"iscrowd": 1})]
        make_coco(tmp_path / "coco", "val2017", boxes=boxes, categories=categories)
        done = self.run("coco/2017", "--root", tmp_path, "--from", tmp_path / "coco")
        assert done.returncode == 0, done.stderr
        classes = tuple(c["name"] for c in categories)
        source = TfdsSource(str(tmp_path), "coco/2017:validation", classes)
        assert_same(source, CocoSource(tmp_path / "coco", "val2017", classes))

    def test_failed_build_leaves_no_files(self, tmp_path):
        texts = {"a": write_xml(write_object("dog")), "b": write_xml(write_object("unicorn"))}
        make_folder(tmp_path / "VOC2007", texts)
        done = self.run("voc/2007", "--root", tmp_path / "tfds", "--from", tmp_path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "b.xml cannot be used: class 'unicorn'" in done.stderr.splitlines()[-1]
        assert files(tmp_path / "tfds") == {"voc/.config/metadata.json"}
        assert list((tmp_path / "tfds/voc/2007").iterdir()) == []

    def test_interrupted_build_leaves_no_files(self, tmp_path):
        make_folder(tmp_path / "VOC2007", {"a": write_xml(), "b": write_xml()})
        program = (
            "import time\n"
            "import ssd_jax.data.tfds.prepare as command\n"
            "from ssd_jax.cli.run import run_main\n"
            "from ssd_jax.cli.data import main\n"
            "read = command.voc_examples\n"
            "def slowly(*arguments):\n"
            "    for example in read(*arguments):\n"
            "        yield example\n"
            "        print('one', flush=True)\n"
            "        time.sleep(60)\n"
            "command.voc_examples = slowly\n"
            "raise SystemExit(run_main(main))\n"
        )
        arguments = ["voc/2007", "--root", tmp_path / "tfds", "--from", tmp_path]
        process = subprocess.Popen(
            [sys.executable, "-c", program, "prepare", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        with process:
            while not list((tmp_path / "tfds").glob("voc/2007/incomplete.*")):
                assert process.poll() is None, process.stderr.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        assert files(tmp_path / "tfds") == {"voc/.config/metadata.json"}
        assert list((tmp_path / "tfds/voc/2007").iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("no_such_set", "TFDS has no 'no_such_set' (Dataset no_such_set not found.)"),
            ("voc/2008", "TFDS has no 'voc/2008'"),
            ("voc", "voc comes in several configs; name one, e.g. voc/2007"),
        ],
    )
    def test_unknown_dataset(self, tmp_path, name, match):
        done = self.run(name, "--root", tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert match in done.stderr
        assert done.stderr.count("\n") == 1

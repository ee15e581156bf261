"""The files of an output folder appear together or not at all; other files in it stay."""

import shutil

import pytest

from ssd_jax.evaluation.report.output_dir import OutputError, staged


def test_files_appear_at_the_end_and_others_stay(tmp_path):
    folder = tmp_path / "eval/4"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots/old.svg").write_text("old")
    (folder / "metrics.json").write_text("old")
    (folder / "notes.txt").write_text("other")
    with staged(folder) as part:
        (part / "plots").mkdir()
        (part / "plots/new.svg").write_text("new")
        (part / "metrics.json").write_text("new")
        assert (folder / "metrics.json").read_text() == "old"
    files = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.*")}
    assert files == {
        "plots/old.svg": "old",
        "plots/new.svg": "new",
        "metrics.json": "new",
        "notes.txt": "other",
    }
    assert [p.name for p in folder.parent.iterdir()] == ["4"]


def test_no_files_after_an_error(tmp_path):
    def fill():
        with staged(tmp_path / "eval/4") as part:
            (part / "half").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(
        OutputError,
        match=r"cannot write the results to .*/eval/4 \(No space left on device\); free space",
    ):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [False, True])
def test_only_errors_of_the_output_folder_are_converted(tmp_path, old):
    folder = tmp_path / "eval/4"
    if old:
        folder.mkdir(parents=True)

    def read(path):
        with staged(folder) as part:
            (part / path).read_text()

    with pytest.raises(FileNotFoundError, match="elsewhere"):
        read(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"results to .*/eval/4 \(No such file or directory\)"):
        read("missing")
    assert (tmp_path / "eval").exists() == old
    assert not list(tmp_path.rglob("*.part"))


def test_folder_removed_meanwhile(tmp_path):
    def fill():
        with staged(tmp_path / "out") as part:
            shutil.rmtree(part)

    with pytest.raises(OutputError, match=r"results to .*/out \(No such file or directory\)"):
        fill()


def test_name_longer_than_the_file_system_allows(tmp_path):
    with (
        pytest.raises(OutputError, match=r"results to .*x \(File name too long\); free space"),
        staged(tmp_path / ("x" * 300)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []

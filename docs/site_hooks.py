"""MkDocs hooks: add files from outside docs/ to the site.

The start page is README.md. Links are written as in the repository (`docs/data.md` in README.md,
`../examples/slurm.sh` in a page), so that they work there and in the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
FOLDERS = ("configs", "examples")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def on_files(files, config):
    """Add the pages of the repository's root, the configs and the examples."""
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).iterdir()):
            if path.is_file():
                uri = f"{folder}/{path.name}"
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Replace links of the repository by links of the site."""
    del config, files
    uri = page.file.src_uri
    sources = {target: name for name, target in PAGES.items()}
    folder = posixpath.dirname(sources.get(uri, f"docs/{uri}"))

    def replace(match):
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        target = PAGES.get(path, path.removeprefix("docs/"))
        return f"]({posixpath.relpath(target, posixpath.dirname(uri) or '.')}"

    return LINK.sub(replace, markdown)

"""Detectors on the Hugging Face Hub."""

import re
import tempfile
from pathlib import Path
from typing import Any

from ssd_jax.config import ConfigError
from ssd_jax.weights.errors import WeightsError

PREFIX = "hf://"
"""Start of the address of a repository, hf://USER/REPO, with @REVISION if it is not the newest."""
FILE_NAME = "model.safetensors"
"""File of the detector in a repository."""
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def pull(address: str, *, field: str) -> Path:
    """Download the detector of a repository, or find it in the cache of huggingface_hub.

    Raises:
        ConfigError: the address is invalid; it names `field`.
        WeightsError: huggingface_hub is not installed, or the download failed.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(f"{field}: {address} is not a repository; write hf://USER/REPO")
    hub = _import_hub(address)
    try:
        return Path(hub.hf_hub_download(match[1], FILE_NAME, revision=match[2]))
    except Exception as error:  # of requests, of the hub or of the disk
        raise WeightsError(f"{address} cannot be downloaded: {_reason(error)}") from None


def push(repo: str, model_file: bytes, card: str, *, private: bool) -> str:
    """Upload a detector and its model card, creating the repository if it does not exist.

    Args:
        repo: USER/REPO, or hf://USER/REPO.
        model_file: content of the safetensors file.
        card: content of README.md.
        private: whether a new repository is private.

    Returns:
        The address of the repository's page.

    Raises:
        ConfigError: the address is invalid.
        WeightsError: huggingface_hub is not installed, or the upload failed.
    """
    address = repo if repo.startswith(PREFIX) else PREFIX + repo
    match = _ADDRESS.fullmatch(address)
    if match is None or match[2]:
        raise ConfigError(f"{repo} is not a repository; write USER/REPO")
    hub = _import_hub(address)
    try:
        api = hub.HfApi()
        url = api.create_repo(match[1], private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FILE_NAME).write_bytes(model_file)
            (Path(folder) / "README.md").write_text(card, "utf-8")
            api.upload_folder(repo_id=match[1], folder_path=folder, commit_message="Add detector")
    except Exception as error:  # of requests, of the hub or of the disk
        raise WeightsError(f"{address} cannot be written: {_reason(error)}") from None
    return str(url)


def _reason(error: Exception) -> str:
    """Return the message of an error of the hub, which has several lines, in one."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _import_hub(address: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise WeightsError(
            f"{address} needs huggingface_hub; run pip install 'ssd_jax[hub]'"
        ) from None
    return huggingface_hub

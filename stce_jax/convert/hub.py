"""Uploading an exported directory to the Hugging Face hub, by huggingface_hub, which knows the user's token.

The token is never read here. What the library says is printed without anything that looks like one.
"""

import os
import re
from pathlib import Path
from typing import Any

from stce_jax.errors import ConfigError, shown
from stce_jax.paths import first_line

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}|Bearer\s+\S+")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check(repository: str) -> None:
    """Raises ConfigError for what can be no repository, or if huggingface_hub is not installed."""
    if not re.fullmatch(rf"{_PART}/{_PART}", repository) or re.search(r"--|\.\.", repository):
        raise ConfigError(f"--push is {shown(repository)}; give a repository of the hub: OWNER/NAME")
    _library()


def upload(directory: Path, repository: str) -> str:
    """Uploads all files of a directory; a repository that is not there is made, private. Returns its address.

    Raises:
      ConfigError: the hub refuses, or cannot be reached; the directory stays.
    """
    hub = _library()
    try:
        made = hub.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=str(directory), commit_message="Model of stce export")
    except Exception as error:  # of the hub's answers, the network, the token
        reason = first_line(Exception(without_token(str(error))))
        raise ConfigError(
            f"cannot upload to {repository}: {reason}; {directory} is whole: check the name and `hf auth login`, then "
            f"hf upload {repository} {directory}"
        ) from None  # whatever its causes hold
    return str(made)


def without_token(text: str) -> str:
    """A message without what looks like a token of the hub, or is the one that the environment has."""
    for variable in TOKEN_VARIABLES:
        if token := os.environ.get(variable, ""):
            text = text.replace(token, "***")
    return _TOKEN.sub("***", text)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "--push needs huggingface_hub: pip install huggingface_hub; or leave it out, and upload the directory later"
        ) from error
    return huggingface_hub

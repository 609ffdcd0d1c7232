"""`push_to_hub`: the folder that `save_pretrained` writes, with its card and its sources, as one commit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from unimed.data.licenses import read_sources, write_sources
from unimed.files import write_text
from unimed.identity import file_digest
from unimed.models.cards import card_of_folder, model_card


def push(
    model,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "5GB",
    tags: list[str] | None = None,
) -> str:
    """Save a model and upload it; returns the address of the commit.

    The card of the folder that the model was opened from goes along where the weights are still those of the folder,
    else a card that says that nothing was measured.

    Args:
        repo_id: "owner/name". The others: as of transformers' `push_to_hub`.

    Raises:
        HfHubHTTPError, OSError: what huggingface_hub raises.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory(prefix="unimed-push-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        source = Path(str(getattr(model.config, "_name_or_path", "") or "/nowhere"))
        unchanged = source.is_dir() and _same_weights(source, folder)
        card = card_of_folder(source) if unchanged else None
        sources = read_sources(source) if source.is_dir() else []
        if sources:
            write_sources(folder, sources)
        name = repo_id.rpartition("/")[2]
        write_text(folder / "README.md", card or model_card(
            name, tags=tags or ["medical"], example='model.predict("image.png", "...")', sources=sources,
        ))  # fmt: skip
        return api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, create_pr=create_pr,
            commit_message=commit_message or f"Upload {type(model).__name__}", commit_description=commit_description,
        ).commit_url  # fmt: skip


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, byte by byte, however the files are named."""
    first, second = (sorted(file_digest(file) for file in place.glob("*.safetensors")) for place in (one, other))
    return bool(first) and first == second

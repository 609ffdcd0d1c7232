"""Runs as `model-index` of a model card, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimed.evaluation.harness.manifest import read_manifest


def model_index(runs: Sequence[str | Path], model_name: str) -> str:
    """YAML front matter of a README.md with the numbers of runs of one model.

    Each number says the benchmark, the part, the digest of the data and how it was aggregated.

    Raises:
        ManifestError: no run. ValueError: runs of several models.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results, models = [], set()
    for run in runs:
        _, manifest = read_manifest(run)
        identity = manifest["contestant"]["identity"]
        models.add(str(identity.get("content") or manifest["contestant"]["name"]))
        declared = manifest["declaration"]
        for name, value in manifest["numbers"].items():
            if value is None:
                continue
            metric = name.rpartition("/")[2]
            results.append(EvalResult(
                task_type=declared["task"], dataset_type=declared["name"], dataset_name=declared["name"],
                dataset_split=declared.get("split", "test"), dataset_revision=manifest["data"]["content"],
                metric_type=metric, metric_name=name, metric_value=round(value, 6),
                metric_args={"cases": manifest["data"]["cases"], "unimed": manifest["code"]["unimed"]},
            ))  # fmt: skip
    if len(models) > 1:
        raise ValueError(f"the runs are of {len(models)} models; a card is of one")
    data = ModelCardData(model_name=model_name, eval_results=results)
    return f"---\n{data.to_yaml()}\n---\n"

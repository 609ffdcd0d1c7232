"""Runs as `model-index` of a model card, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimed.evaluation.harness.manifest import read_manifest
from unimed.evaluation.tables import markdown_table


def results_of(runs: Sequence[str | Path]) -> tuple[list, str]:
    """Results of huggingface_hub and a table in Markdown of the numbers of runs of one model.

    Each number says the benchmark, the part, the digest of the data and how it was aggregated.

    Raises:
        ManifestError: no run. ValueError: runs of several models.
    """
    from huggingface_hub import EvalResult

    results, rows, models = [], [], set()
    for run in runs:
        _, manifest = read_manifest(run)
        identity = manifest["contestant"]["identity"]
        models.add(str(identity.get("content") or manifest["contestant"]["name"]))
        declared = manifest["declaration"]
        part, cases = declared.get("split", "test"), manifest["data"]["cases"]
        for name, value in manifest["numbers"].items():
            if value is None:
                continue
            results.append(EvalResult(
                task_type=declared["task"], dataset_type=declared["name"], dataset_name=declared["name"],
                dataset_split=part, dataset_revision=manifest["data"]["content"],
                metric_type=name.rpartition("/")[2], metric_name=name, metric_value=round(value, 6),
                metric_args={"cases": cases, "unimed": manifest["code"]["unimed"]},
            ))  # fmt: skip
            rows.append({"benchmark": declared["name"], "part": part, "cases": cases, "metric": name, "value": value})
    if len(models) > 1:
        raise ValueError(f"the runs are of {len(models)} models; a card is of one")
    return results, f"### Benchmarks\n\n{markdown_table(rows)}" if rows else ""


def model_index(runs: Sequence[str | Path], model_name: str) -> str:
    """YAML front matter of a README.md with the numbers of runs of one model.

    Raises:
        ManifestError: no run. ValueError: runs of several models.
    """
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(model_name=model_name, eval_results=results_of(runs)[0]).to_yaml()}\n---\n"

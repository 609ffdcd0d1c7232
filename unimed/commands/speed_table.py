"""`unimed speed all`: one table of what this package takes beside what a user would run instead, on this machine.

Weights are random. Each row also says what share of the machine's limit, measured in the same run, is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unimed.commands.speed_rows import Sizes, operations, paired, row

#: Comparisons by name, as "module of this package:function"; a function takes sizes, repeats and the matrix peak in
#: GFLOP/s, and gives rows.
COMPARISONS = {
    "decoding": "speed_table:decoding",
    "zero-shot": "speed_table:zero_shot",
    "masks": "speed_masks:masks",
    "training": "speed_training:training",
    "volumes": "speed_windows:volumes",
}
#: Columns of the table; speed.json has everything.
_COLUMNS = (
    "what", "ours_cpu_s", "ours_wall_s", "other", "ratio_cpu", "least", "most", "from", "to", "share_of_matrix_peak",
    "share_in_products", "pixels_that_differ", "share_waiting_for_data", "loss_differs_by", "dice_with_every_slice",
)  # fmt: skip


def machine(size: int) -> dict[str, float]:
    """Matrix products in GFLOP/s and copies of memory in GB/s, per CPU second."""
    import torch

    matrix, block = torch.randn(size, size), torch.empty(16 * size * size)
    spent = paired({"product": lambda: matrix @ matrix, "copy": block.clone}, 5)
    return {
        "matrix_gflops": 2 * size**3 / 1e9 / max(min(spent["product"]["cpu_s"]), 1e-9),
        "memory_gb_per_s": 2 * 4 * block.numel() / 1e9 / max(min(spent["copy"]["cpu_s"]), 1e-9),
    }


def decoding(sizes: Sizes, repeat: int, peak: float) -> list[dict]:
    """Several questions on one image, against transformers' `generate` on the same rows as one batch."""
    import torch

    from unimed.models.grounded.generation import generate
    from unimed.models.starting.rivals import random_llama

    lm = random_llama(sizes.width, sizes.layers)
    model = _Parts(lm.model, lm.lm_head, lm.get_input_embeddings())
    weights = sum(p.numel() for p in lm.parameters() if p.ndim == 2)
    rows, begin = _repeated(sizes, lm, model, repeat), torch.randint(1, 2000, (sizes.shared,))
    for count in sizes.questions:
        ids = torch.stack([torch.cat([begin, torch.randint(1, 2000, (8,))]) for _ in range(count)])
        with torch.no_grad():
            embeds, mask = model.embed_tokens(ids), torch.ones_like(ids)

        def ours(embeds=embeds, mask=mask) -> None:
            generate(model, embeds, mask, keep_states_of=[], max_new_tokens=sizes.answer, keep_last=False)

        def theirs(embeds=embeds, mask=mask) -> None:
            with torch.no_grad():
                lm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=sizes.answer, do_sample=False)

        read = sizes.shared + count * (8 + sizes.answer)
        rows.append({"axis": "questions on one image", "n": count} | row(
            f"decoding, {count} questions on one image", {"ours": ours, "transformers generate": theirs}, repeat,
            2 * weights * read / 1e9, peak))  # fmt: skip
    return rows


def _repeated(sizes: Sizes, lm, model, repeat: int) -> list[dict]:
    """One answer that was given before, as answers made of a template are, against transformers' `generate`."""
    import torch

    from unimed.models.grounded.drafts import Drafts, EarlierAnswers
    from unimed.models.grounded.generation import generate

    ids, rows = torch.randint(1, 2000, (1, sizes.shared)), []
    with torch.no_grad():
        embeds, mask = model.embed_tokens(ids), torch.ones_like(ids)
    told = dict(keep_states_of=[], keep_last=False)
    for count in sizes.tokens:
        before = EarlierAnswers()
        expected = generate(model, embeds, mask, max_new_tokens=count, **told)[0].ids
        before.add(expected)
        found = []

        def ours(count=count, before=before, found=found) -> None:
            drafts = [Drafts(ids[0].tolist(), 8, before.answers)]
            found[:] = generate(model, embeds, mask, max_new_tokens=count, drafts=drafts, **told)[0].ids

        def theirs(count=count) -> None:
            with torch.no_grad():
                lm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=count, do_sample=False)

        measured = row(
            f"decoding, an answer of {count} tokens given before",
            {"ours": ours, "transformers generate": theirs}, repeat,
        )  # fmt: skip
        rows.append({"axis": "tokens of an answer given before", "n": count, "same": found == expected} | measured)
    return rows


@dataclass
class _Parts:
    """What the decoding loop needs of a language model."""

    language_model: object
    lm_head: object
    embed_tokens: object


def zero_shot(sizes: Sizes, repeat: int, peak: float) -> list[dict]:
    """Features of image files, against open_clip's own loop: its transform in a DataLoader, then `encode_image`."""
    import tempfile

    import numpy as np
    import torch
    from PIL import Image

    from unimed.models.starting.clip import build_small
    from unimed.models.starting.rivals import open_clip_transform

    small = dict(width=sizes.clip_width, layers=sizes.clip_layers, text_width=32, text_layers=1)
    model = build_small(["a", "b"], image_size=sizes.side, **small).eval()
    transform = open_clip_transform(model.processor)
    if transform is None:
        return [{"what": "zero-shot features", "other": "open_clip is not installed"}]
    numbers = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(sizes.images):
            paths.append(Path(folder, f"{number}.png"))
            Image.fromarray(numbers.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(paths[-1])

        class Files(torch.utils.data.Dataset):
            def __len__(self):
                return len(paths)

            def __getitem__(self, index):
                return transform(Image.open(paths[index]).convert("RGB"))

        @torch.no_grad()
        def theirs() -> None:
            for batch in torch.utils.data.DataLoader(Files(), batch_size=16):
                torch.nn.functional.normalize(model.towers.encode_image(batch), dim=-1)

        gflop = len(paths) * operations(lambda: model.encode_image(paths[:1]))
        return [row(f"zero-shot features of {len(paths)} files",
                    {"ours": lambda: model.encode_image([str(p) for p in paths], batch_size=16),
                     "open_clip loop": theirs}, repeat, gflop, peak)]  # fmt: skip


def everything(
    out: str | Path, repeat: int = 3, sizes: Sizes | None = None, only: Iterable[str] | None = None
) -> list[dict]:
    """Measure, and write speed.json, speed.md and speed.png into `out`; returns the rows.

    Args:
        only: names of `COMPARISONS`; None takes all.
    """
    import torch

    from unimed import progress
    from unimed.evaluation.tables import markdown_table, this_command
    from unimed.files import write_report, write_text

    sizes, out = sizes or Sizes(), Path(out)
    chosen, rows = list(only or COMPARISONS), []
    limits = machine(sizes.matrix)
    with progress.Progress("comparison", len(chosen)) as done:
        for name in chosen:
            module, function = COMPARISONS[name].split(":")
            compare = getattr(importlib.import_module(f"unimed.commands.{module}"), function)
            rows += [{"comparison": name} | one for one in compare(sizes, repeat, limits["matrix_gflops"])]
            done.step()
    out.mkdir(parents=True, exist_ok=True)
    limits |= {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
    write_report(out / "speed.json", {"machine": limits, "rows": rows})
    if curves := [one for one in rows if "n" in one]:
        draw(out / "speed.png", curves)
    columns = [name for name in _COLUMNS if any(name in one for one in rows)]
    shown = [{key: value for key, value in one.items() if key in columns} for one in rows]
    told = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in limits.items()
    )
    write_text(out / "speed.md", f"{told}\n\n{markdown_table(shown, columns=columns, command=this_command())}\n")
    return rows


def draw(path: Path, rows: list[dict]) -> None:
    """Seconds against what is scaled, ours and the other, a panel for each axis, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes_named = list(dict.fromkeys(one["axis"] for one in rows))
    figure = Figure(figsize=(5 * len(axes_named), 3.5), layout="constrained")
    for place, axis in enumerate(axes_named, start=1):
        chosen = [one for one in rows if one["axis"] == axis]
        axes, counts = figure.add_subplot(1, len(axes_named), place), [one["n"] for one in chosen]
        axes.plot(counts, [one["ours_cpu_s"] for one in chosen], "o-", label="ours")
        axes.plot(counts, [one["ours_cpu_s"] * one["ratio_cpu"] for one in chosen], "s--", label=chosen[0]["other"])
        axes.set(xlabel=axis, ylabel="CPU seconds", ylim=(0, None), title="decoding")
        axes.grid(alpha=0.3)
        axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))

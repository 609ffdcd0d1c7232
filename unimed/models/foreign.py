"""The one door to classes of other libraries that open folders: configurations, tokenizers, processors, models.

No code of a folder runs, and nobody is asked whether it may. transformers is shown a view of the folder: data files
alone, configurations without what names code (`auto_map`, kernels), and no name that leads out of the folder. So no
default of a library can change what is run. Other modules call these functions, never `from_pretrained` of a foreign
class.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from unimed.models.weights import check_attention, known_attention, load_whole, weight_files

logger = logging.getLogger("unimed.models.foreign")

#: Keys of configurations that name code, other folders, or what is fetched from a hub; they are left out at any depth.
CODE_KEYS = frozenset(
    "auto_map custom_pipelines custom_generate trust_remote_code code_revision kernel_config use_kernels kernels "
    "allow_all_kernels experts_implementation adapter_kwargs quantization_config _name_or_path name_or_path".split()
)
_ATTENTION_KEYS = frozenset(
    "attn_implementation _attn_implementation _attn_implementation_internal attn_implementation_internal".split()
)
#: Options of tokenizers that a configuration of open_clip may set.
TOKENIZER_OPTIONS = frozenset(
    "clean strip_sep_token language use_fast do_lower_case add_prefix_space model_max_length padding_side "
    "truncation_side".split()
)
_CONFIGURATIONS = (
    "config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "added_tokens.json",
    "sentencepiece.bpe.model", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
#: Folder of the processor of a backbone that reads through its own, beside ours.
BACKBONE_PROCESSOR = "backbone_processor"
#: What is fetched of a hub folder: data, never Python files.
PATTERNS = [*_CONFIGURATIONS, *_TOKENIZER_FILES, "tokenizer/*.json", "tokenizer/*.txt", "tokenizer/*.model"]
PATTERNS += [f"{BACKBONE_PROCESSOR}/{name}" for name in (*_CONFIGURATIONS, *_TOKENIZER_FILES)]
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"]
_WEIGHTS += ["open_clip_config.json", "open_clip_pytorch_model.bin"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILE = re.compile(_HUB_ID.pattern.replace("(/", "/").replace(")?", "") + r"/[\w.-]+\.(pt|pth|ckpt|safetensors)")
#: Published folders of the hub that are read by one weight file in them.
HUB_FILES = {
    "microsoft/BiomedParse": "biomedparse_v2.ckpt",
    "UzairK/unimed-clip-vit-b16": "unimed-clip-vit-b16.pt",
    "UzairK/unimed_clip_vit_l14_base_text_encoder": "unimed_clip_vit_l14_base_text_encoder.pt",
    "UzairK/unimed_clip_vit_l14_large_text_encoder": "unimed_clip_vit_l14_large_text_encoder.pt",
}


class ForeignError(ValueError):
    """A folder of another library that cannot be opened without running code of it, or that names other places."""


def clean(values: Mapping) -> dict:
    """A configuration without what names code, kernels or other folders, at any depth."""
    kept = {}
    for key, value in values.items():
        if key in CODE_KEYS:
            continue
        if key in _ATTENTION_KEYS:
            if not known_attention(value):
                logger.warning("%s=%r of a configuration is left out: it names code that is not installed", key, value)
                continue
        elif isinstance(value, Mapping):
            value = clean(value)
        elif isinstance(value, list | tuple):
            value = type(value)(clean(item) if isinstance(item, Mapping) else item for item in value)
        kept[key] = value
    return kept


def read_json(path: str | Path) -> dict:
    """A JSON object of a file.

    Raises:
        ForeignError: it is none.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ForeignError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise ForeignError(f"{path}: not a JSON object")
    return values


def folder_of(name: str | os.PathLike, weights: bool = False) -> Path:
    """A folder here, or that of a hub id (fetched, without Python files and, by default, without weights).

    Raises:
        OSError: neither is to be had.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(str(name)) or ".." in str(name):
        raise FileNotFoundError(f"{name} is no folder here, and no name of a hub folder")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(name), allow_patterns=PATTERNS + (_WEIGHTS if weights else [])))


def hub_file(name: str) -> Path | None:
    """A weight file of a hub folder, fetched: `OWNER/NAME/FILE`, or the id of a folder known for one (`HUB_FILES`).

    None where the name is of another form, or something of that name lies here.

    Raises:
        OSError: it cannot be had.
    """
    name = f"{name}/{HUB_FILES[name]}" if name in HUB_FILES else name
    if not _HUB_FILE.fullmatch(name) or ".." in name or Path(name.split("/")[0]).exists():
        return None
    from huggingface_hub import hf_hub_download

    owner, folder, file = name.split("/")
    return Path(hf_hub_download(f"{owner}/{folder}", file))


def hub_name(name, what: str) -> str:
    """A name that a configuration gives for something of the hub; never a path.

    Raises:
        ForeignError: it is a path, or a folder here has that name and would be opened in its place.
    """
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name) or ".." in name or Path(name).exists():
        raise ForeignError(
            f"{what} is {name!r}: a configuration may name a hub folder (owner/name), no place on this disk"
        )
    return name


@contextlib.contextmanager
def view(folder: str | os.PathLike, weights: bool = False, tokenizer: bool = False) -> Iterator[Path]:
    """A temporary folder with links to the data files of `folder` and its configurations without code.

    Args:
        weights: with the weight files, too.
        tokenizer: for the tokenizer alone; `config.json` is left out where it would not be understood.
    """
    folder = Path(folder).absolute()
    names = [*_TOKENIZER_FILES, *(weight_files(folder) if weights else [])]
    with tempfile.TemporaryDirectory(prefix="unimed-view-") as temporary:
        shown = Path(temporary)
        for name in names:
            if (folder / name).is_file():
                (shown / name).symlink_to(folder / name)
        for name in _CONFIGURATIONS:
            if not (folder / name).is_file() or (tokenizer and name == "config.json" and not _understood(folder)):
                continue
            values = clean(read_json(folder / name))
            if name == "tokenizer_config.json":
                values = {key: value for key, value in values.items() if not key.endswith("_file")}
            (shown / name).write_text(json.dumps(values), encoding="utf-8")
        yield shown


def _understood(folder: Path) -> bool:
    from transformers import CONFIG_MAPPING

    told = folder / "tokenizer_config.json"
    if told.is_file() and read_json(told).get("tokenizer_class"):
        return False  # it says all that is needed
    return read_json(folder / "config.json").get("model_type") in CONFIG_MAPPING


def config_from(values: Mapping):
    """A configuration of transformers (or of ours) from its fields, `model_type` among them.

    Raises:
        ForeignError: a type nobody here knows.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = clean(values)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ForeignError(f"model_type {kind!r} is not known to the installed transformers")
    return AutoConfig.for_model(kind, **fields)


def config(folder: str | os.PathLike):
    """The configuration of a folder or hub id.

    Raises:
        ForeignError: a type nobody here knows, or no JSON.
        OSError: nothing is there.
    """
    from transformers import CONFIG_MAPPING

    folder = folder_of(folder)
    values = clean(read_json(folder / "config.json"))
    if values.get("model_type") not in CONFIG_MAPPING:
        raise ForeignError(
            f"{folder}: model_type {values.get('model_type')!r} is not known to the installed transformers"
        )
    # `from_dict`, and not the constructor: older folders spell some fields otherwise.
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def tokenizer(folder: str | os.PathLike, **options):
    """The tokenizer of a folder or hub id, read from its data files alone.

    Args:
        options: `gguf_file`, a file name in the folder.

    Raises:
        ForeignError: it needs code of the folder (`auto_map` and no tokenizer.json), or a class nobody here has.
        OSError: nothing is there.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = folder_of(folder)
    if "gguf_file" in options:
        return AutoTokenizer.from_pretrained(folder, gguf_file=options["gguf_file"], trust_remote_code=False)
    told = folder / "tokenizer_config.json"
    coded = told.is_file() and "auto_map" in read_json(told)
    if coded and not (folder / "tokenizer.json").is_file():
        raise ForeignError(
            f"{folder}: its tokenizer is Python code, which never runs here, and tokenizer.json is not there"
        )
    kind = PreTrainedTokenizerFast if coded else AutoTokenizer
    with view(folder, tokenizer=True) as shown:
        try:
            opened = kind.from_pretrained(shown, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0].replace(str(shown), str(folder)) if str(error) else type(error).__name__
            raise ForeignError(f"{folder}: no tokenizer that could be opened ({reason})") from error
    opened.name_or_path = str(folder)
    return opened


def model(kind, folder: str | os.PathLike, **options):
    """A model of transformers.

    Args:
        kind: class with `from_pretrained`, such as `AutoModelForCausalLM`.
        folder: a folder or hub id.
        options: `dtype`, `gguf_file`, `attn_implementation`.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape.
        ForeignError: an attention that is not installed, or a configuration nobody here knows.
    """
    unknown = set(options) - {"dtype", "gguf_file", "attn_implementation"}
    if unknown:
        raise ForeignError(f"{sorted(unknown)[0]!r} is no option of a model that is opened here")
    check_attention(options.get("attn_implementation"))
    folder = folder_of(folder, weights=True)
    if "gguf_file" in options:
        return load_whole(kind.from_pretrained, folder, **options)
    with view(folder, weights=True) as shown:
        return load_whole(kind.from_pretrained, shown, called=folder, config=config(folder), **options)


def processor(kind, folder: str | os.PathLike, **options):
    """A processor of ours, whose `from_pretrained` is transformers' own, from a view of the folder."""
    with view(folder_of(folder)) as shown:
        return kind(shown, trust_remote_code=False, **options)


def image_text_processor(folder: str | os.PathLike):
    """The processor of an image-text model of transformers, by a class of the installed library.

    Raises:
        ForeignError: it needs code of the folder, or files that are not there.
    """
    from transformers import AutoProcessor, ProcessorMixin

    folder = folder_of(folder)
    with view(folder) as shown:
        try:
            opened = AutoProcessor.from_pretrained(shown, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0].replace(str(shown), str(folder)) if str(error) else type(error).__name__
            raise ForeignError(f"{folder}: no processor that could be opened ({reason})") from error
    if not isinstance(opened, ProcessorMixin):
        raise ForeignError(f"{folder}: a {type(opened).__name__} alone; images need their part of the processor, too")
    return opened


def open_clip_tokenizer(text: Mapping, source=None, context_length: int = 77, named: str = ""):
    """open_clip's tokenizer for the `text_cfg` of a model.

    Args:
        text: open_clip's `text_cfg`; only `TOKENIZER_OPTIONS` of its `tokenizer_kwargs` count.
        source: a folder or hub id that the user named, or the folder beside the weights.
        named: a model of open_clip whose tokenizer is taken where `text` names none.

    Raises:
        ForeignError: the configuration names a place on this disk, or a model open_clip does not have.
        OSError: the files are neither here nor on the hub.
    """
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    name = source
    if name is None and (told := text.get("hf_tokenizer_name") or text.get("hf_model_name")):
        name = hub_name(told, "hf_tokenizer_name")
    if name is None:
        named = named or "ViT-B-16"
        if named not in open_clip.list_models():
            raise ForeignError(f"the tokenizer is that of {named!r}, which is no model of open_clip")
        return open_clip.get_tokenizer(named, context_length=context_length)
    options = {k: v for k, v in (text.get("tokenizer_kwargs") or {}).items() if k in TOKENIZER_OPTIONS}
    mode = text.get("tokenizer_mode")
    with view(folder_of(name), tokenizer=True) as shown:
        return HFTokenizer(
            str(shown), context_length=context_length, tokenizer_mode=mode, trust_remote_code=False, **options
        )


def towers_configuration(model_cfg: Mapping, text_config: Mapping | None) -> tuple[dict, dict | None]:
    """open_clip's model configuration and that of the text tower, without names that lead anywhere.

    Raises:
        ForeignError: a vision tower that would be looked for on a hub or on this disk.
    """
    options = clean(model_cfg)
    vision = options.get("vision_cfg") or {}
    if re.search(r"[:/\\]", str(vision.get("timm_model_name") or "")):
        raise ForeignError(f"timm_model_name {vision['timm_model_name']!r} is no name of a model of timm")
    if "timm_model_pretrained" in vision:
        options["vision_cfg"] = vision | {"timm_model_pretrained": False}
    return options, None if text_config is None else clean(text_config)

"""What every verb shares: its flags, how it ends, and what a user reads where something is wrong."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping

from unimed import progress, threads
from unimed.io.remote import redacted
from unimed.markup import plain_line, plain_text
from unimed.outputs import explained, refuse_unwritable

#: Everything was done, nothing was, some cases were and some failed.
DONE, NOTHING, PARTLY = 0, 1, 2
INTERRUPTED = 130

NOTICE = "Research use only."


def count(word: str) -> int:
    """An argument that is a whole number from 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def fraction(word: str) -> float:
    """An argument from 0 to 1."""
    number = float(word)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must lie in 0 to 1, got {number:g}")
    return number


def modality(word: str) -> str:
    """An argument that names a modality; of one that nothing knows a warning tells, for it is often mistyped."""
    from unimed.io.windows import unknown_modality

    if remark := unknown_modality(word):
        print(f"warning: {remark}", file=sys.stderr)
    return word


# What argparse calls them where a word is no number at all: "invalid int value".
count.__name__, fraction.__name__ = "int", "float"

#: Flag -> (spellings, what argparse is told). The first spelling is ours; the others are those of published scripts.
FLAGS: dict[str, tuple[tuple[str, ...], dict]] = {
    "model": (("--model", "--model_path", "--model-path", "--checkpoint"), {"help": "folder or published checkpoint"}),
    "out": (
        ("--out", "--work-dir", "--work_dir", "--save_dir", "--save-dir", "--output_dir", "--output-dir", "--output"),
        {"help": "folder of the results", "writes": "folder"},
    ),
    "device": (("--device",), {"default": "auto", "help": "auto, cpu, cuda, cuda:1, ... (default: auto)"}),
    "dtype": (
        ("--dtype",),
        {"default": "auto", "choices": ("auto", "float32", "bfloat16", "float16"), "help": "of the weights"},
    ),
    "batch-size": (
        ("--batch-size", "--batch_size"),
        {"type": count, "default": 4, "help": "images together"},
    ),
    "max-new-tokens": (("--max-new-tokens", "--max_new_tokens"), {"type": count, "default": 512}),
    "restart": (("--restart",), {"action": "store_true", "help": "forget what an earlier run finished"}),
    "site": (("--site",), {"default": "", "help": "body site, for the CT window: abdomen, lung, brain, bone, ..."}),
    "modality": (
        ("--modality",),
        {"type": modality, "default": "", "help": "CT, MR, US, ... (default: as the file says)"},
    ),
    "window": (
        ("--window",),
        {"nargs": 2, "type": float, "metavar": ("LEVEL", "WIDTH"), "help": "of grey values, before file and site"},
    ),
    "page": (("--page", "--frame"), {"type": int, "help": "of a TIFF of several pages, a cine, an animation; from 0"}),
    "seed": (("--seed",), {"type": int, "default": 0}),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals follow the exit rule: nothing was done, so the exit code is 1.

    An argument that names where results go says `writes=`, a kind of `refuse_unwritable`; a place where that cannot be
    made is refused before the verb begins.
    """

    def __init__(self, description: str, **options):
        self._written: dict[str, str] = {}
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, **options)

    def add_argument(self, *words, writes: str = "", **options):
        """As of argparse; `writes` see above."""
        action = super().add_argument(*words, **options)
        if writes:
            self._written[action.dest] = writes
        return action

    def parse_known_args(self, args=None, namespace=None):
        """As of argparse; both `parse_args` and the parsers of sub-commands come this way."""
        found, rest = super().parse_known_args(args, namespace)
        for name, kind in self._written.items():
            if place := getattr(found, name, None):
                try:
                    refuse_unwritable(place, kind)
                except OSError as error:
                    self.exit(NOTHING, f"error: {one_line(error)}\n")
        return found, rest

    def error(self, message: str):
        self.print_usage(sys.stderr)
        self.exit(NOTHING, f"error: {message}\n")

    def flag(self, name: str, **changes) -> None:
        """Add a flag of `FLAGS`; `changes` replaces what argparse is told, such as `default` or `required`."""
        spellings, options = FLAGS[name]
        self.add_argument(*spellings, **{"dest": name.replace("-", "_"), **options, **changes})


def guarded(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run `work(args)` and return its exit code.

    What is wrong with the input becomes one line on standard error and exit code 1; `UNIMED_DEBUG=1` shows where it was
    found as well. An interruption is one line and exit code 130. Mistakes of this package keep their traceback.
    """
    from unimed.engine.noise import quiet

    usual, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"warning: {message}\n"
    try:
        with quiet(), progress.shown(), threads.chosen():
            return work(args)
    except KeyboardInterrupt as stop:
        print(f"interrupted; {plain_line(str(stop)) or 'what was finished is kept'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (`head`, say) has gone; the interpreter must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOTHING
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        if os.environ.get("UNIMED_DEBUG"):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return NOTHING
    finally:
        warnings.formatwarning = usual


def load_model(path, *, able: str = "", to: str = "", **options):
    """`unimed.load` for a verb, with its progress.

    Args:
        able, to: attribute that the model must have, and what it is needed for.

    Raises:
        ValueError: a model of another kind; and what `load` raises.
    """
    from unimed.models.auto import load

    with progress.stage("loading the model"):
        model = load(path, **options)
    if able and not hasattr(model, able):
        raise ValueError(f"{path} holds {type(model).__name__}, which does not {to}")
    return model


def _is_for_the_user(error: Exception) -> bool:
    """Errors of files, values and missing extras, every error class of this package, and lack of memory."""
    ours = type(error).__module__.split(".")[0] == "unimed"
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return ours or memory or isinstance(error, OSError | ValueError | ImportError)


def one_line(error: BaseException) -> str:
    """An error as one line: its text without line ends and keys of addresses, or its class where it has none."""
    return redacted(plain_line(explained(error) or str(error))) or type(error).__name__


def print_steps(steps, args: argparse.Namespace | None = None) -> None:
    """What was done to an image before a model saw it: the window and where it came from, turns, pages.

    Where percentiles chose the grey values of deep data of unknown kind it says what to give, if `args` has it.
    """
    if not steps:
        return
    say(f"image: {'; '.join(steps)}")
    given = any(getattr(args, name, None) for name in ("site", "modality", "window", "percentiles"))
    told = any("give modality" in step for step in steps)
    if args is not None and not given and not told and any(step.startswith("percentiles") for step in steps):
        print("  the modality is not known, so percentiles were used; for CT give --site, --modality CT or --window")


def region_line(values: Mapping) -> str:
    """The place of a region, how sure the model is that it is there, and whether the two contradict each other.

    Args:
        values: of the region in JSON, with `pixels` or `voxels`.
    """
    parts = [f"{values[unit]} {unit}" for unit in ("pixels", "voxels") if unit in values]
    parts += [f"{values['volume_ml']:g} ml"] if values.get("volume_ml") is not None else []
    if values.get("box_xyxy_px"):
        parts.append("box " + " ".join(f"{value:.1f}" for value in values["box_xyxy_px"]))
    parts += [f"presence {values['presence']:.2f}"] if values.get("presence") is not None else []
    parts += [f"contradictory: {values['remark']}"] if values.get("remark") else []
    return ", ".join(parts) or "no place"


def say(text: str) -> None:
    """Print text of a model or user: no control character of it reaches the terminal."""
    progress.clear()
    print(plain_text(text))


def print_answer(prediction, written=()) -> None:
    """The text of an answer, a line per region, and the files."""
    if prediction.text:
        say(prediction.text)
    for region, values in zip(prediction.regions, prediction.to_dict()["regions"], strict=True):
        if region.mask is not None:
            values["voxels" if region.mask.ndim == 3 else "pixels"] = int(region.mask.sum())
        say(f"  {region.phrase}: {region_line(values)}")
    for path in written:
        print(f"  {path}")


def exit_code(finished: int, failed: int) -> int:
    """0 where nothing failed, 2 where some cases failed and others did not, 1 where all failed."""
    if not failed:
        return DONE
    return PARTLY if finished else NOTHING

"""Run by torchrun with two gloo ranks: trains the tiny task in several ways into the folder of the first argument."""

import importlib.util
import sys
from pathlib import Path

specification = importlib.util.spec_from_file_location("engine_tiny", Path(__file__).parent / "tiny.py")
tiny = importlib.util.module_from_spec(specification)
sys.modules["engine_tiny"] = tiny
specification.loader.exec_module(tiny)

from unimed.engine import evaluate, train  # noqa: E402

folder = Path(sys.argv[1])
plain = dict(task=dict(type="TinyTask", dropout=0.0), max_steps=10, validate_interval=0, batch_size=2)
# "first": only one point of the data carries the extra, so at most one rank has a use for its head in a step.
rare = dict(type="TinyPoints", extras="first", size=11)
train(tiny.config(**plain), folder / "ddp")
train(tiny.config(**plain, train_data=rare), folder / "ddp-rare")
train(tiny.config(**plain, train_data=rare, accumulate=2, clip=0.5), folder / "ddp-rare-accumulated")
train(tiny.config(**plain, strategy="fsdp2", ema=0.9), folder / "fsdp2")
train(tiny.config(**plain, train_data=rare, strategy="fsdp2"), folder / "fsdp2-rare")
evaluate(tiny.config(), folder / "ddp", folder / "test")
for workers in (0, 2):
    settings = tiny.everything(num_workers=workers, max_steps=14, batch_size=2)
    name = f"everything-{workers}"
    train(settings, folder / f"{name}-whole")
    train(settings, folder / f"{name}-cut", cfg_options={"hooks": [dict(type="StopAt", step=8)]})
    train(settings, folder / f"{name}-cut", resume="auto")
# DeepSpeed comes last: its import changes the process.
zero = ["zero1", "zero2", "zero3"] if importlib.util.find_spec("deepspeed") else []
for word in zero:
    train(tiny.config(**plain, strategy=word, ema=0.9), folder / word)
    train(tiny.config(**plain, strategy=word, train_data=rare, accumulate=2, clip=0.5), folder / f"{word}-rare")
    nan = dict(type="TinyPoints", nan=(3,))
    train(tiny.config(**plain, strategy=word, train_data=nan), folder / f"{word}-nan")
for word in ["ddp", "fsdp2", *zero]:
    settings = tiny.config(max_steps=14, batch_size=2, num_workers=0, strategy=word, ema=0.9)
    train(settings, folder / f"{word}-whole")
    train(settings, folder / f"{word}-cut", cfg_options={"hooks": [dict(type="StopAt", step=8)]})
    train(settings, folder / f"{word}-cut", resume="auto")

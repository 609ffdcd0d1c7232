"""Log filters: what libraries print at every start although nobody can act on it. Each filter names one message."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager

#: (beginning of the message, category)
_WARNINGS = (
    (r"`torch\.(distributed\.)?(_all_gather_base|_reduce_scatter_base|all_gather)", FutureWarning),
    (r"`torch\.cuda\.amp\.custom_(fwd|bwd)", FutureWarning),
    (r"torch\.distributed\.reduce_op.* is deprecated", FutureWarning),
    (r".*monai", FutureWarning),
    (r"Setting OMP_NUM_THREADS environment variable", UserWarning),
    (r"pkg_resources is deprecated", UserWarning),
    (r"torch\.distributed is disabled, unavailable or uninitialized", UserWarning),  # a save by one process
)


def _is_news(record: logging.LogRecord) -> bool:
    """DeepSpeed says which accelerator it found whenever it is imported, which mmengine does; transformers names the
    layers of every model that is not split over GPUs."""
    return not str(record.msg).startswith(("Setting accelerator to", "The following layers were not sharded"))


@contextmanager
def quiet():
    """Filter them, and on all ranks but the first also our own warnings, which the first one prints as well; what a
    process had before comes back at the end."""
    ours = logging.getLogger("unimed")
    level = ours.level
    with warnings.catch_warnings():
        _filter(ours)
        try:
            yield
        finally:
            ours.setLevel(level)


def _filter(ours: logging.Logger) -> None:
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message, category)
    for name in ("DeepSpeed", "transformers.distributed.tensor_parallel"):
        logging.getLogger(name).addFilter(_is_news)
    if os.environ.get("RANK", "0") != "0":
        ours.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")

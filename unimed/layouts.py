"""Names of the published layouts and where their converters are; importing this is quick."""

from __future__ import annotations

#: Layout -> module, in the order in which an unknown path is tried.
LAYOUTS = {
    "unibiomed": "unimed.models.checkpoints.unibiomed",
    "umedground": "unimed.models.checkpoints.umedground",
    "lisa": "unimed.models.checkpoints.lisa",
    "llava-v1": "unimed.models.checkpoints.llava_v1",
    "uni_med": "unimed.models.checkpoints.uni_med",
    "biomedparse": "unimed.models.checkpoints.biomedparse",
    "unimed_clip": "unimed.models.checkpoints.unimed_clip",
    "open_clip": "unimed.models.checkpoints.open_clip",
    "internvl": "unimed.models.checkpoints.internvl",
    "sam2": "unimed.models.checkpoints.sam2",
    "sam": "unimed.models.checkpoints.sam",
    "medsam_lite": "unimed.models.checkpoints.medsam_lite",
}

#: What `convert --from` knows: the layouts, and configurations that are no checkpoints.
CONVERTERS = LAYOUTS | {"uni_med_yaml": "unimed.models.checkpoints.uni_med_yaml"}

import json

import pytest
import torch
from golden_files import SMALL

from unimed.models.checkpoints.reading import CheckpointError
from unimed.models.checkpoints.sam2 import check_names, config_of, convert_state_dict, sam2_video_config
from unimed.models.heads.sam2 import Sam2MaskHead


def official_names():
    shapes = json.loads((SMALL / "unibiomed" / "sam2_hiera_large_pt_keys.json").read_text())
    shapes = shapes.get("keys", shapes)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_every_tensor_of_the_large_model_finds_its_place():
    official = official_names()
    with torch.device("meta"):
        model = Sam2MaskHead(config_of(official)).sam
    report = check_names(model, convert_state_dict(official), "sam2", "official", "here")
    assert (report.missing, report.unexpected) == ([], [])
    assert report.mapped == 898


def test_a_foreign_tensor_is_named():
    official = official_names() | {"image_encoder.trunk.extra": torch.empty(1, device="meta")}
    with torch.device("meta"):
        model = Sam2MaskHead(config_of(official)).sam
    with pytest.raises(CheckpointError, match="image_encoder.trunk.extra"):
        check_names(model, convert_state_dict(official), "sam2", "official", "here").check()


def test_an_unknown_size_is_refused():
    official = {
        "image_encoder.trunk.patch_embed.proj.weight": torch.empty(100, 3, 7, 7),
        "image_encoder.trunk.blocks.0.norm1.weight": torch.empty(100),
    }
    with pytest.raises(CheckpointError, match="100 wide"):
        config_of(official)


def test_sam21_has_its_two_additions():
    config = sam2_video_config(96, [1, 2, 7, 2], 1, [5, 7, 9], [8, 4, 14, 7], [7, 7], version="2.1")
    assert config.enable_occlusion_spatial_embedding and config.enable_temporal_pos_encoding_for_object_pointers

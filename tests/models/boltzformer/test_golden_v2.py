"""BiomedParse v2 beside its recording: every intermediate and output, and each sampled position."""

import torch
from models.boltzformer.recorded import Recording, near, v2_model


def compare(recorded, record, prefix, items, heads=4):
    """Assert that what `record` holds equals the recording; returns how many tensors were compared."""
    pairs = {f"backbone.res{k}": f"res{k}" for k in (2, 3, 4, 5)}
    pairs |= {f"pixel_decoder.multi_scale.{k}": f"multi_scale.{k}" for k in range(3)}
    pairs["pixel_decoder.mask_features"] = "mask_features"
    pairs["pixel_decoder.transformer"] = "encoder"
    pairs |= {"decoder.initial_self": "initial_self", "decoder.initial_ffn": "initial_ffn"}
    pairs |= {f"decoder.heads{k}.mask_logits": f"heads{k}.mask_logits" for k in range(5)}
    for k in range(4):
        pairs |= {f"decoder.layer{k}.{part}": f"layer{k}.{part}" for part in ("after_cross", "after_self", "after_ffn")}
        pairs[f"decoder.layer{k}.cls"] = f"layer{k}.cls"
    count = 0
    for theirs, ours in pairs.items():
        if prefix + theirs not in recorded:
            continue
        expected, found = recorded[prefix + theirs], record[ours]
        if theirs.startswith("decoder.") and "mask_logits" not in theirs:
            expected = expected.transpose(0, 1)
        elif theirs.endswith("transformer"):
            expected = expected.flatten(2).transpose(1, 2)
        assert found.shape == expected.shape, theirs
        near(found, expected, name=theirs)
        count += 1
    for k in range(4):
        blocked = recorded[f"{prefix}decoder.heads{k}.attn_mask_blocked"].unflatten(0, (items, heads))
        opened = ~blocked | blocked.all(-1, keepdim=True)
        assert torch.equal(record[f"heads{k}.may_attend"], opened)
        count += 1
    return count


def test_images_with_uneven_prompts():
    recorded, model, record = Recording("v2_2d_eval.npz"), v2_model(), {}
    with torch.no_grad():
        output = model(
            recorded["image"].float(),
            recorded["input_ids"],
            recorded["attention_mask"],
            recorded["num_prompts"],
            draws=recorded.draws(),
            record=record,
        )
        pixels = (recorded["image"].float() - model.pixel_mean) / model.pixel_std
        patches, size = model.backbone.embeddings(pixels)
    near(patches.transpose(1, 2).unflatten(2, size), recorded["backbone.patch_embed"])
    assert compare(recorded, record, "", 3) >= 20
    near(output.masks, recorded["out.pred_gmasks"])
    near(output.edges, recorded["out.edge_masks"])
    near(output.existence, recorded["out.object_existence"])
    near(output.prompt_vectors, recorded["out.class_emb"])


def test_volume_in_groups_of_slices():
    recorded, model = Recording("v2_3d.npz"), v2_model()
    features = model.encode_ids(recorded["input_ids"], recorded["attention_mask"])
    near(features.tokens, recorded["grounding_tokens"].transpose(0, 1))
    near(features.end, recorded["class_emb"])
    slices, parts = recorded["packed_rgb_slices"].float(), []
    for group, start in enumerate(range(0, 5, 2)):
        record, images = {}, slices[start : start + 2]
        with torch.no_grad():
            output = model(images, prompt_features=features, draws=recorded.draws(group), record=record)
        parts.append(output)
        if group in (0, 2):
            assert compare(recorded, record, f"b{group}.", 2 * len(images)) >= (30 if group == 0 else 14)
        if group == 0:
            for k in range(4):
                kept = recorded[f"b0.decoder.heads{k}.kept_indices"].long()
                sampled = ~recorded[f"b0.decoder.heads{k}.attn_mask_blocked"]
                assert torch.equal(sampled.nonzero(), kept)
    for name, key in (("masks", "pred_gmasks"), ("edges", "edge_masks"), ("existence", "object_existence")):
        found = torch.cat([getattr(part, name).unflatten(0, (-1, 2)) for part in parts])[:, :, 0]
        near(found.transpose(0, 1), recorded[f"out.{key}"])


def test_the_seam_gives_the_recorded_volume():
    recorded, model = Recording("v2_3d_single_slice.npz"), v2_model()
    features = model.encode_ids(recorded["input_ids"], recorded["attention_mask"])
    images = recorded["image_volume"].float()[:, None].expand(-1, 3, -1, -1)
    output = model.segment_slices(images, features, draws=recorded.draws())
    near(output.mask_logits[:, 0], recorded["out.pred_gmasks"][0])
    near(output.edge_logits[:, 0], recorded["out.edge_masks"][0])
    near(output.existence, recorded["out.object_existence"].sigmoid())


def test_whole_chain_before_postprocessing():
    recorded, model = Recording("v2_e2e_3d.npz"), v2_model()
    with torch.no_grad():
        model.decoder.classifier.bias.add_(recorded["classifier_bias_shift"])
    features = model.encode_ids(recorded["input_ids"], recorded["attention_mask"])
    volume = recorded["resized"].float()
    slices = torch.stack([volume, volume[[1, 0, 1, 2, 3, 4]], volume[[1, 2, 3, 4, 5, 4]]], 1)
    parts = [
        model.segment_slices(slices[start : start + 4], features, draws=recorded.draws(group))
        for group, start in enumerate((0, 4))
    ]
    masks = torch.cat([part.mask_logits for part in parts]).transpose(0, 1)
    near(masks, recorded["pred_gmasks"])
    existence = torch.cat([part.existence for part in parts]).transpose(0, 1)
    near(existence, recorded["object_existence"].sigmoid())


def test_masked_attention_without_sampling():
    inputs, recorded = Recording("v2_2d_eval.npz"), Recording("v2_2d_masked_attention_variant.npz")
    model = v2_model(attention="masked")
    with torch.no_grad():
        output = model(
            inputs["image"].float(), inputs["input_ids"], inputs["attention_mask"], inputs["num_prompts"].tolist()
        )
    near(output.masks, recorded["out.pred_gmasks"])
    near(output.edges, recorded["out.edge_masks"])
    near(output.existence, recorded["out.object_existence"])


def test_draws_after_the_last_layer_follow_the_same_rule():
    recorded, model = Recording("v2_2d_eval.npz"), v2_model()
    mask = model.decoder.attention_mask(recorded["decoder.heads4.mask_logits"], (8, 10), 3, recorded.draws())
    blocked = recorded["decoder.heads4.attn_mask_blocked"].unflatten(0, (3, 4))
    assert torch.equal(mask, ~blocked | blocked.all(-1, keepdim=True))

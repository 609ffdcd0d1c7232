"""The thirteen sources of UniMed-CLIP's training set, as `tools/prepare_data.py unimed-clip` writes them."""

#: Source -> number of shards of 1000 pairs in the published run (the last one of each may hold fewer).
_shards = dict(
    radimagenet=1049,
    chexpert=212,
    openi=7,
    chest_xray8=113,
    mimic_cxr=270,
    rocov2=61,
    pmc_oa=1645,
    llava_med_alignment=468,
    llava_med_instruct=265,
    quilt_1m=1018,
    retina_part1=155,
    retina_part2_den=13,
    retina_part3_mm_retinal=6,
)


def source(name):
    return dict(dataset=dict(type="ImageTextShards", shards=f"data/unimed/{name}/dataset-*.tar", name=name))


# Without weights every source is drawn in proportion to its size, as published; `weight=` changes that.
train_data = dict(mixture=[source(name) for name in _shards])
collate = dict(type="ImageTextCollator", scale=(0.9, 1.0))

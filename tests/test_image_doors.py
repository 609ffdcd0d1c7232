"""The same content through every door of the product: readers, collators, processors and models see equal pixels."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from image_files import dicom
from PIL import Image

from unimed.data.collate.grounded import GroundedCollator
from unimed.data.overlap import fingerprint, look_of
from unimed.data.readers.biomedparse import BiomedParseDataset
from unimed.data.readers.containers import ShardDataset
from unimed.data.readers.pairs import ImageTextRecords
from unimed.data.readers.records import RecordDataset
from unimed.data.readers.shards import ImageTextShards
from unimed.data.readers.umedground import MedicalGroundingDataset
from unimed.data.readers.uni_med import UniMedDataset
from unimed.data.readers.unibiomed import BiomedDataset
from unimed.inference.volume import Slices
from unimed.io.images import load, load_stack
from unimed.io.read import read
from unimed.io.windows import to_uint8
from unimed.models.boltzformer.processing import ParseProcessor
from unimed.models.starting.grounded_small import build_tiny
from unimed.structures import Sample

GREY = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEEP = np.random.default_rng(2).integers(0, 4096, (24, 32)).astype(np.uint16)


def contents(folder):
    """Name -> (file, the pixels that every door must show; None where only their equality is known)."""
    folder.mkdir(exist_ok=True)
    found = {}

    def png(name, values, expected, **options):
        Image.fromarray(values).save(folder / f"{name}.png", **options)
        found[name] = (folder / f"{name}.png", expected)

    grey = np.repeat(GREY[..., None], 3, 2)
    png("grey", GREY, grey)
    png("deep", DEEP, None)
    png("colour", COLOUR, COLOUR)
    png("alpha", np.dstack([COLOUR, np.full_like(GREY, 0)]), np.zeros_like(COLOUR))
    exif = Image.Exif()
    exif[274] = 6
    png("turned", GREY, np.rot90(grey, -1), exif=exif)
    Image.fromarray(GREY).convert("P").save(folder / "palette.png")
    found["palette"] = (folder / "palette.png", grey)
    found["inverted"] = (dicom(folder / "inverted.dcm", 255 - GREY, PhotometricInterpretation="MONOCHROME1"), grey)
    window = dict(WindowCenter="2000", WindowWidth="1000", PhotometricInterpretation="MONOCHROME1")
    found["inverted deep"] = (dicom(folder / "inverted_deep.dcm", DEEP, **window), None)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = (np.arange(256, dtype=np.uint16) * 257).tobytes()
    found["palette DICOM"] = (dicom(folder / "palette.dcm", GREY, **tags), grey)
    return found


class OneImage(UniMedDataset):
    def read(self):
        return []


def readers(root, path):
    """Door -> pixels, for every reader of a data set that takes this file."""
    image, name = path.read_bytes(), path.name
    for folder in ("records", "train", "train_mask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(image)
    (root / "train" / name).write_bytes(image)
    record = dict(id="a", task="caption", image=name, question="What?", answer="A picture.", modality="X-ray")
    (root / "records" / "train.jsonl").write_text(json.dumps(record) + "\n")
    yield "records", RecordDataset(root)[0].images[0]
    yield "records as pairs", ImageTextRecords(root)[0].images[0]
    rgb = load(path).rgb
    Image.fromarray(np.full(rgb.shape[:2], 255, np.uint8)).save(root / "train_mask" / "m.png")
    note = dict(id=0, image_id=0, file_name=name, mask_file="m.png", sentences=[{"raw": "liver"}], modality="X-ray")
    (root / "train.json").write_text(json.dumps({"images": [], "annotations": [note | {"site": "chest"}]}))
    if load(path).source.orientation == 1:  # a mask beside a turned picture is another test's matter
        yield "UniBiomed tree", BiomedDataset(root)[0].images[0]
    yield "BiomedParse", BiomedParseDataset(root)[0].images[0]
    content = {"image_paths": [name], "bboxes": [(2, 2, 10, 10)], "phrases": ["a"], "all_reports": [["a."]]}
    torch.save(content, root / "set_train.pth")
    grounding = MedicalGroundingDataset(
        str(root / "set_train.pth"), str(root), resized="stretch", report_counts=lambda _: None
    )
    yield "uMedGround", grounding[0].images[0]
    yield "Uni-Med", OneImage().image(path)[0]

    def tar(file, members):
        with tarfile.open(file, "w") as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return file

    suffix = path.suffix[1:]
    pairs = tar(root / "pairs.tar", {f"k.{suffix}": image, "k.json": json.dumps({"captions": ["a"]}).encode()})
    yield "shards of pairs", ImageTextShards(str(pairs), index_dir=root / "index")[0].images[0]
    one = json.dumps(record | {"image": suffix}).encode()
    yield (
        "shards of records",
        ShardDataset(str(tar(root / "r.tar", {"k.json": one, f"k.{suffix}": image})))[0].images[0],
    )


def models(path, processors):
    """Door -> (tensor from the file, tensor from the pixels) of every processor."""
    rgb = load(path).rgb
    grounded, parse, clip, uni_med = (processors[name] for name in ("grounded", "parse", "clip", "uni_med"))
    ask = dict(text="What?")
    for name in ("pixel_values", "mask_pixel_values"):
        yield f"grounded {name}", *(grounded(images=source, **ask)[name] for source in (path, rgb))
    yield "BiomedParse", *(parse(images=source, text="liver")["pixel_values"] for source in (path, rgb))
    yield "CLIP", *(clip.image(source) for source in (path, rgb))
    yield "Uni-Med", *(uni_med(source) for source in (path, rgb))
    collate = GroundedCollator(grounded)
    samples = [
        Sample((pixels,), load(path).geometry, "s", conversation=(("user", "What?"), ("assistant", "A.")))
        for pixels in (RecordDataset(path.parent / "set")[0].images[0], rgb)
    ]
    yield "grounded collator", *(collate([sample])["mask_pixel_values"] for sample in samples)
    torch.manual_seed(0)
    first = clip.train_image(path)
    torch.manual_seed(0)
    yield "CLIP training", first, clip.train_image(rgb)
    same = fingerprint(path).look == look_of(rgb)
    yield "overlap", torch.tensor(same), torch.tensor(True)


@pytest.fixture(scope="module")
def processors():
    from unimed.models.clip.configuration import ClipConfig
    from unimed.models.clip.processing import ClipProcessor
    from unimed.models.starting.uni_med import build_small as build_small_uni_med

    grounded = build_tiny(["What", "A"]).processor
    config = ClipConfig(
        model_cfg={"embed_dim": 8, "vision_cfg": {"image_size": 16}, "text_cfg": {}},
        preprocess_cfg={"size": 16, "mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bicubic",
                        "resize_mode": "shortest", "mode": "RGB", "fill_color": 0},
    )  # fmt: skip

    parse = ParseProcessor(None, 16, 8)
    parse.prompts = lambda texts: {}
    texts = ["where is the liver?", "is it normal? yes no", "a chest radiograph with clear lungs"] * 4
    small = dict(image_size=28, vision_dim=16, vision_layers=1, hidden_dim=16, layers=1, vocabulary=400)
    uni_med = build_small_uni_med(texts, **small, connector=dict(task_token_c=4)).processor
    return {"grounded": grounded, "parse": parse, "clip": ClipProcessor(config, compat=None),
            "uni_med": lambda source: uni_med.pixels(load(source).rgb)[0]}  # fmt: skip


def as_rgb(pixels):
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels


def test_every_door_shows_the_same_pixels(tmp_path, processors):
    wrong, count = [], 0
    for name, (path, expected) in contents(tmp_path / "files").items():
        image = load(path)
        expected = image.rgb if expected is None else expected
        found = {"load": image.rgb, "bytes": load(path.read_bytes()).rgb, "array": load(image.pixels).rgb}
        found |= {"stack": load_stack([path])[0].rgb, "array and geometry": load(read(path)).rgb}
        if path.suffix == ".png":
            found["PIL"] = load(Image.open(path)).rgb
        root = path.parent / "set"
        found |= {f"reader of {door}": as_rgb(pixels) for door, pixels in readers(root, path)}
        wrong += [f"{name} by {door}" for door, pixels in found.items() if not np.array_equal(pixels, expected)]
        made = list(models(path, processors))
        wrong += [f"{name} by model {door}" for door, one, other in made if not torch.equal(one, other)]
        count += len(found) + len(made)
    print(f"{count - len(wrong)} of {count} doors")
    assert wrong == []


def test_volumes_show_inverted_series_as_pictures_do(tmp_path):
    """Stored minimum is white in a series of MONOCHROME1 as in a single picture, in every road of volumes."""
    ramp = np.tile(np.linspace(0, 4000, 32).round(), (24, 1)).astype(np.uint16)
    for k in range(3):
        dicom(tmp_path / f"{k}.dcm", ramp, (0, 0, k), PhotometricInterpretation="MONOCHROME1")
    array, geometry = read(tmp_path)
    shown = {"BiomedParse volume": to_uint8(array, geometry)[..., 0].T}
    shown["grounded volume"] = Slices(np.moveaxis(array, 2, 0), geometry=geometry)[0].T
    shown["one slice"] = load((array, geometry), frame=1).pixels
    for name, pixels in shown.items():
        assert pixels[:, 0].mean() > 250 and pixels[:, -1].mean() < 5, name
    single = load(dicom(tmp_path / "x" / "x.dcm", ramp, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(single.pixels, shown["one slice"])


def test_the_pages_of_a_file_are_no_silent_choice(tmp_path):
    pages = [Image.fromarray(np.full((20, 30), value, np.uint8)) for value in (10, 20, 30, 40, 50)]
    pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:])
    for door in (load, read, lambda path: load(path.read_bytes()), lambda path: load(Image.open(path))):
        with pytest.raises(ValueError, match="5 pages; say which one with page="):
            door(tmp_path / "s.tif")
    assert (load(tmp_path / "s.tif", page=3).rgb == 40).all() and (read(tmp_path / "s.tif", frame=2)[0] == 30).all()

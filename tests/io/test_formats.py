"""NIfTI, MGH, NRRD, MetaImage and NPZ: what is read, what is refused, and where data may lie."""

import bz2
import gzip
import io
import tracemalloc
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK
from small_volumes import corner_error_vox, grid, oblique_grids

import unimed
from unimed.geometry import lps_to_ras
from unimed.inference.volume_files import find_volumes, read_volume
from unimed.io.challenge import read_labels
from unimed.io.limits import Limits, decompress, limited, limits
from unimed.io.read import ReadError, read
from unimed.io.write import write_nifti, write_npz, write_nrrd

SHAPE = (5, 4, 3)
GEOMETRY = oblique_grids(1, seed=2)[0]
VALUES = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)


def nifti(path, array, affine=None, kind=nibabel.Nifti1Image):
    nibabel.save(kind(array, np.diag((-1.0, -1, 2, 1)) if affine is None else affine), path)
    return path


def sitk_image(array=VALUES, geometry=GEOMETRY):
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    lps = lps_to_ras(geometry.affine)
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetDirection((lps[:3, :3] / lengths).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr", "a.nii.gz"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path, dtype, name, compressed):
    array = VALUES.astype(dtype)
    SimpleITK.WriteImage(sitk_image(array), str(tmp_path / name), compressed)
    seen, geometry = read(tmp_path / name)
    assert np.array_equal(seen, array) and (seen.dtype == dtype or name.endswith("gz"))
    assert seen.dtype.isnative and seen.flags.writeable
    assert corner_error_vox(GEOMETRY.affine, geometry.affine, SHAPE) < 2e-3


def test_meta_images_of_other_ways_to_write_them(tmp_path):
    head = "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\n"
    place = "ElementSpacing = 1 2 3\nOffset = 1 2 3\n"
    big = VALUES.astype(">i2").tobytes(order="F")
    (tmp_path / "big.mha").write_bytes(
        (head + place + "BinaryData = True\nBinaryDataByteOrderMSB = True\nElementDataFile = LOCAL\n").encode() + big
    )
    text = " ".join(map(str, VALUES.ravel(order="F")))
    (tmp_path / "text.mha").write_text(head + place + "BinaryData = False\nElementDataFile = LOCAL\n" + text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.raw").write_bytes(b"skipped" + big)
    (tmp_path / "skip.mhd").write_text(
        head + place + "BinaryData = True\nElementByteOrderMSB = True\nHeaderSize = 7\nElementDataFile = sub/d.raw\n"
    )
    for name in ("big.mha", "text.mha", "skip.mhd"):
        array, geometry = read(tmp_path / name)
        assert np.array_equal(array, VALUES) and geometry.spacing == (1, 2, 3), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ElementSpacing = 1 2 3", "ElementSpacing = 1 -2 3"), "a spacing is positive"),
        (("ElementSpacing = 1 2 3", "ElementSpacing = 1 0 3"), "a spacing is positive"),
        (("ElementSpacing = 1 2 3", "ElementSpacing = 1 nan 3"), "finite"),
        (("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 3\nElementSpacing = 2 4 6"), "stands twice"),
        (("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 2 0 0 0 1 0 0 0 1"), "lengths"),
        (("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 1 0 0 0 0 1"), "singular"),
        (("MET_SHORT", "MET_SHORT_ARRAY"), "not read"),
        (("DimSize = 5 4 3", "DimSize = 5 4 4"), "short"),
        (("DimSize = 5 4 3", "DimSize = 5 4 2"), "more than its header promises"),
        (("DimSize = 5 4 3", "DimSize = 5 4 0"), "no voxel"),
        (("DimSize = 5 4 3", "DimSize = 50000 50000 3"), "more than the limit"),
        (("ElementDataFile = LOCAL", "ElementDataFile = LIST"), "several files"),
        (("ElementDataFile = LOCAL", "ElementDataFile = /etc/passwd"), "outside of its folder"),
        (("ElementDataFile = LOCAL", "ElementDataFile = ../x.raw"), "outside of its folder"),
        (("ElementDataFile = LOCAL", "ElementDataFile = gone.raw"), "not beside it"),
    ],
)
def test_meta_images_that_are_refused(tmp_path, change, message):
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 2 3\nDimSize = 5 4 3\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    data = VALUES.astype("<i2").tobytes(order="F")
    (tmp_path / "a.mha").write_bytes(head.encode() + data)
    assert np.array_equal(read(tmp_path / "a.mha")[0], VALUES)
    (tmp_path / "a.mha").write_bytes(head.replace(*change).encode() + data)
    with pytest.raises(ReadError, match=message) as told:
        read(tmp_path / "a.mha")
    assert "a.mha" in str(told.value) and "\n" not in str(told.value)


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\n"
    "space directions: (1,0,0) (0,2,0) (0,0,3)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
    "space origin: (7,8,9)\n\n"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("(0,2,0)", "(1,0,0)"), "singular"),
        (("(0,2,0)", "(0,0,0)"), "not zero"),
        (("(0,2,0)", "(0,2)"), "vectors of three"),
        (("endian: little", "endian: odd"), "little or big"),
        (("type: short", "type: block"), "not read"),
        (("encoding: raw", "encoding: hex"), "not read"),
        (("sizes: 5 4 3", "sizes: 5 4 4"), "short"),
        (("sizes: 5 4 3", "sizes: 5 4 2"), "more than its header promises"),
        (("sizes: 5 4 3", "sizes: 5 -4 3"), "whole numbers"),
        (("sizes: 5 4 3", "sizes: 5 4 3\nsizes: 5 4 3"), "stands twice"),
        (("kinds: domain", "spacings: 1 2 3\nkinds: domain"), "both"),
        (("encoding: raw", "encoding: raw\ndata file: /etc/passwd"), "outside of its folder"),
        (("encoding: raw", "encoding: raw\ndata file: ../x"), "outside of its folder"),
        (("encoding: raw", "encoding: raw\ndata file: x%03d.raw 1 9 1"), "several files"),
        (("NRRD0004", "NRRD0009"), "not an NRRD file"),
    ],
)
def test_nrrd_that_is_refused(tmp_path, change, message):
    data = VALUES.astype("<i2").tobytes(order="F")
    (tmp_path / "a.nrrd").write_bytes(NRRD.encode() + data)
    array, geometry = read(tmp_path / "a.nrrd")
    assert np.array_equal(array, VALUES) and geometry.affine[:3, 3].tolist() == [-7, -8, 9]
    (tmp_path / "a.nrrd").write_bytes(NRRD.replace(*change).encode() + data)
    with pytest.raises(ReadError, match=message) as told:
        read(tmp_path / "a.nrrd")
    assert "a.nrrd" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "change",
    [
        ("space: left-posterior-superior\n", ""),
        ("space: left-posterior-superior", "space: 3D-right-handed"),
        ("space directions: (1,0,0) (0,2,0) (0,0,3)", "spacings: nan nan nan"),
        ("space directions: (1,0,0) (0,2,0) (0,0,3)\n", ""),
    ],
)
def test_a_grid_that_is_not_stated_is_not_physical_and_said(tmp_path, change):
    data = VALUES.astype("<i2").tobytes(order="F")
    (tmp_path / "a.nrrd").write_bytes(NRRD.replace(*change).encode() + data)
    array, geometry = read(tmp_path / "a.nrrd")
    assert np.array_equal(array, VALUES) and not geometry.is_physical and "not physical" in geometry.steps[0]
    head = "NDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head.encode() + data)
    assert not read(tmp_path / "a.mha")[1].is_physical and "not physical" in read(tmp_path / "a.mha")[1].steps[0]
    path = write_npz(tmp_path / "a.npz", {"imgs": VALUES})
    assert not read(path)[1].is_physical and "not physical" in read(path)[1].steps[0]


@pytest.mark.parametrize(("space", "signs"), [("RAS", (1, 1, 1)), ("LAS", (-1, 1, 1)), ("LPS", (-1, -1, 1))])
def test_spaces_and_units_of_nrrd(tmp_path, space, signs):
    text = NRRD.replace("left-posterior-superior", space).replace("endian", 'space units: "cm" "cm" "cm"\nendian')
    (tmp_path / "a.nrrd").write_bytes(text.encode() + VALUES.astype("<i2").tobytes(order="F"))
    _, geometry = read(tmp_path / "a.nrrd")
    assert geometry.affine[:3, 3].tolist() == [70 * signs[0], 80 * signs[1], 90]
    assert geometry.spacing == (10, 20, 30) and "cm converted" in geometry.steps[0]


def test_a_fourth_axis_is_chosen_in_every_format(tmp_path):
    four = np.stack([VALUES, VALUES + 1, VALUES + 2], axis=-1)
    nifti(tmp_path / "a.nii.gz", four)
    nifti(tmp_path / "b.mgz", four.astype(np.int32), kind=nibabel.MGHImage)
    sizes = NRRD.replace("dimension: 3", "dimension: 4").replace("sizes: 5 4 3", "sizes: 3 5 4 3")
    sizes = sizes.replace("space directions:", "space directions: none").replace("kinds:", "kinds: list")
    (tmp_path / "c.nrrd").write_bytes(sizes.encode() + np.moveaxis(four, -1, 0).astype("<i2").tobytes(order="F"))
    head = "NDims = 4\nDimSize = 5 4 3 3\nElementSpacing = 1 1 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "d.mha").write_bytes(head.encode() + four.astype("<i2").tobytes(order="F"))
    for name in ("a.nii.gz", "b.mgz", "c.nrrd", "d.mha"):
        with pytest.raises(ReadError, match="3 phases.*--phase"):
            read(tmp_path / name)
        for phase in (0, "2"):
            array, geometry = read_volume(tmp_path / name, phase=phase)
            assert np.array_equal(array, four[..., int(phase)])
            assert f"phase {phase} of 3 taken" in geometry.steps
        assert np.array_equal(read(tmp_path / name, phase="all")[0], four)
        with pytest.raises(ReadError, match="phase 3 is not there; there are 0 to 2"):
            read(tmp_path / name, phase=3)
    one = nifti(tmp_path / "one.nii", VALUES[..., None])
    assert read(one)[0].shape == read_volume(one)[0].shape == SHAPE
    with pytest.raises(ReadError, match="only one phase"):
        read(one, phase=1)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img", "a.hdr", "a.mgz", "a.mgh"])
def test_neuroimaging_formats(tmp_path, name):
    kind = nibabel.MGHImage if ".mg" in name else nibabel.Nifti1Pair if name[-3:] in ("img", "hdr") else None
    nifti(tmp_path / name.replace("hdr", "img"), VALUES.astype(np.int32), GEOMETRY.affine, kind or nibabel.Nifti1Image)
    array, geometry = read(tmp_path / name)
    assert np.array_equal(array, VALUES) and corner_error_vox(GEOMETRY.affine, geometry.affine, SHAPE) < 2e-3
    assert len(find_volumes(tmp_path)) == 1


def test_nifti_2_and_analyze(tmp_path):
    nifti(tmp_path / "two.nii", VALUES, GEOMETRY.affine, nibabel.Nifti2Image)
    assert corner_error_vox(GEOMETRY.affine, read(tmp_path / "two.nii")[1].affine, SHAPE) < 1e-6
    nifti(tmp_path / "old.img", VALUES, np.diag((2.0, 3, 4, 1)), nibabel.AnalyzeImage)
    array, geometry = read(tmp_path / "old.img")
    assert np.array_equal(array, VALUES) and geometry.spacing == (2, 3, 4)
    assert geometry.header["orientation_assumed"] and "no directions" in geometry.steps[0]
    (tmp_path / "old.hdr").unlink()
    with pytest.raises(ReadError, match="old.hdr is not beside it"):
        read(tmp_path / "old.img")


def test_scaled_and_big_endian_nifti(tmp_path):
    image = nibabel.Nifti1Image(VALUES, GEOMETRY.affine)
    image.header.set_slope_inter(0.5, -3)
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    want = np.asanyarray(nibabel.load(tmp_path / "a.nii.gz").dataobj)
    assert np.allclose(read(tmp_path / "a.nii.gz")[0], want) and read(tmp_path / "a.nii.gz")[0].dtype == np.float32
    big = nibabel.Nifti1Image(VALUES, GEOMETRY.affine, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big, tmp_path / "b.nii")
    array, geometry = read(tmp_path / "b.nii")
    assert np.array_equal(array, VALUES) and array.dtype.isnative
    assert corner_error_vox(GEOMETRY.affine, geometry.affine, SHAPE) < 2e-3


def test_colors_and_flat_images_of_nifti(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"], rgb["G"] = 200, 7
    path = nifti(tmp_path / "rgb.nii.gz", rgb)
    array, geometry = read(path)
    assert array.shape == (*SHAPE, 3) and array[0, 0, 0].tolist() == [200, 7, 0] and geometry.header["color"] == "RGB"
    with pytest.raises(ReadError, match="a color volume"):
        read_volume(path)
    for name in "RGB":
        rgb[name] = (VALUES % 256).astype(np.uint8)
    array, geometry = read_volume(nifti(tmp_path / "grey.nii.gz", rgb))
    assert np.array_equal(array, VALUES % 256) and "equal color channels taken as grey" in geometry.steps
    assert read(nifti(tmp_path / "flat.nii", VALUES[:, :, 0]))[0].shape == (5, 4, 1)
    SimpleITK.WriteImage(sitk_image(geometry=grid((1, 2, 3)))[:, :, 0], str(tmp_path / "flat.mha"))
    assert read(tmp_path / "flat.mha")[0].shape == (5, 4, 1)


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("x", "f4"), ("y", "f4")]), "U3", object])
def test_values_that_are_no_real_numbers_are_refused(tmp_path, dtype):
    array = np.zeros(SHAPE, dtype)
    np.savez(tmp_path / "a.npz", imgs=array)
    with pytest.raises(ReadError, match="not read"):
        read(tmp_path / "a.npz")
    if dtype == np.complex64:
        with pytest.raises(ReadError, match="real numbers"):
            read(nifti(tmp_path / "a.nii.gz", array))
    with pytest.raises(ReadError, match="no voxel"):
        np.savez(tmp_path / "empty.npz", imgs=np.zeros((0, 4, 4)))
        read(tmp_path / "empty.npz")


@pytest.mark.parametrize("spacing", [[1, 0, 2], [1, -1, 2], [1, np.nan, 2], [1, 2], ["a", "b", "c"]])
def test_spacing_of_npz_is_checked(tmp_path, spacing):
    with pytest.raises(ReadError, match="spacing"):
        read(write_npz(tmp_path / "a.npz", {"imgs": VALUES, "spacing": np.array(spacing)}))
    with pytest.raises(ReadError, match="spacing"):
        read_labels(write_npz(tmp_path / "b.npz", {"gts": VALUES, "spacing": np.array(spacing)}))


def test_only_the_wanted_members_of_an_archive_are_touched(tmp_path):
    path = write_npz(tmp_path / "a.npz", {"imgs": VALUES, "spacing": np.ones(3)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("bomb.npy", b"not an array at all")
    assert np.array_equal(read(path)[0], VALUES)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("imgs.npy").header_offset + 60
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ReadError, match="`imgs` is damaged|damaged or not an NPZ"):
        read(path)


def compressed_files(tmp_path):
    """Every kind of compressed file, and where its compressed data begin."""
    big = np.random.default_rng(1).integers(0, 50, (16, 16, 8)).astype(np.int16)
    paths = [write_nifti(tmp_path / "a.nii.gz", big, GEOMETRY), write_nrrd(tmp_path / "b.nrrd", big, GEOMETRY)]
    SimpleITK.WriteImage(sitk_image(big), str(tmp_path / "c.mha"), True)
    nifti(tmp_path / "d.mgz", big, GEOMETRY.affine, nibabel.MGHImage)
    starts = [0, (tmp_path / "b.nrrd").read_bytes().index(b"\n\n") + 2]
    starts.append((tmp_path / "c.mha").read_bytes().index(b"LOCAL\n") + 6)
    return big, list(zip([*paths, tmp_path / "c.mha", tmp_path / "d.mgz"], [*starts, 0], strict=True))


def test_compressed_streams_are_read_to_their_end_and_their_checksum(tmp_path):
    big, files = compressed_files(tmp_path)
    for path, start in files:
        sound = path.read_bytes()
        assert np.array_equal(read(path)[0], big)
        for cut in (1, 4, 8, len(sound) // 3):
            path.write_bytes(sound[:-cut])
            with pytest.raises(ReadError, match=path.name):
                read(path)
        for place in np.linspace(start + 20, len(sound) - 1, 12).astype(int):
            changed = bytearray(sound)
            changed[place] ^= 0x55
            path.write_bytes(changed)
            with pytest.raises(ReadError, match=path.name):
                read(path)
        path.write_bytes(sound + b"junk")
        with pytest.raises(ReadError, match=path.name):
            read(path)
        path.write_bytes(sound)


@pytest.mark.parametrize("kind", ["gzip", "zlib", "deflate", "bzip2"])
def test_every_kind_of_stream_is_followed_to_its_end(kind):
    content = np.random.default_rng(0).integers(0, 9, 40000, dtype=np.uint8).tobytes()
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = {"gzip": gzip.compress(content), "zlib": zlib.compress(content), "bzip2": bz2.compress(content),
              "deflate": raw.compress(content) + raw.flush()}[kind]  # fmt: skip
    assert decompress(io.BytesIO(packed), kind, "x") == content
    assert decompress(io.BytesIO(packed + bytes(100)), kind, "x") == content  # blocks are filled with zeros
    assert decompress(io.BytesIO(packed), kind, "x", most=len(content)) == content
    if kind in ("gzip", "bzip2"):  # parts behind one another are one stream
        assert decompress(io.BytesIO(packed + packed), kind, "x") == 2 * content
    for wrong in (packed[:-1], packed[:-3], packed[:-4], packed[: len(packed) // 2], packed + b"junk", b""):
        with pytest.raises(ReadError, match="x: the .* data are cut or damaged"):
            decompress(io.BytesIO(wrong), kind, "x")
    with pytest.raises(ReadError, match="more than its header promises"):
        decompress(io.BytesIO(packed), kind, "x", most=len(content) - 1)


def test_a_surplus_behind_a_small_header_is_refused_while_it_is_read(tmp_path):
    """A gigabyte behind 60 voxels, in a file of a megabyte: not more is held than the header speaks of."""
    gigabyte = gzip.compress(bytes(2**20)) * 2**10  # as many members, each with its checksum
    nifti(tmp_path / "a.nii.gz", VALUES.astype(np.int16))
    nifti(tmp_path / "b.mgz", VALUES.astype(np.int32), kind=nibabel.MGHImage)
    nifti(tmp_path / "a.img", VALUES, kind=nibabel.Nifti1Pair)
    (tmp_path / "a.img").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    assert np.array_equal(read(tmp_path / "a.hdr")[0], VALUES)
    for name in ("a.nii.gz", "b.mgz", "a.img"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + gigabyte)
        tracemalloc.start()
        try:
            with pytest.raises(ReadError, match="once decompressed, more than its header promises"):
                read(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        print(f"{name}: {peak / 2**20:.1f} MiB at most")
        assert peak < 64 * 2**20  # the tail that MGH is allowed, twice while it grows, and some chunks


def test_bytes_are_limited_before_they_are_taken(tmp_path, monkeypatch):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2000, 1000, 1000))
    header["vox_offset"] = 352
    raw = header.binaryblock + b"\0" * 4
    (tmp_path / "claims.nii.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(ReadError, match="short"):
        read(tmp_path / "claims.nii.gz")
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb") as packed:
        packed.write(raw)
        for _ in range(64):
            packed.write(b"\0" * 2**20)
    (tmp_path / "bomb.nii.gz").write_bytes(stream.getvalue())
    with pytest.raises(ReadError, match="more than the limit 1048576.*UNIMED_MAX_BYTES"):
        read(tmp_path / "bomb.nii.gz", limits=Limits(decoded_bytes=2**20))
    with (
        limited(Limits(decoded_bytes=2**20)),
        pytest.raises(ReadError, match="more than 1048576 bytes once decompressed.*UNIMED_MAX_BYTES"),
    ):
        decompress(io.BytesIO(stream.getvalue()), "gzip", "bomb", most=2**30)
    monkeypatch.setenv("UNIMED_MAX_BYTES", "1M")
    with pytest.raises(ReadError, match="UNIMED_MAX_BYTES"):
        read(tmp_path / "bomb.nii.gz")
    monkeypatch.setenv("UNIMED_MAX_FILE_BYTES", "1k")
    with pytest.raises(ReadError, match="UNIMED_MAX_FILE_BYTES"):
        read(tmp_path / "bomb.nii.gz")
    monkeypatch.setenv("UNIMED_MAX_VOXELS", "10")
    with pytest.raises(ReadError, match="UNIMED_MAX_VOXELS"):
        read(write_nifti(tmp_path / "small.nii", VALUES, GEOMETRY))
    monkeypatch.setenv("UNIMED_MAX_BYTES", "lots")
    with pytest.raises(ReadError, match="UNIMED_MAX_BYTES='lots' is no size"):
        limits()


def test_uploads_may_not_name_other_files(tmp_path):
    SimpleITK.WriteImage(sitk_image(), str(tmp_path / "a.mhd"))
    SimpleITK.WriteImage(sitk_image(), str(tmp_path / "b.nhdr"))
    nifti(tmp_path / "c.img", VALUES, None, nibabel.Nifti1Pair)
    for name in ("a.mhd", "b.nhdr", "c.img", "c.hdr"):
        assert np.array_equal(read(tmp_path / name)[0], VALUES)
        with pytest.raises(ReadError, match="another file|two files"):
            read(tmp_path / name, detached=False)


def test_a_link_out_of_the_folder_is_followed_nowhere(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "d.raw").write_bytes(VALUES.tobytes())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "d.raw").symlink_to(tmp_path / "secret" / "d.raw")
    head = "NDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementDataFile = d.raw\n"
    (inside / "a.mhd").write_text(head)
    with pytest.raises(ReadError, match="outside of its folder"):
        read(inside / "a.mhd")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "a.npz", "a.mgz", "a.nii", "a.png", "a", "a.dcm"])
def test_placeholders_are_named(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ReadError, match="Git LFS pointer"):
        read(tmp_path / name)
    (tmp_path / name).write_text("\n<!DOCTYPE html>\n<html><body>404</body></html>")
    with pytest.raises(ReadError, match="HTML page"):
        read(tmp_path / name)


def test_read_is_at_the_top(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", VALUES, grid((1, 2, 3)))
    array, geometry = unimed.read(path)
    assert np.array_equal(array, VALUES) and geometry.spacing == (1, 2, 3)
    assert zlib.crc32(array.tobytes()) == zlib.crc32(VALUES.tobytes())

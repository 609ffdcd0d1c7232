import json

import pytest
from clinical import ct_series

from unimed.commands.cli import main
from unimed.io.result import Prediction
from unimed.structures import Region


def test_codes_explains_each_word(capsys):
    assert main(["codes", "left adrenal mass", "liver fracture"]) == 0
    told = capsys.readouterr().out
    assert "region modifier Left (7771000, SCT)" in told and "type Mass (4147007, SCT)" in told
    assert "fracture         in no code, kept in the private code" in told


def test_codes_as_json_and_table(capsys):
    assert main(["codes", "--json", "right kidney"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["type"]["value"] == "64033007" and found["type_modifier"]["meaning"] == "Right"
    assert main(["codes", "--table"]) == 0
    assert "spleen\tanatomical structure\tSpleen (78961009, SCT)" in capsys.readouterr().out
    assert main(["codes"]) == 1


def test_check_seg_reads_any_file_and_says_so_in_its_exit_code(tmp_path, capsys):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    array, geometry = ct_series(tmp_path / "s")
    result = Prediction("", (Region("left kidney", array > 0),), geometry)
    (good,) = result.save(tmp_path, "a", ("dicom-seg",))
    assert main(["check-seg", str(good), "--source", str(tmp_path / "s")]) == 0
    damaged = pydicom.dcmread(good)
    del damaged.ReferencedSeriesSequence
    damaged.save_as(tmp_path / "bad.dcm")
    assert main(["check-seg", str(good), str(tmp_path / "bad.dcm"), "--no-tools"]) == 2
    assert "OHIF: no ReferencedSeriesSequence" in capsys.readouterr().out
    assert main(["check-seg", str(tmp_path / "bad.dcm"), "--no-tools", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out).values()
    assert any(remark["level"] == "error" for remark in found)
    assert main(["check-seg", str(tmp_path / "nothing.dcm")]) == 1

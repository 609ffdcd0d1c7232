import json

from unimed.commands.cli import main


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

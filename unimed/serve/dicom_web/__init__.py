"""DICOMweb over a folder: QIDO-RS, WADO-RS and STOW-RS (PS3.18)."""

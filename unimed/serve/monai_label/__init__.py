"""MONAI Label's REST interface, spoken to 3D Slicer and OHIF as they are: free text becomes masks."""

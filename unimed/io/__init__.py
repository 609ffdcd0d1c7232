"""Reading and writing of images and volumes; the only package that knows file formats."""

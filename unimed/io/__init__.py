"""Reading and writing of images and volumes; the only room that knows file formats."""

"""From files on disk to predictions on disk: folders of images, volumes, and runs that can be stopped and go on."""

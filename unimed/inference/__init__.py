"""From files on disk to predictions on disk: folders of images, volumes, and runs that can be stopped and go on."""


def predict_volume(*args, **options):
    """See `unimed.models.grounded.volumes.predict_volume`; `model.predict` takes volumes too."""
    from unimed.models.grounded.volumes import predict_volume as run

    return run(*args, **options)


def segment_volume(*args, **options):
    """See `unimed.models.boltzformer.volumes.segment_volume`; `model.predict` takes volumes too."""
    from unimed.models.boltzformer.volumes import segment_volume as run

    return run(*args, **options)

"""Rigid registration of two volumes of one patient (SimpleITK)."""

from __future__ import annotations

import numpy as np

from unimed.geometry import Geometry, GeometryError, lps_to_ras

_FLIP = np.diag((-1.0, -1.0, 1.0, 1.0))


def register_rigid(
    fixed: np.ndarray,
    fixed_geometry: Geometry,
    moving: np.ndarray,
    moving_geometry: Geometry,
    *,
    seed: int = 0,
    iterations: int = 100,
) -> tuple[np.ndarray, float]:
    """The rotation and shift that lead from places in one volume to the same anatomy in another.

    Mattes mutual information on three levels, so that CT and MR or contrast phases can be compared; the same inputs
    give the same answer.

    Args:
        fixed, moving: values (I, J, K).

    Returns:
        4x4 matrix from patient millimetres (RAS) of `fixed` to those of `moving`, and the mutual information reached
        (larger is better).

    Raises:
        GeometryError: a grid without a place in the patient, a sheared one, or volumes that do not overlap at all.
    """
    import SimpleITK

    images = [_image(fixed, fixed_geometry), _image(moving, moving_geometry)]
    start = SimpleITK.CenteredTransformInitializer(
        *images, SimpleITK.Euler3DTransform(), SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = SimpleITK.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, max(0.02, 40_000 / fixed.size)), seed + 1)  # 0 means the clock
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-4, numberOfIterations=iterations, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    smallest = min(*fixed.shape, *moving.shape)
    levels = [n for n in (4, 2, 1) if smallest // n >= 8] or [1]
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([n / 2 if n > 1 else 0 for n in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=False)
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums of several threads come in any order
    try:
        found = method.Execute(*images)
    except RuntimeError as error:
        raise GeometryError(f"the two volumes cannot be registered: {_reason(error)}") from error
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    rigid = SimpleITK.Euler3DTransform(found.GetNthTransform(0) if hasattr(found, "GetNthTransform") else found)
    rotation = np.array(rigid.GetMatrix()).reshape(3, 3)
    center = np.array(rigid.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = np.array(rigid.GetTranslation()) + center - rotation @ center
    return _FLIP @ matrix @ _FLIP, -float(method.GetMetricValue())


def _reason(error: RuntimeError) -> str:
    text = " ".join(str(error).split())
    return text.rsplit("ITK ERROR:", 1)[-1].strip()[:200]


def _image(array: np.ndarray, geometry: Geometry):
    import SimpleITK

    if not geometry.is_physical:
        raise GeometryError("a volume without a place in the patient cannot be registered")
    if geometry.is_sheared:
        raise GeometryError('a sheared volume cannot be registered; read it with irregular="resample"')
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0), dtype=np.float32))
    lps = lps_to_ras(geometry.affine)  # the same step leads back
    image.SetSpacing([float(v) for v in geometry.spacing])
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    image.SetDirection((lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)).ravel().tolist())
    return image

"""The one place where mmengine, mmcv, mmdet and mmsegmentation are touched: ``prepare`` them, train, predict.

They come with the extra "dense" and are imported only when a protocol is about to use them, after
``prepare``. Either family of packages will do: OpenMMLab's own (mmengine, mmcv-lite, mmdet, mmsegmentation)
or the fork that is still maintained (onedl-mmengine, onedl-mmcv, …), which has the same import names. The
extra names the former: its versions no longer move, and it asks for no older numpy and OpenCV, as the fork's
dependency imaug does.

    prepare()
    from mimbench.openmm.fit import Training, fit
    from mimbench.openmm.predict import predict
"""

from __future__ import annotations

from mimbench.openmm.prepare import operators, prepare, scoped

__all__ = ["operators", "prepare", "scoped"]

"""The slice of the detectron2 API that Mask2Former and ordinary user scripts need."""

import os

from detectron2._unsupported import install_finder, missing

# OpenCV reads this when it is imported: OpenCL buys nothing for data loading and breaks forked workers.
os.environ.setdefault("OPENCV_OPENCL_RUNTIME", "disabled")

__version__ = "0.6"
EMBEDDED = True

install_finder()
__getattr__ = missing(__name__)

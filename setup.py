"""Packaging of the extension. detectron2 itself is not listed: `requirements.txt` brings the embedded one, and
whoever has upstream detectron2 keeps it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "mask2former" / "__init__.py").read_text()).group(1)

EXTRAS = {
    "hf": ["transformers>=5", "safetensors", "huggingface_hub"],
    "export": ["onnx", "onnxscript", "onnxruntime"],
    "demo": ["gradio"],
    "video": ["av"],
    "cityscapes": ["cityscapesscripts"],
}
EXTRAS["dev"] = [name for extra in ("hf", "cityscapes", "video") for name in EXTRAS[extra]]
EXTRAS["dev"] += ["ruff", "mypy", "pytest", "pytest-xdist", "hypothesis"]

setup(
    name="mask2former",
    version=VERSION,
    description="Mask2Former for detectron2: semantic, instance and panoptic segmentation, on any machine",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["mask2former", "mask2former.*"]),
    package_data={"mask2former": ["py.typed", "data/datasets/*.json"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.13",
        "numpy>=2.2",
        "scipy",
        "pillow>=12",
        "opencv-python-headless",
        "fvcore",
        "iopath",
        "pycocotools",
        "faster-coco-eval",
        "numba>=0.63",
        "tqdm",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)

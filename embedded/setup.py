"""Packaging of the embedded detectron2: one distribution name with upstream, so pip swaps one for the other."""

from setuptools import find_packages, setup

setup(
    name="detectron2",
    version="0.6+embedded",
    description="The slice of the detectron2 API that Mask2Former needs, in pure Python",
    license="MIT",
    packages=find_packages(include=["detectron2", "detectron2.*"]),
    package_data={"detectron2": ["data/datasets/*.json"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.13",
        "numpy>=2.2",
        "pillow>=12",
        "opencv-python-headless",
        "pycocotools",
        "faster-coco-eval",
        "fvcore",
        "iopath",
        "yacs",
        "tabulate",
        "termcolor",
        "cloudpickle",
        "tqdm",
        "tensorboard",
        "shapely",
        "scipy",
    ],
)

"""Packaging of the panopticapi slice, a distribution of its own so that it also serves beside upstream detectron2."""

from setuptools import setup

setup(
    name="panopticapi",
    version="0.1+embedded",
    description="The slice of panopticapi that detectron2 and Mask2Former need: id encoding and Panoptic Quality",
    license="MIT",
    packages=["panopticapi"],
    python_requires=">=3.10",
    install_requires=["numpy>=2.2", "pillow>=12"],
)

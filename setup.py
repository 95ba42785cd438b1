"""The one thing pyproject.toml cannot say: the optional C library of compress3g.kernels."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup

ParallelCompile().install()  # all sources at once: two of them take most of the time

setup(
    ext_modules=[
        Extension(
            "compress3g.kernels._cpu",
            sources=["compress3g/kernels/_isa.c", *sorted(glob("compress3g/kernels/*/cpu.c"))],
            depends=sorted(glob("compress3g/kernels/**/*.h", recursive=True)),
            # Instruction sets are chosen at run time: no -march, and no -ffast-math.
            extra_compile_args=["-O3", "-fno-math-errno", "-std=gnu11", "-Wno-psabi"],
            libraries=["m"],
            optional=True,
        )
    ]
)

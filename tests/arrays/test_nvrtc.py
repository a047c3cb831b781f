"""Every CUDA source that the package makes, compiled for every architecture without a GPU.

Needs CuPy and NVRTC (``pip install cupy-cuda13x nvidia-cuda-nvrtc``), and neither driver nor
device. The sources are those that ran on the mock; CuPy's own generator makes them complete.
"""

import functools
import re
import warnings

import ml_dtypes
import numpy as np
import pytest
from gpu.libraries import SPIN
from standin import cupy_standin

import polarlib
from polarlib.arrays import cupy_normaliser
from polarlib.arrays.ops import ops_of

# Turing (the first that CUDA 13 compiles for), Ampere, Hopper, and both of Blackwell.
ARCHITECTURES = ("75", "80", "90", "100", "120")
DTYPES = ("f4", "f8", "c8", "c16", "f2", ml_dtypes.bfloat16)
# What a kernel's arguments are to CuPy.
ARRAY, INDEXER, SCALAR = 1, 2, 3


@functools.cache
def sources():
    """Source and types of every elementwise kernel, from runs on the mock."""
    with cupy_standin.installed() as cupy:
        for dtype in DTYPES:
            x = cupy.asarray(np.eye(6, 4).astype(dtype))
            for form in ("plain", "gram"):
                polarlib.orthogonalize(x, form=form, schedule="polar_express")
            ops = ops_of(x)
            norm = ops.frobenius(x)
            ops.divide(x, ops.divisor(norm) * ops.binary_scale(norm))
            ops.hermitian_part(x[:4])
            for count in (1, 2, 3):
                ops.combine((0.5,) * count, (x,) * count)
        return cupy_standin.kernels()


def test_kernels_of_every_kind_are_among_them():
    names = {(name, types[0]) for _, _, _, name, types in sources()}
    for dtype in DTYPES:
        of_type = {name for name, first in names if first == np.dtype(dtype).name}
        counts = {f"polarlib_combine_{count}" for count in (1, 2, 3)}
        assert of_type >= counts | {"polarlib_square"}
    assert {("polarlib_divisor", "float32"), ("polarlib_divisor", "float64")} <= names
    assert {("polarlib_binary_scale", "float32"), ("polarlib_binary_scale", "float64")} <= names


@pytest.fixture(scope="module")
def compiled():
    """A function that compiles a kernel, or a skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy looks for CUDA, and says that there is none
        cupy = pytest.importorskip("cupy")
        from cupy._core import _carray, _kernel, _scalar, core
        from cupy.cuda import compiler, nvrtc

        try:
            nvrtc.getVersion()
        except Exception as error:  # the library cannot be loaded
            pytest.skip(f"NVRTC is not installed: {error}")

    def complete(code):
        """The source as CuPy hands it over, with its headers, and the options."""
        handed = []

        def keep(source, options, **kwargs):
            handed.append((source, options))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "_compile_module_with_cache", keep)
            core.compile_with_cache(code)
        return handed[0]

    def generated(inputs, outputs, operation, name, types, dimensions):
        kernel = cupy.ElementwiseKernel(inputs, outputs, operation, name)
        declared = [p.split()[0] for p in f"{inputs}, {outputs}".split(", ")]
        dtypes = [np.dtype(getattr(ml_dtypes, t, t)) for t in types]
        arrays = [len(kind) == 1 for kind in declared]
        arrays[kernel.nin :] = [True] * kernel.nout
        given = [d if a else None for d, a in zip(dtypes, arrays, strict=True)]
        _, resolved, letters = kernel._decide_params_type(tuple(given[: kernel.nin]), ())
        assert resolved == tuple(dtypes[kernel.nin :])
        flat = dimensions == 1
        infos = [
            _kernel._ArgInfo(ARRAY, cupy.ndarray, dtype, dimensions, flat, True)
            if is_array
            else _kernel._ArgInfo(SCALAR, _scalar.CScalar, dtype, 0, True, True)
            for dtype, is_array in zip(dtypes, arrays, strict=True)
        ]
        infos.append(_kernel._ArgInfo(INDEXER, _carray.Indexer, None, dimensions, True, True))
        code = _kernel._get_elementwise_kernel_code(
            tuple(infos), letters, kernel.params, operation, name, ""
        )
        return complete(code)

    def to_binary(source, options, architecture):
        program = nvrtc.createProgram(source, "polarlib.cu", (), ())
        try:
            nvrtc.compileProgram(program, (*options, f"-arch=sm_{architecture}"))
        except nvrtc.NVRTCError:
            raise AssertionError(f"{source}\n{nvrtc.getProgramLog(program)}") from None
        return nvrtc.getCUBIN(program)

    def to_text(source):
        program = nvrtc.createProgram(source, "polarlib.cu", (), ())
        nvrtc.compileProgram(program, ("-std=c++17", "-arch=compute_90"))
        text = nvrtc.getPTX(program)
        return text.decode() if isinstance(text, bytes) else text

    to_binary.generated, to_binary.complete, to_binary.to_text = generated, complete, to_text
    return to_binary


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(compiled, architecture):
    for *source, types in sources():
        assert compiled(*compiled.generated(*source, types, 1), architecture)


@pytest.mark.parametrize("architecture", [ARCHITECTURES[0], ARCHITECTURES[-1]])
def test_kernels_of_strided_stacks_compile(compiled, architecture):
    for *source, types in sources():
        if source[-1] == "polarlib_combine_2":
            assert compiled(*compiled.generated(*source, types, 3), architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("first", ["bfloat16", "float16", "float32"])
def test_normalisers_compile(compiled, first, architecture):
    """With no headers but the compiler's own."""
    # Gram matrices are of the same dtype, or of 16 bits beside float32.
    for second in {first, "bfloat16", "float16"} if first == "float32" else {first}:
        source = cupy_normaliser.source(first, second)
        binary = compiled(source, ("-std=c++17",), architecture)
        for name in cupy_normaliser.Kernels._fields:
            assert f"polarlib_{name}".encode() in binary


@pytest.mark.parametrize("first", ["bfloat16", "float16", "float32"])
def test_normalisers_read_16_bytes_at_once_and_in_an_order(compiled, first):
    """No atomic operation, by which results would depend on the order of blocks."""
    text = compiled.to_text(cupy_normaliser.source(first, first))
    kernels = text.split(".visible .entry ")[1:]
    assert len(kernels) == 4
    for kernel in kernels:
        assert "ld.global.v4" in kernel
        assert "bar.sync" in kernel
        assert not re.search(r"\b(atom|red)\.", kernel)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_spinning_kernel_compiles(compiled, architecture):
    assert compiled(*compiled.complete(SPIN), architecture)


def test_a_wrong_kernel_does_not_compile(compiled):
    source = ("T x, float32 c", "T y", "y = c * nothing(x)", "wrong")
    with pytest.raises(AssertionError, match="nothing"):
        compiled(*compiled.generated(*source, ("bfloat16", "float32", "bfloat16"), 1), "90")

"""C for the CPU: what a stepper does (stepper.c) and what a training step does (window.c), in one library.

`python -m model.native.build` compiles it once, when the project is installed; nothing is compiled at import, and
without it, or on a CPU it was not made for, callers take the slower way in torch. gemm.h has the products, gates.h the
cell, sampling.h the drawing, pool.h the threads, simd.h the vectors.
"""

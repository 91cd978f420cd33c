"""An emulator of a GPU: it runs the text of a kernel for Metal or CUDA on a CPU, and checks it.

`run` builds and runs kernels. `msl.h` defines Metal's words for g++, `cuda_*.h` CUDA's, and
`emu.cpp` runs the threads and checks every load and store. `strict` only compiles, with clang's C++
for OpenCL, and `mutate` makes small mistakes in the texts.
"""

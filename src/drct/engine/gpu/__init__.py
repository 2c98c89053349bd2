"""Programs for GPUs. Importing the kernels needs the package triton."""

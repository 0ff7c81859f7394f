"""Arrays of images in the files of science: TIFF stacks, NIfTI, DICOM, HDF5, Zarr, FITS, NumPy."""

"""Makes the HDF5 files of this folder with h5py (pip install h5py): files that are no shards of a dataset.

    python3 make_hdf5.py

Made with h5py 3.16.0, numpy 2.4.6.
"""

import pathlib

import h5py
import numpy

HERE = pathlib.Path(__file__).parent

for name, chunks in (("two_dimensions_chunked", (2, 3)), ("two_dimensions_contiguous", None)):
    with h5py.File(HERE / f"{name}.h5", "w", libver="earliest") as file:
        file.create_dataset("tokens", data=numpy.arange(6, dtype="uint16").reshape(2, 3), chunks=chunks, track_times=False)
        file.create_dataset("document_offsets", data=numpy.zeros(1, dtype="uint64"), track_times=False)

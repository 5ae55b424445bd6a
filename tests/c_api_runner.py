"""Runs a SavedModel through TensorFlow's C library, as a C++ server does: no Python TensorFlow in this process.

    python c_api_runner.py LIBRARY SAVED_MODEL JOBS RESULTS

JOBS: pickled list of ({input tensor name: array}, [output tensor names]), run in order in one session. RESULTS:
pickled list with, for each, a list of arrays or the text of its error.
"""

import ctypes
import pickle
import sys

import numpy as np

_DTYPES = {1: np.dtype(np.float32), 4: np.dtype(np.uint8)}
_STRING, _STRING_SIZE = 7, 24  # TF_STRING; sizeof(TF_TString).


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


def _load(path):
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    makers = "TF_NewStatus TF_NewGraph TF_NewSessionOptions TF_LoadSessionFromSavedModel"
    finders = "TF_GraphOperationByName TF_AllocateTensor TF_TensorData TF_StringGetDataPointer"
    for name in f"{makers} {finders}".split():
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    for name in ("TF_StringGetSize", "TF_TensorByteSize"):
        getattr(library, name).restype = ctypes.c_size_t
    library.TF_Dim.restype = ctypes.c_int64
    library.TF_AllocateTensor.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    library.TF_StringCopy.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    return library


class Session:
    def __init__(self, library, path):
        self._tf = _load(library)
        self._status = ctypes.c_void_p(self._tf.TF_NewStatus())
        self._graph = ctypes.c_void_p(self._tf.TF_NewGraph())
        tags = (ctypes.c_char_p * 1)(b"serve")
        options = ctypes.c_void_p(self._tf.TF_NewSessionOptions())
        session = self._tf.TF_LoadSessionFromSavedModel(
            options, None, path.encode(), tags, 1, self._graph, None, self._status
        )
        self._raise_for_status()
        self._session = ctypes.c_void_p(session)

    def run(self, inputs, outputs):
        keys = self._outputs(inputs)
        values = (ctypes.c_void_p * len(inputs))(*[self._tensor(np.asarray(value)) for value in inputs.values()])
        fetched = (ctypes.c_void_p * len(outputs))()
        self._tf.TF_SessionRun(
            self._session,
            None,
            keys,
            values,
            len(inputs),
            self._outputs(outputs),
            fetched,
            len(outputs),
            None,
            0,
            None,
            self._status,
        )
        for tensor in values:
            self._tf.TF_DeleteTensor(ctypes.c_void_p(tensor))
        self._raise_for_status()
        return [self._array(ctypes.c_void_p(tensor)) for tensor in fetched]

    def _outputs(self, names):
        structures = (_Output * len(names))()
        for structure, name in zip(structures, names, strict=True):
            operation, _, index = name.partition(":")
            structure.operation = self._tf.TF_GraphOperationByName(self._graph, operation.encode())
            assert structure.operation, f"no operation {operation} in the graph"
            structure.index = int(index)
        return structures

    def _tensor(self, array):
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        if array.dtype == object:
            tensor = self._tf.TF_AllocateTensor(_STRING, dims, array.ndim, array.size * _STRING_SIZE)
            start = self._tf.TF_TensorData(ctypes.c_void_p(tensor))
            for number, value in enumerate(array.ravel()):
                place = ctypes.c_void_p(start + number * _STRING_SIZE)
                self._tf.TF_StringInit(place)
                self._tf.TF_StringCopy(place, value, len(value))
            return tensor
        dtype = next(number for number, dtype in _DTYPES.items() if dtype == array.dtype)
        array = np.ascontiguousarray(array)
        tensor = self._tf.TF_AllocateTensor(dtype, dims, array.ndim, array.nbytes)
        ctypes.memmove(self._tf.TF_TensorData(ctypes.c_void_p(tensor)), array.ctypes.data, array.nbytes)
        return tensor

    def _array(self, tensor):
        shape = [self._tf.TF_Dim(tensor, axis) for axis in range(self._tf.TF_NumDims(tensor))]
        start = self._tf.TF_TensorData(tensor)
        dtype = self._tf.TF_TensorType(tensor)
        if dtype == _STRING:
            places = [ctypes.c_void_p(start + number * _STRING_SIZE) for number in range(int(np.prod(shape)))]
            values = [
                ctypes.string_at(self._tf.TF_StringGetDataPointer(place), self._tf.TF_StringGetSize(place))
                for place in places
            ]
            array = np.array(values, dtype=object).reshape(shape)
        else:
            contents = ctypes.string_at(start, self._tf.TF_TensorByteSize(tensor))
            array = np.frombuffer(contents, _DTYPES[dtype]).reshape(shape)
        self._tf.TF_DeleteTensor(tensor)
        return array

    def _raise_for_status(self):
        code = self._tf.TF_GetCode(self._status)
        if code:
            raise RuntimeError(f"{code}: {self._tf.TF_Message(self._status).decode()}")


def main():
    library, path, jobs_path, results_path = sys.argv[1:]
    session = Session(library, path)
    results = []
    with open(jobs_path, "rb") as file:
        jobs = pickle.load(file)
    for inputs, outputs in jobs:
        try:
            results.append(session.run(inputs, outputs))
        except RuntimeError as error:
            results.append(str(error))
    assert not any(name.startswith(("tensorflow", "keras")) for name in sys.modules), "Python TensorFlow was loaded"
    with open(results_path, "wb") as file:
        pickle.dump(results, file)


if __name__ == "__main__":
    main()

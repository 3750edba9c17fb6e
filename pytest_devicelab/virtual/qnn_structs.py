"""The C structures libQnnSystem.so answers with, as ctypes: only the fields up to the last one we read.

Source: QNN API headers QnnTypes.h, System/QnnSystemContext.h, System/QnnSystemInterface.h,
HTP/QnnHtpSystemContext.h. Where a later version of a structure only appends, the longest one is declared.
"""

from __future__ import annotations

import ctypes as c

_Version = c.c_uint32 * 3


class ScaleOffset(c.Structure):
    """Qnn_ScaleOffset_t: `real = scale * (q + offset)`."""

    _fields_ = (("scale", c.c_float), ("offset", c.c_int32))


class _WidestEncoding(c.Structure):
    """Qnn_BwAxisScaleOffset_t, the largest member of the encoding union: it sets the union's size."""

    _fields_ = (
        ("bitwidth", c.c_uint32),
        ("axis", c.c_int32),
        ("count", c.c_uint32),
        ("scales", c.c_void_p),
        ("offsets", c.c_void_p),
    )


class _Encoding(c.Union):
    _fields_ = (("scale_offset", ScaleOffset), ("widest", _WidestEncoding))


class QuantizeParams(c.Structure):
    """Qnn_QuantizeParams_t."""

    _fields_ = (("definition", c.c_uint32), ("encoding", c.c_uint32), ("of", _Encoding))


class _ClientBuffer(c.Structure):
    _fields_ = (("data", c.c_void_p), ("size", c.c_uint32))


class TensorV2(c.Structure):
    """Qnn_TensorV2_t, of which Qnn_TensorV1_t is the part before `dynamic`."""

    _fields_ = (
        ("id", c.c_uint32),
        ("name", c.c_char_p),
        ("type", c.c_uint32),
        ("format", c.c_uint32),
        ("dtype", c.c_uint32),
        ("quantize", QuantizeParams),
        ("rank", c.c_uint32),
        ("dimensions", c.POINTER(c.c_uint32)),
        ("memory_type", c.c_uint32),
        ("buffer", _ClientBuffer),
        ("dynamic", c.c_void_p),
        ("sparse", c.c_uint32 * 3),
        ("produced", c.c_uint8),
    )


class Tensor(c.Structure):
    """Qnn_Tensor_t."""

    _fields_ = (("version", c.c_uint32), ("of", TensorV2))


class GraphV3(c.Structure):
    """QnnSystemContext_GraphInfoV3_t; versions 1 and 2 are its beginning."""

    _fields_ = (
        ("name", c.c_char_p),
        ("input_count", c.c_uint32),
        ("inputs", c.POINTER(Tensor)),
        ("output_count", c.c_uint32),
        ("outputs", c.POINTER(Tensor)),
        ("updateable_count", c.c_uint32),
        ("updateable", c.c_void_p),
        ("blob_size", c.c_uint32),
        ("blob", c.c_void_p),
        ("first_op", c.c_uint32),
        ("last_op", c.c_uint32),
    )


class Graph(c.Structure):
    """QnnSystemContext_GraphInfo_t."""

    _fields_ = (("version", c.c_uint32), ("of", GraphV3))


class BinaryV2(c.Structure):
    """QnnSystemContext_BinaryInfoV2_t; version 1 lacks the platform info at its end."""

    _fields_ = (
        ("backend", c.c_uint32),
        ("build", c.c_char_p),
        ("core_version", _Version),
        ("backend_version", _Version),
        ("soc_version", c.c_char_p),
        ("hardware_version", _Version),
        ("blob_version", _Version),
        ("hardware_size", c.c_uint32),
        ("hardware", c.c_void_p),
        ("blob_size", c.c_uint64),
        ("tensor_count", c.c_uint32),
        ("tensors", c.c_void_p),
        ("graph_count", c.c_uint32),
        ("graphs", c.POINTER(Graph)),
        ("platform", c.c_void_p),
    )


class BinaryV3(c.Structure):
    """QnnSystemContext_BinaryInfoV3_t."""

    _fields_ = (
        ("backend", c.c_uint32),
        ("build", c.c_char_p),
        ("core_version", _Version),
        ("backend_version", _Version),
        ("soc_version", c.c_char_p),
        ("blob_version", _Version),
        ("blob_size", c.c_uint64),
        ("tensor_count", c.c_uint32),
        ("tensors", c.c_void_p),
        ("graph_count", c.c_uint32),
        ("graphs", c.POINTER(Graph)),
        ("platform", c.c_void_p),
        ("metadata_size", c.c_uint32),
        ("metadata", c.c_void_p),
        ("soc_model", c.c_uint32),
    )


class _AnyBinary(c.Union):
    _fields_ = (("v2", BinaryV2), ("v3", BinaryV3))


class Binary(c.Structure):
    """QnnSystemContext_BinaryInfo_t."""

    _fields_ = (("version", c.c_uint32), ("of", _AnyBinary))


class HtpContextMetadata(c.Structure):
    """QnnHtpSystemContext_ContextBlobInfo_t, version 1."""

    _fields_ = (("version", c.c_uint32), ("dsp_arch", c.c_uint32))


class SystemInterface(c.Structure):
    """QnnSystemInterface_t up to the functions of version 1.0."""

    _fields_ = (
        ("backend", c.c_uint32),
        ("provider", c.c_char_p),
        ("version", _Version),
        ("context_create", c.c_void_p),
        ("context_get_binary_info", c.c_void_p),
        ("context_get_metadata", c.c_void_p),
        ("context_free", c.c_void_p),
    )

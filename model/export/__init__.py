"""Models in the formats of other programs: ONNX, RTNeural and NumPy."""

from treadle.model.export.numpy_archive import write_npz
from treadle.model.export.onnx_graph import write_onnx
from treadle.model.export.rtneural import Dense, write_rtneural, write_rtneural_layers

__all__ = ["Dense", "write_npz", "write_onnx", "write_rtneural", "write_rtneural_layers"]

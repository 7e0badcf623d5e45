"""What cuSOLVER's decompositions need on the device beside their inputs and outputs.

Neither the library nor torch documents these sizes. They were fitted to what an H100's allocator gave out under CUDA
13.0 (benchmarks/gpu_recordings, `ops` and `steps`), shape by shape; each function says to how many shapes, and how
near it comes. They are rules found from recordings, not read in a source.
"""

from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.frame import Block, Frame

__all__ = [
    "eigh_workspace_bytes",
    "qr_workspace_bytes",
    "record_eigh",
    "record_qr",
    "record_svd",
    "svd_workspace_bytes",
]

FP32_BYTES = 4
FP64_BYTES = 8
INFO_BYTES = 4
FLAG_BYTES = 1
QR_CONSTANT = 524_288
JACOBI_LIMIT = 512
"""Largest fp32 matrix whose eigenvalues torch has computed by `syevj`, as one or a few; larger ones by `syevd`."""


def svd_workspace_bytes(rows: int, columns: int) -> int:
    """Workspace of a thin fp32 SVD by `gesvdj`, torch's first choice.

    bytes = 4 (M N + M^2 + M^2 / 256 + 65 M + 1024 + max(32, M / 32) + t), for M = min(m, n), N = max(m, n), and where
    m < n 4 m n more for the transpose; t = 0 for a square matrix, else 128 N + 768 M + 1536 ceil(N / 256) + 67296; at
    least a QR's workspace and 256 bytes.

    Source: fitted to 8 shapes recorded on an H100, CUDA 13.0 (512 x 512, 1376 x 512 both ways, 768 x 2048,
        1024 x 1024, 1024 x 2736 by its peak, 2048 x 2048, 2048 x 5461) and 6 with 16 rows; a rule found from
        residuals. Equal on all but 2048 x 5461, where it is 0.03% above.
    Assumes: between those shapes and at other ratios of the sides the same terms; the linear ones were told apart
        at a ratio of 2.67 only.
    """
    short, long = sorted((rows, columns))
    elements = short * long + short * short + short * short // 256 + 65 * short + 1024 + max(32, short // 32)
    if short != long:
        elements += 128 * long + 768 * short + 1536 * -(-long // 256) + 67_296
        elements = max(elements, _qr_elements(short) + 64)
    if rows < columns:
        elements += rows * columns
    return FP32_BYTES * elements


def qr_workspace_bytes(rows: int, columns: int) -> tuple[int, int]:
    """Workspaces of `geqrf` and of `orgqr` for a thin fp32 QR, one after the other.

    bytes = 4 (1024 max(n, 256) + 524288) + 128 and 4 (128 m + 256 k + 16640) for k = min(m, n).

    Source: fitted to 7 shapes recorded on an H100, CUDA 13.0, equal on all.
    Assumes: at least 128 columns.
    """
    reflectors = FP32_BYTES * (128 * rows + 256 * min(rows, columns) + 16_640)
    return FP32_BYTES * _qr_elements(columns) + 128, reflectors


def _qr_elements(columns: int) -> int:
    return 1024 * max(columns, 256) + QR_CONSTANT


def eigh_workspace_bytes(side: int, element_bytes: int) -> int:
    """Workspace of the eigenvectors of a symmetric n x n matrix in fp32 or fp64.

    elements = 4 n^2 + 127 n + 32995 (fp64: 32979) above n = 512; up to it n^2 + 37 n + 16 (fp64: 4 n^2 + 384 n + 83).

    Source: fitted to 5 recorded cases on an H100, CUDA 13.0: fp32 512, 1024, 2048 and fp64 512, 1376, equal on all;
        a rule found from residuals.
    Assumes: up to 512 what one size shows; between 512 and 1024 what larger ones show.
    """
    squared = side * side
    if element_bytes == FP64_BYTES:
        elements = 4 * squared + (384 * side + 83 if side <= JACOBI_LIMIT else 127 * side + 32_979)
    elif side <= JACOBI_LIMIT:
        elements = squared + 37 * side + 16
    else:
        elements = 4 * squared + 127 * side + 32_995
    return element_bytes * elements


def record_svd(frame: Frame, rows: int, columns: int) -> None:
    """What `torch.linalg.svd` holds inside its kernel once U, Vh and S are there.

    Source: aten/src/ATen/native/cuda/linalg/BatchLinearAlgebraLib.cpp, `svd_cusolver_gesvdj`: a status, a copy of the
        input, the workspace; BatchLinearAlgebra.cpp, `_linalg_check_errors`.
    Assumes: gesvdj converges.
    """
    info = frame.temporary(INFO_BYTES, DEVICE_SCRATCH)
    copy = frame.temporary(rows * columns * FP32_BYTES, DEVICE_SCRATCH)
    frame.free(frame.temporary(svd_workspace_bytes(rows, columns), DEVICE_SCRATCH), copy)
    _record_check(frame, info)


def record_eigh(frame: Frame, side: int, element_bytes: int) -> None:
    """What `torch.linalg.eigh` holds inside its kernel once eigenvectors and eigenvalues are there.

    Source: aten/src/ATen/native/cuda/linalg/BatchLinearAlgebraLib.cpp, `linalg_eigh_cusolver`.
    Assumes: it converges.
    """
    info = frame.temporary(INFO_BYTES, DEVICE_SCRATCH)
    frame.free(frame.temporary(eigh_workspace_bytes(side, element_bytes), DEVICE_SCRATCH))
    _record_check(frame, info)


def record_qr(frame: Frame, rows: int, columns: int) -> None:
    """What `torch.linalg.qr` holds inside its kernels once Q and R are there.

    Source: aten/src/ATen/native/BatchLinearAlgebra.cpp, `linalg_qr_out`; recorded on an H100.
    Assumes: reduced mode.
    """
    tau = frame.temporary(min(rows, columns) * FP32_BYTES, DEVICE_SCRATCH)
    for workspace in qr_workspace_bytes(rows, columns):
        info = frame.temporary(INFO_BYTES, DEVICE_SCRATCH)
        frame.free(frame.temporary(workspace, DEVICE_SCRATCH), info)
    frame.free(tau)


def _record_check(frame: Frame, info: Block) -> None:
    """``infos.any()``: a flag for the one status, a flag for all."""
    flag = frame.temporary(FLAG_BYTES, DEVICE_SCRATCH)
    frame.free(frame.temporary(FLAG_BYTES, DEVICE_SCRATCH), flag, info)

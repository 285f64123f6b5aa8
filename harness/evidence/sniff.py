"""What a file is that is no checkpoint, by its first bytes: for the message that refuses it."""

from __future__ import annotations

import re

HEAD = 4096  # bytes that are looked at
_BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (of Keras, say)",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "one array of NumPy's",
    b"PAR1": "a Parquet file",
    b"ZF": "a file of joblib's",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"CBM1": "a model of CatBoost's",
    b"tree\n": "a LightGBM model in text",
    b"SQLite format 3": "an SQLite database",
}
_CONTROLS = {*range(32)} - {*b"\t\n\r\f"}  # in no text
_TORCH_BEFORE_1_6 = bytes.fromhex("6cfc9c46f9206aa85019")  # the number that its first pickle is


def kind_of_file(head: bytes) -> str:
    """In words; empty where it is not known."""
    for begin, what in _BEGINNINGS.items():
        if head.startswith(begin):
            return what
    if re.match(rb"\x80[\x02-\x05]", head):
        if _TORCH_BEFORE_1_6 in head[:64]:
            return "torch's format before 1.6, a pickle, which is not read (torch.save without the zip format)"
        made = "joblib's" if b"joblib" in head else "a bare"
        return f"{made} pickle, which is not read, because that could execute code"
    if re.match(rb"x[\x01\x5e\x9c\xda]", head):
        return "a zlib file (of joblib's, say)"
    if re.match(rb"\{[iIlLUC]", head):
        return "a file in UBJSON (of XGBoost's, say)"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if re.match(rb"\s*[{\[]", head) and head.isascii():
        return "JSON"
    return "a text" if not head.startswith(b"PK") and head and head.isascii() and not set(head) & _CONTROLS else ""


def kind_of_members(names: list[str]) -> str:
    """Of a zip archive, by the names in it."""
    if any(name.endswith("config.json") for name in names) and any(name.endswith(".h5") for name in names):
        return "a model of Keras's"
    if any("/code/" in name and name.endswith(".py") for name in names):
        return "a program of TorchScript's (torch.jit.save)"
    return ""

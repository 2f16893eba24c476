"""What is on disk: the expert store, specified in ``docs/format.md``."""

from headgate.store.layout import MATRICES, ExpertFormat, RecordLayout, Segment
from headgate.store.manifest import DenseMatrix, FileEntry, Manifest
from headgate.store.reader import Store
from headgate.store.verify import Damage, verify
from headgate.store.writer import StoreWriter

__all__ = [
    "MATRICES",
    "Damage",
    "DenseMatrix",
    "ExpertFormat",
    "FileEntry",
    "Manifest",
    "RecordLayout",
    "Segment",
    "Store",
    "StoreWriter",
    "verify",
]

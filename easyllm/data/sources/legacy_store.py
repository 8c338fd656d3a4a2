"""Token stores that the original project wrote, as a source of documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from easyllm.data.sources import io
from easyllm.errors import UserError
from easyllm.spec.roles import File, Reader
from easyllm.spec.types import Place

if TYPE_CHECKING:
    from easyllm.data.store.shards import Group, Int32, Shard


@dataclass(frozen=True, kw_only=True)
class TokenStore(Reader):
    """Parquet files of token ids: ``input_ids`` and, for conversations, ``labels``, both
    list<int32>, labels -100 where untrained, rows padded to one length or not.

    Tokens are taken as they are: no tokenizer or template touches them, and the run's
    tokenizer must be the one that made them. Padding is removed: the tokens at a row's end
    that are the tokenizer's padding and are not trained. Where a row without labels is padded
    with the end-of-sequence token, one of them stays as its end. A sidecar ``.<part>.crc`` of
    four numbers, ``rows seq_len batch_size ncols``, is compared with its file.
    """

    path: Place
    """A file, a folder (every parquet file below it) or a glob pattern."""

    def files(self) -> list[Path]:
        found = io.find(self.path, (".parquet",))
        return [Path(file) for file in found]

    def documents(self, file: File) -> Iterator[str]:
        raise UserError(f"{file} holds tokens, not texts; a tokenizer cannot be trained on it")

    def rows(self, file: Path) -> int:
        """Rows by the file's footer; rows of padding only are counted too."""
        return sum(group.documents for group in self._groups(file)[0])

    def masked(self, file: Path) -> bool:
        """Whether the file has labels."""
        return self._groups(file)[1]

    def shards(
        self, file: Path, pad: int, eos: int, vocab: int, limit: int | None
    ) -> Iterator[Shard]:
        """The documents of a file's first ``limit`` rows, a row group or less at a time.

        Raises UserError for a file that is damaged, was made with a larger vocabulary or is
        not what its sidecar says.
        """
        import numpy as np

        from easyllm.data.store import shards

        groups, masked = self._groups(file)
        rows = sum(group.documents for group in groups)
        self._check_sidecar(file, rows, 1 + masked)
        left = rows if limit is None else limit
        try:
            for group in groups:
                for shard in shards.read_group(group):
                    self._check_ids(file, shard.ids, vocab)
                    taken = shard.take(np.arange(min(left, shard.documents)))
                    left -= taken.documents
                    if taken.documents:
                        yield _unpadded(taken, pad, eos)
        except shards.Damaged as damage:
            raise _damaged(file, damage) from None

    @staticmethod
    def _groups(file: Path) -> tuple[list[Group], bool]:
        from easyllm.data.store import shards

        try:
            return shards.groups(file)
        except shards.Damaged as damage:
            raise _damaged(file, damage) from None

    def _check_ids(self, file: Path, ids: Int32, vocab: int) -> None:
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
            raise UserError(
                f"{file} holds the token {int(ids.max() if ids.min() >= 0 else ids.min())}, and "
                f"the tokenizer has {vocab}; give data.tokenizer.path=<the one it was made with>"
            )

    def _check_sidecar(self, file: Path, rows: int, columns: int) -> None:
        stem = file.name.removesuffix(".parquet")
        for name in {file.name, stem, stem.removesuffix(".gzip")}:
            sidecar = file.with_name(f".{name}.crc")
            try:
                numbers = [int(word) for word in sidecar.read_text("ascii").split()]
            except (OSError, ValueError):
                continue  # none, or Hadoop's, which is binary
            if len(numbers) == 4 and (numbers[0], numbers[3]) != (rows, columns):
                raise UserError(
                    f"{file} has {rows} rows of {columns} columns, and {sidecar.name} says "
                    f"{numbers[0]} of {numbers[3]}; make it again, or remove both"
                )


def _damaged(file: Path, damage: Exception) -> UserError:
    return UserError(f"{file} is damaged: {damage}; make it again, or remove it")


def _unpadded(shard: Shard, pad: int, eos: int) -> Shard:
    """The documents without the padding at their ends; those of padding only are left out."""
    import numpy as np

    from easyllm.data.store.shards import Shard

    padding = shard.ids == pad
    if shard.trained is not None:
        padding &= ~shard.trained
    # a token is kept where it or a later one in its document is not padding
    kept = np.append(np.flatnonzero(~padding), shard.tokens)
    starts, ends = shard.offsets[:-1], shard.offsets[1:]
    last = np.append(-1, kept)[np.searchsorted(kept, ends, "left")]
    lengths = np.maximum(last + 1 - starts, 0)
    if shard.trained is None and pad == eos:
        lengths = np.where(lengths > 0, np.minimum(lengths + 1, shard.lengths), 0)
    filled = lengths > 0
    runs = np.stack([starts, starts + lengths], axis=1)[filled].ravel()
    # documents and the gaps between them alternate: every other run is a document
    bounds = np.concatenate([[0], runs, [shard.tokens]])
    whole = Shard(shard.ids, bounds, shard.trained)
    return whole.take(np.arange(1, len(bounds) - 1, 2))

"""Stage `vectors`: a share of the texts that dense negatives are found among, embedded by the pipeline's encoder; for
corpora too large for one job.

Without shards (`negatives.shards` 1) stage `negatives` embeds them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2llm.data.negatives.encoder import Encode, base_encoder
from d2llm.run.artifacts import MEND, atomic, read_frame
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths
from d2llm.run.schemas import POOL, TRAIN_PAIRS

if TYPE_CHECKING:
    from d2llm.config.recipes import Role
    from d2llm.config.schema import Config


def texts(config: Config) -> list[str]:
    """Every query and passage once, in an order that depends on the data alone."""
    paths = Paths.of(config)
    queries, pool = read_frame(paths.train_pairs, TRAIN_PAIRS)["query"], read_frame(paths.pool, POOL)["text"]
    return list(dict.fromkeys([*queries, *pool]))


def run(config: Config, shard: int, shards: int) -> None:
    """Embed every `shards`-th text, from number `shard` on."""
    from safetensors.numpy import save_file

    vectors = base_encoder(config).encode(texts(config)[shard::shards], "passage", "symmetric")
    with atomic(Paths.of(config).vectors(shard, shards)) as place:
        save_file({"vectors": vectors}, str(place))


def reader(config: Config) -> Encode:
    """Looks texts up among what all shards have embedded; queries and passages are fed alike. Raises ArtifactError for
    a shard of other texts.
    """
    from safetensors.numpy import load_file

    paths, shards = Paths.of(config), config.negatives.shards
    all_texts = texts(config)
    parts = [load_file(str(paths.vectors(shard, shards)))["vectors"] for shard in range(shards)]
    for shard, part in enumerate(parts):
        if len(part) != len(all_texts[shard::shards]):
            raise ArtifactError(
                f"{paths.vectors(shard, shards)}: {len(part)} vectors of {len(all_texts[shard::shards])} texts; {MEND}"
            )
    place = {text: row for row, text in enumerate(all_texts)}

    def encode(wanted: Sequence[str], role: Role) -> np.ndarray:
        rows = [place[text] for text in wanted]
        return np.stack([parts[row % shards][row // shards] for row in rows])

    return encode

"""What a prompt has in common with the one before is not read again.

The second turn of a chat begins with the whole first one. A key or a value depends on
the tokens up to its place alone, so those of a common beginning are the same, and what
the caches hold of it stays.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from minillama.cache import KVCache
from minillama.generate import Step, check_request, new_caches, room_for, stream
from minillama.model import Llama
from minillama.sampling import Sampler


class PrefixCache:
    """Caches that know which ids they were filled with, for one row.

    `ids` and what each cache holds agree as far as both go; either may be longer, and
    a turn that was broken off may have filled one layer further than the next. So
    nothing has to be told when an answer is broken off or a message edited: `reuse`
    keeps what still holds. Room is for `tokens` tokens (the model's whole context).
    """

    def __init__(self, model: Llama, tokens: int | None = None) -> None:
        self.model = model
        self.caches: list[KVCache] = new_caches(model, 1, tokens)
        self.ids: list[int] = []

    @property
    def context(self) -> int:
        """How many tokens there is room for."""
        return room_for(self.model, self.caches)

    def reuse(self, ids: Sequence[int]) -> list[int]:
        """Cut the caches back to what they have in common with `ids`; return the rest.

        The rest is what must be read now, and never empty: the last id is read again
        if need be, since its logits are wanted.
        """
        if not ids:
            raise ValueError("an empty prompt has no last token: give at least one")
        same = min(len(ids) - 1, len(self.ids), *(c.length for c in self.caches))
        pairs = enumerate(zip(ids[:same], self.ids, strict=False))
        same = next((i for i, (new, old) in pairs if new != old), same)
        for cache in self.caches:
            cache.truncate(same)
        self.ids = list(ids)
        return self.ids[same:]

    def stream(self, ids: Sequence[int], **options: Any) -> Iterator[Step]:
        """The steps of `stream` after the whole prompt, of which only the rest is read.

        Options are those of `stream`, save `caches`. Raises ValueError at the call; a
        prompt that does not fit leaves the caches as they were.
        """
        ids = [int(id) for id in ids]
        check_request(
            self.model,
            [ids],
            max_new_tokens=options.get("max_new_tokens", 256),
            context=self.context,
        )
        sampler = options.pop("sampler", None) or Sampler(temperature=0)
        choose = sampler.restart() if isinstance(sampler, Sampler) else sampler

        def with_all(logits: Tensor, _: list[list[int]]) -> Tensor:
            # `stream` knows the rest alone; a repetition penalty asks for all ids.
            return choose(logits, [self.ids])

        new = self.reuse(ids)
        steps = stream(self.model, new, caches=self.caches, sampler=with_all, **options)

        def run() -> Iterator[Step]:
            for step in steps:
                self.ids.append(step.id)
                yield step

        return run()

"""Interactive views, fed plain arrays and strings; offline, and by keyboard."""

from minillama.widgets.attention_view import AttentionView
from minillama.widgets.cache_view import CacheView
from minillama.widgets.chat_box import ChatBox
from minillama.widgets.logit_lens import LogitLensView
from minillama.widgets.next_token import NextTokenView
from minillama.widgets.query_key import QueryKeyView
from minillama.widgets.rope_clocks import RopeClocks
from minillama.widgets.tokens import TokensView, pieces
from minillama.widgets.values_view import ValuesView
from minillama.widgets.view import View

__all__ = [
    "AttentionView",
    "CacheView",
    "ChatBox",
    "LogitLensView",
    "NextTokenView",
    "QueryKeyView",
    "RopeClocks",
    "TokensView",
    "ValuesView",
    "View",
    "pieces",
]

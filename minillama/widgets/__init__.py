"""Interactive views, fed plain arrays and strings; offline, and by keyboard."""

from minillama.widgets.logit_lens import LogitLensView
from minillama.widgets.tokens import TokensView, pieces
from minillama.widgets.view import View

__all__ = ["LogitLensView", "TokensView", "View", "pieces"]

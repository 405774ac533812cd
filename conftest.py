"""For every test and for every kernel that nbval starts."""

import os

# A check that runs in a test is nobody's progress.
os.environ["MINILLAMA_PROGRESS"] = "off"

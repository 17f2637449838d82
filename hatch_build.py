"""The page on the index: the README, whose links to files of the repository lead nowhere there, so their names stay."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"\[([^\]]+)\]\((?!https://)[^)]+\)")


class IndexPage(MetadataHookInterface):
    """Makes the description of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": _RELATIVE.sub(r"\1", text)}

"""Where configurations, tables and Python files of one's own are found: the working directory."""

import sys
from pathlib import Path

OWN = "configs"  # folder of the working directory


def search_path(configs: Path) -> list[str]:
    """Overrides that have Hydra also search `./configs`; Python then finds modules of the working directory, too.

    The project's own configurations come first: a file of one's own needs a name of its own.

    Args:
        configs: the folder of the project's configurations.
    """
    here = Path.cwd()
    if str(here) not in sys.path:
        sys.path.append(str(here))  # last: nothing installed is hidden by a file that happens to lie here
    own = here / OWN
    if not own.is_dir() or own.samefile(configs):
        return []
    place = str(own).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['file://{place}']"]

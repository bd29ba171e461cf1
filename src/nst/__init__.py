"""Knowledge distillation of vision networks: NST and the losses it is compared with.

Each public name (docs/library.md; they are listed in `__init__.pyi`) is imported when it is first used.
"""

import lazy_loader

__version__ = "0.3.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

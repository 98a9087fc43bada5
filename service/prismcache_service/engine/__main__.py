"""``python -m prismcache_service.engine``: a worker process, see `prismcache_service.engine.local.worker`.

Imports make a hundred thousand objects, none of them garbage: looking for some takes a tenth of a worker's start.
"""

import gc

gc.disable()

from prismcache_service.engine.local.worker import main  # noqa: E402 - see above

gc.enable()
main()

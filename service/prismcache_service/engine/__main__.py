"""``python -m prismcache_service.engine``: a worker process, see `prismcache_service.engine.local.worker`.

The garbage collector is off during imports: they make 100,000 objects, none of them garbage, and collections would
take a tenth of a worker's start.
"""

import gc

gc.disable()

from prismcache_service.engine.local.worker import main  # noqa: E402 - see above

gc.enable()
main()

"""Made-up cases (hypothesis) judge what comes out, never how fast: the machine may be shared."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    "prismcache", hypothesis.settings(), deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("prismcache")

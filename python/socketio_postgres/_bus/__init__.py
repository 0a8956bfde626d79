"""One PostgreSQL as one Python object sees it: the core, and how Python waits for it. No cluster, no store."""

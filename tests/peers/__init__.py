"""Our servers and emitters beside the published Node.js packages, on one PostgreSQL."""

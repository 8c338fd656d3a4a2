"""Keys and values by the names that they had in older versions. They are refused with an error
that gives the new name."""

from __future__ import annotations

KEYS = {
    "data.limit": "data.max_documents",
    "data.max_rejects": "data.max_bad_records",
    "parallelism.bounds": "parallelism.stage_boundaries",
    "serving.insecure": "serving.allow_unauthenticated",
    "serving.overflow": "serving.context_overflow",
    "training.budget": "training.max_runtime",
}
VALUES = {("export.layout", "modern"): "canonical"}
